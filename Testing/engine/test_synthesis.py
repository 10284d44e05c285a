"""Painted images: labels are the vertebrae's, intensities are those of a CT, and the seed decides everything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_spine
import torch

from segmamba.errors import InputError
from segmamba.training.anatomy import prepare
from segmamba.training.filters import blur, thick_slices
from segmamba.training.priors import OUTSIDE_HU, tissue_priors
from segmamba.training.synthesis import Anatomy, Painter, load_anatomies, rotation
from segmamba.training.tissues import AIR, FAT, LUNG, MUSCLE, OUTSIDE

CPU = torch.device("cpu")
PATCH = (32, 24, 20)


@pytest.fixture(scope="module")
def anatomies(tmp_path_factory: pytest.TempPathFactory) -> list[Anatomy]:
    folder = tmp_path_factory.mktemp("synthesis")
    prepare(small_spine.write_subjects(folder / "labels"), folder / "maps")
    return load_anatomies(sorted((folder / "maps").glob("*.npz")), CPU)


@pytest.fixture(scope="module")
def samples(anatomies: list[Anatomy]) -> tuple[torch.Tensor, torch.Tensor]:
    return Painter(anatomies, PATCH, 2.0, seed=3).batch(16)


def block(codes: np.ndarray, **centres: tuple[float, float, float]) -> Anatomy:
    """Return an anatomy of given codes; keywords like ``v20`` give the vertebrae's centres."""
    return Anatomy("block", torch.from_numpy(codes), {int(name[1:]): place for name, place in centres.items()})


def test_maps_know_their_subject_and_where_its_vertebrae_are(anatomies: list[Anatomy]) -> None:
    assert [anatomy.subject for anatomy in anatomies] == ["bare", "bare", "bare", "whole"]
    middle = small_spine.slices_of(0)
    expected = np.argwhere(small_spine.vertebrae() == 22).mean(axis=0)
    assert anatomies[3].centres[22] == pytest.approx(tuple(expected))
    assert anatomies[3].centres[22][0] == pytest.approx((middle.start + middle.stop - 1) / 2)


def test_labels_are_vertebrae_only(samples: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, labels = samples
    assert image.shape == (16, 1, *PATCH)
    assert image.dtype == torch.float32
    assert labels.shape == (16, *PATCH)
    assert set(labels.unique().tolist()) == {0, 20, 21, 22}


def test_images_are_in_hounsfield_units(samples: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, labels = samples
    assert image.isfinite().all()
    assert -1024 <= image.min() < -900
    assert image.max() <= 3071
    bone = image[:, 0][labels > 0].mean()
    assert 50 < bone < 800
    inside_body = image[:, 0][(labels == 0) & (image[:, 0] > -300)].mean()
    assert bone > inside_body + 50


def test_bone_is_denser_than_muscle_than_fat_than_lung() -> None:
    rng = np.random.default_rng(0)
    means = np.mean([tissue_priors(rng)[0] for _ in range(50)], axis=0)
    order = [means[20], means[MUSCLE], means[FAT], means[LUNG], means[AIR]]
    assert order == sorted(order, reverse=True)
    assert all(tissue_priors(rng)[0][20] > tissue_priors(rng)[0][FAT] for _ in range(50))


def test_the_seed_decides_every_sample(anatomies: list[Anatomy]) -> None:
    first, again, other = (Painter(anatomies, PATCH, 2.0, seed).batch(2) for seed in (5, 5, 6))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0][0], first[0][1])


def test_outside_the_field_of_view_is_constant_and_unlabelled() -> None:
    codes = np.full((120, 120, 120), 20, dtype=np.uint8)
    codes[62:] = OUTSIDE
    painter = Painter([block(codes, v20=(60, 60, 60))], (16, 16, 16), 1.5, seed=0)
    image, labels = painter.batch(12)
    unlabelled = image[:, 0][labels == 0]
    assert len(unlabelled) > 1000
    assert (unlabelled == OUTSIDE_HU).all()
    assert (image[:, 0][labels == 20] != OUTSIDE_HU).all()


