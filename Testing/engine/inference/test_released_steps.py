"""The released SegMamba-V2's whole path, step by step as its authors take it, against an independent computation."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from segmamba.inference.channels import joined
from segmamba.inference.pipeline import segment
from segmamba.io.volume import Geometry, Volume
from segmamba.models.manifest import Model, Postprocessing, load_manifest
from segmamba.networks import build_network
from segmamba.networks.checkpoint import load_state_dict, load_weights, save_safetensors
from segmamba.request import Options

SMALL = {"in_channels": 1, "out_channels": 2, "feat_size": [8, 8, 8, 8], "hidden_size": 16, "depths": [1, 1, 1, 1]}
RAS = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
INSIDE = (slice(2, 24), slice(2, 34), slice(4, -2))
OFFICIAL = load_manifest().model("segmamba-v2-colorectal-official")
BRATS = load_manifest().model("segmamba-v2-brats2023-official")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of random weights that finds tumour in about half of `its_own_grid`."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("released") / "small.safetensors"
    network = build_network("segmamba_v2_release", **SMALL)
    network.get_parameter("out.conv.conv.bias").data[1] -= 1.4
    save_safetensors(network, path, torch.float32)
    return path


@pytest.fixture
def model() -> Model:
    """The manifest's entry with a small network and windows."""
    return replace(OFFICIAL, arguments=SMALL, patch=(32, 32, 32))


def its_own_grid(width: int) -> Volume:
    """A CT on the model's grid, so that resampling changes nothing; zeros around it, and one window high."""
    generator = np.random.default_rng(0)
    array = np.zeros((26, 36, width + 6), np.int16)
    hounsfield = generator.normal(40, 80, (22, 32, width)).clip(-300, 400).round()
    array[INSIDE] = np.where(hounsfield == 0, 1, hounsfield)
    return Volume(array, Geometry((width + 6, 36, 26), (0.79296899, 0.79296899, 3.75), (10.0, 20.0, 30.0), RAS))


