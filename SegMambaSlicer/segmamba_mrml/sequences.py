"""The items of a volume's sequence, and the sequence of segmentations that they give.

Each item is segmented in a scene of its own, so that neither nodes nor views of the user's scene change meanwhile.
"""

from __future__ import annotations

from typing import Any

import slicer
import vtk

from segmamba.errors import InputError
from segmamba_mrml.segmentation import place_beside
from segmamba_mrml.volumes import modality_of, world_matrix


def number_of_items(volume_node: Any) -> int:
    """Return how many items the sequence has whose current item a volume node shows; 0 where there is none."""
    browser = _browser(volume_node)
    return browser.GetNumberOfItems() if browser is not None else 0


class SequenceItems:
    """The items of a volume's sequence on their way to a sequence of segmentations.

    Parameters
    ----------
    volume_node : vtkMRMLScalarVolumeNode
        The one that shows the sequence's current item; which item that is does not matter and does not change.

    Raises
    ------
    InputError
        The volume is not in a sequence.
    """

    def __init__(self, volume_node: Any) -> None:
        browser = _browser(volume_node)
        if browser is None:
            name = volume_node.GetName() if volume_node is not None else None
            raise InputError(f"'{name}' does not belong to a sequence: leave out allItems.")
        self._volume_node, self._browser = volume_node, browser
        self._source = browser.GetSequenceNode(volume_node)
        self._results = slicer.vtkMRMLSequenceNode()
        self._results.SetIndexName(self._source.GetIndexName())
        self._results.SetIndexUnit(self._source.GetIndexUnit())
        self._results.SetIndexType(self._source.GetIndexType())
        self._scene: Any = None

    def __len__(self) -> int:
        return int(self._source.GetNumberOfDataNodes())

    def volume(self, index: int) -> Any:
        """Return a volume node with the voxels of an item, in a scene of its own, placed as the volume is."""
        self._scene = slicer.vtkMRMLScene()
        node = self._scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
        node.CopyContent(self._source.GetNthDataNode(index), False)
        node.SetName(self._volume_node.GetName())
        matrix = vtk.vtkMatrix4x4()
        matrix.DeepCopy(world_matrix(self._volume_node).ravel().tolist())
        transform = self._scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        transform.SetMatrixTransformToParent(matrix)
        node.SetAndObserveTransformNodeID(transform.GetID())
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self._scene)
        item = hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)
        key = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMSeriesModalityAttributeName()
        hierarchy.SetItemAttribute(item, key, modality_of(self._volume_node))
        return node

    def add(self, index: int, segmentation_node: Any) -> None:
        """Take the segmentation of an item."""
        self._results.SetDataNodeAtValue(segmentation_node, self._source.GetNthIndexValue(index))
        self._scene = None

    def add_empty(self, index: int) -> None:
        """Give an item an empty segmentation: with none, the browser would show that of the item before."""
        self.add(index, slicer.vtkMRMLSegmentationNode())

    def finish(self, name: str) -> Any:
        """Add the sequence of segmentations to the scene, and return the node that shows its current item.

        Raises
        ------
        InputError
            The volume or its sequence is gone from the scene.
        """
        scene = self._volume_node.GetScene()
        if scene is None or self._browser.GetScene() is None:
            raise InputError("The volume or its sequence was removed from the scene: load it again.")
        self._results.SetName(name)
        scene.AddNode(self._results)
        self._browser.AddSynchronizedSequenceNode(self._results)
        # What a person corrects in Segment Editor stays when another item is shown.
        self._browser.SetSaveChanges(self._results, True)
        node = self._browser.GetProxyNode(self._results)
        node.SetAndObserveTransformNodeID(self._volume_node.GetTransformNodeID())
        node.SetReferenceImageGeometryParameterFromVolumeNode(self._volume_node)
        node.CreateDefaultDisplayNodes()
        place_beside(node, self._volume_node)
        return node


def _browser(volume_node: Any) -> Any:
    if volume_node is None or volume_node.GetScene() is None:
        return None
    return slicer.modules.sequences.logic().GetFirstBrowserNodeForProxyNode(volume_node)
