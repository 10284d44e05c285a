"""Samples of single vertebrae, and the training of the network that draws them again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.placed_spine import Column
from scipy import ndimage

from segmamba.errors import InputError
from segmamba.inference.redraw import load_redrawing
from segmamba.models.manifest import load_manifest
from segmamba.networks.spine_mamba import MASK, OFFSET, OFFSET_UNIT_MM
from segmamba.spine.shape_model import ShapeModel
from segmamba.spine.vertebra_patch import CHANNELS, OWN, SHAPE, SIZE, half_extent
from segmamba.tasks import VERTEBRAE_TASK
from segmamba.training.synthesis import ct
from segmamba.training.synthesis.context import SamplingContext
from segmamba.training.synthesis.tissue_labels import CORD
from segmamba.training.vertebrae.redraw import samples, training
from segmamba.training.vertebrae.redraw.canals import canals

CPU = torch.device("cpu")
T12, L1, L2 = 19, 20, 21
Patch = dict[str, torch.Tensor]


@cache
def tissues() -> np.ndarray:
    """T12 to L2 around a cord: z, y, x to superior, posterior and left."""
    labels = np.ascontiguousarray(Column("straight").labels[:, ::-1, ::-1])
    holes = np.stack([ndimage.binary_fill_holes(plane) & ~plane for plane in labels > 0])
    return np.where(holes, CORD, labels).astype(np.uint8)


def context() -> SamplingContext:
    shape = tissues().shape
    return SamplingContext(
        (shape[0], shape[1], shape[2]), samples.SPACING, CPU, np.random.default_rng(0), torch.Generator().manual_seed(0)
    )


class _Knows(torch.nn.Module):
    """A fine network that answers from the tissues."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        labels = np.where(tissues() <= L2, tissues(), 0)
        output = torch.zeros(1, 6, *labels.shape)
        output[0, MASK][1] = torch.from_numpy(np.where(labels > 0, 4.0, -4.0))
        output[0, MASK][2] = -8.0
        places = np.indices(labels.shape) * samples.SPACING
        for level, centre in centres().items():
            here = labels == level
            output[0, OFFSET][:, here] = torch.from_numpy((centre[:, None] - places[:, here]) / OFFSET_UNIT_MM).float()
        return output


def centres() -> dict[int, np.ndarray]:
    return {level: np.array(ndimage.center_of_mass(tissues() == level)) * samples.SPACING for level in (T12, L1, L2)}


@pytest.fixture(scope="module")
def mean_canals(shapes: ShapeModel) -> Iterator[np.ndarray]:
    """Those of the shape model; they take seconds."""
    found = canals(shapes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "canals", lambda model: found)
        yield found


