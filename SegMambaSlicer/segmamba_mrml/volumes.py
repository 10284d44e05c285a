"""From a volume node to a file that the engine reads, and from an ROI node to a box.

The scene is in RAS millimetres, files and the engine are in LPS; both in world coordinates, parent transforms applied.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from segmamba.errors import InputError, OutputError
from segmamba.io.read import MODALITY_KEY
from segmamba.io.volume import Geometry, Volume, corners, nearest_orthonormal

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
# A volume is taken as it lies where that puts nothing off by more than this part of a voxel: headers, registrations
# and DICOM positions are rounded.
NEGLIGIBLE = 0.2
# What Slicer's DICOM reader calls the transform that it puts volumes under whose slices are not on an even grid.
ACQUISITION = "acquisition transform"
# NRRD's names for numbers where they are not numpy's.
NRRD_TYPES = {"float32": "float", "float64": "double"}


def check_volume(volume_node: Any) -> None:
    """Refuse, in one sentence, a node that is not a volume on a voxel grid.

    Raises
    ------
    InputError
        The node is not a scalar volume with three dimensions, or its transform cannot be applied to a voxel grid.
    """
    check_voxels(volume_node)
    world_matrix(volume_node)


def check_voxels(volume_node: Any) -> None:
    """Do what `check_volume` does, whatever the volume's transform is.

    Raises
    ------
    InputError
    """
    if volume_node is None:
        raise InputError("No volume is chosen: load a CT or MR volume and choose it as input.")
    name = f"'{volume_node.GetName()}'"
    if volume_node.IsA("vtkMRMLSequenceNode"):
        raise InputError(f"{name} is a sequence: choose the volume that shows its current item.")
    if volume_node.IsA("vtkMRMLLabelMapVolumeNode"):
        raise InputError(f"{name} is a label map, not an image: choose the CT or MR volume it was drawn on.")
    if not volume_node.IsA("vtkMRMLScalarVolumeNode"):
        raise InputError(f"{name} is not a volume: choose a CT or MR volume.")
    image = volume_node.GetImageData()
    if image is None or 0 in image.GetDimensions() or image.GetPointData().GetScalars() is None:
        raise InputError(f"{name} has no voxels: load its image again.")
    components = image.GetNumberOfScalarComponents()
    if components != 1:
        raise InputError(f"{name} has {components} values per voxel: choose a volume with one, such as a CT or MR.")
    if min(image.GetDimensions()) < 2:
        raise InputError(f"{name} is a single slice: choose a volume with several slices.")


def index_to_lps(volume_node: Any) -> np.ndarray:
    """Return the 4 x 4 matrix from voxel indices (i, j, k) to LPS world millimetres, parent transforms applied.

    Its axes are at right angles; where they are so but for rounding, no voxel moves by more than `NEGLIGIBLE`.

    Raises
    ------
    InputError
        A parent transform is not linear (see `world_matrix`), or leaves the voxel axes at other than right angles.
    """
    ijk_to_ras = vtk.vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(ijk_to_ras)
    matrix = RAS_TO_LPS @ world_matrix(volume_node) @ slicer.util.arrayFromVTKMatrix(ijk_to_ras)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    if not np.isfinite(matrix).all() or spacing.min() <= 0:
        raise InputError(f"'{volume_node.GetName()}' has no valid voxel spacing: correct it in the Volumes module.")
    last = np.array(volume_node.GetImageData().GetDimensions()) - 1
    straight = np.eye(4)
    straight[:3, :3] = nearest_orthonormal(matrix[:3, :3] / spacing) * spacing
    # What is off is so by as much on either side.
    straight[:3, 3] = matrix[:3, 3] + (matrix - straight)[:3, :3] @ (last / 2)
    moved = np.linalg.inv(straight) @ (matrix - straight) @ corners((0, 0, 0), last).T
    if np.abs(moved[:3]).max() > NEGLIGIBLE:
        raise InputError(
            f"The voxel axes of '{volume_node.GetName()}' are not at right angles (a sheared transform or a tilted "
            "gantry): resample it with the module Resample Scalar/Vector/DWI Volume and choose the result."
        )
    return straight


def volume_of(volume_node: Any) -> Volume:
    """Return a volume node's voxels, which are not copied, and where they lie in the world.

    A DICOM modality known to the subject hierarchy comes along.

    Raises
    ------
    InputError
        The node cannot be segmented, see `check_volume` and `index_to_lps`.
    """
    check_volume(volume_node)
    matrix = index_to_lps(volume_node)
    array = slicer.util.arrayFromVolume(volume_node)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    geometry = Geometry(
        size=array.shape[::-1],
        spacing=tuple(spacing.tolist()),
        origin=tuple(matrix[:3, 3].tolist()),
        direction=tuple((matrix[:3, :3] / spacing).flatten().tolist()),
    )
    return Volume(array, geometry, modality_of(volume_node) or None)


def write_volume(volume: Volume, path: Path | str, stopped: Callable[[], bool] = lambda: False) -> None:
    """Write a volume to an uncompressed NRRD file. Uses no VTK and no MRML, so that any thread can do it.

    Not through SimpleITK, which would copy the voxels twice before it writes.

    Parameters
    ----------
    stopped : callable
        Asked before each slice; when it returns True, the file stays as far as it is.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    try:
        with Path(path).open("wb") as stream:
            stream.write(_nrrd_header(volume).encode("ascii"))
            for plane in volume.array:
                if stopped():
                    return
                stream.write(np.ascontiguousarray(plane).data)
    except OSError as error:
        raise OutputError(f"The volume cannot be copied to {path}: free some disk space there.") from error


