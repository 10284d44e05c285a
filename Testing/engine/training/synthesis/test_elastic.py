"""Where samples lie, how they are bent, and that every voxel of a vertebra knows the way to its centre."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.small_spine import block

from segmamba.training.synthesis.context import SamplingContext
from segmamba.training.synthesis.elastic import (
    choose_crop,
    cut_field_of_view,
    limit_field_of_view,
    random_deformation,
    rotation,
)
from segmamba.training.synthesis.tissue_labels import AIR, OUTSIDE
from segmamba.training.vertebrae.tissue_maps import Anatomy

CPU = torch.device("cpu")


def context(patch: tuple[int, int, int] = (8, 8, 8), spacing: float = 1.5, seed: int = 0) -> SamplingContext:
    return SamplingContext(patch, spacing, CPU, np.random.default_rng(seed), torch.Generator().manual_seed(seed))


class NoChance:
    """A source of "random" numbers that neither turns nor scales, and bends by a given factor.

    ``chance`` is what `random` gives.
    """

    def __init__(self, chance: float, bend: float) -> None:
        self.chance = chance
        self.bend = bend

    def random(self) -> float:
        return self.chance

    def normal(self, mean: float, deviation: np.ndarray) -> np.ndarray:
        return mean + 0 * np.asarray(deviation)

    def uniform(self, low: float, high: float, size: int | None = None) -> float | np.ndarray:
        value = 1.0 if low > 0 else self.bend
        return value if size is None else np.full(size, value)


def without_chance(
    patch: tuple[int, int, int], spacing: float, chance: float = 0.9, bend: float = 0.0
) -> SamplingContext:
    generator = torch.Generator().manual_seed(1)
    return SamplingContext(patch, spacing, CPU, NoChance(chance, bend), generator)  # type: ignore[arg-type]


def numbered(shape: tuple[int, int, int] = (20, 18, 16)) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 150, shape).astype(np.uint8)


def test_all_levels_are_met_equally_often_whoever_has_them() -> None:
    tissues = np.zeros((8, 8, 8), dtype=np.uint8)
    rare, common = block(tissues, v20=(4, 4, 4)), block(tissues, v21=(4, 4, 4))
    chosen = context()
    met = sum(choose_crop([rare, common, common, common, common], chosen)[0] is rare for _ in range(400))
    assert 160 < met < 240


@pytest.mark.parametrize("spacing", [1.0, 1.5])
def test_crops_lie_around_the_chosen_vertebra(spacing: float) -> None:
    tissues = np.zeros((400, 400, 400), dtype=np.uint8)
    anatomy, chosen = block(tissues, spacing, v20=(300, 100, 150)), context((40, 40, 40), 2.0)
    centres = np.array([choose_crop([anatomy], chosen)[1] for _ in range(300)])
    assert np.median(centres, axis=0) == pytest.approx((300, 100, 150), abs=3)
    # The same width in mm whatever the map's grid: a part of the patch.
    spread = spacing * np.diff(np.percentile(centres, (16, 84), axis=0), axis=0)[0] / 2
    assert spread == pytest.approx(80 * np.array((0.14, 0.115, 0.13)), rel=0.35)


def test_a_map_that_changes_nothing_gives_the_crop_and_its_centres() -> None:
    tissues = numbered()
    anatomy = block(tissues, v20=(4.25, 5.5, 6.0), v21=(-3.0, 40.0, 9.0))
    found, centres = random_deformation(anatomy, np.array([9.5, 8.5, 7.5]), without_chance((8, 6, 4), 1.5))
    assert torch.equal(found, torch.from_numpy(tissues[6:14, 6:12, 6:10]))
    assert centres.shape == (27, 3)
    assert centres[20].tolist() == pytest.approx([-1.75, -0.5, 0.0])
    assert centres[21].tolist() == pytest.approx([-9.0, 34.0, 3.0])


def test_a_mirrored_map_mirrors_the_centres() -> None:
    tissues = numbered()
    anatomy = block(tissues, v20=(4.25, 5.5, 6.0))
    found, centres = random_deformation(anatomy, np.array([9.5, 8.5, 7.5]), without_chance((8, 6, 4), 1.5, 0.1))
    assert torch.equal(found, torch.from_numpy(tissues[6:14, 6:12, 6:10]).flip(2))
    assert centres[20].tolist() == pytest.approx([-1.75, -0.5, 3.0])


def test_coarser_samples_take_every_second_voxel_of_the_map() -> None:
    tissues = numbered()
    anatomy = block(tissues, 1.0, v20=(6.0, 9.0, 12.0))
    found, centres = random_deformation(anatomy, np.array([9.0, 8.0, 7.0]), without_chance((5, 5, 5), 2.0))
    assert torch.equal(found, torch.from_numpy(tissues[5:14:2, 4:13:2, 3:12:2]))
    assert centres[20].tolist() == pytest.approx([0.5, 2.5, 4.5])


def test_beyond_the_map_nothing_is_known_above_and_below_and_there_is_air_to_the_sides() -> None:
    anatomy = block(numbered((4, 4, 4)), v20=(2, 2, 2))
    found, _ = random_deformation(anatomy, np.array([1.5, 1.5, 1.5]), without_chance((8, 8, 8), 1.5))
    assert (found[:2] == OUTSIDE).all()
    assert (found[6:] == OUTSIDE).all()
    assert (found[2:6, :2] == AIR).all()
    assert (found[2:6, :, 6:] == AIR).all()


def test_a_bend_is_as_large_in_mm_whatever_the_grid_of_the_map() -> None:
    moved = []
    for spacing in (1.0, 1.5):
        anatomy = block(np.full((9, 9, 9), 20, dtype=np.uint8), spacing, v20=(4, 4, 4))
        _, centres = random_deformation(anatomy, np.array([4.0, 4.0, 4.0]), without_chance((32, 32, 32), 1.5, bend=1.0))
        moved.append(1.5 * (centres[20] - 15.5))
    assert 1 < moved[0].norm() < 20
    assert torch.allclose(moved[0], moved[1], atol=1e-3)


def ellipsoid() -> Anatomy:
    """Return a map with one vertebra that has no symmetry: an ellipsoid with a horn."""
    z, y, x = np.mgrid[:100, :100, :100]
    tissues = np.where(((z - 50) / 7) ** 2 + ((y - 45) / 11) ** 2 + ((x - 52) / 14) ** 2 < 1, 20, 151).astype(np.uint8)
    tissues[46:50, 50:70, 50:54] = 20
    return block(tissues, v20=tuple(np.argwhere(tissues == 20).mean(axis=0)))


@pytest.mark.parametrize("spacing", [1.25, 2.0])
def test_the_centre_under_the_map_is_the_mean_position_of_an_uncut_vertebra(spacing: float) -> None:
    anatomy, drawn = ellipsoid(), context((64, 60, 56), spacing, seed=1)
    errors = []
    for _ in range(12):
        centre = np.array(anatomy.centres[20]) + drawn.rng.normal(0, 6, 3)
        tissues, centres = random_deformation(anatomy, centre, drawn)
        voxels = (tissues == 20).nonzero().float()
        if voxels.min() > 0 and (voxels.amax(dim=0) < torch.tensor(tissues.shape) - 1).all():
            errors.append(float((voxels.mean(dim=0) - centres[20]).norm() * spacing))
    assert len(errors) >= 8
    assert max(errors) < 2.0
    assert np.mean(errors) < 1.0


def test_a_field_of_view_is_only_ever_cut() -> None:
    tissues, drawn = torch.full((24, 40, 40), 20, dtype=torch.uint8), context((24, 40, 40), 5.0)
    cuts = [cut_field_of_view(tissues, drawn) for _ in range(60)]
    assert (tissues == 20).all()
    kept = [float((cut == 20).float().mean()) for cut in cuts]
    assert {int(label) for cut in cuts for label in cut.unique()} == {20, OUTSIDE}
    assert min(kept) > 0.05
    assert 0.3 < np.mean([share == 1 for share in kept]) < 0.7


def test_a_rotation_turns_about_its_axis() -> None:
    quarter = rotation(np.array([np.pi / 2, 0, 0]))
    assert quarter @ (1, 0, 0) == pytest.approx((1, 0, 0))
    assert quarter @ (0, 1, 0) == pytest.approx((0, 0, 1))
    turned = rotation(np.array([0.3, -0.2, 0.5]))
    assert turned @ turned.T == pytest.approx(np.eye(3))


def test_a_limited_field_of_view_keeps_what_is_in_it() -> None:
    tissues = torch.arange(2 * 5 * 6, dtype=torch.int32).reshape(2, 5, 6)
    seen = limit_field_of_view(tissues, (1, -3), (4, 2))
    assert torch.equal(seen[:, 1:4, :2], tissues[:, 1:4, :2])
    assert int((seen != OUTSIDE).sum()) == int((tissues[:, 1:4, :2] != OUTSIDE).sum())
    assert bool((limit_field_of_view(tissues, (7, 0), (9, 6)) == OUTSIDE).all())
    assert torch.equal(limit_field_of_view(tissues, (-9, -9), (9, 9)), tissues)
