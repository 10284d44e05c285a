"""One vertebra's mask is tidied after an edit, on any grid, and nothing else is touched."""

from __future__ import annotations

import copy
import functools
import json

import numpy as np
import pytest
import slicer
from helpers.placed_spine import GRIDS, L1, L2, T12, Column

from segmamba.errors import InputError
from segmamba_mrml.refinement import OTHER, SPACING_MM, Refinement, patient_grid, refine, resample_changes, sampled
from segmamba_mrml.segment import REPORT_ATTRIBUTE
from segmamba_mrml.segmentation import segmentation_from_labels


@pytest.fixture(scope="session")
def columns():
    return {name: Column(name) for name in GRIDS}


@pytest.fixture(params=list(GRIDS))
def a_column(request, columns):
    return columns[request.param]


@pytest.fixture
def an_edit(a_slicer_scene, vertebrae):
    """Make a node of a column that was edited; return it, its volume's, the hole and the loose piece."""

    def an_edit(column):
        edited, hole, piece = column.edited()
        volume_node = slicer.util.addVolumeFromArray(edited.astype(np.int16), column.matrix, "case 7")
        return segmentation_from_labels(edited, volume_node, vertebrae, "edited"), volume_node, hole, piece

    return an_edit


def voxels(node, level, volume_node):
    identifier = {T12: "T12_vertebra", L1: "L1_vertebra", L2: "L2_vertebra"}[level]
    return slicer.util.arrayFromSegmentBinaryLabelmap(node, identifier, volume_node) > 0


def test_hole_is_filled_and_loose_piece_goes_and_all_else_stays(a_column, an_edit):
    node, volume_node, hole, piece = an_edit(a_column)
    (change,) = refine(node, "L1")
    for level in (T12, L1, L2):
        np.testing.assert_array_equal(voxels(node, level, volume_node), a_column.labels == level)
    assert (change["step"], change["level"]) == ("edit", "L1")
    assert (change["added_voxels"], change["removed_voxels"]) == (hole.sum(), piece.sum())
    volume = abs(np.linalg.det(a_column.matrix[:3, :3])) / 1000
    assert change["added_ml"] == pytest.approx(hole.sum() * volume, abs=1e-3)


def test_column_under_a_transform_is_refined_as_it_lies_in_the_patient(columns, an_edit, a_linear_transform):
    """A column that is stored turned by 30 degrees, and upright again under its transform."""
    column = columns["straight"]
    stored = copy.copy(column)
    stored.matrix = np.linalg.inv(world_of(a_linear_transform)) @ column.matrix
    node, volume_node, _hole, _piece = an_edit(stored)
    for each in (node, volume_node):
        each.SetAndObserveTransformNodeID(a_linear_transform.GetID())
    refine(node, "L1")
    np.testing.assert_array_equal(voxels(node, L1, volume_node), column.labels == L1)


def world_of(transform_node):
    return slicer.util.arrayFromTransformMatrix(transform_node, toWorld=True)


def test_clean_mask_is_not_touched(columns, a_slicer_scene, vertebrae):
    column = columns["oblique"]
    volume_node = slicer.util.addVolumeFromArray(column.labels.astype(np.int16), column.matrix)
    node = segmentation_from_labels(column.labels, volume_node, vertebrae, "clean")
    image = node.GetSegmentation().GetLayerDataObject(0)
    before = image.GetMTime()
    assert refine(node, "L1 vertebra") == []
    assert image.GetMTime() == before


@functools.cache
def on_the_patient_s_axes(column):
    """Return the grid along the patient's axes, and a column's labels on it."""
    grid, shape = patient_grid(column.to_lps, np.zeros(3), np.array(column.labels.shape[::-1]) - 1)
    return grid, sampled(column.labels, column.to_lps, grid, shape)


