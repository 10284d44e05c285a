"""Regions that may overlap, on images of several channels: their loss, their Dice, and a model that runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers.labelled_images import NNUNET, write

from segmamba.cli.main import main
from segmamba.errors import InputError, ModelError
from segmamba.models.library import load_models
from segmamba.models.resources import resource_root
from segmamba.training.dataset.fingerprint import take_fingerprint
from segmamba.training.dataset.package import label_set
from segmamba.training.dataset.plan import IGNORED, Plan
from segmamba.training.dataset.prepare import prepare
from segmamba.training.dataset.read import read_dataset
from segmamba.training.dataset.regions import dice_of_regions, region_loss, written_classes
from segmamba.training.dataset.start import Start, class_map, plan_from
from segmamba.training.dataset.train import Order, plan_training
from segmamba.training.dataset.validation import validate

REGIONS = ((1, 2, 3), (2, 3), (3,))
TWO: dict[str, Any] = NNUNET | {
    "channel_names": {"0": "FLAIR", "1": "T1c"},
    "labels": {"background": 0, "whole": [1, 2], "core": [2]},
    "regions_class_order": [1, 2],
}
TINY = {"in_channels": 2, "out_channels": 2, "features": [8, 8, 8, 16, 16], "depths": [1, 1], "shape_prior": False}


def write_two(folder: Path, names: str = "abcd", size: int = 24, description: dict[str, Any] = TWO) -> Path:
    """Write cubes in cubes: the first channel shows the outer ones, the second the inner ones."""
    for seed, name in enumerate(names):
        rng = np.random.default_rng(seed)
        labels = np.zeros((size,) * 3, np.uint8)
        z, y, x = rng.integers(1, size // 3, 3)
        labels[z : z + size // 2, y : y + size // 2, x : x + size // 2] = 1
        end = 1 + size // 4
        labels[z + 1 : z + end, y + 1 : y + end, x + 1 : x + end] = 2
        for channel, inside in enumerate((labels > 0, labels == 2)):
            image = 100 + rng.normal(0, 10, labels.shape) + 100 * inside
            write(image.astype(np.float32), folder / "imagesTr" / f"{name}_000{channel}.nii")
        write(labels, folder / "labelsTr" / f"{name}.nii")
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def test_the_loss_is_cross_entropy_and_dice_of_each_region_where_labels_are_known() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, 6, generator=generator)
    labels = torch.randint(0, 3, (2, 4, 5, 6), generator=generator)
    labels[0, 0] = IGNORED
    known = (labels != IGNORED).numpy()
    cross_entropy, dice = [], []
    for number, classes in enumerate(REGIONS):
        p = torch.sigmoid(logits[:, number]).numpy()[known]
        inside = np.isin(labels.numpy(), classes)[known]
        cross_entropy.append(-np.log(np.where(inside, p, 1 - p)).mean())
        if inside.any():  # nothing is of class 3 here
            dice.append((2 * p[inside].sum() + 1) / (inside.sum() + p.sum() + 1))
    assert len(dice) == 2
    expected = np.mean(cross_entropy) + 1 - np.mean(dice)
    assert region_loss(logits, labels, REGIONS, IGNORED).item() == pytest.approx(expected, rel=1e-5)
    unknown = labels.clamp(max=3)
    assert region_loss(logits, unknown, REGIONS).item() == pytest.approx(
        region_loss(logits, unknown, REGIONS, IGNORED).item(), rel=1e-5
    )


def test_a_perfect_answer_costs_nothing_and_unlabelled_voxels_have_no_gradient() -> None:
    labels = torch.zeros(1, 2, 2, 2, dtype=torch.int64)
    labels[0, 0, 0], labels[0, 1, 1] = torch.tensor([3, 1]), torch.tensor([IGNORED, 2])
    perfect = torch.stack([100.0 * torch.isin(labels, torch.tensor(classes)) - 50.0 for classes in REGIONS], dim=1)
    assert region_loss(perfect, labels, REGIONS, IGNORED).item() < 0.01
    logits = torch.zeros(1, 3, 2, 2, 2, requires_grad=True)
    region_loss(logits, labels, REGIONS, IGNORED).backward()
    assert not logits.grad[0, :, 1, 1, 0].any() and logits.grad[0, :, 0].all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_loss_on_a_gpu_is_that_of_the_processor_and_finite_in_half_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(2, 3, 24, 20, 16, generator=generator)
    labels = torch.randint(0, 4, (2, 24, 20, 16), generator=generator)
    labels[0, :3] = IGNORED

    def loss_and_gradient(device: str, ignore: int | None) -> tuple[float, torch.Tensor]:
        answer = logits.to(device).detach().requires_grad_()
        known = labels if ignore is not None else labels.clamp(max=3)
        loss = region_loss(answer, known.to(device), REGIONS, ignore)
        loss.backward()
        return loss.item(), answer.grad.cpu()

    for ignore in (None, IGNORED):
        (ours, gradient), (expected, other) = (loss_and_gradient(device, ignore) for device in ("cuda", "cpu"))
        assert ours == pytest.approx(expected, rel=1e-5)
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-8)
    # Also of the largest numbers of half precision, right and wrong, whose sums overflow where they are not float32's.
    for dtype in (torch.float16, torch.bfloat16):
        for answers in (logits, 6e4 * logits.sign()):
            answer = answers.to("cuda", dtype).requires_grad_()
            with torch.autocast("cuda", dtype):
                loss = region_loss(answer, labels.cuda(), REGIONS, IGNORED)
            loss.backward()
            assert loss.dtype == torch.float32 and loss.isfinite() and answer.grad.isfinite().all()


def test_the_dice_of_regions_counts_each_by_itself() -> None:
    reference = np.array([[[1, 2, 2, 0, IGNORED]]])
    found = np.array([[[[1, 1, 1, 1, 1]]], [[[0, 1, 0, 0, 1]]], [[[1, 0, 0, 0, 0]]]], bool)
    dice = dice_of_regions(found, reference, ["whole", "core", "enhancing"], REGIONS)
    assert dice == {"whole": pytest.approx(6 / 7), "core": pytest.approx(2 / 3)}
    assert written_classes(found, [1, 2, 3]).tolist() == [[[3, 2, 1, 1, 2]]]


@pytest.fixture
def planned(tmp_path: Path) -> Plan:
    return plan_training(Order(write_two(tmp_path / "data", "ab", 12), tmp_path / "run", "spinemamba", device="cpu"))


def test_a_plan_of_regions_has_an_output_for_each_and_a_class_for_each_value(planned: Plan, tmp_path: Path) -> None:
    assert planned.recipe.arguments["in_channels"] == planned.recipe.arguments["out_channels"] == 2
    assert (planned.classes, planned.outputs, planned.region_classes) == (3, 2, ((1, 2), (2,)))
    assert planned.class_names == ("whole", "core")
    assert [entry["name"] for entry in label_set(planned)] == ["whole without core", "core"]
    assert plan_training(Order(tmp_path / "data", tmp_path / "run", device="cpu")) == planned
    with pytest.raises(ValueError, match="out_channels must be 2: one a region"):
        replace(planned, recipe=replace(planned.recipe, arguments={**TINY, "out_channels": 3}))


def test_channels_are_named_apart_and_know_their_modality(planned: Plan) -> None:
    assert [(c.name, c.modality, c.fill_value) for c in planned.input_channels] == [
        ("FLAIR", "MR", 0.0),
        ("T1c", "MR", 0.0),
    ]
    mixed = replace(planned, channels=("CT", "PET")).input_channels
    assert [(c.name, c.modality, c.fill_value) for c in mixed] == [("CT", "CT", -1024.0), ("PET", None, 0.0)]
    alike = replace(planned, channels=("zscore", "zscore")).input_channels
    assert [channel.name for channel in alike] == ["zscore-0", "zscore-1"]


def test_cases_are_cropped_to_what_any_channel_shows_and_each_is_normalised(planned: Plan, tmp_path: Path) -> None:
    case = read_dataset(tmp_path / "data").cases[0]
    arrays = [sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in case.images]
    arrays[0][:4], arrays[1][:, :3] = 0, 0
    arrays[0][:, :2] = 0
    for array, path in zip(arrays, case.images, strict=True):
        write(array, path)
    prepared = prepare(case, replace(planned, crop_nonzero=True))
    assert prepared.image.shape == (2, 12, 10, 12) and prepared.labels.shape == (12, 10, 12)
    assert set(np.unique(prepared.labels)) <= {0, 1, 2} and len(prepared.padding) == 2
    write(arrays[1][:, :, 1:], case.images[1])
    with pytest.raises(InputError, match=r"a\.nii is not on the grid of a_0001\.nii"):
        prepare(case, planned)


def test_channels_in_four_dimensions_are_those_of_a_file_for_each(planned: Plan, tmp_path: Path) -> None:
    case = read_dataset(tmp_path / "data").cases[0]
    names = {"modality": {"0": "FLAIR", "1": "T1c"}, "labels": {"0": "background", "1": "whole", "2": "core"}}
    parts = [nibabel.load(path) for path in case.images]
    folder = tmp_path / "decathlon"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(names))
    stacked = np.stack([part.get_fdata(dtype=np.float32) for part in parts], axis=-1)
    path = folder / "imagesTr" / "a.nii.gz"
    nibabel.Nifti1Image(stacked, parts[0].affine).to_filename(path)
    nibabel.Nifti1Image(np.asarray(nibabel.load(case.labels).dataobj), parts[0].affine).to_filename(
        folder / "labelsTr" / "a.nii.gz"
    )
    described = read_dataset(folder)
    (whole,) = described.cases
    assert described.channels == ("FLAIR", "T1c") and whole.images == (path,)
    ours, theirs = prepare(whole, planned), prepare(case, planned)
    np.testing.assert_array_equal(ours.image, theirs.image)
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    # Of another number of volumes, with a value that is none, and cut off.
    nibabel.Nifti1Image(stacked[..., :1], parts[0].affine).to_filename(path)
    with pytest.raises(InputError, match=r"a\.nii\.gz has .* x 1 voxels and not the 2 channels of dataset\.json: give"):
        take_fingerprint(described)
    stacked[3, 3, 3, 1] = np.nan
    nibabel.Nifti1Image(stacked, parts[0].affine).to_filename(path)
    with pytest.raises(InputError, match=r"a\.nii\.gz cannot be trained on, for its channel 1: .* in 1 voxel: repair"):
        take_fingerprint(described)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match=r"a\.nii\.gz cannot be read as NIfTI of four dimensions"):
        take_fingerprint(described)


class FromImage(torch.nn.Module):
    """Finds in each channel what is brighter than its mean by far."""

    def __init__(self) -> None:
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor(1.9))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image - self.level


def test_held_out_cases_are_scored_region_by_region(planned: Plan, tmp_path: Path) -> None:
    from segmamba.training.dataset.cache import read_case
    from segmamba.training.dataset.prepare import fill_cache

    cases = read_dataset(write_two(tmp_path / "larger", "ab")).cases
    fill_cache(cases, planned, tmp_path / "cache")
    read = [read_case(tmp_path / "cache", case.name) for case in cases]
    assert [len(places) > 0 for places in read[0].places] == [True, True]
    found = validate(FromImage(), read, (16, 16, 16), list(planned.labels), planned.region_classes)
    assert all(scores.keys() == {"whole", "core"} and min(scores.values()) > 0.9 for scores in found.values())


@pytest.mark.slow
def test_a_data_set_of_two_channels_and_regions_becomes_a_model_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGMAMBA_MODELS", str(tmp_path / "store"))
    data = write_two(tmp_path / "data", size=16)
    command = ["train", str(data), "--output", str(tmp_path / "run"), "--device", "cpu"]
    assert main([*command, "--architecture", "spinemamba", "--plan-only"]) == 0
    path = tmp_path / "run" / "plan.json"
    plan = json.loads(path.read_text())
    assert plan["regions"] == {"whole": [1, 2], "core": [2]}
    changes = {"arguments": TINY, "iterations": 14, "warmup": 2, "learning_rate": 0.01, "ema": 0.7, "batch": 2}
    plan["patch"] = [16, 16, 16]
    plan["recipe"] |= changes | {"log_every": 8}
    path.write_text(json.dumps(plan))
    assert main(command) == 0
    fold = tmp_path / "run" / "fold-0"
    log = [json.loads(line) for line in (fold / "log.jsonl").read_text().splitlines()]
    (scores,) = log[-1]["evaluation"].values()
    assert scores.keys() == {"whole", "core"} and min(scores.values()) > 0.7
    assert (fold / "model" / "worst.png").is_file()
    description = json.loads((fold / "model" / "model.json").read_text())
    schema = json.loads((resource_root() / "Resources/schemas/weights_manifest.schema.json").read_text())
    item = {"$ref": "#/$defs/model/properties/input_channels", "$defs": schema["$defs"]}
    jsonschema.validate(description["models"][0]["input_channels"], item)
    item["$ref"] = "#/$defs/model/properties/regions"
    jsonschema.validate(description["models"][0]["regions"], item)
    assert main(["models", "import", str(tmp_path / "run"), "--as", "cubes"]) == 0
    images = [str(data / "imagesTr" / f"a_000{number}.nii") for number in (0, 1)]
    output = tmp_path / "found.nii"
    segment = ["segment", images[0], "--task", "cubes", "-o", str(output), "--device", "cpu", "--in-process"]
    assert main(segment) == InputError.exit_code
    assert main([*segment, "--channel", f"t1C={images[1]}"]) == 0
    found, expected = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (output, data / "labelsTr/a.nii"))
    for value in (1, 2):
        ours, theirs = found == value, expected == value
        assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > 0.5
    # From that model to another one: its channels, its regions, and its weights.
    start = Start(load_models().model("cubes"), fold / "weights.safetensors")
    assert start.model.regions == {"whole": (1, 2), "core": (2,)}
    ours = plan_training(Order(data, tmp_path / "run", device="cpu"))
    assert class_map(ours, start) == {0: 0, 1: 1}
    assert plan_from(ours, start).recipe.arguments == TINY
    turned = replace(ours, channels=("T1c", "FLAIR"))
    with pytest.raises(ModelError, match="takes its channels in the order flair, t1c"):
        plan_from(turned, start)
