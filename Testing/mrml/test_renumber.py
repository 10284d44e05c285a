"""Renumbering a column: names, colours, terms, IDs and the report follow, masks and all else stay."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from segmamba.errors import InputError
from segmamba_mrml.renumber import renumber
from segmamba_mrml.reports import REPORT_ATTRIBUTE, parts, read_report
from segmamba_mrml.segmentation import save_segmentation, segment_ids, segmentation_from_labels
from segmamba_mrml.vertebra_segments import find_vertebra, vertebrae_of

REPORT = {
    "segments": [
        {"value": 19, "name": "T12 vertebra", "segment_id": "T12_vertebra", "volume_ml": 1.0},
        {"value": 20, "name": "L1 vertebra", "segment_id": "L1_vertebra", "volume_ml": 2.0},
        {"value": 26, "name": "Sacrum", "segment_id": "Sacrum", "volume_ml": 3.0},
    ],
    "summary": "3 structures found: T12 vertebra, L1 vertebra, Sacrum. "
    "Vertebral levels are uncertain: T12 could be L1.",
    "numbering": {"certain": False, "reason": "T12 could be L1.", "levels": {"19": 0.6, "20": 0.6}},
    "refinement": [
        {"step": "close", "level": "T12"},
        {"step": "remove", "level": "L6"},
        {"step": "close", "level": "sacrum"},
    ],
}


@pytest.fixture
def a_column(labels, a_volume_node, vertebrae):
    """T12, L1 and the sacrum, with the report of a run that was not certain."""
    node = segmentation_from_labels(labels, a_volume_node, vertebrae, "case 7 vertebrae")
    node.SetAttribute(REPORT_ATTRIBUTE, json.dumps(REPORT))
    return node


def names(node):
    return [node.GetSegmentation().GetSegment(each).GetName() for each in segment_ids(node)]


def voxels(node, identifier, volume_node):
    return slicer.util.arrayFromSegmentBinaryLabelmap(node, identifier, volume_node) > 0


@pytest.mark.parametrize("called", ["T12", "T12 vertebra", "T12_vertebra"])
def test_column_moves_with_the_vertebra_and_the_sacrum_stays(a_column, called):
    renumber(a_column, called, "L1")
    assert names(a_column) == ["L1 vertebra", "L2 vertebra", "Sacrum"]
    assert segment_ids(a_column) == ["L1_vertebra", "L2_vertebra", "Sacrum"]


def test_colours_and_terms_are_those_of_the_new_names(a_column, vertebrae):
    renumber(a_column, "L1", "T11")
    by_name = {label.name: label for label in vertebrae}
    for identifier, name in zip(segment_ids(a_column), ("T10 vertebra", "T11 vertebra", "Sacrum"), strict=True):
        segment, tag = a_column.GetSegmentation().GetSegment(identifier), vtk.reference("")
        assert segment.GetName() == name
        assert tuple(round(255 * part) for part in segment.GetColor()) == by_name[name].color
        assert segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), tag)
        assert str(tag) == by_name[name].terminology_tag


def test_l1_may_be_t13_and_its_mask_and_terms_are_those_of_t13(a_column, a_volume_node, labels, vertebrae):
    renumber(a_column, "L1", "T13")
    assert segment_ids(a_column) == ["T12_vertebra", "T13_vertebra", "Sacrum"]
    assert list(vertebrae_of(a_column).values()) == [19, 28]
    np.testing.assert_array_equal(voxels(a_column, "T13_vertebra", a_volume_node), labels == 20)
    assert read_report(a_column)["numbering"]["by_hand"] == ["L1 is T13"]
    renumber(a_column, "T13", "L1", below=True)
    assert segment_ids(a_column) == ["T12_vertebra", "L1_vertebra", "Sacrum"]
    segment = a_column.GetSegmentation().GetSegment("L1_vertebra")
    assert segment.GetLabelValue() == 20


def test_masks_are_the_same_memory_and_a_saved_file_has_them(a_column, a_volume_node, labels, tmp_path):
    image = a_column.GetSegmentation().GetLayerDataObject(0)
    renumber(a_column, "T12", "L1")
    assert a_column.GetSegmentation().GetNumberOfLayers() == 1
    assert a_column.GetSegmentation().GetLayerDataObject(0) is image
    save_segmentation(a_column, tmp_path / "right.seg.nrrd")
    loaded = slicer.modules.segmentations.logic().LoadSegmentationFromFile(str(tmp_path / "right.seg.nrrd"), False)
    for node in (a_column, loaded):
        for identifier, value in (("L1_vertebra", 19), ("L2_vertebra", 20), ("Sacrum", 26)):
            np.testing.assert_array_equal(voxels(node, identifier, a_volume_node), labels == value)


def plain(node, path):
    """Return the voxels that another program finds in a saved file, and the label value of each segment."""
    save_segmentation(node, path)
    image = sitk.ReadImage(str(path))
    keys = [key.removesuffix("_ID") for key in image.GetMetaDataKeys() if key.endswith("_ID")]
    array = sitk.GetArrayFromImage(image)
    return array, {image.GetMetaData(f"{key}_ID"): int(image.GetMetaData(f"{key}_LabelValue")) for key in keys}


def test_file_read_as_plain_voxels_has_the_new_numbers(a_column, labels, tmp_path):
    renumber(a_column, "T12", "L1")
    array, values = plain(a_column, tmp_path / "right.seg.nrrd")
    assert values == {"L1_vertebra": 20, "L2_vertebra": 21, "Sacrum": 26}
    for old, new in ((19, 20), (20, 21), (26, 26)):
        assert (array == new).sum() == (labels == old).sum()
    assert set(np.unique(array)) == {0, *values.values()}


def test_segment_whose_value_is_needed_gets_another_and_keeps_its_mask(a_column, labels, a_volume_node, tmp_path):
    segment = a_column.GetSegmentation().GetSegment("Sacrum")
    image = segment.GetRepresentation("Binary labelmap")
    array = vtk_to_numpy(image.GetPointData().GetScalars())
    array[array == 26] = 21
    # Values that no segment has must not come to life as a part of one.
    array[np.flatnonzero(array == 0)[:5]] = 18
    array[np.flatnonzero(array == 0)[-5:]] = 255
    segment.SetLabelValue(21)
    renumber(a_column, "T12", "L1")
    for identifier, value in (("L1_vertebra", 19), ("L2_vertebra", 20), ("Sacrum", 26)):
        np.testing.assert_array_equal(voxels(a_column, identifier, a_volume_node), labels == value)
    array, values = plain(a_column, tmp_path / "right.seg.nrrd")
    assert (values["L1_vertebra"], values["L2_vertebra"]) == (20, 21)
    assert values["Sacrum"] not in (20, 21) and (array == values["Sacrum"]).sum() == (labels == 26).sum()
    renumber(a_column, "L1", "T11")
    np.testing.assert_array_equal(voxels(a_column, "T11_vertebra", a_volume_node), labels == 19)


def test_voxels_of_other_numbers_than_whole_ones_keep_their_values(a_column, labels, a_volume_node):
    image = a_column.GetSegmentation().GetLayerDataObject(0)
    array = vtk_to_numpy(image.GetPointData().GetScalars()).astype(np.float32)
    image.GetPointData().SetScalars(numpy_to_vtk(array, deep=True))
    renumber(a_column, "T12", "L1")
    assert segment_ids(a_column) == ["L1_vertebra", "L2_vertebra", "Sacrum"]
    np.testing.assert_array_equal(voxels(a_column, "L1_vertebra", a_volume_node), labels == 19)


def test_segment_editor_s_undo_brings_back_numbers_and_masks(a_column, labels, a_volume_node):
    history = slicer.vtkSegmentationHistory()
    history.SetSegmentation(a_column.GetSegmentation())
    history.SaveState()
    renumber(a_column, "T12", "L1")
    history.SaveState()
    renumber(a_column, "L1", "L2")
    for top in ("L1", "T12"):
        history.RestorePreviousState()
        assert segment_ids(a_column)[0] == f"{top}_vertebra"
        np.testing.assert_array_equal(voxels(a_column, f"{top}_vertebra", a_volume_node), labels == 19)
        np.testing.assert_array_equal(voxels(a_column, "Sacrum", a_volume_node), labels == 26)


def test_report_is_the_one_of_the_numbers_that_undo_and_redo_bring_back(a_column):
    def rows():
        return [(row["segment_id"], row["volume_ml"]) for row in read_report(a_column)["segments"]]

    found = [("T12_vertebra", 1.0), ("L1_vertebra", 2.0), ("Sacrum", 3.0)]
    history = slicer.vtkSegmentationHistory()
    history.SetSegmentation(a_column.GetSegmentation())
    history.SaveState()
    renumber(a_column, "T12", "L1")
    history.SaveState()
    renumber(a_column, "L2", "T12")
    assert rows() == [("T11_vertebra", 1.0), ("T12_vertebra", 2.0), ("Sacrum", 3.0)]
    history.RestorePreviousState()
    assert rows() == [("L1_vertebra", 1.0), ("L2_vertebra", 2.0), ("Sacrum", 3.0)]
    history.RestorePreviousState()
    assert rows() == found
    assert read_report(a_column) == REPORT
    history.RestoreNextState()
    assert rows()[0] == ("L1_vertebra", 1.0)
    assert read_report(a_column)["numbering"]["by_hand"] == ["T12 is L1"]
    # What is corrected after undo is undone to the same.
    history.RestorePreviousState()
    renumber(a_column, "T12", "T11")
    assert rows()[0] == ("T11_vertebra", 1.0)
    history.RestorePreviousState()
    assert rows() == found


def test_what_others_added_to_the_report_survives_undo(a_column):
    history = slicer.vtkSegmentationHistory()
    history.SetSegmentation(a_column.GetSegmentation())
    history.SaveState()
    renumber(a_column, "T12", "L1")
    a_column.SetAttribute(REPORT_ATTRIBUTE, json.dumps({**read_report(a_column), "note": "mine"}))
    history.RestorePreviousState()
    assert read_report(a_column) == REPORT
    history.RestoreNextState()
    assert read_report(a_column)["note"] == "mine"


def test_from_a_vertebra_down_only_it_and_those_below_get_other_numbers(a_column, labels, a_volume_node, tmp_path):
    renumber(a_column, "L1", "L2", below=True)
    assert names(a_column) == ["T12 vertebra", "L2 vertebra", "Sacrum"]
    np.testing.assert_array_equal(voxels(a_column, "T12_vertebra", a_volume_node), labels == 19)
    np.testing.assert_array_equal(voxels(a_column, "L2_vertebra", a_volume_node), labels == 20)
    report = read_report(a_column)
    assert [(row["value"], row["segment_id"]) for row in report["segments"]] == [
        (19, "T12_vertebra"),
        (21, "L2_vertebra"),
        (26, "Sacrum"),
    ]
    assert report["numbering"]["by_hand"] == ["L1 is L2, from there down"]
    assert [change["level"] for change in report["refinement"]] == ["T12", "sacrum"]
    array, values = plain(a_column, tmp_path / "right.seg.nrrd")
    assert values == {"T12_vertebra": 19, "L2_vertebra": 21, "Sacrum": 26}
    assert (array == 21).sum() == (labels == 20).sum()


def test_rows_of_an_earlier_run_are_renumbered_too(a_column):
    part = {**REPORT, "segments": REPORT["segments"][1:]}
    whole = {**REPORT, "segments": REPORT["segments"][:1], "earlier": [part]}
    a_column.SetAttribute(REPORT_ATTRIBUTE, json.dumps(whole))
    renumber(a_column, "T12", "L1")
    last, before = parts(read_report(a_column))
    assert [row["segment_id"] for row in last["segments"]] == ["L1_vertebra"]
    assert [row["segment_id"] for row in before["segments"]] == ["L2_vertebra", "Sacrum"]
    assert last["numbering"] == before["numbering"] == {"certain": True, "by_hand": ["T12 is L1"]}


def test_number_that_another_vertebra_keeps_is_refused(a_column):
    with pytest.raises(InputError, match="there would be T12 twice: choose another level, or renumber the whole"):
        renumber(a_column, "L1", "T12", below=True)
    with pytest.raises(InputError, match="L1 would not be between C1 and L6"):
        renumber(a_column, "T12", "L6", below=True)
    assert segment_ids(a_column) == ["T12_vertebra", "L1_vertebra", "Sacrum"]


def test_surfaces_and_looks_go_with_the_segments(a_column):
    a_column.CreateClosedSurfaceRepresentation()
    display = a_column.GetDisplayNode()
    display.SetSegmentVisibility("L1_vertebra", False)
    display.SetSegmentOpacity3D("L1_vertebra", 0.25)
    center = a_column.GetSegmentCenterRAS("L1_vertebra")
    renumber(a_column, "L1", "L2")
    assert not display.GetSegmentVisibility("L2_vertebra") and display.GetSegmentVisibility("L1_vertebra")
    assert display.GetSegmentOpacity3D("L2_vertebra") == 0.25
    assert a_column.GetSegmentCenterRAS("L2_vertebra") == center
    surface = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    assert a_column.GetClosedSurfaceInternalRepresentation("L2_vertebra").GetNumberOfPoints() > 0
    assert a_column.GetSegmentation().ContainsRepresentation(surface)


def test_report_follows_and_says_that_a_person_answers_for_the_numbers(a_column):
    renumber(a_column, "T12", "L1")
    report = json.loads(a_column.GetAttribute(REPORT_ATTRIBUTE))
    assert [(row["value"], row["name"], row["segment_id"], row["volume_ml"]) for row in report["segments"]] == [
        (20, "L1 vertebra", "L1_vertebra", 1.0),
        (21, "L2 vertebra", "L2_vertebra", 2.0),
        (26, "Sacrum", "Sacrum", 3.0),
    ]
    assert report["numbering"] == {"certain": True, "by_hand": ["T12 is L1"]}
    # What was removed below L5 is below L6 now, and has no number.
    assert [change["level"] for change in report["refinement"]] == ["L1", "sacrum"]
    assert report["summary"] == "3 structures found: L1 vertebra, L2 vertebra, Sacrum."
    renumber(a_column, "L1", "T12")
    again = json.loads(a_column.GetAttribute(REPORT_ATTRIBUTE))
    assert again["segments"] == REPORT["segments"]
    assert again["numbering"]["by_hand"] == ["T12 is L1", "L1 is T12"]


def test_reports_and_nodes_without_numbering_are_renumbered_too(a_column):
    a_column.SetAttribute(REPORT_ATTRIBUTE, json.dumps({"segments": REPORT["segments"][:1]}))
    renumber(a_column, "T12", "L1")
    assert set(json.loads(a_column.GetAttribute(REPORT_ATTRIBUTE))) == {"segments", "summary"}
    a_column.RemoveAttribute(REPORT_ATTRIBUTE)
    renumber(a_column, "L1", "T12")
    assert names(a_column)[0] == "T12 vertebra"
    assert a_column.GetAttribute(REPORT_ATTRIBUTE) is None


def test_order_of_segments_and_what_is_no_vertebra_stay(a_column):
    own = slicer.vtkSegment()
    own.SetName("my own")
    a_column.GetSegmentation().AddSegment(own, "mine", "L1_vertebra")
    renumber(a_column, "T12", "L1")
    assert names(a_column) == ["L1 vertebra", "my own", "L2 vertebra", "Sacrum"]
    assert segment_ids(a_column)[1] == "mine"


def test_right_number_changes_nothing(a_column):
    before = a_column.GetAttribute(REPORT_ATTRIBUTE)
    renumber(a_column, "T12", "T12")
    assert a_column.GetAttribute(REPORT_ATTRIBUTE) == before


@pytest.mark.parametrize(
    ("called", "level", "sentence"),
    [
        ("T5", "T6", "has no vertebra 'T5': choose from T12, L1"),
        ("Sacrum", "L5", "has no vertebra 'Sacrum'"),
        ("T12", "L9", "'L9' is not a vertebra"),
        ("T12", "sacrum", "'sacrum' is not a vertebra"),
        ("T12", "L6", "L1 would not be between C1 and L6"),
        ("L1", "C1", "T12 would not be between C1 and L6"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_changes_nothing(a_column, called, level, sentence):
    with pytest.raises(InputError, match=sentence):
        renumber(a_column, called, level)
    assert segment_ids(a_column) == ["T12_vertebra", "L1_vertebra", "Sacrum"]
    assert json.loads(a_column.GetAttribute(REPORT_ATTRIBUTE)) == REPORT


def test_level_that_two_segments_have_has_to_be_told_apart(a_column, labels, a_volume_node, vertebrae):
    segmentation_from_labels(labels, a_volume_node, vertebrae, "unused", output_node=a_column)
    second = segment_ids(a_column)[3]
    with pytest.raises(InputError, match=f"2 segments 'T12': give an ID .T12_vertebra, {second}"):
        find_vertebra(a_column, "T12")
    assert find_vertebra(a_column, second) == second
    renumber(a_column, second, "L1")
    assert names(a_column) == ["L1 vertebra", "L2 vertebra", "Sacrum"] * 2
    assert len(set(segment_ids(a_column))) == 6


def test_vertebra_is_known_by_its_term_whatever_a_person_calls_it(a_column):
    a_column.GetSegmentation().GetSegment("T12_vertebra").SetName("broken one")
    assert vertebrae_of(a_column) == {"T12_vertebra": 19, "L1_vertebra": 20}
    assert find_vertebra(a_column, "broken one") == find_vertebra(a_column, "T12") == "T12_vertebra"