def roi_box(roi_node: Any) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return the smallest and largest corner, in LPS world millimetres, of the box around a markups ROI.

    A rotated or transformed ROI gives the axis-aligned box around it.

    Raises
    ------
    InputError
        The node is no ROI, or it has not been placed.
    """
    if roi_node is None or not roi_node.IsA("vtkMRMLMarkupsROINode"):
        raise InputError("The region is not a markups ROI: create one in the Markups module.")
    half = np.array(roi_node.GetSize()) / 2
    if roi_node.GetNumberOfDefinedControlPoints() == 0 or half.min() <= 0:
        raise InputError(f"The ROI '{roi_node.GetName()}' has no extent: place it in a slice view first.")
    object_to_lps = RAS_TO_LPS @ slicer.util.arrayFromVTKMatrix(roi_node.GetObjectToWorldMatrix())
    box = corners(-half, half) @ object_to_lps.T
    low, high = box[:, :3].min(axis=0).tolist(), box[:, :3].max(axis=0).tolist()
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


def world_matrix(volume_node: Any) -> np.ndarray:
    """Return the 4 x 4 matrix of a node's parent transforms, from its own space to the world, in RAS millimetres.

    Slicer's DICOM reader puts series under a grid transform whose slices are off an even grid by a micrometre. Such
    transforms count as none where together they move nothing by more than `NEGLIGIBLE`.

    Parameters
    ----------
    volume_node : vtkMRMLScalarVolumeNode or vtkMRMLSegmentationNode

    Raises
    ------
    InputError
        One of them is not linear, and moves more than that.
    """
    matrix = np.eye(4)
    for transform in transforms_of(volume_node):
        if not isinstance(transform, np.ndarray):
            raise InputError(_non_linear(volume_node, transform))
        matrix = transform @ matrix
    return matrix


def transforms_of(volume_node: Any) -> list[Any]:
    """Return a node's parent transforms, from its own to that of the world.

    Returns
    -------
    list
        Of a linear transform the 4 x 4 matrix; of another one its node, unless it moves too little to matter.
    """
    found: list[Any] = []
    matrix, moved = np.eye(4), 0.0
    transform_node = volume_node.GetParentTransformNode()
    while transform_node is not None:
        if transform_node.IsLinear():
            to_parent = vtk.vtkMatrix4x4()
            transform_node.GetMatrixTransformToParent(to_parent)
            found.append(np.array(slicer.util.arrayFromVTKMatrix(to_parent)))
            matrix = found[-1] @ matrix
        else:
            displacements = _displacements(transform_node)
            axes = matrix[:3, :3] @ _voxel_axes(volume_node)
            moved += np.abs(np.linalg.solve(axes, displacements)).max() if displacements is not None else np.inf
            if not moved <= NEGLIGIBLE:
                found.append(transform_node)
        transform_node = transform_node.GetParentTransformNode()
    return found


def _displacements(transform_node: Any) -> np.ndarray | None:
    """Return by how much a grid transform moves its grid's points, shape (3, points), in RAS millimetres."""
    transform = transform_node.GetTransformFromParent()
    grid = transform.GetDisplacementGrid() if transform_node.IsA("vtkMRMLGridTransformNode") else None
    if grid is None or not grid.GetNumberOfPoints():
        return None
    vectors = vtk_to_numpy(grid.GetPointData().GetScalars()).reshape(-1, 3).T
    return np.array(vectors * transform.GetDisplacementScale() + transform.GetDisplacementShift(), float)


