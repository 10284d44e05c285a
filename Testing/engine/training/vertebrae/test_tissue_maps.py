"""Tissue label maps in memory, and on a finer grid: smoother, and nothing lost or moved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import small_spine
from scipy import ndimage

from segmamba.errors import InputError
from segmamba.training.vertebrae.label_maps import prepare
from segmamba.training.vertebrae.tissue_maps import load_anatomies, upsample

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("atlas")
    prepare(small_spine.write_subjects(folder / "labels"), folder / "maps", variants=1)
    return sorted((folder / "maps").glob("*.npz"))


def finer(tissues: np.ndarray, factor: float) -> np.ndarray:
    return upsample(torch.from_numpy(tissues), tissues, factor).numpy()


def sphere(voxels: int, radius: float) -> np.ndarray:
    """Return a sphere of label 20 in muscle; ``radius`` is a part of the edge, which is 1 from corner to corner."""
    places = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, voxels)] * 3, indexing="ij"))
    return np.where(np.linalg.norm(places, axis=0) < radius, 20, 151).astype(np.uint8)


def test_maps_know_their_subject_and_where_its_vertebrae_are(files: list[Path]) -> None:
    anatomies = load_anatomies(files, CPU)
    assert [anatomy.subject for anatomy in anatomies] == ["bare", "whole"]
    assert all(anatomy.spacing == 1.5 for anatomy in anatomies)
    middle = small_spine.slices_of(0)
    expected = np.argwhere(small_spine.vertebrae() == 22).mean(axis=0)
    assert anatomies[1].centres[22] == pytest.approx(tuple(expected))
    assert anatomies[1].centres[22][0] == pytest.approx((middle.start + middle.stop - 1) / 2)


def test_a_coarser_grid_leaves_the_maps_as_they_are(files: list[Path]) -> None:
    stored, coarse = (load_anatomies(files, CPU, *spacing)[0] for spacing in ((), (2.0,)))
    assert coarse.spacing == 1.5
    assert torch.equal(coarse.tissues, stored.tissues)


def test_centres_on_a_finer_grid_are_where_its_vertebrae_are(files: list[Path]) -> None:
    stored, fine = (load_anatomies(files, CPU, spacing)[1] for spacing in (1.5, 1.0))
    assert fine.spacing == 1.0
    assert [n - 1 for n in fine.tissues.shape] == [round(1.5 * (n - 1)) for n in stored.tissues.shape]
    assert set(fine.centres) == set(stored.centres) == {20, 21, 22}
    for level, centre in fine.centres.items():
        assert centre == pytest.approx(ndimage.center_of_mass(fine.tissues.numpy() == level), abs=0.5)
        steps = (np.array(fine.tissues.shape) - 1) / (np.array(stored.tissues.shape) - 1)
        assert centre == pytest.approx(tuple(steps * stored.centres[level]))


@pytest.mark.parametrize("factor", [1.2, 1.5, 2.0])
def test_a_finer_sphere_is_nearer_to_the_true_one_than_its_voxels_were(factor: float) -> None:
    tissues = sphere(33, 0.3)
    fine = finer(tissues, factor)
    truth = sphere(len(fine), 0.3)
    nearest = np.round(np.linspace(0, 32, len(fine))).astype(int)
    steps = tissues[np.ix_(nearest, nearest, nearest)]
    assert set(np.unique(fine)) == {20, 151}
    assert (fine == 20).sum() == pytest.approx((truth == 20).sum(), rel=0.03)
    assert (fine != truth).sum() < 0.6 * (steps != truth).sum()


@pytest.mark.parametrize("factor", [1.2, 1.5])
def test_no_code_of_two_voxels_width_is_lost_and_none_is_new(factor: float) -> None:
    tissues = np.full((24, 22, 26), 151, dtype=np.uint8)
    tissues[3:5] = 7  # a plate
    tissues[10:12, 9:11, 2:20] = 8  # a rod
    tissues[14:20, 4:10, 4:10], tissues[14:20, 4:10, 10:16] = 9, 10  # neighbours
    tissues[20:] = 255
    fine = finer(tissues, factor)
    assert fine.dtype == np.uint8
    assert set(np.unique(fine)) == set(np.unique(tissues))
    for label in (7, 9, 10, 255):
        assert (fine == label).mean() == pytest.approx((tissues == label).mean(), rel=0.35)


# Among them sizes whose last voxel is at a place like 8.999999 on the coarse grid.
@pytest.mark.parametrize("shape", [(10, 10, 10), (36, 10, 17), (9, 36, 10)])
@pytest.mark.parametrize("factor", [1.2, 1.5])
def test_corners_stay_at_the_corners(shape: tuple[int, int, int], factor: float) -> None:
    tissues = np.full(shape, 151, dtype=np.uint8)
    for number in range(8):
        corner = tuple(slice(-3, None) if number >> axis & 1 else slice(3) for axis in range(3))
        tissues[corner] = 1 + number
    fine = finer(tissues, factor)
    ends = np.ix_([0, -1], [0, -1], [0, -1])
    assert fine.shape == tuple(round((n - 1) * factor) + 1 for n in shape)
    assert (fine[ends] == tissues[ends]).all()


def test_no_anatomy_is_one_sentence() -> None:
    with pytest.raises(InputError, match="no tissue label map to train on"):
        load_anatomies([], CPU)


def test_a_file_of_something_else_is_one_sentence(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", image=np.zeros(3))
    (tmp_path / "y.npz").write_bytes(b"no archive")
    for name in ("x.npz", "y.npz"):
        with pytest.raises(InputError, match="holds no tissues: make it again"):
            load_anatomies([tmp_path / name], CPU)
