"""From a label map to a segmentation node, and from a segmentation node to a ``.seg.nrrd`` file."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from segmamba.errors import InputError
from segmamba.io.labelmap import SEGMENTATION_EXTENSION, segment_id
from segmamba.io.volume import image_geometry
from segmamba.labels import Label
from segmamba.utils.atomic import atomic_write, check_output
from segmamba_mrml.application import start
from segmamba_mrml.volumes import RAS_TO_LPS, world_matrix

BINARY_LABELMAP = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
# Where a segmentation keeps the grid of the volume that it is of.
GEOMETRY = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()


@dataclass(frozen=True, eq=False)
class LabelBox:
    """What is labelled in a label map.

    Attributes
    ----------
    shape : tuple of int
        Of the whole label map: z, y, x.
    array : ndarray of uint8
        The box around all labels; of size 0 where there is none.
    start : tuple of int
        Index of the box's first voxel in the label map: z, y, x.
    values : frozenset of int
        The labels that are present.
    to_lps : ndarray or None
        Where the label map has a grid of its own and not the volume's: 4 x 4 matrix from its index (x, y, z, 1) to LPS
        world millimetres.
    """

    shape: tuple[int, ...]
    array: np.ndarray
    start: tuple[int, ...]
    values: frozenset[int]
    to_lps: np.ndarray | None = None


def read_labels(path: Path | str) -> np.ndarray:
    """Return a label map, shape (z, y, x), as its file has it.

    Raises
    ------
    InputError
        The file cannot be read.
    """
    array: np.ndarray = sitk.GetArrayFromImage(_read(path))
    return array


def label_box(labels: np.ndarray | Path | str, own_grid: bool = False) -> LabelBox:
    """Find what is labelled in a label map, or in the file that holds it. Uses no VTK, so that any thread can do it.

    With ``own_grid`` the file's grid need not be the volume's; segments then lie on that.

    Raises
    ------
    InputError
        The file cannot be read, or it does not hold voxels of uint8 in three dimensions.
    """
    to_lps = None
    if isinstance(labels, np.ndarray):
        array = labels
    else:
        image = _read(labels)
        to_lps = image_geometry(image).affine if own_grid else None
        # A view, which the image must outlive.
        array = sitk.GetArrayViewFromImage(image)
    if array.ndim != 3 or array.dtype != np.uint8:
        raise InputError(
            f"The label map has {array.ndim} dimensions and type {array.dtype}, and 3 and uint8 are needed: "
            "run the segmentation again."
        )
    shadow = np.any(array, axis=0)
    occupied = (np.any(array, axis=(1, 2)), np.any(shadow, axis=1), np.any(shadow, axis=0))
    lines = [np.flatnonzero(line) for line in occupied]
    box = tuple(slice(line[0], line[-1] + 1) if line.size else slice(0, 0) for line in lines)
    inside = np.array(array[box])
    # Plane by plane, because bincount makes its input eight times as large.
    counts = sum((np.bincount(plane.ravel(), minlength=256) for plane in inside), np.zeros(256, np.int64))
    values = frozenset(np.flatnonzero(counts).tolist()) - {0}
    return LabelBox(array.shape, inside, tuple(int(part.start) for part in box), values, to_lps)


def _read(path: Path | str) -> Any:
    try:
        return sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise InputError(f"The label map {path} cannot be read: run the segmentation again.") from error


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
    node = output_node
    for each in segments_in_steps(label_box(labels), volume_node, structures, name, output_node):
        node = each
    return node


def segments_in_steps(
    box: LabelBox, volume_node: Any, structures: Sequence[Label], name: str, output_node: Any = None
) -> Generator[Any, None, None]:
    """Do what `segmentation_from_labels` does, and pause (yield the node) after each segment.

    Each segment makes Slicer's views and tables follow. An iterator that is closed before its end, or that raises,
    takes back what it has added.
    """
    start(volume_node.GetScene())
    shape = volume_node.GetImageData().GetDimensions()[::-1]
    if box.to_lps is None and box.shape != shape:
        raise InputError(
            f"The label map has shape {box.shape}, and '{volume_node.GetName()}' has {shape}: choose the volume that "
            "was segmented."
        )
    if output_node is not None:
        check_segmentation(output_node, volume_node)
    node = output_node or volume_node.GetScene().AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    settings = _settings(node)
    added: list[str] = []
    try:
        ijk_to_ras = _grid_in_node(box, volume_node)
        _prepare(node, volume_node, box, ijk_to_ras)
        # Where an output node lies was its owner's choice.
        if output_node is None:
            place_beside(node, volume_node)
        # One image shared by all segments, each with its own label value: Slicer's form for segments that do not
        # overlap.
        image = oriented_image(box.array, box.start, ijk_to_ras)
        yield node
        for label in structures:
            if label.value in box.values:
                added.append(_add_segment(node, label, image))
                yield node
    except BaseException:
        if output_node is None:
            _remove(node)
        else:
            _take_back(node, added, settings)
        raise


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
        raise InputError(f"'{node.GetName()}' has no binary labelmap to add segments to: choose a new segmentation.")
    if node.GetTransformNodeID() != volume_node.GetTransformNodeID():
        raise InputError(
            f"'{node.GetName()}' and '{volume_node.GetName()}' are under different transforms: choose a new "
            "segmentation, or put both under the same transform."
        )


def type_code(segment: Any) -> tuple[str, str]:
    """Return scheme and value of a segment's type, two empty texts where its terminology tag has none."""
    tag = vtk.reference("")
    segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), tag)
    # The third of seven parts: scheme, code and meaning.
    code = "".join(str(tag).split("~")[2:3]).split("^")
    return (code[0], code[1]) if len(code) > 1 else ("", "")


