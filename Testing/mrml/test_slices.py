"""Volumes on tilted, sheared or uneven slices: resampled for the engine, and segmented on their own voxels."""

from __future__ import annotations

import numpy as np
import pytest
import slicer

from segmamba.errors import InputError
from segmamba.io.labelmap import write_labelmap
from segmamba.io.read import read_volume
from segmamba.models.manifest import load_manifest
from segmamba.request import Request
from segmamba_mrml.segment import SegmentationCase
from segmamba_mrml.slices import coarse_volume, stored_volume

SIZE = (40, 36, 30)
# Of the ball, in RAS millimetres; and where the volume begins.
CENTER, RADIUS, START, SPACING = np.array([20.0, 20.0, 45.0]), 13.0, np.array([0.0, 0.0, 0.0]), (1.0, 1.1, 3.0)


def ball(places):
    """Return the intensity at places (..., 3) in RAS millimetres: a bright ball with soft edges in air."""
    inside = np.clip(RADIUS - np.linalg.norm(places - CENTER, axis=-1) + 0.5, 0, 1)
    return (1300 * inside - 1000).astype(np.int16)


@pytest.fixture
def scanned(a_slicer_scene, put_on_uneven_slices):
    """Scan the ball on slices that are off an even grid by moves (slices, 3) in RAS millimetres."""

    def scanned(moves):
        columns, rows, slices = SIZE
        k, j, i = np.meshgrid(*(np.arange(size) for size in (slices, rows, columns)), indexing="ij")
        places = START + np.stack([i, j, k], axis=-1) * SPACING + np.asarray(moves)[:, None, None]
        node = slicer.util.addVolumeFromArray(ball(places), np.diag([*SPACING, 1.0]), "case 7")
        return node, put_on_uneven_slices(node, moves), places

    return scanned


TILT = np.outer(np.arange(SIZE[2]), [0.0, 0.6, 0.0])
UNEVEN = np.outer(np.where(np.arange(SIZE[2]) > 14, 4.0, 0.0), [0.0, 0.0, 1.0])


@pytest.mark.parametrize("moves", [TILT, UNEVEN, TILT + UNEVEN], ids=["tilt", "uneven", "both"])
def test_engine_sees_the_patient_and_the_segments_lie_on_the_volume_s_own_voxels(scanned, moves, tmp_path):
    node, transform, places = scanned(moves)
    case = SegmentationCase(node, Request.of(task="vertebrae"))
    case.export()
    seen = read_volume(case.request.input)
    affine = seen.geometry.affine
    k, j, i = np.meshgrid(*(np.arange(size) for size in seen.array.shape), indexing="ij")
    world = (np.stack([i, j, k], axis=-1) @ affine[:3, :3].T + affine[:3, 3]) * (-1, -1, 1)
    wrong = np.abs(seen.array.astype(float) - ball(world)) > 700
    assert wrong.mean() < 0.002
    labels = np.where(seen.array > -300, 20, 0).astype(np.uint8)
    write_labelmap(case.request.output, labels, seen.geometry, load_manifest().default("vertebrae").labels)
    report = case.noted({"segments": [{"name": "L1 vertebra"}], "run": {"warnings": ["other"]}})
    result = case.finish(report)
    case.close()
    assert "'case 7' are tilted" in report["run"]["warnings"][0] and report["run"]["warnings"][1] == "other"
    assert result.GetTransformNodeID() == transform.GetID()
    identifier = result.GetSegmentation().GetNthSegmentID(0)
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(result, identifier, node) > 0
    expected = ball(places) > -300
    overlap = 2 * (mask & expected).sum() / (mask.sum() + expected.sum())
    assert overlap > 0.97


def test_forecast_is_made_of_the_voxels_as_they_about_lie(scanned):
    node, _transform, _places = scanned(TILT + UNEVEN)
    volume = coarse_volume(node)
    assert volume.geometry.size == SIZE
    heights = 87 + 4
    assert volume.geometry.spacing == pytest.approx((1.0, 1.1, heights / 29))


def test_sheared_linear_transform_is_resampled_too(scanned, a_linear_transform):
    node, _transform, _places = scanned(np.zeros((SIZE[2], 3)))
    shear = np.eye(4)
    shear[1, 2] = 0.2
    slicer.util.updateTransformMatrixFromArray(a_linear_transform, shear)
    node.SetAndObserveTransformNodeID(a_linear_transform.GetID())
    volume, stored = stored_volume(node)
    assert stored is not None and volume.array.shape == SIZE[::-1]
    np.testing.assert_allclose(stored.positions[-1] * (-1, -1, 1), [0.0, 0.2 * 87, 87.0], atol=1e-9)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda moves: moves[::-1] * [0, 0, 0] + np.outer(np.arange(len(moves)), [0.0, 9.0, 0.0]),
        lambda moves: np.outer(np.arange(len(moves)) == 20, [0.0, 0.0, -9.0]),
        lambda moves: moves * np.nan,
    ],
    ids=["no gantry tilts so far", "slices out of order", "not a number"],
)
def test_what_no_scanner_makes_is_refused(scanned, spoil):
    node, _transform, _places = scanned(TILT)
    slicer.util.arrayFromGridTransform(_transform)[:] = spoil(TILT)[:, None, None]
    with pytest.raises(InputError, match="tilted or at uneven distances"):
        stored_volume(node)


def test_other_warps_are_refused_as_before(scanned):
    node, transform, _places = scanned(TILT)
    transform.SetName("registration")
    with pytest.raises(InputError, match="non-linear transform 'registration'"):
        stored_volume(node)
