"""A person says what a vertebra is by clicking on it: the column follows at once, and later runs hold to it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import slicer
from helpers.shown_result import show_result

from segmamba_mrml.anchors import level_points, points_node
from segmamba_mrml.segmentation import segment_ids

LEVELS = ((18, "T11"), (19, "T12"), (20, "L1"))


@pytest.fixture
def column(panel, a_slicer_host):
    """Three boxes in a volume, shown as a run's result whose levels are not certain."""
    labels = np.zeros((40, 20, 20), np.uint8)
    for number, (value, _level) in enumerate(LEVELS):
        labels[28 - 12 * number : 36 - 12 * number, 6:14, 6:14] = value
    matrix = np.diag([2.0, 2.0, 2.0, 1.0])
    numbering = {"certain": False, "reason": "L1 could be T12: check the levels.", "probability": 0.5}
    numbering |= {"runner_up": None, "variants": [], "levels": {"18": 0.6, "19": 0.6, "20": 0.6}}
    node = show_result(panel, labels, matrix, LEVELS, 4.1, numbering=numbering)
    a_slicer_host.process_events()
    return node


@pytest.fixture
def place(panel, click, a_slicer_host):
    """Choose a level, press Place, and click at a point of the scene as Slicer's place mode takes it."""

    def place(level, point):
        ui = panel.ui
        ui.anchorLevelComboBox.currentIndex = ui.anchorLevelComboBox.findText(level)
        click(ui.placeButton)
        interaction = slicer.app.applicationLogic().GetInteractionNode()
        assert ui.placeButton.checked and interaction.GetCurrentInteractionMode() == interaction.Place
        assert not interaction.GetPlaceModePersistence()
        selection = slicer.app.applicationLogic().GetSelectionNode()
        points = slicer.mrmlScene.GetNodeByID(selection.GetActivePlaceNodeID())
        assert ui.statusLabel.text == f"Click on {level} in a slice or 3D view."
        points.AddControlPointWorld(point)
        interaction.SwitchToViewTransformMode()
        a_slicer_host.process_events()
        assert not ui.placeButton.checked

    return place


def centre(number):
    return 20.0, 20.0, 2.0 * (32 - 12 * number)


def first_column(table):
    return [table.item(row, 0).text() for row in range(table.rowCount)]


def test_click_on_a_vertebra_renumbers_the_column_and_stays_for_the_next_run(panel, column, place, screenshot):
    ui = panel.ui
    assert ui.anchorWidget.visible and not ui.anchorsLabel.visible and not ui.forgetButton.visible
    assert ui.anchorLevelComboBox.currentText == "L5"
    place("L5", centre(2))
    assert first_column(ui.resultTable) == ["L3 vertebra", "L4 vertebra", "L5 vertebra"]
    assert [ui.resultTable.item(row, 3).text() for row in range(3)] == ["", "", "level set by you"]
    assert ui.statusLabel.text == "This is L5; all other vertebrae follow, also when you segment again."
    assert ui.anchorsLabel.text == "L5 was set by you: this holds when you segment again."
    assert not ui.numberingLabel.visible
    volume = panel._parameterNode.inputVolume
    assert level_points(volume) == [("L5", *centre(2))]
    panel.useManifest(None)
    assert panel.sections.choices()["anchor"] == [("L5", *centre(2))]
    screenshot("level-set")


def test_click_away_from_the_vertebrae_changes_nothing_and_says_so(panel, column, place):
    place("L5", (20.0, 20.0, 300.0))
    assert panel.ui.statusLabel.text == (
        "No vertebra of 'case 7 vertebrae' lies within 15 mm of this point: click on the vertebra itself."
    )
    assert segment_ids(column) == ["T11_vertebra", "T12_vertebra", "L1_vertebra"]
    assert panel.ui.numberingLabel.visible
    assert points_node(panel._parameterNode.inputVolume) is None


def test_second_point_moves_what_the_first_has_not_fixed_and_undo_takes_it_back(panel, column, place, a_slicer_host):
    ui, editor = panel.ui, slicer.modules.SegmentEditorWidget.editor
    editor.setSegmentationNode(column)
    place("T11", centre(0))
    place("L2", centre(2))
    assert first_column(ui.resultTable) == ["T11 vertebra", "T12 vertebra", "L2 vertebra"]
    assert ui.statusLabel.text == "This is L2; all vertebrae below follow, also when you segment again."
    assert ui.anchorsLabel.text == "T11 and L2 were set by you: this holds when you segment again."
    editor.undo()
    assert first_column(ui.resultTable) == ["T11 vertebra", "T12 vertebra", "L1 vertebra"]
    volume = panel._parameterNode.inputVolume
    assert level_points(volume) == [("T11", *centre(0))]
    assert ui.anchorsLabel.text == "T11 was set by you: this holds when you segment again."


def test_place_can_be_called_off_and_points_be_forgotten(panel, column, place, click, a_slicer_host):
    ui, interaction = panel.ui, slicer.app.applicationLogic().GetInteractionNode()
    volume = panel._parameterNode.inputVolume
    click(ui.placeButton)
    click(ui.placeButton)
    assert interaction.GetCurrentInteractionMode() != interaction.Place
    assert points_node(volume) is None
    click(ui.placeButton)
    # As the key Esc does it.
    interaction.SwitchToViewTransformMode()
    a_slicer_host.process_events()
    assert not ui.placeButton.checked and points_node(volume) is None
    place("L1", centre(2))
    click(ui.forgetButton)
    assert level_points(volume) == [] and not ui.anchorsLabel.visible
    assert ui.statusLabel.text == "The points are gone; the segmentation stays as it is."
    assert segment_ids(column) == ["T11_vertebra", "T12_vertebra", "L1_vertebra"]


def test_renumbering_by_the_table_is_the_last_word_about_a_point(panel, column, place, click):
    ui = panel.ui
    place("L5", centre(2))
    click(ui.resultTable, 0)
    ui.levelComboBox.currentIndex = ui.levelComboBox.findText("L2")
    click(ui.renumberButton)
    assert [each[0] for each in level_points(panel._parameterNode.inputVolume)] == ["L4"]
    assert ui.anchorsLabel.text == "L4 was set by you: this holds when you segment again."


def test_levels_of_another_segmentation_are_a_choice_and_go_to_the_run(panel, column, click, logic, monkeypatch):
    ui = panel.ui
    click(ui.advancedSection)
    assert not ui.levelsSelector.enabled  # the tiny model counts no vertebrae
    assert panel.sections.choices()["levelsFrom"] is panel.sections.choices()["anchor"] is None
    panel.useManifest(None)
    panel.onParametersChanged()
    assert ui.levelsSelector.enabled
    ui.levelsSelector.setCurrentNode(column)
    assert panel.sections.choices()["levelsFrom"] is column
    from segmamba_mrml.segment import SegmentationCase
    from SegMambaSlicerLib.parameters import requestOf

    case = SegmentationCase(panel._parameterNode.inputVolume, requestOf(task="vertebrae"), levels_node=column)
    path = case.request.options.levels_from
    with open(path, encoding="utf-8") as stream:
        places = json.load(stream)
    assert places["T12"] == pytest.approx([19.0, 19.0, 39.0])
    assert case.named(f"None of the vertebrae of {path} lies in the volume.") == (
        "None of the vertebrae of 'case 7 vertebrae' lies in the volume."
    )
    case.close()


def test_console_can_set_a_level_too(logic, column):
    logic.setLevel(column, "L2", centre(1))
    assert segment_ids(column) == ["L1_vertebra", "L2_vertebra", "L3_vertebra"]
