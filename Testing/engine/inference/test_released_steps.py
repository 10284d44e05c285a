"""The released SegMamba-V2's whole path, step by step as its authors take it, against an independent computation."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from segmamba.inference.pipeline import segment
from segmamba.io.volume import Geometry, Volume
from segmamba.models.manifest import Model, Postprocessing, load_manifest
from segmamba.networks import build_network
from segmamba.networks.checkpoint import load_state_dict, load_weights, save_safetensors
from segmamba.request import Options

SMALL = {"in_channels": 1, "out_channels": 2, "feat_size": [8, 8, 8, 8], "hidden_size": 16, "depths": [1, 1, 1, 1]}
RAS = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
INSIDE = (slice(2, 24), slice(2, 34), slice(4, 52))
OFFICIAL = load_manifest().model("segmamba-v2-colorectal-official")


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


def its_own_grid() -> Volume:
    """A CT on the model's grid, so that resampling changes nothing; zeros around it, and one window high."""
    generator = np.random.default_rng(0)
    array = np.zeros((26, 36, 54), np.int16)
    hounsfield = generator.normal(40, 80, (22, 32, 48)).clip(-300, 400).round()
    array[INSIDE] = np.where(hounsfield == 0, 1, hounsfield)
    return Volume(array, Geometry((54, 36, 26), (0.79296899, 0.79296899, 3.75), (10.0, 20.0, 30.0), RAS))


def blended(network: torch.nn.Module, image: torch.Tensor, mirrored: bool) -> torch.Tensor:
    """Return logits (2, z, y, x) of an image (z, y, x): windows of 32 every 16 voxels, zeros beyond the image."""
    axes = (2, 3, 4)
    flips = [chosen for n in range(4) for chosen in itertools.combinations(axes, n)] if mirrored else [()]
    before = [max(0, 32 - size) // 2 for size in image.shape]
    padded = torch.zeros([max(32, size) for size in image.shape])
    inside = tuple(slice(first, first + size) for first, size in zip(before, image.shape, strict=True))
    padded[inside] = image
    bell = torch.exp(-0.5 * ((torch.arange(32) - 15.5) / (32 / 8)) ** 2).double()
    weight = bell[:, None, None] * bell[:, None] * bell
    total, weights = torch.zeros(2, *padded.shape).double(), torch.zeros(padded.shape).double()
    for corner in itertools.product(*(range(0, size - 31, 16) for size in padded.shape)):
        box = tuple(slice(first, first + 32) for first in corner)
        window = padded[box][None, None]
        with torch.no_grad():
            mean = torch.stack([network(window.flip(f)).flip(f) for f in flips]).mean(dim=0)[0]
        total[(slice(None), *box)] += weight * mean
        weights[box] += weight
    return (total / weights)[(slice(None), *inside)]


@pytest.mark.slow
@pytest.mark.parametrize("mirrored", [False, True])
def test_crop_clip_normalise_pad_slide_mirror_and_argmax_are_the_authors(
    model: Model, checkpoint: Path, mirrored: bool
) -> None:
    volume = its_own_grid()
    network = build_network("segmamba_v2_release", **SMALL).eval()
    load_weights(network, load_state_dict(checkpoint))
    image = torch.from_numpy((volume.array[INSIDE].astype(np.float32).clip(-57, 175) - 65.175) / 32.651)
    logits = blended(network, image, mirrored)
    options = Options(device="cpu", precision="float32", tta=mirrored)
    ours = segment(volume, model, options, checkpoint=checkpoint).labels
    margin = (logits[1] - logits[0]).numpy()
    sure = np.abs(margin) > 1e-3
    assert sure.mean() > 0.95 and 0.2 < (margin > 0).mean() < 0.8
    np.testing.assert_array_equal((ours[INSIDE] == 1)[sure], (margin > 0)[sure])
    ours[INSIDE] = 0
    assert not ours.any()


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
