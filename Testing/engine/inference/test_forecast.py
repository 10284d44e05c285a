"""What a run will take, told before it starts."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny
from helpers.phantoms import phantom
from helpers.repository import REPOSITORY

from segmamba.errors import InputError
from segmamba.inference.file_to_file import segment_file
from segmamba.inference.forecast import FINE_TIME, fine_windows, forecast, main_memory, with_fitted_window
from segmamba.inference.model_grid import cropped_geometry
from segmamba.inference.windows import LARGEST_ON_GPU
from segmamba.io.volume import Geometry, Volume, to_image
from segmamba.models.manifest import Model, load_manifest
from segmamba.request import Options, Request


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_manifest(tiny.write_model(tmp_path_factory.mktemp("tiny"))).models[0]


def test_grid_and_windows_are_those_of_the_run(model: Model, tmp_path: Path) -> None:
    import SimpleITK as sitk

    volume = phantom()
    sitk.WriteImage(to_image(volume.array, volume.geometry), str(tmp_path / "ct.nii.gz"))
    manifest = tiny.write_model(tmp_path)
    request = Request(str(tmp_path / "ct.nii.gz"), str(tmp_path / "out.nii"), "vertebrae", manifest=str(manifest))
    run = segment_file(request)["run"]
    told = forecast(volume, model, Options())
    assert list(told.size) == run["model_grid"]["size"]
    assert told.windows == run["windows"]


def test_mirroring_and_overlap_cost_windows(model: Model) -> None:
    volume = phantom()
    standard = forecast(volume, model, Options()).windows
    assert forecast(volume, model, Options(tta=True)).windows == 2 * standard
    assert forecast(volume, model, Options(overlap=0.25)).windows <= standard


def test_a_fast_run_on_a_processor_is_forecast_in_shorter_windows() -> None:
    spine = load_manifest().default("vertebrae")
    size = (119, 144, 133)
    assert with_fitted_window(spine, size, spine.overlap).patch[0] == spine.patch[0] == 160
    assert with_fitted_window(spine, size, spine.overlap, fast=True).patch[0] == 144
    coarser, usual = (
        forecast(phantom(), replace(spine, patch=(160, 96, 96)), Options(device="cpu", fast=fast))
        for fast in (True, False)
    )
    assert coarser.windows == usual.windows == 1
    assert coarser.memory < usual.memory
    assert coarser.work < 0.95 * usual.work


def test_a_coarser_copy_of_the_volume_gives_nearly_the_same(model: Model) -> None:
    volume = phantom()
    whole = tuple(slice(0, length) for length in volume.array.shape)
    geometry = cropped_geometry(volume.geometry, (whole[0], whole[1], whole[2]))
    spacing = tuple(2 * step for step in geometry.spacing)
    coarse = np.ascontiguousarray(volume.array[::2, ::2, ::2])
    half = replace(geometry, size=coarse.shape[::-1], spacing=spacing)
    told, roughly = (
        forecast(volume, model, Options()),
        forecast(Volume(coarse, half), model, Options(), volume.array.size),
    )
    assert np.abs(np.subtract(told.size, roughly.size)).max() <= 3
    assert roughly.memory == pytest.approx(told.memory, rel=0.1)


def test_a_larger_volume_and_more_classes_need_more_memory(model: Model) -> None:
    small = Volume(np.zeros((40, 40, 40), np.int16), Geometry((40, 40, 40), (4.0,) * 3, (0.0,) * 3, phantom_axes()))
    large = Volume(np.zeros((80, 80, 80), np.int16), Geometry((80, 80, 80), (4.0,) * 3, (0.0,) * 3, phantom_axes()))
    assert forecast(large, model, Options()).memory > forecast(small, model, Options()).memory
    more = replace(model, channel_values=tuple(range(27)))
    assert forecast(large, more, Options()).memory > forecast(large, model, Options()).memory


def test_of_two_stages_the_first_ones_answer_decides_the_memory() -> None:
    spine = load_manifest().default("vertebrae")
    channels = spine.arguments["coarse"]["out_channels"]
    double = replace(spine, arguments={"coarse": {"out_channels": 2 * channels}})
    volume, size = phantom(), (200, 100, 160)
    voxels = np.prod(
        [max(pair) for pair in zip(forecast(volume, spine, Options()).size, spine.patch[::-1], strict=True)]
    )
    twice, once = forecast(volume, double, Options()), forecast(volume, spine, Options())
    # On a GPU the sum of the windows lies beside the answer, as long as a window.
    assert 4 * channels * voxels < twice.device_memory - once.device_memory <= 2 * 4 * channels * voxels
    answer = 4 * channels * np.prod(size)
    # On a processor the windows are added up in the answer; beside a GPU there is a ring of a window's length, too.
    assert main_memory(double, size, 12, 0) - main_memory(spine, size, 12, 0) == pytest.approx(answer)
    assert main_memory(double, size, 12, 0, True) - main_memory(spine, size, 12, 0, True) > answer
    assert twice.device_memory - once.device_memory == once.device_memory - once.window_memory


def test_on_a_gpu_an_answer_in_main_memory_and_fewer_windows_at_a_time_take_less() -> None:
    colorectal = load_manifest().model("segmamba-v2-colorectal")
    told, voxels = forecast(phantom(), colorectal, Options()), 600**3
    assert told.window_memory < told.device_memory < told.device_memory_with_room
    axes = Geometry((600, 600, 600), colorectal.preprocessing.spacing, (0.0,) * 3, phantom_axes())
    large = forecast(Volume(np.broadcast_to(np.int16(40), (600, 600, 600)), axes), colorectal, Options())
    assert 4 * 4 * voxels > LARGEST_ON_GPU > large.device_memory - large.window_memory


def test_the_windows_of_two_stages_on_a_processor_are_fewer_and_larger() -> None:
    spine = load_manifest().default("vertebrae")
    # 180 x 149 x 167 voxels of 2 mm, as the chest CT has.
    chest = Volume(
        np.zeros((167, 149, 180), np.int16), Geometry((180, 149, 167), (2.0,) * 3, (0.0,) * 3, phantom_axes())
    )
    on_gpu, on_cpu = (forecast(chest, spine, Options(device=device)) for device in ("cuda", "cpu"))
    assert (on_gpu.windows, on_cpu.windows) == (12, 4)
    assert on_cpu.work < 0.7 * on_gpu.work
    assert on_cpu.memory == on_gpu.memory > main_memory(spine, (180, 149, 167), 4, chest.array.size)
    assert on_cpu.memory_beside_gpu == on_gpu.memory_beside_gpu


def test_a_volume_without_a_body_is_refused(model: Model) -> None:
    empty = Volume(np.full((9, 9, 9), -1000, np.int16), Geometry((9, 9, 9), (4.0,) * 3, (0.0,) * 3, phantom_axes()))
    with pytest.raises(InputError, match="no body"):
        forecast(empty, model, Options())


def phantom_axes() -> tuple[float, ...]:
    return tuple(np.eye(3).ravel().tolist())


def test_forecasting_does_not_import_torch() -> None:
    code = "import segmamba.inference.forecast, segmamba.io.modality, sys; assert 'torch' not in sys.modules"
    folder = REPOSITORY / "SegMambaSlicer"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)


def measured(machine: str) -> list[dict[str, Any]]:
    paths = sorted((REPOSITORY / "benchmarks/results").glob(f"*-cost-{machine}.json"))
    return [row for path in paths for row in json.loads(path.read_text())["rows"]]


MEASURED = measured("intel-xeon-processor")
MEASURED_ON_GPU = measured("nvidia-h200")


@pytest.mark.parametrize(
    "row", [*MEASURED, *MEASURED_ON_GPU], ids=lambda row: f"{row['case']} {row['model']} {row['device']}"
)
def test_the_forecast_of_main_memory_is_within_a_fifth_of_what_was_measured(row: dict[str, Any]) -> None:
    model = load_manifest().model(row["model"])
    voxels, beside_gpu = int(np.prod(row["volume"])), row in MEASURED_ON_GPU
    if not beside_gpu:
        overlap = 0.0 if row["random weights"] else model.overlap
        model = with_fitted_window(model, tuple(row["model grid"]), overlap)
    told = main_memory(model, tuple(row["model grid"]), row["windows"], voxels, beside_gpu)
    assert told / 2**30 == pytest.approx(row["peak memory GiB"], rel=0.2)


@pytest.mark.parametrize("row", [row for row in MEASURED if row["fine windows"]], ids=lambda row: row["case"])
def test_the_windows_of_the_second_stage_are_estimated_to_a_factor_of_two(row: dict[str, Any]) -> None:
    model = load_manifest().model(row["model"])
    assert 0.5 <= fine_windows(tuple(row["model grid"]), model, Options()) / row["fine windows"] <= 2


def test_the_time_of_one_run_tells_that_of_the_others_to_a_fifth() -> None:
    """In processor seconds, which other programs change less than the clock."""
    chest, *others = [row for row in MEASURED if row["model"] == "spinemamba"]

    def work(row: dict[str, Any]) -> float:
        model, size = load_manifest().model(row["model"]), tuple(row["model grid"])
        grown = np.prod(with_fitted_window(model, size, model.overlap).patch) / np.prod(model.patch)
        return float(row["windows"] * grown + FINE_TIME * fine_windows(size, model, Options()))

    rate = chest["predict, processor s"] / work(chest)
    assert others
    for row in others:
        assert rate * work(row) == pytest.approx(row["predict, processor s"], rel=0.2), row["case"]
