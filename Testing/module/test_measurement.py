"""A result is measured in the panel and from the console: the table is made once and follows edits."""

from __future__ import annotations

import json

import numpy as np
import pytest
import slicer
from helpers.measured_spine import Vertebra, painted, turned

from segmamba.io.volume import Geometry
from segmamba.models.manifest import load_manifest
from segmamba_mrml.measurements import TABLE_ROLE
from segmamba_mrml.segment import REPORT_ATTRIBUTE
from segmamba_mrml.segmentation import segmentation_from_labels

GEOMETRY = Geometry((50, 58, 60), (1.8, 1.8, 2.0), (-45.0, -30.0, -60.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
VERTEBRAE = {20: Vertebra((0, 0, 17.0), turned(8)), 21: Vertebra((0, 0, -17.0), turned(-4))}


@pytest.fixture
def show(panel, add_volume, a_slicer_host):
    """Show a segmentation of L1 and L2, with other values where that is asked for, as a run's result."""

    def show(values=(20, 21), task="vertebrae"):
        labels, ct = painted(VERTEBRAE, GEOMETRY)
        labels = np.select([labels == 20, labels == 21], values).astype(np.uint8)
        structures = load_manifest().default(task).labels
        node = segmentation_from_labels(labels, add_volume("case 7", ct), structures, f"case 7 {task}")
        rows = [
            {"value": label.value, "name": label.name, "segment_id": label.name.replace(" ", "_"), "volume_ml": 40.0}
            | {"mean_confidence": 0.9, "at_border": False}
            for label in structures
            if label.value in values
        ]
        node.SetAttribute(REPORT_ATTRIBUTE, json.dumps({"segments": rows}))
        panel._parameterNode.resultSegmentation = node
        panel.sections.results.show(node)
        a_slicer_host.process_events()
        return node

    return show


def volumes(table):
    column = table.GetTable().GetColumnByName("Volume (mL)")
    return [column.GetValue(row) for row in range(column.GetNumberOfTuples())]


def test_button_makes_the_table_once_and_shows_it(panel, show, click, screenshot):
    node, layout = show(), slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLayoutNode")
    layout.SetViewArrangement(layout.SlicerLayoutFourUpView)
    click(panel.ui.measurementsButton)
    table = node.GetNodeReference(TABLE_ROLE)
    assert table.GetNumberOfRows() == 2
    assert panel.ui.statusLabel.text == (
        "The measurements are in the table 'Measurements of case 7 vertebrae'. After an edit, measure again."
    )
    assert slicer.app.applicationLogic().GetSelectionNode().GetActiveTableID() == table.GetID()
    assert layout.GetViewArrangement() == layout.SlicerLayoutFourUpTableView
    screenshot("measurements")
    click(panel.ui.measurementsButton)
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLTableNode") == 1


def test_table_follows_an_edit_at_the_next_click(panel, show, click):
    node = show()
    click(panel.ui.measurementsButton)
    table = node.GetNodeReference(TABLE_ROLE)
    before = volumes(table)
    volume_node = node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole())
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, "L1_vertebra", volume_node)
    mask[:, :, :25] = 0
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, "L1_vertebra", volume_node)
    click(panel.ui.measurementsButton)
    assert volumes(table) == pytest.approx([before[0] / 2, before[1]], rel=0.1)


def test_button_is_there_for_vertebrae_only(panel, show):
    assert not panel.ui.measurementsButton.enabled
    show()
    assert panel.ui.measurementsButton.enabled
    show((2, 3), "colorectal")
    assert not panel.ui.measurementsButton.enabled


def test_what_cannot_be_measured_is_a_sentence(panel, show, click):
    node = show()
    slicer.mrmlScene.RemoveNode(node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()))
    click(panel.ui.measurementsButton)
    assert "The volume of 'case 7 vertebrae' is not in the scene" in panel.ui.statusLabel.text
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLTableNode") == 0


def test_console_gives_the_table_node(logic, show):
    node = show()
    table = logic.measure(node)
    assert table is node.GetNodeReference(TABLE_ROLE)
    volume_node = node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole())
    assert logic.measure(node, volume_node) is table