def blended(network: torch.nn.Module, image: torch.Tensor, mirrored: bool, classes: int = 2) -> torch.Tensor:
    """Return logits (classes, z, y, x) of an image (channels, z, y, x): windows of 32 every 16, zeros beyond it."""
    axes = (2, 3, 4)
    flips = [chosen for n in range(4) for chosen in itertools.combinations(axes, n)] if mirrored else [()]
    before = [max(0, 32 - size) // 2 for size in image.shape[1:]]
    padded = torch.zeros([len(image), *(max(32, size) for size in image.shape[1:])])
    inside = tuple(slice(first, first + size) for first, size in zip(before, image.shape[1:], strict=True))
    padded[(slice(None), *inside)] = image
    bell = torch.exp(-0.5 * ((torch.arange(32) - 15.5) / (32 / 8)) ** 2).double()
    weight = bell[:, None, None] * bell[:, None] * bell
    total, weights = torch.zeros(classes, *padded.shape[1:]).double(), torch.zeros(padded.shape[1:]).double()
    for corner in itertools.product(*(range(0, size - 31, 16) for size in padded.shape[1:])):
        box = tuple(slice(first, first + 32) for first in corner)
        window = padded[(slice(None), *box)][None]
        with torch.no_grad():
            mean = torch.stack([network(window.flip(f)).flip(f) for f in flips]).mean(dim=0)[0]
        total[(slice(None), *box)] += weight * mean
        weights[box] += weight
    return (total / weights)[(slice(None), *inside)]


@pytest.mark.slow
# Two windows as they are; one in all eight mirrorings.
@pytest.mark.parametrize(("mirrored", "width"), [(False, 48), (True, 32)])
def test_crop_clip_normalise_pad_slide_mirror_and_argmax_are_the_authors(
    model: Model, checkpoint: Path, mirrored: bool, width: int
) -> None:
    volume = its_own_grid(width)
    network = build_network("segmamba_v2_release", **SMALL).eval()
    load_weights(network, load_state_dict(checkpoint))
    image = torch.from_numpy((volume.array[INSIDE].astype(np.float32).clip(-57, 175) - 65.175) / 32.651)
    logits = blended(network, image[None], mirrored)
    options = Options(device="cpu", precision="float32", tta=mirrored)
    ours = segment(volume, model, options, checkpoint=checkpoint).labels
    margin = (logits[1] - logits[0]).numpy()
    sure = np.abs(margin) > 1e-3
    assert sure.mean() > 0.95 and 0.2 < (margin > 0).mean() < 0.8
    np.testing.assert_array_equal((ours[INSIDE] == 1)[sure], (margin > 0)[sure])
    ours[INSIDE] = 0
    assert not ours.any()


@pytest.mark.slow
def test_four_volumes_are_cropped_together_and_standardised_each_and_argmax_gives_the_labels(tmp_path: Path) -> None:
    arguments = SMALL | {"in_channels": 4, "out_channels": 4}
    model = replace(BRATS, arguments=arguments, patch=(32, 32, 32))
    torch.manual_seed(6)
    network = build_network("segmamba_v2_release", **arguments).eval()
    network.get_parameter("out.conv.conv.weight").data *= 30  # so that few voxels are undecided
    generator = np.random.default_rng(1)
    # The brain is where any of the four is not zero; the last is zero in a part of it.
    arrays = np.zeros((4, 30, 38, 50), np.float32)
    arrays[:, 3:27, 2:34, 1:49] = generator.gamma(2.0, 300.0, (4, 24, 32, 48))
    arrays[3, :9] = 0
    geometry = Geometry((50, 38, 30), (1.0, 1.0, 1.0), (0.0, -239.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    volume = joined([Volume(array, geometry) for array in arrays], 0, model)
    seen = arrays[:, 3:27, 2:34, 1:49]
    image = (seen - seen.mean((1, 2, 3), keepdims=True)) / seen.std((1, 2, 3), keepdims=True)
    logits = blended(network, torch.from_numpy(image), False, 4)
    # So that each class wins somewhere.
    bias = logits.mean((1, 2, 3))
    network.get_parameter("out.conv.conv.bias").data -= bias
    logits -= bias[:, None, None, None]
    save_safetensors(network, tmp_path / "small.safetensors", torch.float32)
    ours = segment(volume, model, Options(device="cpu", precision="float32"), checkpoint=tmp_path / "small.safetensors")
    best, second = logits.topk(2, dim=0).values
    sure = (best - second).numpy() > 1e-3
    assert sure.mean() > 0.95 and len(logits.argmax(dim=0).unique()) == 4
    labels = ours.labels
    np.testing.assert_array_equal(labels[3:27, 2:34, 1:49][sure], logits.argmax(dim=0).numpy()[sure])
    labels[3:27, 2:34, 1:49] = 0
    assert not labels.any()


def test_the_manifest_has_the_authors_figures_for_brats() -> None:
    given = BRATS.preprocessing
    assert (given.interpolation, given.crop_nonzero, given.pad_value, given.fill_value) == ("cubic", True, 0.0, 0.0)
    assert given.spacing == (1.0, 1.0, 1.0) and {channel.scheme for channel in given.normalization} == {"zscore"}
    assert (BRATS.patch, BRATS.overlap, BRATS.flip_axes) == ((128, 128, 128), 0.5, (0, 1, 2))
    assert BRATS.resamples_logits and not BRATS.has_regions and BRATS.postprocessing is Postprocessing.NONE


def test_the_manifest_has_the_authors_figures() -> None:
    given = OFFICIAL.preprocessing
    assert (given.interpolation, given.crop_threshold, given.crop_nonzero, given.pad_value) == (
        "cubic",
        None,
        True,
        0.0,
    )
    assert given.spacing == (0.79296899, 0.79296899, 3.75)
    assert (OFFICIAL.patch, OFFICIAL.overlap, OFFICIAL.flip_axes) == ((128, 128, 128), 0.5, (0, 1, 2))
    assert OFFICIAL.resamples_logits and OFFICIAL.postprocessing is Postprocessing.NONE
    assert given.estimated is not None
