"""The two stages around an imagined network that knows the truth: grids, box, labels and numbers end up right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import simulated_answers, tiny

from segmamba.errors import Cancelled, ModelError
from segmamba.evaluation.metrics import dice_by_label
from segmamba.inference import two_stage
from segmamba.inference.context import RunContext
from segmamba.inference.level_anchors import PERSON, SEGMENTATION, LevelAnchor
from segmamba.inference.model_grid import FAST_SCALE, Box
from segmamba.inference.prediction import Prediction
from segmamba.inference.resample_back import resample_to_input
from segmamba.inference.sliding_window import NetworkOutput
from segmamba.inference.windows import Windows, fitted_patch
from segmamba.io.volume import Geometry, Volume
from segmamba.models.manifest import FineStage, Model, load_manifest
from segmamba.networks import build_network
from segmamba.networks.spine_mamba import LEVELS, MASK, OFFSET, OFFSET_UNIT_MM

CPU = torch.device("cpu")
SPACING = (1.1, 0.9, 1.6)
STAGE = {"in_channels": 1, "features": [8, 8, 8, 16, 16], "depths": [1, 1], "prior_tokens": 4}
Predict = Callable[..., Prediction]


@pytest.fixture(scope="module")
def truth(shared: Path) -> sitk.Image:
    """L3 to L5 of a real label map, on an oblique grid of flat voxels."""
    found = sitk.DICOMOrient(sitk.ReadImage(str(shared / "data/labels/open/verse004_vertebrae.nii.gz")), "LPS")
    # L3 to L5, with room around them.
    found = sitk.Mask(found, found > 21)
    levels = sitk.LabelShapeStatisticsImageFilter()
    levels.Execute(found > 0)
    x, y, z, *size = levels.GetBoundingBox(1)
    found = sitk.ConstantPad(sitk.RegionOfInterest(found, size, (x, y, z)), [16] * 3, [16] * 3)
    turn = sitk.Euler3DTransform()
    turn.SetRotation(0.05, -0.06, 0.1)
    size = [int(n * s / step) for n, s, step in zip(found.GetSize(), found.GetSpacing(), SPACING, strict=True)]
    direction = turn.GetMatrix()
    return sitk.Resample(
        found,
        size,
        sitk.Transform(),
        sitk.sitkNearestNeighbor,
        found.GetOrigin(),
        SPACING,
        direction,
        0,
        sitk.sitkUInt8,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tiny.write_model(tmp_path_factory.mktemp("model"))
    found = load_manifest(path).model(tiny.MODEL_ID)
    preprocessing = replace(found.preprocessing, spacing=(2.0, 2.0, 2.0), crop_threshold=None, orientation="LPS")
    fine = FineStage((1.25, 1.25, 1.25), (32, 32, 32), 0.3, ("pieces", "redraw"))
    return replace(found, preprocessing=preprocessing, fine=fine)


@pytest.fixture(scope="module")
def devices() -> list[str]:
    """Where each of the last call's passes was to run."""
    return []


@pytest.fixture(scope="module")
def predict(truth: sitk.Image, model: Model, devices: list[str]) -> Iterator[Predict]:
    """`predict_two_stage` on an image of the truth's grid, with networks that answer from the truth."""
    rng = np.random.default_rng(0)
    grids: list[Geometry] = []
    network_input = two_stage.network_input

    def noted(*arguments: Any, **options: Any) -> Any:
        image, grid = network_input(*arguments, **options)
        grids.append(grid.geometry)
        return image, grid

    def answer(network: Any, image: torch.Tensor, windows: Windows, context: RunContext, *_: Any) -> NetworkOutput:
        grid = grids[-1]
        devices.append(context.device.type)
        assert tuple(image.shape[:0:-1]) == grid.size
        empty = sitk.Image(list(grid.size), sitk.sitkUInt8)
        empty.SetOrigin(grid.origin)
        empty.SetSpacing(grid.spacing)
        labels = sitk.GetArrayFromImage(sitk.Resample(given[0], empty, sitk.Transform(), sitk.sitkNearestNeighbor))
        simulated = simulated_answers.simulate(labels, grid.spacing[0], rng, offset_noise_mm=1.0, mask_noise=0.1)
        result = torch.zeros(33, *labels.shape)
        result[MASK] = torch.from_numpy(simulated.probabilities).float().clamp(min=1e-6).log()
        # A network knows voxels only, and takes those of a fast run for its own.
        seen = FAST_SCALE if grid.spacing[0] == 2.5 else 1.0
        result[OFFSET] = torch.from_numpy(simulated.offsets).float() / (OFFSET_UNIT_MM * seen)
        result[LEVELS] = torch.from_numpy(simulated.evidence).float()
        return NetworkOutput(result if network is networks.coarse else result[:6], CPU, (), windows.patch)

    given = [truth]
    networks = build_network(
        "spine_mamba_two_stage", coarse=STAGE | {"out_channels": 33}, fine=STAGE | {"out_channels": 6}
    )

    def run(
        reference: sitk.Image = truth,
        roi: Box | None = None,
        refined: bool = False,
        device: str = "cpu",
        cancelled: Callable[[], bool] = lambda: False,
        anchors: Sequence[LevelAnchor] = (),
        fast: bool = False,
        model: Model = model,
    ) -> Prediction:
        devices.clear()
        given[0] = reference
        geometry = Geometry(
            reference.GetSize(), reference.GetSpacing(), reference.GetOrigin(), reference.GetDirection()
        )
        volume = Volume(sitk.GetArrayFromImage(reference).astype(np.int16), geometry, "CT")
        context = RunContext(
            torch.device(device), torch.float32, progress=progress.append, cancelled=cancelled, fast=fast
        )
        return two_stage.predict_two_stage(networks, volume, model, context, roi, refined, anchors)

    progress: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(two_stage, "network_input", noted)
        patch.setattr(two_stage, "predict", answer)
        yield run


