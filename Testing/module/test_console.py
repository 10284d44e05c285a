"""The calls of the Python console: they wait or not, open no dialog, and say what is wrong in a sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest
import slicer
from helpers.option_values import sample_value

from segmamba.errors import Cancelled, InputError, ModelError, WorkerError
from segmamba.request import SETTINGS, Request
from segmamba_mrml.segment import REPORT_ATTRIBUTE
from segmamba_mrml.segmentation import segment_ids


def test_segment_waits_and_returns_the_node(logic, a_ct, a_quick_model):
    heard = []
    node = logic.segment(
        a_ct, task="vertebrae", onProgress=lambda *news: heard.append(news), device="cpu", manifest=a_quick_model
    )
    assert node.GetName() == "case 7 vertebrae"
    assert segment_ids(node)
    assert {"read", "predict", "write"} <= {stage for stage, _fraction in heard}


def test_choices_reach_the_engine(logic, a_ct, a_quick_model):
    node = logic.segment(
        a_ct,
        model="tiny-spine",
        manifest=str(a_quick_model),
        structures="L1 vertebra, 22",
        overlap=0.25,
        tta=True,
        refine=False,
        device="cpu",
        seed=3,
    )
    options = json.loads(node.GetAttribute(REPORT_ATTRIBUTE))["run"]["options"]
    assert options["structures"] == ["L1 vertebra", "22"]
    assert (options["overlap"], options["tta"], options["refine"], options["postprocess"], options["seed"]) == (
        0.25,
        True,
        False,
        True,
        3,
    )


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "roi"])
def test_each_option_is_a_parameter_of_the_console_calls(the_module, name):
    from SegMambaSlicerLib.parameters import requestOf

    first, *others = name.split("_")
    parameter = first + "".join(other.capitalize() for other in others)
    assert requestOf(**{parameter: sample_value(name)}) == Request.of(**{name: sample_value(name)}) != Request.of()


def test_a_parameter_that_does_not_exist_is_answered_with_those_that_do(the_module):
    from SegMambaSlicerLib.parameters import requestOf

    with pytest.raises(TypeError, match="'noRefine': choose from task, model, .*scanBackend"):
        requestOf(noRefine=True)


def test_asynchronous_job_tells_its_end_once(logic, a_ct, a_quick_model, wait_until):
    ended = []
    job = logic.segmentAsync(a_ct, "vertebrae", onDone=ended.append, device="cpu", manifest=a_quick_model)
    assert not job.finished
    wait_until(lambda: ended)
    assert ended == [job]
    assert job.error is None
    assert job.wait() is job.node
    assert job.node.GetScene() is slicer.mrmlScene


def test_error_in_a_callback_at_the_end_is_not_the_job_s(logic, a_ct, a_quick_model, a_slicer_host):
    ended = []

    def fail(job):
        ended.append(job)
        raise RuntimeError("The script has a mistake.")

    job = logic.segmentAsync(a_ct, "vertebrae", onDone=fail, device="cpu", manifest=a_quick_model)
    while not a_slicer_host.errors:
        a_slicer_host.process_events()
    assert [str(error) for error in a_slicer_host.errors] == ["The script has a mistake."]
    a_slicer_host.errors.clear()
    assert ended == [job]
    assert job.error is None and job.node.GetScene() is slicer.mrmlScene


@pytest.mark.slow
def test_cancelled_job_raises_when_waited_for(logic, a_ct, a_slow_model):
    job = logic.segmentAsync(a_ct, "vertebrae", device="cpu", manifest=a_slow_model)
    job.cancel()
    with pytest.raises(Cancelled):
        job.wait()
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


@pytest.mark.slow
def test_cancel_while_segments_are_added_takes_them_back(logic, a_ct, a_quick_model, wait_until, monkeypatch):
    from SegMambaSlicerLib import segmentation_job as module

    monkeypatch.setattr(module, "ADDING_S", 0.0)
    nodes = slicer.mrmlScene.GetNumberOfNodes()
    job = logic.segmentAsync(a_ct, "vertebrae", device="cpu", manifest=a_quick_model)
    wait_until(lambda: slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") > 0)
    assert not job.finished and job.node is None
    job.cancel()
    assert slicer.mrmlScene.GetNumberOfNodes() == nodes
    assert job.node is None


def test_second_job_at_the_same_time_is_refused(logic, a_ct, a_slow_model):
    job = logic.segmentAsync(a_ct, "vertebrae", device="cpu", manifest=a_slow_model)
    with pytest.raises(WorkerError, match="A job is running"):
        logic.segment(a_ct, "vertebrae", manifest=a_slow_model)
    job.cancel()


def test_bad_calls_are_sentences_and_open_no_dialog(logic, a_ct, a_quick_model):
    with pytest.raises(InputError, match="No volume is chosen"):
        logic.segment(None, "vertebrae")
    label_map = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "drawn")
    with pytest.raises(InputError, match="'drawn' is a label map"):
        logic.segment(label_map, "vertebrae")
    with pytest.raises(ModelError, match="no task 'teeth'"):
        logic.segment(a_ct, "teeth")
    with pytest.raises(ModelError, match="No task is given"):
        logic.segment(a_ct)
    with pytest.raises(ModelError, match="no structure 'L9'"):
        logic.segment(a_ct, "vertebrae", structures=["L9"], manifest=a_quick_model, device="cpu")
    with pytest.raises(TypeError, match="devise"):
        logic.segment(a_ct, "vertebrae", devise="cpu")


def test_volume_removed_meanwhile_is_a_sentence(logic, a_ct, a_quick_model):
    job = logic.segmentAsync(a_ct, "vertebrae", device="cpu", manifest=a_quick_model)
    slicer.mrmlScene.RemoveNode(a_ct)
    with pytest.raises(InputError, match="removed from the scene"):
        job.wait()


def test_current_item_of_a_sequence_is_what_is_segmented(logic, a_beating_ct, a_quick_model):
    node = logic.segment(a_beating_ct, task="vertebrae", device="cpu", manifest=a_quick_model)
    assert segment_ids(node)
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSequenceNode") == 1


def test_all_items_of_a_sequence_give_a_sequence_of_segmentations(logic, a_beating_ct, a_quick_model):
    choices = {"task": "vertebrae", "device": "cpu", "manifest": a_quick_model}
    alone = logic.segment(a_beating_ct, **choices)
    node = logic.segment(a_beating_ct, allItems=True, **choices)
    assert node.GetName() == "beats vertebrae"
    assert segment_ids(node) == segment_ids(alone)
    browser = slicer.modules.sequences.logic().GetFirstBrowserNodeForProxyNode(node)
    assert browser.GetSequenceNode(node).GetNumberOfDataNodes() == 2
    volumes = {}
    for index in (1, 0):
        browser.SetSelectedItemNumber(index)
        rows = json.loads(node.GetAttribute(REPORT_ATTRIBUTE))["segments"]
        volumes[index] = [row["voxels"] for row in rows]
        for row in rows:
            found = slicer.util.arrayFromSegmentBinaryLabelmap(node, row["segment_id"], a_beating_ct)
            assert np.count_nonzero(found) == row["voxels"]
    assert volumes[0] != volumes[1]


def test_sentences_call_the_volume_by_its_name(logic, a_ct, a_quick_model):
    slicer.util.arrayFromVolume(a_ct)[:] = -1000
    with pytest.raises(InputError, match=f"^'{a_ct.GetName()}' has the value -1000 everywhere"):
        logic.segment(a_ct, task="vertebrae", device="cpu", manifest=a_quick_model)


def fill_with_air(node):
    array = slicer.util.arrayFromVolume(node)
    array[:] = -1000
    array[0, 0, 0] = -900


def test_an_item_without_a_body_is_named_and_costs_no_other_item(logic, a_beating_ct, a_quick_model):
    sequences = slicer.modules.sequences.logic()
    source = sequences.GetFirstBrowserNodeForProxyNode(a_beating_ct).GetSequenceNode(a_beating_ct)
    fill_with_air(source.GetNthDataNode(0))
    job = logic.segmentAsync(a_beating_ct, "vertebrae", allItems=True, device="cpu", manifest=a_quick_model)
    node = job.wait()
    assert job.report["summary"].startswith("1 of 2 items of the sequence were segmented. Item 1 has no segments: The ")
    browser = sequences.GetFirstBrowserNodeForProxyNode(node)
    found = []
    for index in (0, 1):
        browser.SetSelectedItemNumber(index)
        found.append(len(segment_ids(node)))
    assert found[0] == 0 and found[1] > 0


def test_a_sequence_of_nothing_but_air_is_one_sentence(logic, a_beating_ct, a_quick_model):
    source = (
        slicer.modules.sequences.logic().GetFirstBrowserNodeForProxyNode(a_beating_ct).GetSequenceNode(a_beating_ct)
    )
    for index in range(2):
        fill_with_air(source.GetNthDataNode(index))
    nodes = slicer.mrmlScene.GetNumberOfNodes()
    with pytest.raises(InputError, match="no body"):
        logic.segment(a_beating_ct, "vertebrae", allItems=True, device="cpu", manifest=a_quick_model)
    assert slicer.mrmlScene.GetNumberOfNodes() == nodes


@pytest.mark.slow
def test_cancelled_sequence_leaves_the_scene_as_it_was(logic, a_beating_ct, a_slow_model):
    nodes = slicer.mrmlScene.GetNumberOfNodes()
    job = logic.segmentAsync(a_beating_ct, "vertebrae", allItems=True, device="cpu", manifest=a_slow_model)
    assert (job.item, job.items) == (0, 2)
    job.cancel()
    with pytest.raises(Cancelled):
        job.wait()
    assert slicer.mrmlScene.GetNumberOfNodes() == nodes


def test_all_items_of_a_lone_volume_or_into_a_node_are_refused(logic, a_ct, a_beating_ct):
    with pytest.raises(InputError, match="does not belong to a sequence"):
        logic.segment(a_ct, "vertebrae", allItems=True)
    output = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    with pytest.raises(InputError, match="choose no output segmentation"):
        logic.segment(a_beating_ct, "vertebrae", allItems=True, output=output)
