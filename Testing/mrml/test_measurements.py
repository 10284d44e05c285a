"""The table of measurements: of the segments as they are, on any grid, linked to its segmentation."""

from __future__ import annotations

import json

import highdicom
import numpy as np
import pytest
import slicer
import vtk
from helpers.dicom_files import write_slices
from helpers.measured_spine import TRABECULAR_HU, Vertebra, painted, turned

from segmamba.errors import InputError
from segmamba.io.dicom_index import find_series, read_series
from segmamba.io.dicom_results import write_dicom
from segmamba.io.labelmap import write_labelmap
from segmamba.io.volume import Geometry
from segmamba.measurements.vertebrae import flat
from segmamba.models.manifest import load_manifest
from segmamba.request import Request
from segmamba_mrml.measurements import CHECK, COLUMNS, NAME, TABLE_ROLE, measure, measurements_table
from segmamba_mrml.renumber import renumber
from segmamba_mrml.reports import REPORT_ATTRIBUTE, read_report
from segmamba_mrml.segment import SegmentationCase
from segmamba_mrml.segmentation import segmentation_from_labels

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
GEOMETRY = Geometry((50, 58, 60), (1.8, 1.8, 2.0), (-45.0, -30.0, -60.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
LEAN = turned(12, -6)
VERTEBRAE = {
    value: Vertebra(tuple((up * LEAN[0]).tolist()), LEAN, anterior=22.0, posterior=26.0)
    for value, up in ((20, 17.0), (21, -17.0))
}


@pytest.fixture(scope="session")
def a_spine():
    return painted(VERTEBRAE, GEOMETRY)


@pytest.fixture
def a_result(a_slicer_scene, vertebrae, a_spine):
    """A segmentation node of L1 and L2, and the volume node that it is of."""
    labels, ct = a_spine
    volume_node = slicer.util.addVolumeFromArray(ct.array, LPS_TO_RAS @ ct.geometry.affine, "case 7")
    return segmentation_from_labels(labels, volume_node, vertebrae, "case 7 vertebrae"), volume_node


def test_the_table_has_the_range_of_grades_and_the_density_of_the_run_s_phantom(a_result):
    node, _ = a_result
    titles = set(shown_columns(measurements_table(node)))
    assert {"Genant grade", "Lowest grade", "Highest grade"} <= titles
    assert "Trabecular density (mg/cm3)" not in titles
    run = {"options": {"density_calibration": [0.8, -5.0]}}
    node.SetAttribute(REPORT_ATTRIBUTE, json.dumps({"volume": {"modality": "CT"}, "run": run}))
    table = measurements_table(node)
    hu, mg = (column_of(table, f"Trabecular density ({unit})") for unit in ("HU", "mg/cm3"))
    assert mg == pytest.approx([0.8 * each - 5 for each in hu], abs=0.06)


def shown_columns(node):
    table = node.GetTable()
    return [table.GetColumnName(index) for index in range(table.GetNumberOfColumns())]


def column_of(table, title):
    return [table.GetTable().GetColumnByName(title).GetValue(row) for row in range(table.GetNumberOfRows())]


def test_density_is_measured_where_the_run_took_the_volume_for_ct_and_only_there(a_result):
    node, _ = a_result
    for modality, found in (("MR", False), ("CT", True)):
        node.SetAttribute(REPORT_ATTRIBUTE, json.dumps({"volume": {"modality": modality}}))
        assert all((row["trabecular_hu"] is not None) == found for row in measure(node))


def test_table_has_a_row_for_each_vertebra_and_is_linked_to_its_segmentation(a_result):
    node, volume_node = a_result
    table = measurements_table(node)
    assert table.GetName() == "Measurements of case 7 vertebrae"
    assert node.GetNodeReference(TABLE_ROLE) is table
    assert column_of(table, NAME) == ["L1 vertebra", "L2 vertebra"]
    assert column_of(table, "Anterior height (mm)") == pytest.approx([22, 22], abs=1.5)
    assert column_of(table, "Posterior height (mm)") == pytest.approx([26, 26], abs=1.5)
    assert column_of(table, "Trabecular density (HU)") == pytest.approx([TRABECULAR_HU] * 2, abs=3)
    # Digit by digit what the report, its page and the CSV say.
    rows = [flat(row) for row in measure(node)]
    for title, key in COLUMNS.items():
        shown = [None if np.isnan(value) else value for value in column_of(table, title)]
        assert shown == [row[key] for row in rows], title
    first, last = column_of(table, "Sagittal angle (deg)")
    assert first == pytest.approx(0, abs=1.5) and np.isnan(last)
    assert column_of(table, CHECK) == ["", ""]
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(table.GetScene())
    items = [hierarchy.GetItemByDataNode(each) for each in (table, node)]
    assert all(items) and hierarchy.GetItemParent(items[0]) == hierarchy.GetItemParent(items[1])


def test_places_and_volumes_are_those_that_slicer_shows(a_result):
    node, volume_node = a_result
    row = measure(node, volume_node)[0]
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, "L1_vertebra", volume_node) > 0
    k, j, i = (part.mean() for part in np.nonzero(mask))
    matrix = vtk.vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(matrix)
    assert row["centroid_ras_mm"] == pytest.approx(matrix.MultiplyPoint([i, j, k, 1])[:3], abs=0.01)
    assert row["volume_ml"] == pytest.approx(mask.sum() * GEOMETRY.voxel_volume / 1000, abs=1e-3)


def test_the_same_is_measured_under_a_transform_but_for_the_place(a_result, a_linear_transform):
    node, volume_node = a_result
    (before, _), table = measure(node), measurements_table(node)
    for each in (node, volume_node):
        each.SetAndObserveTransformNodeID(a_linear_transform.GetID())
    assert measurements_table(node) is table
    assert column_of(table, "Anterior height (mm)")[0] == pytest.approx(before["anterior_height_mm"], abs=0.5)
    assert column_of(table, "Trabecular density (HU)")[0] == pytest.approx(before["trabecular_hu"], abs=1)
    place = a_linear_transform.GetTransformToParent().TransformPoint(before["centroid_ras_mm"])
    assert [column_of(table, f"{axis} (mm)")[0] for axis in "RAS"] == pytest.approx(place, abs=0.05)


def test_a_copy_of_a_segmentation_has_a_table_of_its_own(a_result):
    node, _ = a_result
    table = measurements_table(node)
    copy = node.GetScene().AddNewNodeByClass(node.GetClassName())
    copy.Copy(node)
    copy.SetName("a copy")
    copy.GetSegmentation().RemoveSegment("L2_vertebra")
    other = measurements_table(copy)
    assert other is not table and other.GetName() == "Measurements of a copy"
    assert (column_of(table, NAME), column_of(other, NAME)) == (["L1 vertebra", "L2 vertebra"], ["L1 vertebra"])
    assert measurements_table(copy) is other and measurements_table(node) is table


def test_after_an_edit_by_hand_the_table_follows(a_result):
    node, volume_node = a_result
    table = measurements_table(node)
    before = column_of(table, "Volume (mL)"), column_of(table, "Anterior height (mm)")
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, "L1_vertebra", volume_node)
    # The lowest 6 mm of everything that is L1's are cut off.
    lowest = np.flatnonzero(mask.any(axis=(1, 2)))[0]
    mask[lowest : lowest + 3] = 0
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, "L1_vertebra", volume_node)
    node.GetSegmentation().RemoveSegment("L2_vertebra")
    assert measurements_table(node) is table
    assert column_of(table, NAME) == ["L1 vertebra"]
    assert column_of(table, "Volume (mL)")[0] < before[0][0]
    assert column_of(table, "Volume (mL)")[0] == pytest.approx(
        (mask > 0).sum() * GEOMETRY.voxel_volume / 1000, abs=1e-3
    )


