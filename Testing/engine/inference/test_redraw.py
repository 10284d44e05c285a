"""Which vertebrae are drawn again, and that they are nearer to the truth then."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.placed_spine import L1, L2, T12, Column
from safetensors.torch import save_file
from scipy import ndimage

from segmamba.errors import Cancelled, ModelError
from segmamba.inference import redraw as step
from segmamba.inference.two_stage import label_probabilities
from segmamba.io.modality import CT, MR
from segmamba.io.volume import Geometry, Volume
from segmamba.models.manifest import load_manifest
from segmamba.models.resources import REDRAWING, resource_root
from segmamba.networks.vertebra_refiner import VertebraRefiner
from segmamba.spine.levels import T13
from segmamba.spine.refine import fit_column
from segmamba.spine.shape_model import ShapeModel
from segmamba.tasks import VERTEBRAE_TASK

SPACING = 1.5
NORMALIZATION = load_manifest(None).default(VERTEBRAE_TASK).preprocessing.normalization


@cache
def labels() -> np.ndarray:
    """T12, L1 and L2 on an upright grid: z, y, x to superior, posterior and left."""
    return np.ascontiguousarray(Column("straight").labels[:, ::-1, ::-1])


def grid(spacing: tuple[float, float, float] = (SPACING, SPACING, SPACING)) -> Geometry:
    x, y, z = (round(n * SPACING / s) for n, s in zip(labels().shape[::-1], spacing, strict=True))
    return Geometry((x, y, z), spacing, (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))


def scan(modality: str = CT, spacing: tuple[float, float, float] = (SPACING, SPACING, SPACING)) -> Volume:
    values = np.where(labels() > 0, 350, 40).astype(np.int16)
    geometry = grid(spacing)
    return Volume(np.resize(values, geometry.size[::-1]), geometry, modality)


def as_input(hu: np.ndarray) -> torch.Tensor:
    rows = [(np.clip(hu, each.low, each.high) - each.mean) / each.std for each in NORMALIZATION]
    return torch.from_numpy(np.stack(rows)).float()


@pytest.fixture(scope="module")
def redrawing(shapes: ShapeModel) -> step.Redrawing:
    return step.load_redrawing(resource_root() / REDRAWING, shapes)


@pytest.fixture
def badly_shown(redrawing: step.Redrawing) -> Any:
    def found(volume: Volume, hu: np.ndarray | None = None, mask: np.ndarray | None = None) -> dict[int, str]:
        image = as_input(volume.array if hu is None else hu)
        given = labels() if mask is None else mask
        return step.badly_shown(step.Seen(given, image, volume, grid(), NORMALIZATION), redrawing)

    return found


def test_thin_slices_that_show_bone_are_left_alone(badly_shown: Any) -> None:
    assert badly_shown(scan()) == {}
    assert badly_shown(scan(MR)) == {}
    noise = np.random.default_rng(0).normal(0, 80, labels().shape)
    noisy = scan()
    noisy = Volume((noisy.array + noise).astype(np.int16), noisy.geometry, CT)
    assert badly_shown(noisy) == {}


def test_all_vertebrae_in_thick_slices_are_drawn_again_on_ct(badly_shown: Any) -> None:
    spacing, nothing = (4.5, SPACING, SPACING), np.zeros(labels().shape)
    assert badly_shown(scan(CT, spacing), nothing) == dict.fromkeys((T12, L1, L2), "slices of 4.5 mm")
    assert badly_shown(scan(MR, spacing), nothing) == {}


def test_a_vertebra_with_a_screw_is_drawn_again(badly_shown: Any) -> None:
    volume = scan()
    z, y, x = (int(index) for index in ndimage.center_of_mass(labels() == L2))
    # Far enough from L1.
    volume.array[z - 4 : z - 2, y - 5 : y + 5, x - 4 : x] = 3071
    assert badly_shown(volume) == {L2: "metal"}
    # Two bright voxels are no metal, and MR has no Hounsfield units.
    few = scan()
    few.array[z, y, x : x + 2] = 3071
    assert badly_shown(few) == {}
    assert badly_shown(Volume(volume.array, volume.geometry, MR)) == {}


def test_metal_is_found_where_the_volume_has_other_voxels(badly_shown: Any) -> None:
    volume = scan(CT, (1.0, 1.0, 3.0))
    volume.array[:] = 40
    z, y, x = ndimage.center_of_mass(labels() == T12)
    z, y, x = round((z + 6) * SPACING / 3.0), round(y * SPACING), round(x * SPACING)
    volume.array[z, y - 8 : y + 8, x - 3 : x + 3] = 3071
    assert badly_shown(volume, np.where(labels() > 0, 350.0, 40.0)) == {T12: "metal"}


def test_vertebrae_around_contrast_medium_are_drawn_again(badly_shown: Any) -> None:
    volume = scan()
    # What bone encloses in axial planes, beside L1 and L2 alone.
    canal = np.stack([ndimage.binary_fill_holes(plane) & ~plane for plane in labels() > 0])
    canal[np.argwhere(labels() == L1)[:, 0].max() :] = False
    nearest = np.argwhere(canal).mean(axis=0)
    places = np.indices(labels().shape)
    canal = np.hypot(*((places[axis] - nearest[axis]) * SPACING for axis in (1, 2))) < 15
    canal &= (labels() == 0) & (places[0] < np.argwhere(labels() == L1)[:, 0].max())
    volume.array[canal] = 300
    found = badly_shown(volume)
    assert found[L1] == found[L2] == "contrast medium in the canal"
    assert T12 not in found


def test_a_sliver_of_a_vertebra_is_left_alone(badly_shown: Any) -> None:
    few = labels().copy()
    few[tuple(np.argwhere(few == L2)[400:].T)] = 0
    assert set(badly_shown(scan(CT, (SPACING, SPACING, 5.0)), np.zeros(few.shape), few)) == {T12, L1}


def test_slivers_alone_and_no_vertebra_are_left_alone(badly_shown: Any) -> None:
    few = np.zeros_like(labels())
    assert badly_shown(scan(), mask=few) == {}
    few[tuple(np.argwhere(labels() == L2)[:400].T)] = L2
    assert badly_shown(scan(), mask=few) == {}


@cache
def thick() -> np.ndarray:
    """What slices of 7 mm show, in Hounsfield units: a cortex around spongy bone, in soft tissue."""
    depth = ndimage.distance_transform_edt(labels() > 0) * SPACING
    hu = np.where(depth > 0, np.where(depth > 2, 200, 600), 50).astype(float)
    blurred = ndimage.gaussian_filter1d(hu, 7.0 / SPACING / 2.355, axis=0)
    return blurred + np.random.default_rng(0).normal(0, 10, blurred.shape)


@cache
def seen() -> tuple[np.ndarray, np.ndarray]:
    """Ragged masks, as a network makes of such slices, and its probability of bone."""
    noise = ndimage.gaussian_filter(np.random.default_rng(1).normal(0, 1, labels().shape), 1.5)
    bone = ndimage.gaussian_filter((labels() > 0).astype(float), (1.5, 0.7, 0.7)) + 0.25 * noise / noise.std()
    bone = np.clip(bone, 0.001, 0.999)
    bone[ndimage.distance_transform_edt(labels() == 0) > 4] = 0.001
    nearest = ndimage.distance_transform_edt(labels() == 0, return_distances=False, return_indices=True)
    return np.where(bone > 0.5, labels()[tuple(nearest)], 0).astype(np.uint8), bone


def redrawn(
    redrawing: step.Redrawing,
    reasons: dict[int, str],
    mask: np.ndarray,
    bone: np.ndarray,
    **more: Any,
) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...], list[dict[str, Any]]]:
    before, values = label_probabilities(mask, torch.from_numpy(bone).float())
    source = Volume(np.zeros((2, 2, 2), np.int16), grid((SPACING, SPACING, 7.0)), CT)
    seen = step.Seen(mask, as_input(thick()), source, grid(), NORMALIZATION, more.get("fits", {}))
    check = more.get("check", lambda: None)
    given = before.clone().to(more.get("device", "cpu"))
    after, changes = step.redraw(redrawing, reasons, values, seen, check, given)
    return before, after, values, changes


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_masks_of_thick_slices_come_nearer_to_the_truth(redrawing: step.Redrawing) -> None:
    mask, bone = seen()
    reasons = dict.fromkeys((T12, L1, L2), "slices of 7.0 mm")
    _, after, values, changes = redrawn(redrawing, reasons, mask, bone)
    found = np.array(values)[after.argmax(dim=0).numpy()]
    for level in (T12, L1, L2):
        assert dice(found == level, labels() == level) > dice(mask == level, labels() == level) + 0.01
    assert {change["level"] for change in changes} == {"T12", "L1", "L2"}
    assert all(change["step"] == "redraw" and change["reason"] == "slices of 7.0 mm" for change in changes)
    total = sum(change["added_voxels"] + change["removed_voxels"] for change in changes)
    moved = mask != found
    assert total == np.count_nonzero(mask[moved]) + np.count_nonzero(found[moved])
    torch.testing.assert_close(after.float().sum(dim=0), torch.ones(mask.shape), atol=5e-3, rtol=0)


class _Says(torch.nn.Module):
    """A network that says the same of every point."""

    def __init__(self, change: float) -> None:
        super().__init__()
        self.change = change

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return torch.full((len(given), *given.shape[2:]), self.change)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_the_same(redrawing: step.Redrawing) -> None:
    mask, bone = seen()
    reasons = dict.fromkeys((T12, L1, L2), "metal")
    here = redrawn(redrawing, reasons, mask, bone)[1].argmax(dim=0)
    there = redrawn(redrawing, reasons, mask, bone, device="cuda")[1]
    assert there.is_cuda
    assert float((there.argmax(dim=0).cpu() == here).float().mean()) > 0.9995


def test_the_network_that_stays_does_not_move_to_the_device(
    redrawing: step.Redrawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[object] = []

    def to(network: VertebraRefiner, *_: object) -> VertebraRefiner:
        moved.append(network)
        return network

    monkeypatch.setattr(VertebraRefiner, "to", to)
    redrawn(redrawing, {L1: "metal"}, *seen())
    assert len(moved) == 1 and moved[0] is not redrawing.network


def test_a_network_that_would_draw_another_shape_is_not_believed(redrawing: step.Redrawing) -> None:
    mask, bone = seen()
    for change, believed in ((-9.0, False), (9.0, False), (0.3, True)):
        other = replace(redrawing, network=_Says(change))
        before, after, _, changes = redrawn(other, {L1: "metal"}, mask, bone)
        assert torch.equal(before, after) is not believed and bool(changes) is believed


def test_what_is_not_shaped_like_a_vertebra_is_left_alone(redrawing: step.Redrawing) -> None:
    mask, bone = seen()
    middle = ndimage.center_of_mass(mask == L1)
    plate = np.abs(np.indices(mask.shape)[0] - middle[0]) < 1
    mask = np.where(plate, L1, np.where(mask == L1, 0, mask)).astype(np.uint8)
    before, after, _, changes = redrawn(redrawing, {L1: "metal"}, mask, np.where(plate, 0.9, bone))
    assert torch.equal(before, after) and changes == []


def test_a_vertebra_that_is_not_asked_for_stays_as_it_is(redrawing: step.Redrawing) -> None:
    mask, bone = seen()
    before, after, values, changes = redrawn(redrawing, {L2: "metal"}, mask, bone)
    top = values.index(T12)
    assert torch.equal(after[top], before[top])
    assert "L2" in {change["level"] for change in changes}
    assert {change["level"]: change.get("reason") for change in changes}.get("L1") is None


def test_fits_that_are_known_are_not_made_again(
    redrawing: step.Redrawing, shapes: ShapeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask, bone = seen()
    reasons = dict.fromkeys((T12, L1), "metal")
    expected = redrawn(redrawing, reasons, mask, bone)[1]
    fits = fit_column(mask, SPACING, shapes, lambda: None, None)
    monkeypatch.setattr(step, "fit_column", None)
    assert torch.equal(redrawn(redrawing, reasons, mask, bone, fits=fits)[1], expected)
    monkeypatch.setattr(step, "fit_column", lambda *given: {L1: fits[L1]} if given[-1] == {L1} else {})
    assert torch.equal(redrawn(redrawing, reasons, mask, bone, fits={T12: fits[T12], L2: fits[L2]})[1], expected)


def test_vertebrae_at_a_time_make_no_difference(redrawing: step.Redrawing, monkeypatch: pytest.MonkeyPatch) -> None:
    mask, bone = seen()
    reasons = dict.fromkeys((T12, L1, L2), "metal")
    expected = redrawn(redrawing, reasons, mask, bone)[1]
    monkeypatch.setattr(step, "AT_A_TIME", 1)
    alone = redrawn(redrawing, reasons, mask, bone)[1]
    torch.testing.assert_close(alone, expected, atol=2e-3, rtol=0)
    assert float((alone.argmax(dim=0) == expected.argmax(dim=0)).float().mean()) > 0.9999


def test_t13_has_the_shape_of_t12(redrawing: step.Redrawing) -> None:
    mask, bone = seen()
    as_t12 = redrawn(redrawing, {T12: "metal"}, mask, bone)[1]
    as_t13 = redrawn(redrawing, {T13: "metal"}, np.where(mask == T12, T13, mask).astype(np.uint8), bone)
    after, values = as_t13[1], as_t13[2]
    here, there = np.array(values)[after.argmax(dim=0).numpy()] == T13, as_t12.argmax(dim=0).numpy() == 1
    assert dice(here, there) > 0.99


def test_a_run_that_is_stopped_ends_between_vertebrae(redrawing: step.Redrawing) -> None:
    asked = []

    def check() -> None:
        asked.append(1)
        if len(asked) > 3:
            raise Cancelled()

    mask, bone = seen()
    with pytest.raises(Cancelled):
        redrawn(redrawing, dict.fromkeys((T12, L1, L2), "metal"), mask, bone, check=check)


def test_the_note_names_vertebrae_and_reasons() -> None:
    told = step.note({T12: "metal", L1: "metal", L2: "contrast medium in the canal"})
    assert told.startswith("The image shows bone badly: T12, L1 (metal); L2 (contrast medium in the canal). There, ")
    assert "7 vertebrae (slices of 5.0 mm)" in step.note(dict.fromkeys(range(1, 8), "slices of 5.0 mm"))


def test_another_file_is_told(tmp_path: Path, shapes: ShapeModel) -> None:
    with pytest.raises(ModelError, match="install the software again"):
        step.load_redrawing(tmp_path / "none.safetensors", shapes)
    save_file({"canals": torch.zeros(2, dtype=torch.uint8)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="other.safetensors does not draw vertebrae"):
        step.load_redrawing(tmp_path / "other.safetensors", shapes)


def test_every_mean_shape_has_a_canal_that_runs_through(redrawing: step.Redrawing, shapes: ShapeModel) -> None:
    for level, distance in enumerate(redrawing.canals, start=1):
        half = step.half_extent(level, shapes)
        steps = 2 * half / (np.array(distance.shape) - 1)
        area = (distance.numpy() < 0).sum(axis=(1, 2)) * steps[1] * steps[2]
        assert (area > 0).mean() > 0.85, level
        # Square millimetres in the middle: from the thoracic canal to that of the atlas.
        assert 120 < area[distance.shape[0] // 2] < 700, level