@pytest.fixture(scope="module")
def patches(shapes: ShapeModel) -> list[Patch]:
    given = context()
    given.slices_mm[:] = (5.0, 1.25, 1.25)
    image = torch.stack([torch.full(tissues().shape, 0.5), torch.full(tissues().shape, -0.5)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "painted", lambda *_: (image, torch.from_numpy(tissues()), centres()))
        model = load_manifest(None).default(VERTEBRAE_TASK)
        return samples.patches_of_sample(_Knows(), [], given, model, shapes)


@pytest.fixture(scope="module")
def pool(
    patches: list[Patch], shapes: ShapeModel, mean_canals: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("patches")
    assert samples.make(lambda: patches, folder, "00", 60.0, 3) == 3
    return training.load_pool(folder, shapes, CPU)


def test_a_patch_has_what_the_network_drew_and_what_is_true(pool: dict[str, torch.Tensor]) -> None:
    assert sorted(pool["level"].tolist()) == [T12, L1, L2]
    assert pool["values"].shape == (3, 6, *SIZE) and pool["values"].dtype == torch.int8
    torch.testing.assert_close(pool["widths"][:, 0], torch.full((3,), 5.0), atol=0.3, rtol=0)
    batch = training.batch_of(pool, torch.arange(3), False)
    drawn, true = batch["given"][:, OWN] > 0, batch["bone"] > 0
    assert 2 * (drawn & true).sum() / (drawn.sum() + true.sum()) > 0.97
    # The fitted shape is that of the vertebra, and the canal is not bone.
    near = batch["distance"][true] < 1.5
    assert near.float().mean() > 0.95
    assert batch["true canal"].any() and not (batch["true canal"].bool() & true & (batch["canal"] < -3)).any()


def test_mirrored_patches_are_mirrored_all_through(pool: dict[str, torch.Tensor]) -> None:
    as_is, mirrored = (training.batch_of(pool, torch.arange(2), flag) for flag in (False, True))
    for name, values in as_is.items():
        assert torch.equal(mirrored[name], values if name == "widths" else values.flip(-1))


def test_variations_move_image_bone_and_shape_alike(pool: dict[str, torch.Tensor]) -> None:
    batch = training.batch_of(pool, torch.arange(3), False)
    varied = training.varied(batch, torch.Generator().manual_seed(0))
    assert varied.keys() == batch.keys()
    assert not torch.equal(varied["bone"], batch["bone"])
    drawn, true = varied["given"][:, OWN] > 0, varied["bone"] > 0
    assert 2 * (drawn & true).sum() / (drawn.sum() + true.sum()) > 0.96
    assert (varied["distance"][true] < 2.5).float().mean() > 0.9
    assert torch.equal(varied["canal"], batch["canal"])


def test_false_bone_in_the_canal_counts_more(pool: dict[str, torch.Tensor]) -> None:
    bone = torch.zeros(1, 4, 4, 4)
    bone[:, :2] = 1
    canal, seen = torch.zeros_like(bone), torch.ones_like(bone)
    canal[:, 3] = 1
    right = torch.where(bone > 0, 6.0, -6.0)
    blocked, beside = right.clone(), right.clone()
    blocked[:, 3, 0], beside[:, 2, 0] = 6.0, 6.0
    losses = {
        name: training.loss_of(each, bone, canal, seen)
        for name, each in (("right", right), ("canal", blocked), ("beside", beside))
    }
    assert losses["right"][0] < losses["beside"][0] < losses["canal"][0]
    assert losses["canal"][1] / losses["beside"][1] == pytest.approx(1 + training.CANAL_WEIGHT, rel=0.05)
    assert (float(losses["right"][3]), float(losses["canal"][3])) == (0.0, 4 / 32)
    # What was not seen does not count.
    hidden = training.loss_of(torch.where(canal > 0, 6.0, right), bone, canal, 1 - canal)
    assert float(hidden[3]) == 0 and hidden[1] < losses["beside"][1]


def test_without_shapes_nothing_of_them_is_seen() -> None:
    given, shape = torch.zeros((1, 5, *SIZE)), torch.full((1, *SIZE), -4.0)
    blind, seeing = (training.inputs_of(given, shape, shape, torch.ones(1, 3), flag) for flag in (False, True))
    assert blind.shape[1] == seeing.shape[1] == CHANNELS
    assert not blind[:, SHAPE].any() and (seeing[:, SHAPE] < 0).all()
    assert torch.equal(blind[:, : SHAPE.start], seeing[:, : SHAPE.start])


def test_a_training_learns_goes_on_and_its_file_is_read(
    patches: list[Patch],
    shapes: ShapeModel,
    mean_canals: np.ndarray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    samples.make(lambda: patches, tmp_path / "patches", "00", 60.0, 3)
    net = tmp_path / "shape-0.pt"
    for steps in (1, 3):
        training.train(tmp_path / "patches", net, shapes, training.Run(60.0, steps, 1), CPU)
    told = capsys.readouterr().out.splitlines()
    assert [line for line in told if line.endswith("of 3 patches")] == [f"{n} steps of 1 of 3 patches" for n in (1, 3)]
    assert json.loads(told[0])["step"] == 1
    assert torch.load(tmp_path / "shape-0.state")["step"] == 3
    bundled = tmp_path / "redrawing.safetensors"
    training.export(net, bundled, shapes, "CC0-1.0", "painted")
    read = load_redrawing(bundled, shapes)
    assert torch.allclose(read.network.first.weight, torch.load(net)["first.weight"].float(), atol=1e-2)
    assert np.abs(read.canals.numpy() - mean_canals).max() < 0.05


def test_no_patches_is_one_sentence(tmp_path: Path, shapes: ShapeModel) -> None:
    with pytest.raises(InputError, match="There are no patches in .*: make some first"):
        training.train(tmp_path, tmp_path / "net.pt", shapes, training.Run(), CPU)


def test_every_mean_shape_has_a_canal_that_runs_through(shapes: ShapeModel, mean_canals: np.ndarray) -> None:
    for level, distance in enumerate(mean_canals, start=1):
        half = half_extent(level, shapes)
        steps = 2 * half / (np.array(distance.shape) - 1)
        area = (distance < 0).sum(axis=(1, 2)) * steps[1] * steps[2]
        assert (area > 0).mean() > 0.9, level
        # Square millimetres in the middle: from the thoracic canal to that of the atlas.
        assert 120 < area[distance.shape[0] // 2] < 700, level
        # It lies behind the bodies in all planes, one above the other.
        planes = [np.argwhere(plane < 0).mean(axis=0) * steps[1:] for plane in distance if (plane < 0).any()]
        assert np.ptp(planes, axis=0).max() < 8.0, level


def test_slices_of_a_sample_are_noted() -> None:
    given = context()
    image = torch.zeros(tissues().shape)
    ct.in_profiled_slices(image, 0, 6.5, given)
    ct.in_averaged_slices(image, 2, 3.0, given)
    assert given.slices_mm.tolist() == [6.5, 0.0, 2.5]