def test_all_levels_are_met_equally_often_whoever_has_them() -> None:
    codes = np.zeros((8, 8, 8), dtype=np.uint8)
    rare, common = block(codes, v20=(4, 4, 4)), block(codes, v21=(4, 4, 4))
    painter = Painter([rare, common, common, common, common], (8, 8, 8), 1.5, seed=0)
    met = sum(painter.place()[0] is rare for _ in range(400))
    assert 160 < met < 240


def test_crops_lie_around_the_chosen_vertebra() -> None:
    codes = np.zeros((400, 400, 400), dtype=np.uint8)
    painter = Painter([block(codes, v20=(300, 100, 150))], (8, 8, 8), 1.5, seed=0)
    centres = np.array([painter.place()[1] for _ in range(200)])
    assert np.median(centres, axis=0) == pytest.approx((300, 100, 150), abs=6)


def test_blur_keeps_the_shape_and_the_sum() -> None:
    image = torch.zeros(15, 13, 11)
    image[7, 6, 5] = 1.0
    blurred = blur(image, 0.8)
    assert blurred.shape == image.shape
    assert blurred.sum() == pytest.approx(1.0, abs=1e-5)
    assert 0 < blurred[7, 6, 5] < 0.3
    assert blurred[7, 6, 6] == pytest.approx(float(blurred[7, 5, 5]))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("factor", [2, 3])
def test_thick_slices_keep_the_shape_and_smooth_one_axis_only(axis: int, factor: int) -> None:
    ramp = torch.arange(12.0)
    shape = [12, 12, 12]
    along = ramp.view([-1 if i == axis else 1 for i in range(3)]).expand(shape)
    across = ramp.view([-1 if i == (axis + 1) % 3 else 1 for i in range(3)]).expand(shape)
    assert torch.allclose(thick_slices(across, axis, factor), across)
    thick = thick_slices(along, axis, factor)
    assert thick.shape == along.shape
    assert torch.allclose(thick.narrow(axis, 3, 6), along.narrow(axis, 3, 6))  # a ramp stays one but at its ends
    assert not torch.allclose(thick, along)
    assert thick_slices(torch.ones(7, 8, 9), axis, factor).shape == (7, 8, 9)


def test_a_rotation_turns_about_its_axis() -> None:
    quarter = rotation(np.array([np.pi / 2, 0, 0]))
    assert quarter @ (1, 0, 0) == pytest.approx((1, 0, 0))
    assert quarter @ (0, 1, 0) == pytest.approx((0, 0, 1))
    turned = rotation(np.array([0.3, -0.2, 0.5]))
    assert turned @ turned.T == pytest.approx(np.eye(3))


def test_no_anatomy_is_one_sentence() -> None:
    with pytest.raises(InputError, match="no anatomy to train on"):
        load_anatomies([], CPU)


def test_a_file_of_something_else_is_one_sentence(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", image=np.zeros(3))
    (tmp_path / "y.npz").write_bytes(b"no archive")
    for name in ("x.npz", "y.npz"):
        with pytest.raises(InputError, match="holds no codes: make it again"):
            load_anatomies([tmp_path / name], CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_painting_never_waits_for_the_gpu(anatomies: list[Anatomy]) -> None:
    cuda = torch.device("cuda")
    on_gpu = [Anatomy(a.subject, a.codes.to(cuda), a.centres) for a in anatomies]
    painter = Painter(on_gpu, PATCH, 2.0)
    painter.batch(8)  # libraries start up
    torch.cuda.set_sync_debug_mode("error")
    try:
        image, labels = painter.batch(8)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert image.isfinite().all()
    assert labels.max() <= 22


@pytest.mark.parametrize("size", [15, 16, 17])
def test_thick_slices_leave_an_edge_where_it_is(size: int) -> None:
    edge = torch.zeros(size, 2, 2)
    edge[12:] = 1.0  # on a border between slices of two and of three voxels
    thick = thick_slices(edge, 0, 3)
    assert torch.equal(thick > 0.5, edge > 0.5)
