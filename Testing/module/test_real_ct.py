"""The panel with the bundled model on a real CT: a part of a public lumbar CT, or the CT that SEGMAMBA_CHEST_CT names.

The chest CT is that of `make demo` (demo/input/chest_ct.nii.gz); it takes ten times as long.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np
import pytest
import slicer
import vtk
from helpers.warm_child import cold_children

from segmamba.io.read import read_volume
from segmamba.io.volume import Volume
from segmamba.models.manifest import load_manifest
from segmamba_mrml.segmentation import segment_ids

TIMEOUT = 1800.0
LOWEST = 118

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def the_worker_starts_as_for_the_user():
    with cold_children():
        yield


@dataclass(frozen=True)
class Case:
    """A CT, and the levels that are to be found in it."""

    name: str
    volume: Volume
    levels: tuple[int, ...]


@pytest.fixture
def a_real_ct(request):
    chest = os.environ.get("SEGMAMBA_CHEST_CT")
    if chest:
        # C6 to L3; of C5, a tenth of a millilitre.
        return Case("Chest CT", read_volume(chest), tuple(range(6, 23)))
    lumbar = read_volume(request.getfixturevalue("shared") / "data/val/ct/verse008_ct.nii.gz")
    # A part of L2, L3 to L5, and the sacrum: the lowest slices, which come first.
    geometry = replace(lumbar.geometry, size=(*lumbar.geometry.size[:2], LOWEST))
    part = replace(lumbar, array=lumbar.array[:LOWEST], geometry=geometry)
    return Case("Lumbar CT", part, (*range(21, 25), 26))


@pytest.fixture
def its_node(a_real_ct, add_volume):
    return add_volume(a_real_ct.name, a_real_ct.volume)


@pytest.fixture
def segment(the_module, click, wait_until, screenshot):
    """Click Segment, wait for the end, and return the result's node."""
    panel = the_module.widget
    panel.ui.deviceComboBox.currentIndex = panel.ui.deviceComboBox.findData("cpu")

    def segment(run="again"):
        wait_until(lambda: panel.ui.forecastLabel.text.startswith("Forecast"))
        screenshot(f"real-ct-{run}-before")
        click(panel.ui.segmentButton)
        assert panel.job is not None, panel.ui.statusLabel.text
        wait_until(lambda: panel.job is None or panel.ui.progressBar.value > 30, TIMEOUT)
        screenshot(f"real-ct-{run}-running")
        wait_until(lambda: panel.job is None, TIMEOUT)
        assert panel.sections.results.node is not None, panel.ui.statusLabel.text
        return panel.sections.results.node

    yield segment
    panel.logic.stop()


@pytest.fixture
def paint(its_node):
    """Paint a block into a segment with Slicer's own Segment Editor logic, as its effects do."""

    def paint(node, identifier, corner, size):
        editor = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
        logic = slicer.vtkSlicerSegmentEditorLogic()
        logic.SetMRMLScene(slicer.mrmlScene)
        logic.SetSegmentEditorNode(editor)
        editor.SetAndObserveSegmentationNode(node)
        editor.SetAndObserveSourceVolumeNode(its_node)
        editor.SetSelectedSegmentID(identifier)
        editor.SetOverwriteMode(editor.OverwriteNone)
        logic.UpdateReferenceGeometryImage()
        logic.ResetModifierLabelmapToDefault()
        brush = logic.GetModifierLabelmap()
        extent = [bound for first in corner for bound in (first, first + size - 1)]
        stroke = slicer.vtkOrientedImageData()
        stroke.SetExtent(extent)
        stroke.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
        stroke.GetPointData().GetScalars().Fill(1)
        matrix = vtk.vtkMatrix4x4()
        brush.GetImageToWorldMatrix(matrix)
        stroke.SetImageToWorldMatrix(matrix)
        logic.ModifySegmentByLabelmap(node, identifier, stroke, logic.ModificationModeAdd, False, False)

    return paint


def voxels(node, identifier, volume_node):
    return slicer.util.arrayFromSegmentBinaryLabelmap(node, identifier, volume_node) > 0


def test_vertebrae_are_found_named_coded_corrected_and_the_correction_survives_the_next_run(
    the_module, a_real_ct, its_node, segment, paint, click, wait_until, screenshot
):
    ui = the_module.ui
    node = segment("first")
    identifiers = segment_ids(node)
    by_name = {label.name: label for label in load_manifest().default("vertebrae").labels}
    names = [node.GetSegmentation().GetSegment(identifier).GetName() for identifier in identifiers]
    assert [by_name[name].value for name in names] == list(a_real_ct.levels)
    for identifier in identifiers:
        found = node.GetSegmentation().GetSegment(identifier)
        label, tag = by_name[found.GetName()], vtk.reference("")
        assert [round(255 * part) for part in found.GetColor()] == list(label.color)
        assert found.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), tag)
        assert str(tag) == label.terminology_tag
        assert label.type.value in str(tag)
    assert ui.resultTable.rowCount == len(identifiers)
    click(ui.resultTable, 2)
    screenshot("real-ct-first-result")

    corner, size = (5, 5, 5), 6
    before = {identifier: voxels(node, identifier, its_node) for identifier in identifiers}
    paint(node, identifiers[0], corner, size)
    edited = voxels(node, identifiers[0], its_node)
    block = np.zeros_like(edited)
    block[5:11, 5:11, 5:11] = True
    np.testing.assert_array_equal(edited, before[identifiers[0]] | block)

    # A region makes the second run shorter.
    click(ui.advancedSection)
    roi = ui.roiSelector.addNode()
    wait_until(lambda: roi.GetNumberOfDefinedControlPoints() > 0)
    roi.SetCenter(*node.GetSegmentCenterRAS(identifiers[-1]))
    roi.SetSize(80, 80, 80)
    ui.outputSelector.setCurrentNode(node)
    assert ui.overwriteComboBox.currentData == "keep"
    assert segment() is node
    now = segment_ids(node)
    assert now[: len(identifiers)] == identifiers and len(now) > len(identifiers)
    np.testing.assert_array_equal(voxels(node, identifiers[0], its_node), edited)
    for identifier in identifiers[1:]:
        np.testing.assert_array_equal(voxels(node, identifier, its_node), before[identifier])
