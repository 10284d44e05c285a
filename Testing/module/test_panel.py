"""The real panel in the stand-in Slicer, driven by clicks; the network is tiny, the worker a real process."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import qt
import slicer
from helpers import phantoms, tiny

from segmamba.errors import InputError
from segmamba.models.manifest import load_manifest
from segmamba_mrml.segment import REPORT_ATTRIBUTE
from segmamba_mrml.segmentation import segment_ids


def test_panel_names_the_model_its_limits_and_its_licence(the_module, a_ct, wait_until, screenshot):
    ui = the_module.ui
    # On a slow computer it asks for a volume first.
    wait_until(lambda: ui.forecastLabel.text.startswith("Forecast"))
    assert "CC-BY-SA-4.0" in ui.modelSummaryLabel.text
    model = load_manifest().default("vertebrae")
    assert f"{'/'.join(model.modalities)} · 2 × 2 × 2 mm" in ui.modelSummaryLabel.text
    for limit in model.entry["limits"]:
        assert limit in " ".join(ui.modelSummaryLabel.toolTip.split())
    assert "not a medical device" in ui.noticeLabel.text and ui.noticeLabel.visible
    assert ui.forecastLabel.text.startswith("Forecast: grid")
    screenshot("ready")


def test_empty_scene_says_how_to_begin(panel, wait_until, add_volume):
    wait_until(lambda: "Load a volume to begin" in panel.ui.forecastLabel.text)
    assert not panel.ui.segmentButton.enabled
    add_volume("next", phantoms.phantom())
    wait_until(lambda: panel.ui.forecastLabel.text.startswith("Forecast"))


def test_panel_is_drawn_light_and_dark(the_module, screenshot, tmp_path):
    screenshot.save_pictures("ready", tmp_path)
    light, dark = ((tmp_path / f"ready-{theme}.png").read_bytes() for theme in ("light", "dark"))
    assert light != dark


def test_segment_gives_segments_with_names_colours_and_terms(panel, a_ct, segment, screenshot, click):
    node = segment()
    screenshot("result")
    assert node.GetName() == "case 7 vertebrae"
    labels = {entry["name"]: entry for entry in tiny.LABELS}
    segmentation = node.GetSegmentation()
    assert segmentation.GetNumberOfSegments() > 0
    for identifier in segment_ids(node):
        found = segmentation.GetSegment(identifier)
        expected = labels[found.GetName()]
        assert [round(255 * part) for part in found.GetColor()] == expected["color"]
        tag = slicer.vtkSegment.GetTerminologyEntryTagName()
        assert "^".join(expected["type"]) in slicer.util.toVTKString(read_tag(found, tag))
    table = panel.ui.resultTable
    rows = json.loads(node.GetAttribute(REPORT_ATTRIBUTE))["segments"]
    assert table.rowCount == len(rows) == segmentation.GetNumberOfSegments()
    assert table.item(0, 0).text() == rows[0]["name"]
    assert table.item(0, 1).text() == f"{rows[0]['volume_ml']:.1f}"
    assert panel.ui.statusLabel.text.startswith(f"{len(rows)} structure")
    assert panel.ui.resultSection.text == "Result: case 7 vertebrae"
    assert panel.ui.limitsLabel.visible
    assert panel.ui.limitsLabel.text == "Note: the weights are random.\nLimitations: It knows nothing."
    assert panel.ui.limitsLabel.toolTip == "• It knows nothing."
    assert not panel.ui.progressBar.visible
    assert panel.ui.segmentButton.text == "Segment"


def read_tag(segment, name):
    import vtk

    tag = vtk.reference("")
    assert segment.GetTag(name, tag)
    return str(tag)


def test_result_can_be_visited_seen_in_3d_and_edited(panel, a_ct, segment, click, a_slicer_host):
    node = segment()
    row = panel.ui.resultTable.rowCount - 1
    click(panel.ui.resultTable, row)
    center = node.GetSegmentCenterRAS(segment_ids(node)[row])
    matrix = slicer.mrmlScene.GetSingletonNode("Red", "vtkMRMLSliceNode").GetSliceToRAS()
    assert [matrix.GetElement(axis, 3) for axis in range(3)] == pytest.approx(center, abs=0.1)
    surface = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    click(panel.ui.show3DButton)
    assert node.GetSegmentation().ContainsRepresentation(surface)
    click(panel.ui.show3DButton)
    assert not node.GetSegmentation().ContainsRepresentation(surface)
    click(panel.ui.segmentEditorButton)
    assert slicer.util.selectedModule() == "SegmentEditor"
    editor = slicer.modules.segmenteditor.widgetRepresentation().self().editor
    assert (editor.segmentationNode(), editor.sourceVolumeNode()) == (node, a_ct)


def test_second_run_uses_the_same_worker_and_keeps_an_edit(panel, a_ct, segment):
    first = segment()
    pid = panel.logic._worker.pid
    identifier = segment_ids(first)[0]
    edited = slicer.util.arrayFromSegmentBinaryLabelmap(first, identifier, a_ct)
    edited[:] = 0
    edited[3:5, 3:5, 3:5] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(edited, first, identifier, a_ct)
    panel.ui.outputSelector.setCurrentNode(first)
    second = segment()
    assert second is first
    assert panel.logic._worker.pid == pid
    again = slicer.util.arrayFromSegmentBinaryLabelmap(first, identifier, a_ct)
    assert again.sum() == 8
    table = panel.ui.resultTable
    assert len(segment_ids(first)) == table.rowCount
    flags = ["earlier run" in table.item(row, 3).text() for row in range(table.rowCount)]
    assert flags == sorted(flags) and 0 < sum(flags) < table.rowCount


def test_replacing_an_output_is_the_user_s_choice_and_is_remembered(panel, a_ct, segment):
    first = segment()
    count = len(segment_ids(first))
    panel.ui.outputSelector.setCurrentNode(first)
    panel.ui.overwriteComboBox.currentIndex = panel.ui.overwriteComboBox.findData("replace")
    assert slicer.app.userSettings().value("SegMambaSlicer/Overwrite") == "replace"
    segment()
    assert len(segment_ids(first)) == count == panel.ui.resultTable.rowCount


def test_device_is_the_user_s_and_comes_back_with_the_next_panel(panel, a_slicer_host):
    assert slicer.app.userSettings().value("SegMambaSlicer/Device") == "cpu"
    again = slicer.modules.segmambaslicer.widgetRepresentation()
    again.reload()
    assert again.self().sections.devices.device == "cpu"
    again.self().cleanup()


def test_gpu_is_offered_with_its_free_memory_and_forecast_for(panel, a_ct, click, wait_until, tmp_path, monkeypatch):
    from SegMambaSlicerLib.sections import forecast as forecasting

    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, NVIDIA Test, 1024'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    panel.useManifest(None)
    combo = panel.ui.deviceComboBox
    combo.currentIndex = combo.findData("auto")
    panel.enter()
    wait_until(lambda: combo.findText("NVIDIA Test, 1.0 GiB free") >= 0)
    wait_until(lambda: "on the GPU and 1.0 GiB are free" in panel.ui.forecastLabel.text)
    # The answer comes to main memory all the same.
    monkeypatch.setattr(forecasting, "system_memory", lambda: (2**28, 2**27))
    click(panel.ui.segmentButton)
    assert panel.job is None and "limit the region with an ROI" in panel.ui.statusLabel.text


def test_main_memory_is_told_of_where_the_run_will_be(panel, a_ct, monkeypatch):
    """A GPU without room for a window gives way to the processor where the device is chosen automatically."""
    from SegMambaSlicerLib.sections import forecast as forecasting

    panel.useManifest(None)
    section = panel.sections.forecast
    told = section._forecast()
    between = (told.memory + told.memory_beside_gpu) // 2
    monkeypatch.setattr(forecasting, "system_memory", lambda: (between, between))
    assert told.memory < between < told.memory_beside_gpu
    for free, device, enough in (
        (None, "cpu", True),
        (told.window_memory, "auto", False),
        (told.window_memory - 1, "auto", True),
        (told.window_memory - 1, "cuda:0", False),
    ):
        monkeypatch.setattr(section, "_devices", SimpleNamespace(gpuMemory=free, device=device))
        assert (section.refusal() == "") is enough


def test_unexpected_error_leaves_the_panel_usable(panel, a_ct, segment, monkeypatch, caplog):
    from segmamba_mrml import segment as floor

    monkeypatch.setattr(floor.SegmentationCase, "finish_in_steps", lambda *_arguments: {}["surprise"])
    assert segment() is None
    assert "Python console" in panel.ui.statusLabel.text
    assert "surprise" in caplog.text
    monkeypatch.undo()
    assert segment() is not None


def test_subset_of_structures_is_all_that_comes_back(panel, a_ct, segment, click):
    everything = [each["name"] for each in json.loads(segment().GetAttribute(REPORT_ATTRIBUTE))["segments"]]
    click(panel.ui.advancedSection)
    widget = panel.ui.structuresList
    for index in range(widget.count):
        if widget.item(index).text() != everything[0]:
            widget.item(index).setCheckState(qt.Qt.Unchecked)
    node = segment()
    names = [node.GetSegmentation().GetSegment(identifier).GetName() for identifier in segment_ids(node)]
    assert names == everything[:1]


def test_roi_is_laid_around_the_volume_and_limits_the_run(panel, a_ct, segment, wait_until, click, screenshot):
    click(panel.ui.advancedSection)
    roi = panel.ui.roiSelector.addNode()
    wait_until(lambda: roi.GetNumberOfDefinedControlPoints() > 0)
    screenshot("advanced")
    bounds = [0.0] * 6
    a_ct.GetRASBounds(bounds)
    assert list(roi.GetSize()) == pytest.approx(np.subtract(bounds[1::2], bounds[0::2]).tolist())
    roi.SetSize(30, 30, 30)
    report = json.loads(segment().GetAttribute(REPORT_ATTRIBUTE))
    low, high = np.array(report["run"]["options"]["roi"])
    assert (high - low).tolist() == pytest.approx([30, 30, 30])


def test_all_items_are_for_sequences_and_the_table_follows_the_item_shown(
    panel, add_volume, a_beating_ct, segment, click, screenshot
):
    lone = add_volume("alone", phantoms.phantom())
    panel.ui.inputSelector.setCurrentNode(lone)
    click(panel.ui.advancedSection)
    assert not panel.ui.allItemsCheckBox.enabled
    panel.ui.inputSelector.setCurrentNode(a_beating_ct)
    click(panel.ui.allItemsCheckBox)
    node = segment()
    screenshot("sequence")
    assert panel.ui.statusLabel.text == "2 of 2 items of the sequence were segmented."
    browser = slicer.modules.sequences.logic().GetFirstBrowserNodeForProxyNode(node)
    table, shown = panel.ui.resultTable, []
    for index in (0, 1):
        browser.SetSelectedItemNumber(index)
        rows = json.loads(node.GetAttribute(REPORT_ATTRIBUTE))["segments"]
        assert table.item(0, 1).text() == f"{rows[0]['volume_ml']:.1f}"
        shown.append([table.item(row, 1).text() for row in range(table.rowCount)])
    assert shown[0] != shown[1]


def test_mr_is_warned_of_before_the_run_and_refused_by_it(panel, segment, add_volume, wait_until, screenshot):
    volume = phantoms.phantom()
    add_volume("T2", type(volume)(volume.array - volume.array.min(), volume.geometry))
    wait_until(lambda: "MR image" in panel.ui.forecastLabel.text)
    screenshot("wrong-modality")
    segment()
    assert "MR image" in panel.ui.statusLabel.text
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_volume_without_voxels_is_refused_in_a_sentence(panel, click):
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    click(panel.ui.segmentButton)
    assert panel.job is None
    assert panel.ui.statusLabel.text == "'empty' has no voxels: load its image again."


def test_too_large_a_volume_is_refused_with_a_way_out(panel, a_ct, click, monkeypatch, screenshot, wait_until):
    from SegMambaSlicerLib.sections import forecast as forecasting

    monkeypatch.setattr(forecasting, "system_memory", lambda: (2**28, 2**27))
    click(panel.ui.segmentButton)
    assert panel.job is None
    assert "limit the region with an ROI" in panel.ui.statusLabel.text
    wait_until(lambda: "limit the region" in panel.ui.forecastLabel.text)
    # Once is enough.
    assert not panel.ui.forecastLabel.visible
    screenshot("no-memory")


def test_model_without_its_file_says_where_to_put_it(panel, a_ct, click, wait_until, screenshot):
    panel.ui.modelComboBox.currentIndex = panel.ui.modelComboBox.findData(tiny.MISSING_ID)
    wait_until(lambda: "not installed" in panel.ui.forecastLabel.text)
    click(panel.ui.segmentButton)
    assert panel.job is None
    assert "put its file at" in panel.ui.statusLabel.text
    screenshot("no-model")


@pytest.mark.parametrize(("fine", "options"), [(None, {"overlap": 0.25}), (object(), {"fast": True})])
def test_fast_is_a_coarser_grid_where_the_model_has_two_stages(panel, monkeypatch, fine, options):
    panel.ui.qualityComboBox.currentIndex = panel.ui.qualityComboBox.findData("fast")
    monkeypatch.setattr(type(panel.sections.models), "model", SimpleNamespace(fine=fine))
    assert panel.sections.models.qualityOptions() == options


def test_choices_are_saved_with_the_scene_and_come_back(panel, a_ct, segment, wait_until):
    panel.ui.qualityComboBox.currentIndex = panel.ui.qualityComboBox.findData("fast")
    panel.ui.modalityComboBox.currentIndex = panel.ui.modalityComboBox.findData("CT")
    panel.ui.postprocessCheckBox.checked = panel.ui.refineCheckBox.checked = False
    panel.ui.isotropicCheckBox.checked = panel.ui.uncertaintyCheckBox.checked = True
    options = json.loads(segment().GetAttribute(REPORT_ATTRIBUTE))["run"]["options"]
    assert not options["postprocess"] and not options["refine"] and options["modality"] == "CT"
    assert options["output_spacing"] == "iso"
    scene = slicer.mrmlScene
    scene.SetSaveToXMLString(1)
    scene.Commit()
    text = scene.GetSceneXMLString()
    scene.Clear(0)
    assert panel.ui.resultTable.rowCount == 0
    scene.SetLoadFromXMLString(1)
    scene.SetSceneXMLString(text)
    scene.Import()
    assert panel.ui.qualityComboBox.currentData == "fast"
    assert panel.ui.modalityComboBox.currentData == "CT"
    assert not panel.ui.postprocessCheckBox.checked and not panel.ui.refineCheckBox.checked
    assert panel.ui.isotropicCheckBox.checked and panel.ui.uncertaintyCheckBox.checked
    assert panel.ui.inputSelector.currentNode().GetName() == "case 7"


def test_uncertainty_is_a_choice_and_becomes_a_volume_of_the_scene(panel, logic, a_ct, click, segment, a_quick_model):
    click(panel.ui.advancedSection)
    click(panel.ui.uncertaintyCheckBox)
    segment()
    (volume,) = [each for each in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if each is not a_ct]
    assert volume.GetName() == "case 7 uncertainty"
    array, ct = slicer.util.arrayFromVolume(volume), slicer.util.arrayFromVolume(a_ct)
    assert array.shape == ct.shape and 0 < array.max() <= 200
    assert np.allclose(volume.GetOrigin(), a_ct.GetOrigin()) and np.allclose(volume.GetSpacing(), a_ct.GetSpacing())
    given = {"manifest": str(a_quick_model), "task": "vertebrae", "device": "cpu"}
    with pytest.raises(InputError, match="Items of a sequence get no volumes"):
        logic.segment(a_ct, allItems=True, uncertainty=True, **given)
    logic.segment(a_ct, probabilities=True, **given)
    names = [each.GetName() for each in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")]
    assert [name for name in names if "probability" in name] == [
        f"case 7 probability of L{number} vertebra" for number in (1, 2, 3)
    ]


def test_isotropic_voxels_are_a_choice_and_the_result_is_measured_and_shown(panel, a_ct, click, segment, screenshot):
    click(panel.ui.advancedSection)
    assert not panel.ui.isotropicCheckBox.checked
    click(panel.ui.isotropicCheckBox)
    node = segment()
    reference = slicer.vtkOrientedImageData()
    text = node.GetSegmentation().GetConversionParameter("Reference image geometry")
    slicer.vtkSegmentationConverter.DeserializeImageGeometry(text, reference, False)
    assert np.allclose(reference.GetSpacing(), 1.5) and not np.allclose(a_ct.GetSpacing(), 1.5)
    assert panel.ui.resultTable.rowCount == node.GetSegmentation().GetNumberOfSegments() > 0
    screenshot("isotropic")


def test_steps_that_the_model_does_not_have_are_greyed_and_say_so(panel, a_ct, tmp_path, click, screenshot):
    ui = panel.ui
    click(ui.advancedSection)
    boxes = ui.refineCheckBox, ui.postprocessCheckBox
    assert [box.enabled for box in boxes] == [False, False]
    assert {box.toolTip for box in boxes} == {"The chosen model has no such step."}
    panel.useManifest(None)
    assert [box.enabled for box in boxes] == [True, False]
    assert "loose components" in ui.refineCheckBox.toolTip
    screenshot("steps")
    panel.useManifest(tiny.write_model(tmp_path, postprocessing="largest_column"))
    assert [box.enabled for box in boxes] == [False, True]
    assert "largest column" in ui.postprocessCheckBox.toolTip


def test_log_can_be_copied_and_the_next_forecast_knows_the_time(panel, a_ct, segment, click, wait_until):
    wait_until(lambda: "unknown" in panel.ui.forecastLabel.text)
    segment()
    wait_until(lambda: "a few seconds" in panel.ui.forecastLabel.text)
    click(panel.ui.logSection)
    click(panel.ui.copyLogButton)
    text = slicer.app.clipboard().text()
    assert "Segmenting" in text
    assert panel.ui.statusLabel.text in text