def test_segments_that_overlap_are_each_measured_whole(a_result):
    node, volume_node = a_result
    before = measure(node)
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, "L1_vertebra", volume_node)
    other = slicer.util.arrayFromSegmentBinaryLabelmap(node, "L2_vertebra", volume_node)
    # A plane through both, as a label map of its own.
    drawn = ((mask > 0) | ((other > 0) & (np.arange(50) < 25))).astype(np.uint8)
    slicer.util.updateSegmentBinaryLabelmapFromArray(drawn, node, "L1_vertebra", volume_node)
    assert node.GetSegmentation().GetNumberOfLayers() == 2
    rows = measure(node)
    assert [row["name"] for row in rows] == ["L1 vertebra", "L2 vertebra"]
    assert rows[1]["volume_ml"] == before[1]["volume_ml"]
    assert rows[0]["volume_ml"] == pytest.approx(drawn.sum() * GEOMETRY.voxel_volume / 1000, abs=1e-3)


def test_renumbered_vertebrae_have_their_new_names(a_result):
    node, _ = a_result
    renumber(node, "L1", "T12")
    assert [row["name"] for row in measure(node)] == ["T12 vertebra", "L1 vertebra"]


def test_a_run_leaves_no_measurements_in_the_scene_that_edits_would_make_wrong(a_result, a_spine):
    _, volume_node = a_result
    case = SegmentationCase(volume_node, Request(input="", output="", task="vertebrae"))
    labels, ct = a_spine
    write_labelmap(case.request.output, labels, ct.geometry, load_manifest().default("vertebrae").labels)
    measured = {"measurements": [{"value": 20}], "curves": [{}], "bone": {}, "look_first": []}
    report = read_report(case.finish({"summary": "2 found", "segments": [], **measured}))
    case.close()
    assert report["summary"] == "2 found" and not set(measured) & set(report)


