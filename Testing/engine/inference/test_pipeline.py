"""From a volume to labels and a report, with a tiny network."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.phantoms import STRAIGHT, phantom

from segmamba import scan
from segmamba.errors import Cancelled, DeviceError, InputError, ModelError
from segmamba.inference import engine, pipeline, run_report, two_stage
from segmamba.inference.device import Device, choose_device
from segmamba.inference.model_grid import model_grid
from segmamba.inference.prediction import NetworkPass, Prediction
from segmamba.inference.windows import window_count
from segmamba.io import modality
from segmamba.io.volume import Volume
from segmamba.models.manifest import FineStage, LogitMarginThreshold, Model, Postprocessing, load_manifest
from segmamba.request import Options

VALUES = {0, 20, 21, 22}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def manifest_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(manifest_path: Path) -> Model:
    return load_manifest(manifest_path).default("vertebrae")


@pytest.fixture(scope="module")
def volume() -> Volume:
    return phantom()


def segment(volume: Volume, model: Model, root: Path, **options: object) -> pipeline.Result:
    return pipeline.segment(volume, model, Options(device="cpu", **options), root=root)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def result(volume: Volume, model: Model, manifest_path: Path) -> pipeline.Result:
    return segment(volume, model, manifest_path.parent, precision="float32")


def test_the_labels_lie_on_the_input_grid_and_have_the_manifests_values(result: pipeline.Result) -> None:
    assert result.labels.shape == STRAIGHT.size[::-1]
    assert result.labels.dtype == np.uint8
    assert len(set(np.unique(result.labels))) > 1
    assert set(np.unique(result.labels)) <= VALUES


def test_the_same_run_gives_the_same_labels(
    result: pipeline.Result, volume: Volume, model: Model, manifest_path: Path
) -> None:
    again = segment(volume, model, manifest_path.parent, precision="float32")
    np.testing.assert_array_equal(again.labels, result.labels)


@pytest.mark.parametrize(
    ("kind", "task", "expected"),
    [
        ("cuda", "vertebrae", [[], [True], [True]]),
        ("cuda", "colorectal", [[], [False]]),
        ("cpu", "vertebrae", [[], []]),
    ],
)
def test_helpers_begin_with_the_second_volume_on_a_gpu_and_ahead_for_a_spine(
    kind: str,
    task: str,
    expected: list[list[bool]],
    volume: Volume,
    manifest_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    happened: list[bool] = []
    monkeypatch.setattr(engine, "_network", functools.cache(lambda *_: torch.nn.Identity()))
    monkeypatch.setattr(pipeline.helper_processes, "begin", lambda ahead: happened.append(ahead))

    def prepared(*given: Any) -> engine.Engine:
        made = engine.prepare(*given)
        return replace(made, device=replace(made.device, kind=kind))

    def only_load(stage: str, _: float) -> None:
        if stage != "load":
            raise Cancelled()

    monkeypatch.setattr(pipeline, "prepare", prepared)
    model = replace(load_manifest(manifest_path).default("vertebrae"), task=task)
    for begun in expected:
        happened.clear()
        with pytest.raises(Cancelled):
            pipeline.segment(volume, model, Options(device="cpu"), only_load, root=manifest_path.parent)
        assert happened == begun


def test_the_report_says_what_ran_on_what(result: pipeline.Result, model: Model) -> None:
    report = json.loads(json.dumps(result.report, allow_nan=False))
    assert report["model"]["id"] == tiny.MODEL_ID
    assert report["model"]["checkpoint_sha256"] == model.file.sha256
    assert report["model"]["checkpoint_in_manifest"] is True
    assert report["model"]["estimated"] == "the weights are random"
    assert report["model"]["limits"] == ["It knows nothing."]
    run = report["run"]
    assert (run["device"], run["precision"], run["scan_backend"]) == ("cpu", "float32", "torch")
    assert run["warnings"] == []
    assert run["windows"] > 1
    assert set(report["timings_s"]) == {"load", "preprocess", "predict", "postprocess"}
    assert report["software"]["torch"]
    assert "not a medical device" in report["disclaimer"]


def test_the_report_of_two_stages_tells_grid_and_windows_of_each(
    volume: Volume, model: Model, manifest_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = FineStage((2.0, 2.0, 2.0), (16, 16, 16), 0.3, ())
    coarse, fine = (model_grid(volume, replace(model.preprocessing, spacing=(step,) * 3)) for step in (4.0, 2.0))
    sure = {"numbering": {"certain": True}}
    empty = torch.ones(1, *fine.geometry.size[::-1])
    window = (48, 32, 32)
    passes = (NetworkPass(coarse, CPU, window), NetworkPass(fine, CPU))
    prediction = Prediction(empty, (0,), fine, passes, sure)
    monkeypatch.setattr(two_stage, "predict_two_stage", lambda *_: prediction)
    report = segment(volume, replace(model, fine=stage), manifest_path.parent).report
    for run, grid, patch, overlap in (
        (report["run"], coarse, window, model.overlap),
        (report["run"]["fine"], fine, stage.patch, stage.overlap),
    ):
        assert run["model_grid"]["size"] == list(grid.geometry.size)
        assert run["patch"] == list(patch)
        assert run["windows"] == window_count(grid.geometry.size[::-1], patch, overlap)
    assert report["run"]["work"] == 1.5 * report["run"]["windows"]
    assert report["run"]["fine"]["work"] == report["run"]["fine"]["windows"]
    assert report["segments"] == []
    assert report["summary"] == "No structure was found: the segmentation is empty."


def test_a_second_stage_that_ran_out_of_memory_is_reported_on_the_cpu(
    volume: Volume, model: Model, manifest_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Device("cuda:0", "cuda", "Fine GPU", "float16", 2**34, 2**34)
    cpu = choose_device("cpu")
    for module in (engine, run_report):
        monkeypatch.setattr(module, "choose_device", lambda name, precision: cpu if name == "cpu" else gpu)
    monkeypatch.setattr(scan, "chosen_backend", lambda name: "torch" if name == "cpu" else "triton")
    grid = model_grid(volume, model.preprocessing)
    empty = torch.ones(1, *grid.geometry.size[::-1])
    passes = tuple(NetworkPass(grid, device) for device in (torch.device("cuda:0"), CPU))
    monkeypatch.setattr(two_stage, "predict_two_stage", lambda *_: Prediction(empty, (0,), grid, passes, {}))
    two = replace(model, fine=FineStage((4.0, 4.0, 4.0), (16, 16, 16), 0.3, ()))
    run = pipeline.segment(volume, two, Options(device="cuda"), root=manifest_path.parent).report["run"]
    where = ("device", "precision", "scan_backend")
    assert [run[name] for name in where] == ["cuda:0", "float16", "triton"]
    assert [run["fine"][name] for name in where] == ["cpu", cpu.precision, "torch"]


def test_refinement_and_post_processing_are_chosen_apart_and_reported(
    volume: Volume, model: Model, manifest_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def predict(network: Any, volume: Any, model: Model, *more: Any) -> Prediction:
        _context, _roi, refined, _anchors = more
        asked.append(refined)
        grid = model_grid(volume, model.preprocessing)
        empty = torch.ones(1, *grid.geometry.size[::-1])
        return Prediction(empty, (0,), grid, (NetworkPass(grid, CPU),), {})

    monkeypatch.setattr(two_stage, "predict_two_stage", predict)
    fine = FineStage((4.0, 4.0, 4.0), (16, 16, 16), 0.3, ("pieces", "close"))
    two = replace(model, fine=fine, postprocessing=Postprocessing.LARGEST_COLUMN)
    for refine, keep, steps, rule in ((True, False, ["pieces", "close"], "none"), (False, True, [], "largest_column")):
        run = segment(volume, two, manifest_path.parent, refine=refine, postprocess=keep).report["run"]
        assert (run["refine"], run["postprocessing"]) == (steps, rule)
        assert asked[-1] == refine


def test_what_the_network_is_nowhere_sure_of_is_left_to_what_is_second_unless_nothing_is_post_processed(
    volume: Volume, model: Model, manifest_path: Path
) -> None:
    plain = segment(volume, model, manifest_path.parent)
    value = int(np.unique(plain.labels)[-1])
    sceptical = replace(model, margin_threshold=LogitMarginThreshold(value, 50.0))
    sure, all_of_it = (segment(volume, sceptical, manifest_path.parent, postprocess=keep) for keep in (True, False))
    assert value not in sure.labels and np.array_equal(all_of_it.labels, plain.labels)
    assert (sure.labels[plain.labels == value] > 0).any()
    assert sure.report["run"]["margin_threshold"] == {"label": value, "high": 50.0}
    assert all_of_it.report["run"]["margin_threshold"] is None is plain.report["run"]["margin_threshold"]
    # What was rejected is told, in numbers and in a sentence.
    rejected = sure.report["rejected"]
    assert rejected["label"] == value and rejected["count"] >= 1 and rejected["largest_ml"] > 1.0
    (note,) = (note for note in sure.report["run"]["notes"] if "too uncertain to be marked" in note)
    assert note.startswith(next(label.name for label in model.labels if label.value == value))
    assert f"{rejected['largest_ml']:g} mL" in note and "rejected" not in all_of_it.report


@pytest.mark.parametrize(
    ("volumes", "said"),
    [
        ([], ""),
        ([0.4, 1.0], ""),
        ([35.24, 0.2], "one candidate of 35.2 mL is too uncertain to be marked."),
        ([2.0, 35.24, 4.0], "3 candidates, the largest of 35.2 mL, are too uncertain to be marked."),
    ],
)
def test_only_candidates_over_a_millilitre_are_told(volumes: list[float], said: str, model: Model) -> None:
    label = model.labels[-1]
    note = run_report.rejected_note(run_report.describe_rejected(np.array(volumes), label.value), model)
    assert note == (f"{label.name}: {said}" if said else "")


def test_the_reports_volumes_are_those_of_the_labels(result: pipeline.Result) -> None:
    segments = result.report["segments"]
    assert {segment["value"] for segment in segments} == set(np.unique(result.labels)) - {0}
    for segment in segments:
        voxels = np.count_nonzero(result.labels == segment["value"])
        assert segment["voxels"] == voxels
        assert segment["volume_ml"] == pytest.approx(voxels * 1.5 * 1.5 * 2.0 / 1000, abs=1e-3)
        assert 0.25 <= segment["mean_confidence"] <= 1


def test_a_modality_that_is_not_stated_is_inferred_once_a_run(
    volume: Volume, model: Model, manifest_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[np.ndarray] = []
    infer = modality.infer_modality
    monkeypatch.setattr(modality, "infer_modality", lambda array: asked.append(array) or infer(array))
    unstated = segment(replace(volume, modality=None), model, manifest_path.parent)
    assert len(asked) == 1
    stated = segment(replace(volume, modality="CT"), model, manifest_path.parent)
    assert len(asked) == 1
    for result, inferred in ((unstated, True), (stated, False)):
        about = result.report["volume"]
        assert (about["modality"], about["modality_inferred"]) == ("CT", inferred)


def test_only_the_structures_asked_for_are_kept(
    result: pipeline.Result, volume: Volume, model: Model, manifest_path: Path
) -> None:
    present = [segment["name"] for segment in result.report["segments"]]
    value = next(label.value for label in model.labels if label.name == present[0])
    named = segment(volume, model, manifest_path.parent, precision="float32", structures=(present[0].upper(),))
    numbered = segment(volume, model, manifest_path.parent, precision="float32", structures=(str(value),))
    np.testing.assert_array_equal(named.labels, np.where(result.labels == value, value, 0))
    np.testing.assert_array_equal(named.labels, numbered.labels)


def test_an_unknown_structure_names_those_that_are_known(volume: Volume, model: Model, manifest_path: Path) -> None:
    with pytest.raises(ModelError, match="L1 vertebra, L2 vertebra"):
        segment(volume, model, manifest_path.parent, structures=("T99",))


def test_nothing_outside_the_region_of_interest_is_labelled(volume: Volume, model: Model, manifest_path: Path) -> None:
    roi = ((-10.0, -10.0, 80.0), (20.0, 20.0, 120.0))
    labels = segment(volume, model, manifest_path.parent, roi=roi).labels
    z, y, x = np.nonzero(labels)
    assert len(z)
    assert (z * 2.0 + 13.0).min() >= 80.0
    assert (z * 2.0 + 13.0).max() <= 120.0
    assert (x * 1.5 - 52.0).min() >= -10.0


def test_mirroring_is_off_unless_asked_for(volume: Volume, model: Model, manifest_path: Path) -> None:
    assert segment(volume, model, manifest_path.parent).report["run"]["tta_axes"] == []
    assert segment(volume, model, manifest_path.parent, tta=True).report["run"]["tta_axes"] == [0]


def test_a_network_that_finds_nothing_gives_an_empty_result_that_says_so(volume: Volume, tmp_path: Path) -> None:
    model = load_manifest(tiny.write_model(tmp_path, empty=True)).default("vertebrae")
    result = segment(volume, model, tmp_path)
    assert not result.labels.any()
    assert result.report["segments"] == []
    assert "No structure was found" in result.report["summary"]


def test_a_damaged_checkpoint_is_refused_before_it_is_loaded(volume: Volume, tmp_path: Path) -> None:
    model = load_manifest(tiny.write_model(tmp_path)).default("vertebrae")
    checkpoint = tmp_path / "tiny.safetensors"
    content = bytearray(checkpoint.read_bytes())
    content[-1] ^= 1
    checkpoint.write_bytes(content)
    with pytest.raises(ModelError, match="SHA-256 differs"):
        segment(volume, model, tmp_path)
    checkpoint.write_bytes(content[:-10])
    with pytest.raises(ModelError, match="bytes"):
        segment(volume, model, tmp_path)


def test_a_checkpoint_that_is_not_installed_says_where_to_put_it(
    volume: Volume, manifest_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGMAMBA_MODELS", str(tmp_path))
    model = load_manifest(manifest_path).model(tiny.MISSING_ID)
    with pytest.raises(ModelError, match="missing.pt") as caught:
        segment(volume, model, manifest_path.parent)
    assert str(tmp_path / tiny.MISSING_ID) in str(caught.value)


def test_a_checkpoint_of_ones_own_replaces_the_models(volume: Volume, manifest_path: Path) -> None:
    model = load_manifest(manifest_path).model(tiny.MISSING_ID)
    checkpoint = manifest_path.parent / "tiny.safetensors"
    report = pipeline.segment(volume, model, Options(device="cpu"), checkpoint=checkpoint).report
    assert report["model"]["checkpoint"] == "tiny.safetensors"
    assert report["model"]["checkpoint_in_manifest"] is False


def test_a_cancelled_run_ends_between_windows(volume: Volume, model: Model, manifest_path: Path) -> None:
    seen: list[tuple[str, float]] = []
    with pytest.raises(Cancelled):
        pipeline.segment(
            volume,
            model,
            Options(device="cpu"),
            lambda stage, fraction: seen.append((stage, fraction)),
            lambda: any(stage == "predict" and fraction > 0 for stage, fraction in seen),
            root=manifest_path.parent,
        )
    assert seen[-1][0] == "predict"
    assert 0 < seen[-1][1] < 1


def test_the_network_is_loaded_once_for_several_volumes(
    volume: Volume, model: Model, manifest_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment(volume, model, manifest_path.parent)

    def refuse(path: Path) -> None:
        raise AssertionError("loaded again")

    monkeypatch.setattr(engine, "load_state_dict", refuse)
    assert segment(volume, model, manifest_path.parent).labels.any()


def test_a_gpu_with_too_little_memory_gives_way_to_the_cpu_only_if_nobody_asked_for_it(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Device("cuda:0", "cuda", "Small GPU", "float16", 4 * 2**30, 2**30)
    cpu = choose_device("cpu")
    monkeypatch.setattr(engine, "choose_device", lambda name, precision: cpu if name == "cpu" else small)
    hungry = replace(model, entry={**model.entry, "memory_gib": 3.0})
    device, (warning,) = engine.device_for(hungry, Options())
    assert device is cpu
    assert "1.0 GiB free" in warning
    with pytest.raises(DeviceError, match="needs 3.0 GiB: close other programs"):
        engine.device_for(hungry, Options(device="cuda"))


@pytest.mark.parametrize("options", [{"overlap": 1.5}, {"roi": ((0.0, 0.0, 0.0), (1.0, 0.0, 1.0))}])
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"overlap|region of interest"):
        Options(**options)  # type: ignore[arg-type]


def test_a_patient_who_lies_otherwise_than_the_header_says_is_told(
    volume: Volume, model: Model, manifest_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[np.ndarray | None] = []
    sentence = "The patient seems to lie otherwise."
    monkeypatch.setattr(pipeline, "orientation_doubt", lambda labels, affine, ct, boxes: asked.append(ct) or sentence)
    for modality_of_run in ("CT", "MR"):
        changed = replace(volume, modality=modality_of_run)
        run = segment(changed, model, manifest_path.parent, density_calibration=(0.8, -5.0)).report["run"]
        assert sentence in run["warnings"]
        # An MR has no Hounsfield units, and a phantom's line that is not used is told.
        unused = [note for note in run["notes"] if note.startswith("The density calibration was not used")]
        assert len(unused) == (modality_of_run == "MR")
    np.testing.assert_array_equal(asked[0], volume.array)
    assert asked[1] is None


@pytest.mark.parametrize(("reason", "kept"), [("", "orientation"), ("T12 could be T11.", "T12 could be T11.")])
def test_levels_of_such_a_patient_are_never_certain(reason: str, kept: str) -> None:
    numbering = {"certain": not reason, "reason": reason, "probability": 0.99}
    doubted = pipeline._doubted({"numbering": numbering, "refinement": []})
    assert not doubted["numbering"]["certain"] and kept in doubted["numbering"]["reason"]
    assert doubted["numbering"]["probability"] == 0.99 and doubted["refinement"] == []
    assert pipeline._doubted({"measurements": []}) == {"measurements": []}