@pytest.fixture(scope="module")
def prediction(predict: Predict) -> Prediction:
    return predict()


@pytest.fixture(scope="module")
def begun_on_cuda(predict: Predict, devices: list[str]) -> tuple[Prediction, list[str]]:
    """A run whose first pass began on a GPU and ended on the processor, and where its passes began."""
    return predict(device="cuda"), list(devices)


def labels_of(prediction: Prediction) -> np.ndarray:
    return resample_to_input(prediction.probabilities, prediction.grid, prediction.label_values)[0]


def test_labels_on_an_oblique_grid_are_those_of_the_truth(prediction: Prediction, truth: sitk.Image) -> None:
    scores = dice_by_label(labels_of(prediction), sitk.GetArrayFromImage(truth))
    assert set(scores) == {22, 23, 24}
    assert min(scores.values()) > 0.9
    numbering = prediction.findings["numbering"]
    assert numbering["levels"].keys() == {str(level) for level in (22, 23, 24)}
    assert all(0 <= probability <= 1 for probability in numbering["levels"].values())


def test_the_fine_grid_covers_the_column_and_not_the_whole_volume(prediction: Prediction) -> None:
    fine = np.prod(prediction.grid.geometry.size) * np.prod(prediction.grid.geometry.spacing)
    whole = np.prod(prediction.grid.input.size) * np.prod(prediction.grid.input.spacing)
    assert prediction.grid.geometry.spacing == (1.25, 1.25, 1.25)
    assert prediction.passes[0].grid.geometry.spacing == (2.0, 2.0, 2.0)
    assert fine < whole


def test_levels_that_are_set_are_those_of_the_labels_and_told_in_the_report(
    predict: Predict, truth: sitk.Image
) -> None:
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.Execute(truth)
    x, y, z = statistics.GetCentroid(23)
    anchor = LevelAnchor(22, (-x, -y, z))
    prediction = predict(anchors=[anchor])
    scores = dice_by_label(labels_of(prediction), sitk.GetArrayFromImage(truth) - (sitk.GetArrayFromImage(truth) > 0))
    assert set(scores) == {21, 22, 23} and min(scores.values()) > 0.9
    numbering = prediction.findings["numbering"]
    assert numbering["anchors"] == [
        {"level": "L3", "ras_mm": [round(-x, 2), round(-y, 2), round(z, 2)], "set_by": PERSON, "used": True}
    ]
    assert numbering["certain"] and numbering["levels"]["22"] == 1.0 and prediction.warnings == ()
    away = predict(anchors=[replace(anchor, ras_mm=(-x, 80 - y, z)), replace(anchor, level=23, source=SEGMENTATION)])
    assert away.label_values == (0, 22, 23, 24)
    assert [each["used"] for each in away.findings["numbering"]["anchors"]] == [False, True]
    assert away.warnings == ("The anchor L3 was not used, as no vertebra lies within 15 mm of it.",)
    assert not away.findings["numbering"]["certain"] and away.findings["numbering"]["reason"] == away.warnings[0]


