"""Colorectal cancer by the panel, by the console and by the command line: the same to the voxel, named and coded."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk
from helpers import phantoms, tiny

from segmamba.cli.main import main
from segmamba.io.volume import to_image
from segmamba.models.manifest import load_manifest
from segmamba_mrml.segment import REPORT_ATTRIBUTE
from segmamba_mrml.segmentation import segment_ids

# The panel's "Fast": little overlap.
FAST = 0.25


@pytest.fixture(scope="session")
def a_bowel_model(tmp_path_factory):
    return tiny.write_bowel_model(tmp_path_factory.mktemp("bowel"))


@pytest.fixture
def segmented_by_the_panel(panel, a_ct, a_bowel_model, click, wait_until):
    """The node that the panel makes of the CT with the task's default model and fast windows."""
    panel.useManifest(a_bowel_model)
    ui = panel.ui
    ui.taskComboBox.currentIndex = ui.taskComboBox.findData("colorectal")
    ui.deviceComboBox.currentIndex = ui.deviceComboBox.findData("cpu")
    ui.qualityComboBox.currentIndex = ui.qualityComboBox.findData("fast")
    click(ui.segmentButton)
    assert panel.job is not None, ui.statusLabel.text
    wait_until(lambda: panel.job is None, 60.0)
    return panel.sections.results.node


def label_map(node, volume_node, manifest):
    """Return a segmentation node's segments as one array of the manifest's values."""
    values = {label.name: label.value for label in load_manifest(manifest).default("colorectal").labels}
    labels = np.zeros(slicer.util.arrayFromVolume(volume_node).shape, np.uint8)
    for identifier in segment_ids(node):
        name = node.GetSegmentation().GetSegment(identifier).GetName()
        labels[slicer.util.arrayFromSegmentBinaryLabelmap(node, identifier, volume_node) > 0] = values[name]
    return labels


def test_the_task_is_called_experimental_until_its_goals_are_met(panel, a_bowel_model):
    panel.useManifest(a_bowel_model)
    tasks = panel.ui.taskComboBox
    assert tasks.itemText(tasks.findData("colorectal")).endswith("(experimental)")


@pytest.mark.slow
def test_panel_console_and_command_line_give_the_same_voxels(
    segmented_by_the_panel, logic, a_ct, a_bowel_model, tmp_path
):
    by_panel = label_map(segmented_by_the_panel, a_ct, a_bowel_model)
    node = logic.segment(a_ct, task="colorectal", manifest=a_bowel_model, overlap=FAST, device="cpu")
    volume = phantoms.phantom()
    sitk.WriteImage(to_image(volume.array, volume.geometry), str(tmp_path / "ct.nii.gz"))
    run = ["segment", str(tmp_path / "ct.nii.gz"), "--output", str(tmp_path / "out.nii.gz"), "--task", "colorectal"]
    assert main([*run, "--manifest", str(a_bowel_model), "--overlap", str(FAST), "--device", "cpu", "--quiet"]) == 0
    by_command = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out.nii.gz")))
    assert len(np.unique(by_panel)) > 2
    np.testing.assert_array_equal(label_map(node, a_ct, a_bowel_model), by_panel)
    np.testing.assert_array_equal(by_command, by_panel)


def test_segments_have_names_colours_and_snomed_codes_and_the_panel_says_what_they_rest_on(
    segmented_by_the_panel, panel, a_bowel_model, screenshot
):
    node = segmented_by_the_panel
    labels = {label.name: label for label in load_manifest(a_bowel_model).default("colorectal").labels}
    assert {"Colorectal tumour", "Colon", "Rectum"} == set(labels)
    assert segment_ids(node)
    for identifier in segment_ids(node):
        segment, tag = node.GetSegmentation().GetSegment(identifier), vtk.reference("")
        label = labels[segment.GetName()]
        assert [round(255 * part) for part in segment.GetColor()] == list(label.color)
        assert segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), tag)
        assert str(tag) == label.terminology_tag
    assert labels["Colorectal tumour"].terminology_tag.count("SCT^86049000^Neoplasm, Primary") == 1
    assert json.loads(node.GetAttribute(REPORT_ATTRIBUTE))["model"]["caution"] == tiny.CAUTION
    assert panel.ui.limitsLabel.visible
    assert tiny.CAUTION in panel.ui.modelSummaryLabel.text
    screenshot("colorectal")
