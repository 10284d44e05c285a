"""Models of several volumes in the panel and the console: a selector for each, kept with the scene."""

from __future__ import annotations

import json

import numpy as np
import pytest
import slicer
from helpers import brain, tiny

from segmamba.errors import InputError
from segmamba.io.read import read_volume
from segmamba.training.dataset.read import read_dataset
from segmamba_mrml.segment import REPORT_ATTRIBUTE
from segmamba_mrml.segmentation import segment_ids
from segmamba_mrml.training_case import save_training_case


@pytest.fixture(scope="session")
def a_brain_model(tmp_path_factory):
    """A manifest with a tiny model of three channels and two regions."""
    return brain.write_brain_model(tmp_path_factory.mktemp("brain"))


@pytest.fixture
def three_volumes(add_volume):
    return {name: add_volume(f"case {name}", brain.channel(seed)) for seed, name in enumerate(brain.CHANNELS)}


def found_labels(node, volume_node):
    """Return the labels (z, y, x) of a result's segments by their names."""
    labels = np.zeros(slicer.util.arrayFromVolume(volume_node).shape, np.uint8)
    for identifier in segment_ids(node):
        name = node.GetSegmentation().GetSegment(identifier).GetName()
        labels[slicer.util.arrayFromSegmentBinaryLabelmap(node, identifier, volume_node) > 0] = brain.REGIONS[name]
    return labels


def expected():
    return brain.expected_labels([brain.channel(seed) for seed in range(3)])


def rows(panel):
    """Return the labels and selectors that are in sight."""
    section = panel.sections.channels
    pairs = zip(section._labels, section.selectors, strict=True)
    return {label.text: selector for label, selector in pairs if selector.isVisible()}


def test_each_channel_that_the_model_names_has_a_selector_and_takes_part_in_the_run(
    panel, a_brain_model, three_volumes, segment, click, screenshot, tmp_path, wait_until
):
    ui = panel.ui
    assert not ui.channelsWidget.visible and ui.inputSelectorLabel.text == "Input volume:"
    panel.useManifest(a_brain_model)
    assert ui.inputSelectorLabel.text == "Volume t1c:"
    assert list(rows(panel)) == ["Volume t1n:", "Volume t2f:"]
    ui.inputSelector.setCurrentNode(three_volumes["t1c"])
    click(ui.segmentButton)
    assert ui.statusLabel.text == "Choose a volume for t1n, t2f: the model takes several, of one examination."
    for name, selector in zip(("t1n", "t2f"), rows(panel).values(), strict=True):
        assert selector.currentNode() is None
        selector.setCurrentNode(three_volumes[name])
    screenshot("channels")
    slicer.util.arrayFromVolume(three_volumes["t1c"])[:] -= 500
    ui.modalityComboBox.currentIndex = ui.modalityComboBox.findData("CT")
    wait_until(lambda: ui.forecastLabel.text.startswith("Channel t1c is CT and the model 'tiny-brain' takes MR"))
    ui.modalityComboBox.currentIndex = ui.modalityComboBox.findData("auto")
    slicer.util.arrayFromVolume(three_volumes["t1c"])[:] += 500
    node = segment()
    screenshot("channels-result")
    labels = panel.sections.models.model.labels
    case = save_training_case(node, three_volumes["t1c"], tmp_path, labels)
    dataset = read_dataset(tmp_path)
    assert dataset.channels == brain.CHANNELS and dict(dataset.labels) == brain.REGIONS
    assert [image.name for image in dataset.cases[0].images] == [f"{case}_000{number}.nii.gz" for number in range(3)]
    for image, name in zip(dataset.cases[0].images, brain.CHANNELS, strict=True):
        np.testing.assert_array_equal(read_volume(image).array, slicer.util.arrayFromVolume(three_volumes[name]))
    slicer.mrmlScene.RemoveNode(three_volumes["t2f"])
    with pytest.raises(InputError, match="The volume of channel t2f is not in the scene"):
        save_training_case(node, three_volumes["t1c"], tmp_path / "other", labels)
    assert (found_labels(node, three_volumes["t1c"]) == expected()).mean() > 0.98
    report = json.loads(node.GetAttribute(REPORT_ATTRIBUTE))
    assert report["channels"] == {name: f"case {name}" for name in brain.CHANNELS}
    panel.useManifest(None)
    assert not ui.channelsWidget.visible and ui.inputSelectorLabel.text == "Input volume:"


def test_chosen_channels_are_saved_with_the_scene_and_come_back(panel, a_brain_model, three_volumes):
    panel.useManifest(a_brain_model)
    panel.ui.inputSelector.setCurrentNode(three_volumes["t1c"])
    for name, selector in zip(("t1n", "t2f"), rows(panel).values(), strict=True):
        selector.setCurrentNode(three_volumes[name])
    scene = slicer.mrmlScene
    scene.SetSaveToXMLString(1)
    scene.Commit()
    text = scene.GetSceneXMLString()
    scene.Clear(0)
    scene.SetLoadFromXMLString(1)
    scene.SetSceneXMLString(text)
    scene.Import()
    assert [selector.currentNode().GetName() for selector in rows(panel).values()] == ["case t1n", "case t2f"]
    scene.RemoveNode(slicer.util.getNode("case t1n"))
    assert panel.sections.channels.problem().startswith("Choose a volume for t1n:")


def test_one_volume_for_two_channels_is_refused_before_the_run(panel, a_brain_model, three_volumes, click):
    panel.useManifest(a_brain_model)
    panel.ui.inputSelector.setCurrentNode(three_volumes["t1c"])
    for selector in rows(panel).values():
        selector.setCurrentNode(three_volumes["t2f"])
    click(panel.ui.segmentButton)
    assert panel.ui.statusLabel.text.startswith("'case t2f' is chosen for both channels 't1n' and 't2f'")


def test_console_names_the_volumes_and_any_of_them_is_the_input(logic, a_brain_model, three_volumes):
    others = {name: node for name, node in three_volumes.items() if name != "t2f"}
    call = {"model": brain.BRAIN_ID, "manifest": a_brain_model, "device": "cpu"}
    node = logic.segment(three_volumes["t2f"], channels=others, **call)
    assert (found_labels(node, three_volumes["t2f"]) == expected()).mean() > 0.98
    with pytest.raises(InputError, match=r"takes 3 co-registered volumes \(t1c, t1n, t2f\) and got 1"):
        logic.segment(three_volumes["t1c"], **call)
    with pytest.raises(InputError, match="has no channel 'flair'"):
        logic.segment(three_volumes["t1c"], channels={"flair": three_volumes["t2f"]}, **call)
    with pytest.raises(InputError, match="choose a model that takes one volume"):
        logic.segment(three_volumes["t1c"], channels=others, allItems=True, **call)


def test_an_error_of_the_engine_names_the_volumes_of_the_scene(logic, a_brain_model, three_volumes):
    slicer.util.arrayFromVolume(three_volumes["t1n"])[:] = 7
    others = {name: three_volumes[name] for name in ("t1n", "t2f")}
    with pytest.raises(InputError, match="'case t1n' has the value 7 everywhere"):
        logic.segment(three_volumes["t1c"], channels=others, model=brain.BRAIN_ID, manifest=a_brain_model)
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_a_model_of_one_volume_takes_no_others(logic, a_quick_model, three_volumes):
    with pytest.raises(InputError, match="takes one volume: leave out the channel 't1n'"):
        logic.segment(
            three_volumes["t1c"], model=tiny.MODEL_ID, manifest=a_quick_model, channels={"t1n": three_volumes["t1n"]}
        )