def test_outside_the_region_of_interest_nothing_is_labelled(predict: Predict, truth: sitk.Image) -> None:
    middle = np.array(truth.TransformIndexToPhysicalPoint([n // 2 for n in truth.GetSize()]))
    low, high = (middle - 45).tolist(), (middle + 45).tolist()
    labels = labels_of(predict(roi=Box(tuple(low), tuple(high))))
    places = np.argwhere(labels > 0)[:, ::-1]
    assert len(places) > 1000
    points = np.array([truth.TransformIndexToPhysicalPoint(place.tolist()) for place in places[::97]])
    assert (points >= low).all()
    assert (points <= high).all()


def test_a_volume_without_vertebrae_gives_an_empty_segmentation(predict: Predict, truth: sitk.Image) -> None:
    prediction = predict(truth * 0)
    assert not labels_of(prediction).any()
    assert not prediction.findings["numbering"]["certain"]
    assert prediction.findings["numbering"]["levels"] == {}
    assert len(prediction.passes) == 1


def test_a_fine_pass_that_draws_nothing_gives_an_empty_segmentation(prediction: Prediction) -> None:
    shape = prediction.grid.geometry.size[::-1]
    probabilities, values = two_stage.label_probabilities(np.zeros(shape, np.uint8), torch.zeros(shape))
    assert not labels_of(replace(prediction, probabilities=probabilities, label_values=values)).any()


def test_refinement_is_reported_only_where_it_is_on(predict: Predict, prediction: Prediction) -> None:
    assert "refinement" not in prediction.findings
    assert isinstance(predict(refined=True).findings["refinement"], list)


def test_vertebrae_that_the_image_shows_badly_are_drawn_again(
    predict: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = {"step": "redraw", "level": "L4", "reason": "metal"}

    def redraw(*given: Any) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        *_, reasons, values, seen, check, probabilities = given
        assert reasons == {23: "metal"} and set(np.unique(seen.labels)) == set(values) == {0, 22, 23, 24}
        assert seen.image.shape[1:] == seen.labels.shape == probabilities.shape[1:]
        probabilities[values.index(23)] = 0
        return probabilities, [change]

    monkeypatch.setattr(two_stage, "badly_shown", lambda seen, redrawing: {23: "metal"})
    monkeypatch.setattr(two_stage, "redraw", redraw)
    found = predict(refined=True)
    assert change in found.findings["refinement"]
    assert any("L4 (metal)" in warning for warning in found.warnings)
    assert set(np.unique(labels_of(found))) == {0, 22, 24}
    # Without refinement nothing is drawn again.
    assert set(np.unique(labels_of(predict()))) == {0, 22, 23, 24}


def test_after_a_first_pass_that_ended_on_the_processor_the_second_one_starts_there(
    begun_on_cuda: tuple[Prediction, list[str]],
) -> None:
    prediction, devices = begun_on_cuda
    assert devices == ["cuda", "cpu"]
    assert [each.device for each in prediction.passes] == [CPU, CPU]


def test_only_the_first_pass_on_a_processor_has_windows_that_fit_the_volume(
    begun_on_cuda: tuple[Prediction, list[str]], prediction: Prediction, model: Model
) -> None:
    coarse, fine = prediction.passes
    size = coarse.grid.geometry.size[::-1]
    fitted = fitted_patch(size, model.patch, model.overlap)
    assert coarse.window == fitted != model.patch
    assert model.fine is not None and fine.window == model.fine.patch
    assert begun_on_cuda[0].passes[0].window == model.patch


def test_a_fast_run_finds_the_same_vertebrae_on_a_coarser_grid(
    predict: Predict, truth: sitk.Image, model: Model
) -> None:
    found = predict(fast=True)
    scores = dice_by_label(labels_of(found), sitk.GetArrayFromImage(truth))
    assert set(scores) == {22, 23, 24}
    assert min(scores.values()) > 0.9
    coarse, fine = found.passes
    assert (coarse.grid.geometry.spacing[0], fine.grid.geometry.spacing[0]) == (2.5, 1.25)
    assert model.fine is not None
    assert fine.window == fitted_patch(fine.grid.geometry.size[::-1], model.fine.patch, model.fine.overlap)


def test_windows_shorter_than_in_training_are_for_the_first_pass_of_a_fast_run(predict: Predict, model: Model) -> None:
    assert model.fine is not None
    tall = (320, 32, 32)
    model = replace(model, patch=tall, fine=replace(model.fine, patch=tall))
    for fast, coarse in ((True, 288), (False, 320)):
        assert [each.window[0] for each in predict(fast=fast, model=model).passes if each.window] == [coarse, 320]


def test_a_missing_shape_model_is_found_before_the_passes(
    predict: Predict, devices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(two_stage, "SHAPES", "Resources/Models/none.safetensors")
    with pytest.raises(ModelError, match="is not a shape model"):
        predict(refined=True)
    assert devices == []


def test_a_run_can_be_cancelled_between_finding_and_refining(
    predict: Predict, devices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Cancelled):
        predict(cancelled=lambda: len(devices) == 1)
    assert devices == ["cpu"]
    steps: list[str] = []
    monkeypatch.setattr(two_stage, "_shapes", lambda _path: "shapes")
    monkeypatch.setattr(two_stage, "refine", lambda *arguments: steps.append("refine") or arguments[5]())
    with pytest.raises(Cancelled):
        predict(refined=True, cancelled=lambda: bool(steps))


def test_a_network_of_one_stage_is_refused(model: Model) -> None:
    with pytest.raises(ModelError, match="has no two stages"):
        two_stage.predict_two_stage(
            torch.nn.Identity(),
            Volume(np.zeros((4, 4, 4)), Geometry((4, 4, 4), (1.0,) * 3, (0.0,) * 3, (1, 0, 0, 0, 1, 0, 0, 0, 1))),
            model,
            RunContext(CPU, torch.float32),
        )


def test_surfaces_are_smooth_and_numbers_sharp() -> None:
    labels = np.zeros((1, 1, 8), np.uint8)
    labels[0, 0, 2:4], labels[0, 0, 4:6] = 20, 21
    bone = torch.tensor([0.0, 0.3, 0.9, 0.8, 0.8, 0.2, 0.7, 0.6])[None, None]
    found, values = two_stage.label_probabilities(labels, bone)
    assert values == (0, 20, 21)
    probabilities = found.numpy()
    assert probabilities.sum(axis=0) == pytest.approx(np.ones((1, 1, 8)), abs=2e-3)
    assert probabilities[1, 0, 0] == pytest.approx([0, 0.3, 0.9, 0.8, 0, 0, 0, 0], abs=1e-3)
    # What the labels add is bone, and what they leave out is not; further out, no label could win.
    assert probabilities[2, 0, 0] == pytest.approx([0, 0, 0, 0, 0.8, 0.51, 0.49, 0], abs=1e-3)


def test_bone_belongs_to_the_nearest_label_that_it_touches() -> None:
    labels = np.zeros((3, 3, 5), np.uint8)
    labels[0, 0, 0], labels[1, 1, 2], labels[2, 2, 4] = 20, 21, 22
    owners = two_stage._spread(torch.from_numpy(labels), torch.ones(3, 3, 5, dtype=torch.bool)).numpy()
    assert owners[1, 0, 0] == 20 and owners[2, 1, 4] == 22  # a face is nearer than an edge or a corner
    assert owners[1, 1, 1] == owners[1, 1, 3] == 21
    labels[0, 1, 1], labels[1, 0, 1], labels[1, 2, 1] = 20, 22, 22
    more = two_stage._spread(torch.from_numpy(labels), torch.ones(3, 3, 5, dtype=torch.bool)).numpy()
    assert more[1, 1, 1] == 22  # of four labels beside it two are the same
    labels[0, 1, 1] = labels[1, 0, 1] = labels[1, 2, 1] = 0
    assert owners[0, 0, 4] == 0  # nothing is beside it
    nothing = two_stage._spread(torch.from_numpy(labels), torch.zeros(3, 3, 5, dtype=torch.bool))
    assert np.array_equal(nothing.numpy(), labels)


def test_checkpoints_of_two_stages_are_told_by_their_weights() -> None:
    from segmamba.networks.identify import expected_shapes, identify

    arguments = {"coarse": STAGE | {"out_channels": 33}, "fine": STAGE | {"out_channels": 6}}
    found = identify(expected_shapes("spine_mamba_two_stage", arguments))
    assert found is not None
    assert (found.architecture, found.in_channels, found.out_channels) == ("spine_mamba_two_stage", 1, 33)


class OnFullGpu:
    """Stands in for a tensor on a GPU without room for anything more."""

    device = torch.device("cuda:0")

    def to(self, place: torch.device) -> object:
        return "in main memory" if place.type == "cpu" else self


def test_a_step_for_which_a_gpu_has_no_room_is_done_in_main_memory() -> None:
    def step(*values: object) -> tuple[object, ...]:
        if isinstance(values[0], OnFullGpu):
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return values

    assert two_stage._with_room(step, OnFullGpu(), OnFullGpu()) == ("in main memory",) * 2
    with pytest.raises(RuntimeError, match="no kernel"):
        two_stage._with_room(lambda _: (_ for _ in ()).throw(RuntimeError("no kernel image")), OnFullGpu())
