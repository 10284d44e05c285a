"""Painted samples: labels are the vertebrae's, images those of a CT or an MR, and the seed decides everything."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import small_spine
from helpers.small_spine import block

from segmamba.inference.preprocess import bright_mean
from segmamba.models.manifest import IntensityNormalization
from segmamba.training.synthesis import mr
from segmamba.training.synthesis.context import SamplingContext
from segmamba.training.synthesis.synthesizer import normalize
from segmamba.training.synthesis.tissue_labels import AIR, FAT, LUNG, MUSCLE, OUTSIDE, VERTEBRAE
from segmamba.training.synthesis.tissue_priors import OUTSIDE_HU, ct_priors, mr_priors
from segmamba.training.vertebrae.label_maps import prepare
from segmamba.training.vertebrae.samples import Batch, Shares, VertebraSynthesizer
from segmamba.training.vertebrae.tissue_maps import Anatomy, load_anatomies

CPU = torch.device("cpu")
PATCH = (32, 24, 20)
# Both leave the synthetic intensities as they are.
CHANNELS = {
    "CT": (IntensityNormalization("clip", -5000.0, 5000.0, 0.0, 1.0),),
    "MR": (IntensityNormalization("relative", -1.0, 1000.0, 0.0, 1.0),),
}
both_modalities = pytest.mark.parametrize("modality", ["CT", "MR"])


def synthesizer(
    anatomies: list[Anatomy],
    patch: tuple[int, int, int] = PATCH,
    mr_share: float = 0.0,
    degraded_share: float = 0.0,
    **keywords: Any,
) -> VertebraSynthesizer:
    shares = Shares(mr_share, degraded_share)
    return VertebraSynthesizer(
        anatomies, patch, **({"spacing": 2.0, "channels": CHANNELS, "shares": shares} | keywords)
    )


@pytest.fixture(scope="module")
def anatomies(tmp_path_factory: pytest.TempPathFactory) -> list[Anatomy]:
    folder = tmp_path_factory.mktemp("synthesis")
    prepare(small_spine.write_subjects(folder / "labels"), folder / "maps")
    return load_anatomies(sorted((folder / "maps").glob("*.npz")), CPU)


@pytest.fixture(scope="module")
def samples(anatomies: list[Anatomy]) -> dict[str, Batch]:
    return {name: synthesizer(anatomies, mr_share=float(name == "MR"), seed=3).batch(16) for name in ("CT", "MR")}


@both_modalities
def test_levels_are_vertebrae_only(samples: dict[str, Batch], modality: str) -> None:
    batch = samples[modality]
    assert batch.image.shape == (16, 1, *PATCH)
    assert batch.image.dtype == torch.float32
    assert batch.levels.shape == (16, *PATCH)
    assert batch.levels.dtype == torch.int64
    assert set(batch.levels.unique().tolist()) == {0, 20, 21, 22}


@both_modalities
def test_all_voxels_of_a_vertebra_point_to_its_centre(anatomies: list[Anatomy], modality: str) -> None:
    patch = (56, 48, 48)
    batch = synthesizer(anatomies, patch, mr_share=float(modality == "MR")).batch(8)
    assert batch.offsets.shape == (8, 3, *patch)
    assert batch.offsets.dtype == torch.float32
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) for n in patch), indexing="ij"))
    errors = []
    for levels, places in zip(batch.levels, batch.offsets / 2.0 + grid, strict=True):
        for level in set(levels.unique().tolist()) - {0}:
            votes, voxels = places[:, levels == level], (levels == level).nonzero().float()
            assert torch.allclose(votes, votes[:, :1], atol=1e-3)
            errors.append(float((votes[:, 0] - voxels.mean(dim=0)).norm() * 2.0))
    assert len(errors) > 12
    assert np.median(errors) < 2.0  # mm; borders and fields of view cut some vertebrae


def test_ct_is_in_hounsfield_units(samples: dict[str, Batch]) -> None:
    image, levels = samples["CT"].image, samples["CT"].levels
    assert image.isfinite().all()
    assert -1024 <= image.min() < -900
    assert image.max() <= 3071
    bone = image[:, 0][levels > 0].mean()
    assert 50 < bone < 800
    inside_body = image[:, 0][(levels == 0) & (image[:, 0] > -300)].mean()
    assert bone > inside_body + 50


def test_mr_is_finite_and_not_negative_and_its_bright_voxels_are_about_one(samples: dict[str, Batch]) -> None:
    image = samples["MR"].image
    assert image.isfinite().all()
    assert image.min() == 0
    bright = [float(one[one > one.mean()].mean()) for one in image]
    assert np.log(bright).mean() == pytest.approx(0, abs=0.15)
    assert 0.05 < np.log(bright).std() < 0.3


def test_bone_is_denser_than_muscle_than_fat_than_lung_on_ct() -> None:
    rng = np.random.default_rng(0)
    means = np.mean([ct_priors(rng)[0] for _ in range(50)], axis=0)
    order = [means[20], means[MUSCLE], means[FAT], means[LUNG], means[AIR]]
    assert order == sorted(order, reverse=True)
    assert all(ct_priors(rng)[0][20] > ct_priors(rng)[0][FAT] for _ in range(50))


def test_mr_contrasts_differ_but_a_column_has_one_marrow_and_air_no_signal() -> None:
    rng = np.random.default_rng(0)
    means, textures = (np.array(values) for values in zip(*(mr_priors(rng) for _ in range(80)), strict=True))
    assert means.min() >= 0
    assert textures.min() >= 0
    column = means[:, 1 : VERTEBRAE + 1]
    assert column.std(axis=1).max() < 0.06 < column.mean(axis=1).std()
    assert means[:, AIR].max() < 0.05
    assert (means[:, OUTSIDE] == 0).all()
    brighter = (means[:, 20] > means[:, MUSCLE]).mean()
    assert 0.5 < brighter < 1  # mostly, but not always: no contrast can be relied on


@pytest.mark.parametrize("mr_share", [0.0, 0.5, 1.0])
def test_the_seed_decides_every_sample(anatomies: list[Anatomy], mr_share: float) -> None:
    first, again, other = (synthesizer(anatomies, mr_share=mr_share, seed=seed).batch(3) for seed in (5, 5, 6))
    for name in ("image", "levels", "offsets"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.image, other.image)
    assert not torch.equal(first.image[0], first.image[1])


def test_a_degraded_share_changes_images_and_no_labels_of_the_others(anatomies: list[Anatomy]) -> None:
    plain, never, always = (synthesizer(anatomies, degraded_share=share, seed=5).batch(2) for share in (0.0, 1e-9, 1.0))
    assert plain.image.shape == always.image.shape and always.image.isfinite().all()
    assert torch.equal(never.levels[0], plain.levels[0]) and torch.equal(always.levels[0], plain.levels[0])
    assert not torch.equal(always.image[0], plain.image[0])


@pytest.mark.parametrize("mr_share", [0.0, 0.3, 1.0])
def test_a_share_of_the_samples_is_mr(mr_share: float) -> None:
    constant = {
        "CT": (IntensityNormalization("clip", 7.0, 7.0, 0.0, 1.0),),
        "MR": (IntensityNormalization("relative", -7.0, -7.0, 0.0, 1.0),),
    }
    anatomy = block(np.full((20, 20, 20), 20, dtype=np.uint8), v20=(10, 10, 10))
    images = synthesizer([anatomy], (6, 6, 6), channels=constant, mr_share=mr_share).batch(150).image
    assert set(images.unique().tolist()) <= {7.0, -7.0}
    assert (images[:, 0, 0, 0, 0] < 0).float().mean() == pytest.approx(mr_share, abs=0.12 if mr_share == 0.3 else 0)


@both_modalities
def test_outside_the_field_of_view_is_constant_and_unlabelled(modality: str) -> None:
    tissues = np.full((120, 120, 120), 20, dtype=np.uint8)
    tissues[62:] = OUTSIDE
    # Wide enough that MR's sagittal slabs are cut too.
    wide = synthesizer([block(tissues, v20=(60, 60, 60))], (12, 12, 60), spacing=1.5, mr_share=float(modality == "MR"))
    batch = wide.batch(12)
    image = batch.image[:, 0]
    unlabelled = image[batch.levels == 0]
    assert len(unlabelled) > 1000
    assert (unlabelled == (OUTSIDE_HU if modality == "CT" else 0.0)).all()
    assert (image[batch.levels == 20] != (OUTSIDE_HU if modality == "CT" else 0.0)).all()


def test_an_mr_slab_is_sagittal_and_as_wide_as_sagittal_series_are() -> None:
    context = SamplingContext((2, 2, 200), 1.0, CPU, np.random.default_rng(0), torch.Generator())
    tissues = torch.full((2, 2, 200), 20, dtype=torch.uint8)
    widths = []
    for _ in range(60):
        known = mr.cut_to_slab(tissues, context) != OUTSIDE
        assert torch.equal(known, known[:1, :1].expand_as(known))
        widths.append(int(known[0, 0].sum()))
    assert (tissues == 20).all()
    assert 0.2 < np.mean([width == 200 for width in widths]) < 0.6
    assert all(width == 200 or 44 <= width <= 150 for width in widths)


@pytest.mark.parametrize("value", [0.0, 0.5, 1e-30])
def test_an_mr_image_of_one_value_stays_finite(value: float) -> None:
    image = torch.full((5, 5, 5), value)
    scaled = mr.relative(image)
    assert scaled.isfinite().all()
    assert scaled.min() >= 0


@pytest.mark.parametrize("scale", [1.0, 700.0])
def test_relative_intensities_do_not_depend_on_the_scale(scale: float) -> None:
    image = torch.tensor([0.0, 0.0, 1.0, 3.0]).view(1, 2, 2)
    assert mr.relative(scale * image).flatten().tolist() == pytest.approx([0, 0, 1 / 3, 1])


def test_a_sample_is_scaled_as_a_channel_of_kind_relative_is() -> None:
    image = torch.rand((9, 8, 7), generator=torch.Generator().manual_seed(0)) ** 3
    assert torch.allclose(mr.relative(image), image / bright_mean(image.numpy()))


@pytest.mark.parametrize("label", [AIR, OUTSIDE, 20])
def test_a_sample_of_one_code_is_finite_on_mr(label: int) -> None:
    anatomy = block(np.full((9, 9, 9), label, dtype=np.uint8), v20=(4, 4, 4))
    batch = synthesizer([anatomy], (6, 6, 6), mr_share=1.0).batch(20)
    assert batch.image.isfinite().all()
    assert batch.image.min() >= 0
    assert batch.offsets.isfinite().all()


def test_channels_are_clipped_shifted_and_scaled() -> None:
    image = torch.tensor([-2000.0, 0.0, 200.0, 5000.0]).view(1, 1, 1, 4)
    bone = IntensityNormalization("clip", -1000.0, 1000.0, 100.0, 50.0)
    assert normalize(image, [bone, replace(bone, high=0.0)]).flatten().tolist() == [-22, -2, 2, 18, -22, -2, -2, -2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@both_modalities
def test_synthesis_never_waits_for_the_gpu(anatomies: list[Anatomy], modality: str) -> None:
    on_gpu = [replace(anatomy, tissues=anatomy.tissues.to("cuda")) for anatomy in anatomies]
    synthesis = synthesizer(on_gpu, mr_share=float(modality == "MR"))
    synthesis.batch(8)  # libraries start up
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = synthesis.batch(8)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert batch.image.isfinite().all()
    assert batch.levels.max() <= 22
    assert batch.offsets.isfinite().all()


def test_texture_is_as_coarse_in_a_small_sample_as_in_a_whole_scan() -> None:
    """A network that learned from crops must not meet larger blobs in scans."""

    def roughness(patch: tuple[int, int, int]) -> float:
        context = SamplingContext(patch, 2.0, CPU, np.random.default_rng(0), torch.Generator().manual_seed(0))
        noise = context.smooth_noise(8, 16.0)
        return float(noise.diff(dim=3).std() / noise.std())

    assert roughness((32, 32, 64)) == pytest.approx(roughness((32, 64, 160)), rel=0.15)
