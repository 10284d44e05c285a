"""A result is corrected in the panel: the numbers of all vertebrae, and the mask of one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import slicer
from helpers.large import Clock
from helpers.placed_spine import L1, Column
from helpers.shown_result import show_result

from segmamba.errors import InputError
from segmamba.models.manifest import load_manifest
from segmamba_mrml.segment import REPORT_ATTRIBUTE
from segmamba_mrml.segmentation import segment_ids, segmentation_from_labels

LEVELS = ((19, "T12"), (20, "L1"), (21, "L2"))
NUMBERING = {
    "certain": False,
    "reason": "T12 could be L1, and neither C1, C2 nor the sacrum is in view: check the levels.",
    "probability": 0.7,
    "runner_up": ["L1", "L2", "L3"],
    "runner_up_probability": 0.284,
    "variants": [],
    "levels": {"19": 0.7, "20": 0.72, "21": 0.95},
}
CHANGES = [
    {"step": "close", "level": "L1", "added_ml": 1.234, "removed_ml": 0.0},
    {"step": "pieces", "level": "L1", "added_ml": 0.0, "removed_ml": 0.456},
]


@pytest.fixture(scope="session")
def a_column():
    return Column("oblique")


@pytest.fixture
def show(panel, a_column, a_slicer_host):
    """Show the column, with an edit's hole and loose piece, as a run's result; ``findings`` go to the report."""

    def show(**findings):
        labels, _hole, _piece = a_column.edited()
        node = show_result(panel, labels, a_column.matrix, LEVELS, 40.0, **findings)
        a_slicer_host.process_events()
        return node

    return show


def column_of(table, column):
    return [table.item(row, column).text() for row in range(table.rowCount)]


def voxels(node, identifier):
    volume_node = node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole())
    return slicer.util.arrayFromSegmentBinaryLabelmap(node, identifier, volume_node) > 0


def test_doubt_about_the_numbers_is_said_where_they_stand(panel, show, screenshot, click):
    show(numbering=NUMBERING, refinement=CHANGES)
    ui = panel.ui
    assert ui.numberingLabel.visible and "#d9480f" in ui.numberingLabel.styleSheet
    assert ui.numberingLabel.text == (
        "Vertebral levels are uncertain: T12 could be L1, and neither C1, C2 nor the sacrum is in view: check the "
        "levels. "
        "Second most likely (28%): L1 to L3 instead of T12 to L2. Select a vertebra and renumber it if needed."
    )
    assert column_of(ui.resultTable, 3) == ["level uncertain", "level uncertain", ""]
    assert ui.resultTable.item(1, 2).toolTip() == (
        "Refinement of L1\n• gaps closed: +1.23 mL\n• loose components and holes removed: -0.456 mL"
    )
    assert ui.resultTable.item(0, 0).toolTip() == ""
    screenshot("uncertain")
    click(ui.resultTable, 0)
    screenshot("correcting")


def test_certain_numbers_and_reports_without_numbering_raise_no_doubt(panel, show):
    for findings in ({"numbering": {**NUMBERING, "certain": True, "reason": "", "levels": {}}}, {}):
        show(**findings)
        assert not panel.ui.numberingLabel.visible
        assert column_of(panel.ui.resultTable, 3) == ["", "", ""]


def test_all_vertebrae_are_renumbered_with_the_selected_one(panel, show, click, screenshot):
    node = show(numbering=NUMBERING)
    ui = panel.ui
    assert ui.correctionLabel.text == "Select a vertebra to correct its level or mask."
    assert not ui.renumberButton.visible and not ui.refineButton.visible
    click(ui.resultTable, 0)
    assert ui.correctionLabel.text == "T12 is:"
    assert ui.levelComboBox.currentText == "T12" and not ui.renumberButton.enabled
    ui.levelComboBox.currentIndex = ui.levelComboBox.findText("L1")
    click(ui.renumberButton)
    assert column_of(ui.resultTable, 0) == ["L1 vertebra", "L2 vertebra", "L3 vertebra"]
    assert segment_ids(node) == ["L1_vertebra", "L2_vertebra", "L3_vertebra"]
    assert ui.statusLabel.text == "T12 is now L1; all other vertebrae were renumbered too."
    # A person has said what they are, and may say it again.
    assert not ui.numberingLabel.visible and set(column_of(ui.resultTable, 3)) == {""}
    assert ui.correctionLabel.text == "L1 is:" and not ui.renumberButton.enabled
    screenshot("renumbered")


def test_only_what_is_below_can_be_renumbered_with_the_selected_one(panel, show, click):
    node = show(numbering=NUMBERING)
    ui = panel.ui
    click(ui.resultTable, 1)
    assert [ui.renumberScopeComboBox.itemText(index) for index in (0, 1)] == ["whole column", "from here down"]
    ui.renumberScopeComboBox.currentIndex = 1
    ui.levelComboBox.currentIndex = ui.levelComboBox.findText("T12")
    click(ui.renumberButton)
    assert "there would be T12 twice" in ui.statusLabel.text
    ui.levelComboBox.currentIndex = ui.levelComboBox.findText("L2")
    click(ui.renumberButton)
    assert ui.statusLabel.text == "L1 is now L2; all vertebrae below were renumbered too."
    assert segment_ids(node) == ["T12_vertebra", "L2_vertebra", "L3_vertebra"]
    assert column_of(ui.resultTable, 0) == ["T12 vertebra", "L2 vertebra", "L3 vertebra"]


def test_undo_in_segment_editor_brings_the_table_back_too(panel, show, click, wait_until):
    node = show(numbering=NUMBERING)
    ui, editor = panel.ui, slicer.modules.SegmentEditorWidget.editor
    editor.setSegmentationNode(node)
    click(ui.resultTable, 1)
    click(ui.refineButton)
    wait_until(lambda: ui.refineButton.enabled)
    refined = column_of(ui.resultTable, 1)
    click(ui.resultTable, 0)
    ui.levelComboBox.currentIndex = ui.levelComboBox.findText("L1")
    click(ui.renumberButton)
    assert column_of(ui.resultTable, 0) == ["L1 vertebra", "L2 vertebra", "L3 vertebra"]
    editor.undo()
    assert column_of(ui.resultTable, 0) == ["T12 vertebra", "L1 vertebra", "L2 vertebra"]
    assert column_of(ui.resultTable, 1) == refined
    assert ui.numberingLabel.visible
    editor.undo()
    assert column_of(ui.resultTable, 1) == ["40.0", "40.0", "40.0"] != refined


def test_number_that_cannot_be_is_a_sentence(panel, show, click):
    node = show()
    click(panel.ui.resultTable, 2)
    panel.ui.levelComboBox.currentIndex = panel.ui.levelComboBox.findText("C1")
    click(panel.ui.renumberButton)
    assert "T12 would not be between C1 and L6" in panel.ui.statusLabel.text
    assert segment_ids(node) == ["T12_vertebra", "L1_vertebra", "L2_vertebra"]


def test_mask_is_refined_without_holding_slicer_up_and_can_be_undone(
    panel, show, click, wait_until, a_column, screenshot
):
    node = show(refinement=CHANGES)
    edited, hole, piece = a_column.edited()
    editor = slicer.modules.SegmentEditorWidget.editor
    editor.setSegmentationNode(node)
    click(panel.ui.resultTable, 1)
    clock = Clock()
    clock.start()
    click(panel.ui.refineButton)
    assert not panel.ui.refineButton.enabled
    wait_until(lambda: panel.ui.refineButton.enabled)
    _waited, computed = clock.stop()
    assert computed.max() < 0.1
    np.testing.assert_array_equal(voxels(node, "L1_vertebra"), a_column.labels == L1)
    assert panel.ui.statusLabel.text.startswith("L1 was refined: +")
    volume = abs(np.linalg.det(a_column.matrix[:3, :3])) / 1000
    assert panel.ui.resultTable.item(1, 1).text() == f"{(a_column.labels == L1).sum() * volume:.1f}"
    assert "• cleaned after an edit: +" in panel.ui.resultTable.item(1, 0).toolTip()
    screenshot("refined")
    editor.undo()
    np.testing.assert_array_equal(voxels(node, "L1_vertebra"), edited == L1)


def test_clean_mask_is_said_to_be_clean(panel, show, click, wait_until):
    node = show()
    click(panel.ui.resultTable, 0)
    before = voxels(node, "T12_vertebra")
    click(panel.ui.refineButton)
    wait_until(lambda: panel.ui.refineButton.enabled)
    assert panel.ui.statusLabel.text == "The mask is already clean: nothing was changed."
    np.testing.assert_array_equal(voxels(node, "T12_vertebra"), before)


def test_scene_that_is_closed_meanwhile_ends_the_refinement(panel, show, click, a_slicer_host):
    show()
    click(panel.ui.resultTable, 1)
    click(panel.ui.refineButton)
    running, _future = panel.sections.correction._running
    assert running is not None
    slicer.mrmlScene.Clear(0)
    assert not panel.ui.correctionWidget.visible
    assert panel.sections.correction._running is None


def test_edit_made_while_a_mask_is_refined_wins_and_that_is_said(panel, show, click, wait_until):
    node = show()
    click(panel.ui.resultTable, 1)
    click(panel.ui.refineButton)
    volume_node = node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole())
    drawn = np.zeros(slicer.util.arrayFromVolume(volume_node).shape, np.uint8)
    drawn[3:9, 3:9, 3:9] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(drawn, node, "L1_vertebra", volume_node)
    wait_until(lambda: panel.ui.refineButton.enabled)
    assert "changed in the meantime" in panel.ui.statusLabel.text
    np.testing.assert_array_equal(voxels(node, "L1_vertebra"), drawn > 0)


def test_results_without_vertebrae_cannot_be_renumbered(panel, a_ct, a_slicer_host):
    labels = np.ones(slicer.util.arrayFromVolume(a_ct).shape, np.uint8)
    node = segmentation_from_labels(labels, a_ct, load_manifest().default("colorectal").labels, "colon")
    row = {"value": 1, "name": "Colorectal tumour", "segment_id": segment_ids(node)[0], "volume_ml": 1.0}
    node.SetAttribute(REPORT_ATTRIBUTE, json.dumps({"segments": [{**row, "mean_confidence": 1.0}]}))
    panel.sections.results.show(node)
    assert panel.ui.resultTable.rowCount == 1
    assert not panel.ui.correctionWidget.visible


def test_console_renumbers_and_refines(logic, show, a_column):
    node = show(numbering=NUMBERING)
    logic.renumber(node, "T12", "L1")
    assert segment_ids(node) == ["L1_vertebra", "L2_vertebra", "L3_vertebra"]
    logic.renumber(node, "L1", "T12")
    (change,) = logic.refine(node, "L1")
    assert change["level"] == "L1"
    np.testing.assert_array_equal(voxels(node, "L1_vertebra"), a_column.labels == L1)
    with pytest.raises(InputError, match="no vertebra 'L5'"):
        logic.refine(node, "L5")


def test_result_that_is_deleted_leaves_the_panel(panel, show, click, a_slicer_host):
    node = show(numbering=NUMBERING)
    click(panel.ui.resultTable, 0)
    slicer.mrmlScene.RemoveNode(node)
    a_slicer_host.process_events()
    assert panel.ui.resultTable.rowCount == 0
    assert not panel.ui.correctionWidget.visible and not panel.ui.numberingLabel.visible
    assert not panel.ui.show3DButton.enabled and not panel.ui.segmentEditorButton.enabled
    assert panel.ui.resultSection.text == "Result"
