"""A sequence of volumes becomes a sequence of segmentations."""

from __future__ import annotations

import numpy as np
import pytest
import slicer

from segmamba.errors import InputError
from segmamba_mrml.segment import REPORT_ATTRIBUTE
from segmamba_mrml.segmentation import segment_ids, segmentation_from_labels
from segmamba_mrml.sequences import SequenceItems, number_of_items
from segmamba_mrml.volumes import modality_of, volume_of

ITEMS = 3


@pytest.fixture
def a_sequence(a_slicer_scene, labels, oblique_left_handed):
    """Three volumes at 0, 0.5 and 1 s that hold 0, 100 and 200; returns the node that shows one, and the browser."""
    sequence = a_slicer_scene.AddNewNodeByClass("vtkMRMLSequenceNode", "beats")
    sequence.SetIndexName("time")
    sequence.SetIndexUnit("s")
    for index in range(ITEMS):
        voxels = np.full(labels.shape, 100 * index, np.int16)
        node = slicer.util.addVolumeFromArray(voxels, oblique_left_handed, "heart")
        sequence.SetDataNodeAtValue(node, str(index / 2))
        a_slicer_scene.RemoveNode(node)
    browser = a_slicer_scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "browser")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    browser.SetSelectedItemNumber(1)
    return browser.GetProxyNode(sequence), browser


def segment(items, labels, vertebrae):
    """Give item n the first n labels that are present."""
    present = [19, 20, 26]
    for index in range(len(items)):
        volume_node = items.volume(index)
        some = np.where(np.isin(labels, present[: index + 1]), labels, 0).astype(np.uint8)
        node = segmentation_from_labels(some, volume_node, vertebrae, "heart vertebrae")
        node.SetAttribute(REPORT_ATTRIBUTE, str(index))
        items.add(index, node)


def test_volume_outside_a_sequence_has_no_items_and_says_so(a_volume_node):
    assert number_of_items(a_volume_node) == 0
    with pytest.raises(InputError, match="'case 7' does not belong to a sequence"):
        SequenceItems(a_volume_node)


def test_each_item_is_where_the_volume_is_with_its_own_voxels(a_sequence, a_linear_transform, a_slicer_scene):
    volume_node, browser = a_sequence
    volume_node.SetAndObserveTransformNodeID(a_linear_transform.GetID())
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(a_slicer_scene)
    item = hierarchy.CreateItem(hierarchy.GetSceneItemID(), volume_node)
    hierarchy.SetItemAttribute(item, "DICOM.Modality", "CT")
    assert number_of_items(volume_node) == ITEMS
    nodes = a_slicer_scene.GetNumberOfNodes()
    items = SequenceItems(volume_node)
    assert len(items) == ITEMS
    for index in range(ITEMS):
        node = items.volume(index)
        np.testing.assert_array_equal(slicer.util.arrayFromVolume(node), 100 * index)
        expected = volume_of(volume_node).geometry.affine
        np.testing.assert_allclose(volume_of(node).geometry.affine, expected, atol=1e-9)
        assert (node.GetName(), modality_of(node)) == (volume_node.GetName(), "CT")
    assert a_slicer_scene.GetNumberOfNodes() == nodes
    assert browser.GetSelectedItemNumber() == 1


def test_segmentation_follows_the_item_that_is_shown(a_sequence, a_linear_transform, labels, vertebrae, a_slicer_scene):
    volume_node, browser = a_sequence
    volume_node.SetAndObserveTransformNodeID(a_linear_transform.GetID())
    items = SequenceItems(volume_node)
    segment(items, labels, vertebrae)
    assert a_slicer_scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0
    node = items.finish("heart vertebrae")
    assert a_slicer_scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 1
    assert node.GetName() == "heart vertebrae"
    assert node.GetTransformNodeID() == a_linear_transform.GetID()
    assert node.GetDisplayNode().GetVisibility()
    for index in (2, 0, 1):
        browser.SetSelectedItemNumber(index)
        assert segment_ids(node) == ["T12_vertebra", "L1_vertebra", "Sacrum"][: index + 1]
        assert node.GetAttribute(REPORT_ATTRIBUTE) == str(index)
        found = slicer.util.arrayFromSegmentBinaryLabelmap(node, "T12_vertebra", volume_node)
        np.testing.assert_array_equal(found > 0, labels == 19)
        role = node.GetReferenceImageGeometryReferenceRole()
        assert node.GetNodeReference(role) is volume_node


def test_correction_of_one_item_stays_with_it(a_sequence, labels, vertebrae):
    volume_node, browser = a_sequence
    items = SequenceItems(volume_node)
    segment(items, labels, vertebrae)
    node = items.finish("heart vertebrae")
    voxels = slicer.util.arrayFromSegmentBinaryLabelmap(node, "T12_vertebra", volume_node)
    voxels[0, 0, 0] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(voxels, node, "T12_vertebra", volume_node)
    for index in (2, 1):
        browser.SetSelectedItemNumber(index)
        found = slicer.util.arrayFromSegmentBinaryLabelmap(node, "T12_vertebra", volume_node)
        assert bool(found[0, 0, 0]) == (index == 1)


def test_sequence_removed_meanwhile_is_a_sentence(a_sequence, labels, vertebrae, a_slicer_scene):
    volume_node, _browser = a_sequence
    items = SequenceItems(volume_node)
    segment(items, labels, vertebrae)
    a_slicer_scene.Clear(0)
    with pytest.raises(InputError, match="removed from the scene"):
        items.finish("heart vertebrae")