def test_labels_go_to_the_patient_s_axes_and_back_within_a_voxel(a_column):
    grid, there = on_the_patient_s_axes(a_column)
    places = np.argwhere(there == L1)[:, ::-1] @ grid[:3, :3].T + grid[:3, 3]
    expected = a_column.places[a_column.labels == L1]
    voxel = np.abs(a_column.matrix[:3, :3]).sum(axis=1)
    assert (np.abs(places.min(axis=0) - expected.min(axis=0)) <= voxel).all()
    assert (np.abs(places.max(axis=0) - expected.max(axis=0)) <= voxel).all()
    assert places.mean(axis=0) == pytest.approx(expected.mean(axis=0), abs=SPACING_MM / 2)
    back = sampled(there, grid, a_column.to_lps, a_column.labels.shape)
    wrong = a_column.places[back != a_column.labels]
    assert len(wrong) < 0.05 * a_column.labels.size
    # Where they differ there is a surface, at most a voxel of both grids away.
    reach = np.linalg.norm(a_column.matrix[:3, :3], axis=0).max() + SPACING_MM
    for place in wrong[:: max(1, len(wrong) // 12)]:
        near = np.linalg.norm(a_column.places - place, axis=-1) <= reach
        assert len(np.unique(a_column.labels[near])) > 1


def test_only_what_changed_on_the_other_grid_comes_back(a_column):
    grid, there = on_the_patient_s_axes(a_column)
    back = resample_changes(a_column.labels, a_column.to_lps, there, there, grid, L1)
    np.testing.assert_array_equal(back, a_column.labels)


def test_other_segments_are_not_taken_from_even_in_other_layers(columns, an_edit):
    column = columns["oblique"]
    node, volume_node, hole, _piece = an_edit(column)
    metal = column.ball([0, -18, 0], 3)
    slicer.util.updateSegmentBinaryLabelmapFromArray(
        metal.astype(np.uint8), node, node.GetSegmentation().AddEmptySegment("screw"), volume_node
    )
    assert metal.sum() > 10
    refine(node, "L1")
    found = voxels(node, L1, volume_node)
    assert not found[metal].any()
    np.testing.assert_array_equal(slicer.util.arrayFromSegmentBinaryLabelmap(node, "screw", volume_node) > 0, metal)
    assert found[hole & ~metal].all()


def test_nothing_is_added_outside_of_the_image(columns, a_slicer_scene, vertebrae):
    column = columns["straight"]
    top = column.labels.shape[0] // 2
    cut, matrix = column.labels[:top], column.matrix
    volume_node = slicer.util.addVolumeFromArray(cut.astype(np.int16), matrix)
    node = segmentation_from_labels(cut, volume_node, vertebrae, "cut")
    refine(node, "L1")
    extent = node.GetSegmentation().GetSegment("L1_vertebra").GetRepresentation("Binary labelmap").GetExtent()
    assert extent[5] < top and (cut[-1] == L1).any()


def test_report_follows_the_new_mask(columns, an_edit):
    column = columns["oblique"]
    node, _volume_node, _hole, _piece = an_edit(column)
    rows = [
        {"value": value, "name": "?", "segment_id": f"{name}_vertebra", "volume_ml": 0.0}
        for value, name in ((19, "T12"), (20, "L1"))
    ]
    node.SetAttribute(
        REPORT_ATTRIBUTE, json.dumps({"segments": rows, "refinement": [{"step": "close", "level": "L1"}]})
    )
    changes = refine(node, "L1")
    report = json.loads(node.GetAttribute(REPORT_ATTRIBUTE))
    assert report["segments"][0] == rows[0]
    row, mask = report["segments"][1], column.labels == L1
    assert row["voxels"] == mask.sum()
    assert row["volume_ml"] == pytest.approx(mask.sum() * abs(np.linalg.det(column.matrix[:3, :3])) / 1000, abs=1e-3)
    assert row["centroid_ras_mm"] == pytest.approx(column.places[mask].mean(axis=0) * [-1, -1, 1], abs=0.01)
    assert report["refinement"] == [{"step": "close", "level": "L1"}, *changes]


def test_surface_that_is_shown_follows_the_mask(columns, an_edit):
    node, _volume_node, _hole, _piece = an_edit(columns["straight"])
    node.CreateClosedSurfaceRepresentation()

    def leftmost():
        return node.GetClosedSurfaceInternalRepresentation("L1_vertebra").GetBounds()[0]

    before = leftmost()
    refine(node, "L1")
    # The loose piece lay on the left.
    assert leftmost() > before + 1


def test_parts_of_it_run_outside_the_main_thread(columns, an_edit):
    from concurrent.futures import ThreadPoolExecutor

    node, volume_node, hole, _piece = an_edit(columns["straight"])
    refinement = Refinement(node, "L1_vertebra")
    with ThreadPoolExecutor(1) as executor:
        executor.submit(refinement.compute).result()
    assert not voxels(node, L1, volume_node)[hole].any()
    refinement.apply()
    assert voxels(node, L1, volume_node)[hole].all()


def test_edit_made_meanwhile_is_not_lost(columns, an_edit):
    node, volume_node, hole, piece = an_edit(columns["straight"])
    refinement = Refinement(node, "L1")
    refinement.compute()
    slicer.util.updateSegmentBinaryLabelmapFromArray(piece.astype(np.uint8), node, "L1_vertebra", volume_node)
    with pytest.raises(InputError, match="changed in the meantime"):
        refinement.apply()
    np.testing.assert_array_equal(voxels(node, L1, volume_node), piece)
    node.GetScene().RemoveNode(node)
    with pytest.raises(InputError, match="changed in the meantime"):
        refinement.apply()


def test_what_cannot_be_refined_is_one_sentence(columns, an_edit, a_warp):
    node, volume_node, _hole, _piece = an_edit(columns["straight"])
    with pytest.raises(InputError, match="no vertebra 'T5'"):
        refine(node, "T5")
    node.SetAndObserveTransformNodeID(a_warp.GetID())
    with pytest.raises(InputError, match="'edited' is under the non-linear transform 'warp'"):
        refine(node, "L1")
    node.SetAndObserveTransformNodeID(None)
    nothing = np.zeros(columns["straight"].labels.shape, np.uint8)
    slicer.util.updateSegmentBinaryLabelmapFromArray(nothing, node, "L1_vertebra", volume_node)
    with pytest.raises(InputError, match="'L1_vertebra' is empty"):
        refine(node, "L1")
    node.CreateClosedSurfaceRepresentation()
    surface = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    node.GetSegmentation().SetSourceRepresentationName(surface)
    with pytest.raises(InputError, match="no binary labelmap"):
        refine(node, "T12")


def test_neighbours_and_others_are_told_apart(columns, an_edit):
    node, _volume_node, _hole, _piece = an_edit(columns["straight"])
    refinement = Refinement(node, "T12")
    refinement.compute()
    assert set(np.unique(refinement._labels(columns["straight"].to_lps, columns["straight"].labels.shape))) == {
        *(0, T12, L1),
        OTHER,
    }