def test_a_cut_vertebra_says_so(a_slicer_scene, vertebrae, a_spine):
    labels, ct = a_spine
    part = slice(0, 37)  # the upper half of L1 is gone
    matrix = LPS_TO_RAS @ GEOMETRY.affine
    volume_node = slicer.util.addVolumeFromArray(ct.array[part], matrix, "cut")
    node = segmentation_from_labels(labels[part], volume_node, vertebrae, "cut vertebrae")
    table = measurements_table(node)
    assert column_of(table, CHECK)[0] == "The image ends within the body."
    assert np.isnan(column_of(table, "Anterior height (mm)")[0])


def test_what_cannot_be_measured_is_a_sentence_and_makes_no_table(a_result):
    node, volume_node = a_result
    scene = node.GetScene()
    second = node.GetSegmentation().GetSegment("L2_vertebra")
    copy = slicer.vtkSegment()
    copy.DeepCopy(second)
    node.GetSegmentation().AddSegment(copy, "again")
    with pytest.raises(InputError, match="has 'L2 vertebra' twice"):
        measurements_table(node)
    node.GetSegmentation().RemoveSegment("again")
    scene.RemoveNode(volume_node)
    with pytest.raises(InputError, match="not in the scene"):
        measurements_table(node)
    empty = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "empty")
    with pytest.raises(InputError, match="no vertebra to measure"):
        measurements_table(empty)
    assert scene.GetNumberOfNodesByClass("vtkMRMLTableNode") == 0


def test_a_dicom_segmentation_comes_back_on_the_same_grid(a_slicer_scene, vertebrae, a_spine, tmp_path):
    """slicer-core cannot read DICOM by itself: highdicom reads the file, its voxels and matrix go to the scene."""
    labels, ct = a_spine
    write_slices(tmp_path / "series", ct.array, ct.geometry)
    (series,) = find_series(tmp_path / "series")
    source = read_series(series)
    volume_node = slicer.util.addVolumeFromArray(source.array, LPS_TO_RAS @ source.geometry.affine, "source")
    model = load_manifest().default("vertebrae")
    write_dicom(tmp_path / "seg.dcm", labels, series.files, model.labels, model)
    read = highdicom.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    # Its axes are slices, rows and columns; Slicer's are columns, rows and slices.
    matrix = LPS_TO_RAS @ read.affine[:, [2, 1, 0, 3]]
    label_node = a_slicer_scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    slicer.util.updateVolumeFromArray(label_node, read.array.astype(np.uint8))
    label_node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(matrix))
    node = a_slicer_scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "read")
    assert slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(label_node, node)
    for number, value in enumerate((20, 21)):
        identifier = node.GetSegmentation().GetNthSegmentID(number)
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, identifier, volume_node) > 0
        np.testing.assert_array_equal(mask, labels == value)
