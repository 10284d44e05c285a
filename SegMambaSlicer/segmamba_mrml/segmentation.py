"""From a label map to a segmentation node, and from a segmentation node to a ``.seg.nrrd`` file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from segmamba.errors import InputError
from segmamba.labelmap import SEGMENTATION_EXTENSION, check_output, segment_id, whole_file
from segmamba.manifest import Label

BINARY_LABELMAP = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()


def segmentation_from_labels(
    labels: np.ndarray | Path | str,
    volume_node: Any,
    structures: Sequence[Label],
    name: str,
    output_node: Any = None,
) -> Any:
    """Make a segmentation node with one segment for each structure that is present.

    Parameters
    ----------
    labels : ndarray of uint8, shape (z, y, x), or path
        Label map on the volume's own voxel grid, or the file that holds it.
    volume_node : vtkMRMLScalarVolumeNode
        Gives the reference geometry, the parent transform and the place in the subject hierarchy.
    structures : sequence of Label
        Names, colours, codes and the order of the segments. Values that are not among them are left out.
    name : str
        Name of a new node.
    output_node : vtkMRMLSegmentationNode, optional
        Node to add the segments to. The segments that it holds stay; a new one whose ID is taken gets a numbered ID.

    Returns
    -------
    vtkMRMLSegmentationNode
        In the volume's scene; without segments where none of the structures is present.

    Raises
    ------
    InputError
        The label map is not on the volume's grid, or the output node cannot take segments.
    """
    array = _label_array(labels, volume_node)
    node = output_node
    if node is None:
        node = volume_node.GetScene().AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    check_segmentation(node, volume_node)
    was_modified = node.StartModify()
    try:
        if node.GetSegmentation().GetNumberOfSegments() == 0:
            node.GetSegmentation().SetSourceRepresentationName(BINARY_LABELMAP)
            node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
            node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)
        if node.GetDisplayNode() is None:
            node.CreateDefaultDisplayNodes()
        _add_segments(node, array, volume_node, structures)
    finally:
        node.EndModify(was_modified)
    # Where an output node lies was its owner's choice.
    if output_node is None:
        _place_beside(node, volume_node)
    return node


def check_segmentation(node: Any, volume_node: Any) -> None:
    """Refuse a segmentation node that the segments of a volume cannot be added to.

    Raises
    ------
    InputError
        It is made of surfaces, or what it holds lies under another transform than the volume.
    """
    segmentation = node.GetSegmentation()
    if segmentation.GetNumberOfSegments() == 0:
        return
    if segmentation.GetSourceRepresentationName() != BINARY_LABELMAP:
        raise InputError(
            f"'{node.GetName()}' is not made of voxels, so no label map can be added to it: choose a new segmentation."
        )
    if node.GetTransformNodeID() != volume_node.GetTransformNodeID():
        raise InputError(
            f"'{node.GetName()}' and '{volume_node.GetName()}' are under different transforms: choose a new "
            "segmentation, or put both under the same transform."
        )


def segment_ids(node: Any) -> list[str]:
    """Return the IDs of a segmentation node's segments, in their order."""
    segmentation = node.GetSegmentation()
    return [segmentation.GetNthSegmentID(index) for index in range(segmentation.GetNumberOfSegments())]


def save_segmentation(node: Any, path: Path | str) -> None:
    """Write a segmentation node to a ``.seg.nrrd`` file, whole or not at all.

    The node's own storage node, with which Slicer saves the scene, is not touched.

    Raises
    ------
    OutputError
        The name does not end in ``.seg.nrrd``, or the file cannot be written.
    """
    check_output(path, (SEGMENTATION_EXTENSION,))
    with whole_file(path, (SEGMENTATION_EXTENSION,)) as draft:
        storage_node = slicer.vtkMRMLSegmentationStorageNode()
        storage_node.SetFileName(str(draft))
        if not storage_node.WriteData(node):
            raise OSError("Slicer could not write the file")


def _label_array(labels: np.ndarray | Path | str, volume_node: Any) -> np.ndarray:
    if isinstance(labels, np.ndarray):
        array = labels
    else:
        try:
            array = sitk.GetArrayFromImage(sitk.ReadImage(str(labels)))
        except RuntimeError as error:
            raise InputError(f"The label map {labels} cannot be read: run the segmentation again.") from error
    shape = volume_node.GetImageData().GetDimensions()[::-1]
    if array.shape != shape or array.dtype != np.uint8:
        raise InputError(
            f"The label map has shape {array.shape} and type {array.dtype}, and '{volume_node.GetName()}' needs "
            f"{shape} and uint8: choose the volume that was segmented."
        )
    return array


def _add_segments(node: Any, array: np.ndarray, volume_node: Any, structures: Sequence[Label]) -> None:
    # Plane by plane, because bincount makes its input eight times as large.
    counts = sum(np.bincount(plane.ravel(), minlength=256) for plane in array)
    present = set(np.flatnonzero(counts).tolist()) - {0}
    if not present:
        return
    # One image shared by all segments, each with its own label value: Slicer's form for segments that do not overlap.
    image = _cropped_image(array, volume_node)
    segmentation, status = node.GetSegmentation(), slicer.vtkSlicerSegmentationsModuleLogic
    for label in structures:
        if label.value not in present:
            continue
        segment = slicer.vtkSegment()
        segment.SetName(label.name)
        segment.SetColor(*(channel / 255 for channel in label.color))
        # Name and colour follow when somebody corrects the level by choosing another term in Segment Editor.
        segment.SetNameAutoGenerated(True)
        segment.SetColorAutoGenerated(True)
        segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), label.terminology_tag)
        # A person has yet to look at it.
        status.SetSegmentStatus(segment, status.InProgress)
        segment.SetLabelValue(label.value)
        segment.AddRepresentation(BINARY_LABELMAP, image)
        segmentation.AddSegment(segment, segmentation.GenerateUniqueSegmentID(segment_id(label)))


def _cropped_image(array: np.ndarray, volume_node: Any) -> Any:
    """Return the labelled box as oriented image data on the volume's grid, in the volume's own (local) space."""
    shadow = np.any(array, axis=0)
    occupied = (np.any(array, axis=(1, 2)), np.any(shadow, axis=1), np.any(shadow, axis=0))
    (k0, k1), (j0, j1), (i0, i1) = (np.flatnonzero(line)[[0, -1]].tolist() for line in occupied)
    voxels = np.ascontiguousarray(array[k0 : k1 + 1, j0 : j1 + 1, i0 : i1 + 1])
    image = slicer.vtkOrientedImageData()
    image.SetExtent(i0, i1, j0, j1, k0, k1)
    image.GetPointData().SetScalars(numpy_to_vtk(voxels.ravel(), deep=True, array_type=vtk.VTK_UNSIGNED_CHAR))
    ijk_to_ras = vtk.vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(ijk_to_ras)
    image.SetGeometryFromImageToWorldMatrix(ijk_to_ras)
    return image


def _place_beside(node: Any, volume_node: Any) -> None:
    """Put the segmentation under the parent that the volume has in the subject hierarchy (its study, mostly)."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(volume_node.GetScene())
    if hierarchy is None:
        return
    volume_item = hierarchy.GetItemByDataNode(volume_node)
    parent = hierarchy.GetItemParent(volume_item) if volume_item else hierarchy.GetSceneItemID()
    item = hierarchy.GetItemByDataNode(node)
    # Slicer's own plugins make an item for each node they know; on slicer-core there are none.
    if item:
        hierarchy.SetItemParent(item, parent)
    else:
        hierarchy.CreateItem(parent, node)