def _voxel_axes(node: Any) -> np.ndarray:
    """Return the steps from voxel to voxel of a volume or a segmentation as columns, in its own space."""
    matrix = vtk.vtkMatrix4x4()
    if node.IsA("vtkMRMLSegmentationNode"):
        image, segmentation = slicer.vtkOrientedImageData(), node.GetSegmentation()
        geometry = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
        converter = slicer.vtkSegmentationConverter
        converter.DeserializeImageGeometry(segmentation.GetConversionParameter(geometry), image, False)
        image.GetImageToWorldMatrix(matrix)
    else:
        node.GetIJKToRASMatrix(matrix)
    return np.array(slicer.util.arrayFromVTKMatrix(matrix)[:3, :3])


def _non_linear(node: Any, transform_node: Any) -> str:
    name, transform, displacements = node.GetName(), transform_node.GetName(), _displacements(transform_node)
    way_out = "harden the transform on a copy of the volume (Data module) and choose the copy."
    if displacements is None or ACQUISITION not in transform:
        return f"'{name}' is under the non-linear transform '{transform}': {way_out}"
    return (
        f"The slices of '{name}' are tilted or at uneven distances: its transform '{transform}' moves them by up to "
        f"{np.linalg.norm(displacements, axis=0).max():.2g} mm, so {way_out}"
    )


def modality_of(volume_node: Any) -> str:
    """Return the DICOM modality that the subject hierarchy knows of a volume, or an empty text."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(volume_node.GetScene())
    item = hierarchy.GetItemByDataNode(volume_node) if hierarchy else 0
    key = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMSeriesModalityAttributeName()
    return hierarchy.GetItemAttribute(item, key) if item else ""


def _nrrd_header(volume: Volume) -> str:
    """Return the header that goes before the raw voxels of a volume."""
    array, geometry = volume.array, volume.geometry
    axes = geometry.affine[:3, :3].T.tolist()
    lines = [
        "NRRD0004",
        f"type: {NRRD_TYPES.get(array.dtype.name, array.dtype.name)}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, geometry.size))}",
        f"space directions: {' '.join(map(_nrrd_vector, axes))}",
        "kinds: domain domain domain",
        f"endian: {sys.byteorder}",
        "encoding: raw",
        f"space origin: {_nrrd_vector(geometry.origin)}",
    ]
    if volume.modality:
        lines.append(f"{MODALITY_KEY}:={volume.modality}")
    return "\n".join(lines) + "\n\n"


def _nrrd_vector(numbers: Sequence[float]) -> str:
    return f"({','.join(map(repr, numbers))})"
