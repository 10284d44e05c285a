"""Several co-registered volumes: which is which, what is refused before the work, one grid, and regions of labels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from helpers import brain
from helpers.dicom_files import write_slices
from helpers.phantoms import phantom, positions

from segmamba import segment
from segmamba.cli.main import main
from segmamba.errors import InputError, ModelError, OutputError
from segmamba.inference.channels import check_files, in_order, joined
from segmamba.inference.file_to_file import segment_file
from segmamba.inference.model_grid import ModelGrid, model_grid
from segmamba.inference.preprocess import padding_values, resample_to_model
from segmamba.inference.resample_back import resample_to_input
from segmamba.inference.sliding_window import region_probabilities
from segmamba.io.read import read_volume
from segmamba.io.volume import Geometry, Volume
from segmamba.models import store
from segmamba.models.manifest import IntensityNormalization, Model, load_manifest
from segmamba.request import Request


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return brain.write_brain_model(tmp_path_factory.mktemp("brain"))


@pytest.fixture(scope="module")
def model(manifest: Path) -> Model:
    return load_manifest(manifest).model(brain.BRAIN_ID)


def three() -> list[Volume]:
    return [brain.channel(seed) for seed in range(3)]


def test_the_input_is_the_channel_that_is_not_named(model: Model) -> None:
    assert in_order(model, "x", {"t1n": "b", "t2f": "c"}) == ("x", "b", "c")
    assert in_order(model, "x", {"T2F": "c", "T1C": "a"}) == ("a", "x", "c")


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ([], r"takes 3 co-registered volumes \(t1c, t1n, t2f\) and got 1: name all but one of them"),
        (["t1n"], "and got 2: name"),
        (["t1n", "t2f", "t1c"], "and got 4: name all but one"),
        (["t1n", "flair"], "has no channel 'flair': choose from t1c, t1n, t2f"),
        (["t1n", "T1N"], "The channel 't1n' is given twice"),
    ],
)
def test_channels_that_are_not_the_models_are_refused_by_name(model: Model, names: list[str], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        in_order(model, "x", dict.fromkeys(names, "y"))


def test_a_model_of_one_volume_takes_no_channel() -> None:
    spine = load_manifest().default("vertebrae")
    assert in_order(spine, "x", {}) == ("x",)
    with pytest.raises(InputError, match=r"'spinemamba' takes one volume: leave out the channel 't1c'\."):
        in_order(spine, "x", {"t1c": "y"})


def test_one_file_for_two_channels_is_refused(model: Model, tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(b"")
    (tmp_path / "link.nii").symlink_to(tmp_path / "a.nii")
    with pytest.raises(InputError, match="is given for both channels 't1c' and 't2f'"):
        check_files([str(tmp_path / "a.nii"), "b.nii", str(tmp_path / "link.nii")], model)


def test_one_image_in_two_files_is_refused(model: Model) -> None:
    first, second, _ = three()
    copy = replace(first, array=first.array.copy())
    with pytest.raises(InputError, match="Channels t1c and t2f hold the same image"):
        joined([first, second, copy], 0, model)


def test_volumes_of_one_grid_stay_as_they_are(model: Model) -> None:
    volumes = three()
    volume = joined(volumes, 1, model)
    assert all(ours is theirs.array for ours, theirs in zip(volume.channels, volumes, strict=True))
    assert volume.array is volumes[1].array and volume.notes == ()


TURNED = Geometry((60, 60, 60), (1.7, 1.9, 2.1), (40.0, 40.0, 20.0), (0, -1.0, 0, -1.0, 0, 0, 0, 0, 1.0))


def ramp(geometry: Geometry) -> Volume:
    x, y, z = np.moveaxis(positions(geometry), -1, 0)
    return Volume((300 + x + 2 * y - z).astype(np.float32), geometry)


@pytest.mark.parametrize("own", [0, 2])
def test_the_others_are_interpolated_linearly_onto_the_inputs_grid(model: Model, own: int) -> None:
    volumes = three()
    volumes[1] = ramp(TURNED)
    volume = joined(volumes, own, model)
    assert volume.geometry == brain.GRID
    inside = (slice(2, -2),) * 3
    np.testing.assert_allclose(volume.channels[1][inside], ramp(brain.GRID).array[inside], atol=0.02)


def test_what_a_volume_does_not_show_is_its_outside_and_is_told(model: Model) -> None:
    volumes = three()
    half = replace(brain.GRID, size=(24, 26, 14))
    volumes[2] = replace(brain.channel(2, half), notes=("It was resampled.",))
    volume = joined(volumes, 0, model)
    assert (volume.channels[2][16:] == 0).all() and (volume.channels[2][:13] > 0).mean() > 0.9
    assert volume.notes == (
        "Channel t2f: It was resampled.",
        "Channel t2f shows 50% of the input: check the result in the rest, where it is empty.",
    )


def test_volumes_that_do_not_overlap_are_refused(model: Model) -> None:
    volumes = three()
    volumes[1] = brain.channel(1, replace(brain.GRID, origin=(400.0, 0.0, 0.0)))
    with pytest.raises(InputError, match="Channels t1n and t1c do not overlap"):
        joined(volumes, 0, model)


def test_dicom_series_of_two_frames_of_reference_are_refused(model: Model, tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    grid = Geometry((6, 6, 4), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0), brain.EYE)
    volumes = []
    for number, frame in enumerate(("1.2.4", "1.2.4", "1.2.5")):
        array = np.random.default_rng(number).integers(0, 400, (4, 6, 6)).astype(np.int16)
        write_slices(tmp_path / frame[-1] / str(number), array, grid, FrameOfReferenceUID=frame, Modality="MR")
        volumes.append(read_volume(tmp_path / frame[-1] / str(number)))
    assert [volume.frame for volume in volumes] == ["1.2.4", "1.2.4", "1.2.5"]
    with pytest.raises(InputError, match="Channels t2f and t1c have different frames of reference"):
        joined(volumes, 0, model)


def test_a_volume_of_another_modality_than_its_channel_is_refused(model: Model) -> None:
    volumes = three()
    with pytest.raises(InputError, match="Channel t1n is CT and the model 'tiny-brain' takes MR"):
        joined([volumes[0], replace(volumes[1], modality="CT"), volumes[2]], 0, model)
    ct = phantom()
    with pytest.raises(InputError, match="Channel t2f has air or fat in Hounsfield units, so it is a CT"):
        joined([volumes[0], volumes[1], ct], 0, model)
    with pytest.raises(InputError, match="Channel t1c is CT"):
        joined(volumes, 0, model, "CT")
    said = joined(
        [volumes[0], volumes[1], replace(ct, geometry=brain.GRID, array=ct.array[:28, :26, :24])], 0, model, "MR"
    )
    assert len(said.channels) == 3
    # The user says what the input is: a CT there is for a model that takes one there.
    mixed = replace(model.input_channels[0], modality="CT"), *model.input_channels[1:]
    with pytest.raises(InputError, match="Channel t1c's values start at"):
        joined(volumes, 0, replace(model, input_channels=mixed))


def test_each_channel_is_normalised_and_padded_as_its_own(model: Model) -> None:
    mixed = (replace(model.input_channels[0], fill_value=300.0), *model.input_channels[1:])
    model = replace(model, input_channels=mixed)
    volumes = three()
    image, grid = resample_to_model(joined(volumes, 0, model), model)
    assert grid.geometry.size == brain.GRID.size
    for number, (ours, volume) in enumerate(zip(image, volumes, strict=True), start=1):
        np.testing.assert_allclose(ours, (volume.array - 100 * number) / (50 * number), atol=1e-3)
    assert padding_values(model, torch.from_numpy(image)) == pytest.approx((4.0, -2.0, -2.0))


def test_a_run_without_all_volumes_is_refused(model: Model) -> None:
    with pytest.raises(InputError, match="takes 3 volumes and got 1"):
        resample_to_model(three()[0], model)


def test_zscore_is_that_of_the_cropped_volume_and_the_crop_is_what_any_channel_shows(model: Model) -> None:
    scheme = IntensityNormalization("zscore", 0.0, 100.0)
    preprocessing = replace(model.preprocessing, normalization=(scheme,) * 3, crop_nonzero=True)
    model = replace(model, preprocessing=preprocessing)
    arrays = np.zeros((3, *brain.GRID.size[::-1]), np.float32)
    arrays[0, 4:9, 5:20, 6:20] = np.random.default_rng(0).uniform(5, 90, (5, 15, 14))
    arrays[1, 8:20, 5:9, 3:20] = 7
    arrays[2, 10, 10, 10] = 3
    volume = joined([Volume(array, brain.GRID) for array in arrays], 0, model)
    assert model_grid(volume, preprocessing).crop == (slice(4, 20), slice(5, 20), slice(3, 20))
    image, _ = resample_to_model(volume, model)
    for ours, array in zip(image, arrays[:, 4:20, 5:20, 3:20], strict=True):
        np.testing.assert_allclose(ours, (array - array.mean()) / array.std(), rtol=1e-3, atol=1e-3)


def grid_of_one_row(count: int) -> ModelGrid:
    geometry = Geometry((count, 2, 2), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), brain.EYE)
    return ModelGrid(geometry, geometry, (slice(0, 2), slice(0, 2), slice(0, count)))


def test_a_voxel_has_the_label_of_the_last_region_that_it_is_in() -> None:
    probability = np.array(
        [
            # Whole tumour, core, enhancing: in none, in the first, in two, in all, in the last alone, just below half.
            [0.1, 0.2, 0.3],
            [0.6, 0.45, 0.45],
            [0.9, 0.51, 0.2],
            [0.9, 0.99, 0.6],
            [0.3, 0.1, 0.7],
            [0.49, 0.49, 0.49],
        ]
    ).T
    logits = torch.from_numpy(np.log(probability / (1 - probability))).float()
    scores = region_probabilities(logits[:, None, None, :].expand(-1, 2, 2, -1))
    labels, confidence = resample_to_input(scores, grid_of_one_row(6), (0, 2, 1, 3), regions=True)
    assert labels[0, 0].tolist() == [0, 2, 1, 3, 3, 0]
    assert np.allclose(confidence[0, 0] / 255, [0, 0.6, 0.51, 0.6, 0.7, 0], atol=0.003)


def test_from_files_to_labels_as_computed_apart(model: Model, manifest: Path, tmp_path: Path) -> None:
    paths = brain.write_channels(tmp_path)
    expected = brain.expected_labels(three())
    assert {value: (expected == value).mean() > 0.05 for value in (0, 5, 7)} == dict.fromkeys((0, 5, 7), True)
    others = {name: path for name, path in paths.items() if name != "t1n"}
    report = segment_file(
        Request.of(
            paths["t1n"],
            str(tmp_path / "out.nii.gz"),
            model=brain.BRAIN_ID,
            manifest=manifest,
            channels=others,
            device="cpu",
            precision="float32",
            preview=str(tmp_path / "out.png"),
        )
    )
    labels = np.asanyarray(nibabel.load(tmp_path / "out.nii.gz").dataobj).T
    assert (labels == expected).mean() > 0.999
    assert report["channels"] == paths and report["input"] == paths["t1n"]
    assert {row["name"] for row in report["segments"]} == set(brain.REGIONS)


def test_python_call_takes_channels_by_name(model: Model, manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = three()
    monkeypatch.setattr(store, "resource_root", lambda: manifest.parent)
    given = {"t1n": second, "t2f": third}
    result = segment(first, model=model, channels=given, device="cpu", precision="float32")
    assert (result.labels == brain.expected_labels(three())).mean() > 0.999
    with pytest.raises(InputError, match="co-registered volumes"):
        segment(first, model=model)


def test_command_line_names_the_channels(manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = brain.write_channels(tmp_path)
    command = ["segment", paths["t1c"], "-o", str(tmp_path / "out.nii.gz"), "--manifest", str(manifest), "--in-process"]
    command += ["--model", brain.BRAIN_ID, "--device", "cpu", "--report", str(tmp_path / "out.json")]
    assert main([*command, "--channel", f"t1n={paths['t1n']}"]) == InputError.exit_code
    assert "name all but one of them as channels (--channel NAME=FILE)" in capsys.readouterr().err
    assert main([*command, "--channel", "t1n"]) == InputError.exit_code
    assert "give one file for each name, as NAME=FILE" in capsys.readouterr().err
    missing = [*command, "--channel", f"t1n={paths['t1n']}", "--channel", "t2f=no.nii"]
    assert main(missing) == InputError.exit_code
    assert "no.nii does not exist" in capsys.readouterr().err
    named = [*command, "--channel", f"T1n={paths['t1n']}", "--channel", f"t2f={paths['t2f']}"]
    assert main([*named, "--output", paths["t2f"], "--overwrite"]) == OutputError.exit_code
    assert "is an input" in capsys.readouterr().err
    assert main(named) == 0
    assert json.loads((tmp_path / "out.json").read_text())["channels"] == paths


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"input_channels": [{"name": "a"}, {"name": "A"}, {"name": "b"}]}, "takes several volumes: their names must"),
        ({"input_channels": [{"name": "a"}, {"name": "b"}]}, "each needs one normalization"),
        ({"channel_values": [0, 5]}, "has regions together with a background channel"),
        ({"resample": "logits"}, "has regions together with"),
    ],
)
def test_an_entry_that_does_not_fit_together_is_refused(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=sentence):
        load_manifest(brain.write_brain_model(tmp_path, **changes))