def volume_node_of(node: Any) -> Any:
    """Return the volume node that a segmentation node refers to, or None where that is not in the scene."""
    return node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole())


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
    with atomic_write(path, (SEGMENTATION_EXTENSION,)) as draft:
        storage_node = slicer.vtkMRMLSegmentationStorageNode()
        storage_node.SetFileName(str(draft))
        if not storage_node.WriteData(node):
            raise OSError("Slicer could not write the file")


def place_beside(node: Any, volume_node: Any) -> None:
    """Put a segmentation under the parent that the volume has in the subject hierarchy (its study, mostly)."""
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


def _grid_in_node(box: LabelBox, volume_node: Any) -> Any:
    """Return the vtkMatrix4x4 from a label map's index to RAS, in the space of a node under the volume's transform."""
    ijk_to_ras = vtk.vtkMatrix4x4()
    if box.to_lps is None:
        volume_node.GetIJKToRASMatrix(ijk_to_ras)
        return ijk_to_ras
    matrix = np.linalg.inv(RAS_TO_LPS @ world_matrix(volume_node)) @ box.to_lps
    return slicer.util.vtkMatrixFromArray(matrix)


def _prepare(node: Any, volume_node: Any, box: LabelBox, ijk_to_ras: Any) -> None:
    was_modified = node.StartModify()
    try:
        if node.GetSegmentation().GetNumberOfSegments() == 0:
            node.GetSegmentation().SetSourceRepresentationName(BINARY_LABELMAP)
            node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
            node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)
            if box.to_lps is not None and all(box.shape):
                # The node still refers to the volume; what is drawn and exported has the finer voxels.
                extent = [bound for size in reversed(box.shape) for bound in (0, size - 1)]
                text = slicer.vtkSegmentationConverter.SerializeImageGeometry(ijk_to_ras, extent)
                node.GetSegmentation().SetConversionParameter(GEOMETRY, text)
        if node.GetDisplayNode() is None:
            node.CreateDefaultDisplayNodes()
    finally:
        node.EndModify(was_modified)


def _add_segment(node: Any, label: Label, image: Any) -> str:
    """Add a segment and return its ID."""
    segment, status = slicer.vtkSegment(), slicer.vtkSlicerSegmentationsModuleLogic
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
    identifier: str = node.GetSegmentation().GenerateUniqueSegmentID(segment_id(label))
    node.GetSegmentation().AddSegment(segment, identifier)
    return identifier


@dataclass(frozen=True)
class _Settings:
    """What `_prepare` may change of a node."""

    source: str
    transform: str | None
    geometry: str
    reference: str | None
    displays: tuple[str, ...]


def _settings(node: Any) -> _Settings:
    segmentation = node.GetSegmentation()
    return _Settings(
        segmentation.GetSourceRepresentationName(),
        node.GetTransformNodeID(),
        segmentation.GetConversionParameter(GEOMETRY),
        node.GetNodeReferenceID(node.GetReferenceImageGeometryReferenceRole()),
        tuple(node.GetNthDisplayNodeID(index) for index in range(node.GetNumberOfDisplayNodes())),
    )


def _take_back(node: Any, segments: Sequence[str], settings: _Settings) -> None:
    """Remove segments from a node, and give it the settings that it had."""
    segmentation, was_modified = node.GetSegmentation(), node.StartModify()
    for identifier in segments:
        segmentation.RemoveSegment(identifier)
    for display in [node.GetNthDisplayNode(index) for index in range(node.GetNumberOfDisplayNodes())]:
        if display is not None and display.GetID() not in settings.displays and display.GetScene() is not None:
            display.GetScene().RemoveNode(display)
    if segmentation.GetNumberOfSegments() == 0:
        segmentation.SetSourceRepresentationName(settings.source)
        segmentation.SetConversionParameter(GEOMETRY, settings.geometry)
        node.SetAndObserveTransformNodeID(settings.transform)
        node.SetNodeReferenceID(node.GetReferenceImageGeometryReferenceRole(), settings.reference)
    node.EndModify(was_modified)


def _remove(node: Any) -> None:
    if node.GetScene() is not None:
        # A display node does not go by itself.
        displays = [node.GetNthDisplayNode(index) for index in range(node.GetNumberOfDisplayNodes())]
        for each in (node, *displays):
            each.GetScene().RemoveNode(each)


def oriented_image(array: np.ndarray, start: Sequence[int], ijk_to_ras: Any) -> Any:
    """Return voxels as oriented image data.

    Parameters
    ----------
    array : ndarray of uint8
        Shape (z, y, x).
    start : sequence of int
        Index of its first voxel on the grid: z, y, x.
    ijk_to_ras : vtkMatrix4x4
        Of the grid, in the volume's own (local) space.
    """
    image = slicer.vtkOrientedImageData()
    (k0, k1), (j0, j1), (i0, i1) = ((low, low + size - 1) for low, size in zip(start, array.shape, strict=True))
    image.SetExtent(i0, i1, j0, j1, k0, k1)
    image.GetPointData().SetScalars(numpy_to_vtk(array.ravel(), deep=True, array_type=vtk.VTK_UNSIGNED_CHAR))
    image.SetGeometryFromImageToWorldMatrix(ijk_to_ras)
    return image
