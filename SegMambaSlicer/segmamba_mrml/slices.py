"""Volumes whose slices are tilted, sheared or at uneven distances, as Slicer's transforms put them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import slicer
import vtk

from segmamba.errors import InputError
from segmamba.io.stored_grid import LARGEST_SHEAR, StoredGrid
from segmamba.io.volume import Geometry, Volume
from segmamba_mrml.volumes import (
    ACQUISITION,
    NEGLIGIBLE,
    RAS_TO_LPS,
    check_voxels,
    modality_of,
    transforms_of,
    volume_of,
)


def stored_volume(volume_node: Any) -> tuple[Volume, StoredGrid | None]:
    """Return a volume node's voxels, which are not copied, and the grid that they lie on where it is not rectangular.

    Of such a volume the geometry is only about right: `segmamba.io.stored_grid.resampled` makes one that is.

    Raises
    ------
    InputError
        The node cannot be segmented: it is not a volume, or a transform is neither linear nor that of Slicer's DICOM
        reader, or its axes are further from right angles than those of any scanner.
    """
    check_voxels(volume_node)
    try:
        return volume_of(volume_node), None
    except InputError as error:
        stored = _stored_grid(volume_node)
        if stored is None:
            raise error
    normal = stored.directions[:, 2]
    spacing = (*np.linalg.norm(stored.axes, axis=0).tolist(), float(np.diff(stored.positions @ normal).mean()))
    origin, direction = stored.positions[0].tolist(), stored.directions.ravel().tolist()
    geometry = Geometry(stored.size, spacing, (origin[0], origin[1], origin[2]), tuple(direction))
    return Volume(slicer.util.arrayFromVolume(volume_node), geometry, modality_of(volume_node) or None), stored


def _stored_grid(volume_node: Any) -> StoredGrid | None:
    """Return where a volume's slices lie in the world, or None where they are not alike, parallel and in order."""
    columns, rows, slices = volume_node.GetImageData().GetDimensions()
    within = np.array([(x, y) for x in (0, columns - 1) for y in (0, rows - 1)])
    indices = np.array([[(x, y, z, 1.0) for x, y in within] for z in range(slices)])
    ijk_to_ras = vtk.vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(ijk_to_ras)
    places = _moved(volume_node, indices.reshape(-1, 4) @ slicer.util.arrayFromVTKMatrix(ijk_to_ras).T)
    if places is None:
        return None
    corners = (places @ RAS_TO_LPS.T)[:, :3].reshape(slices, 4, 3)
    along_x = (corners[:, 2] - corners[:, 0]).mean(axis=0) / (columns - 1)
    along_y = (corners[:, 1] - corners[:, 0]).mean(axis=0) / (rows - 1)
    axes = np.stack([along_x, along_y, (corners[-1, 0] - corners[0, 0]) / (slices - 1)], axis=1)
    lengths = np.linalg.norm(axes, axis=0)
    if not (np.isfinite(axes).all() and lengths.all()):
        return None
    cosines = (axes / lengths).T @ (axes / lengths) - np.eye(3)
    if np.abs(cosines).max() > LARGEST_SHEAR:
        return None
    off = corners - corners[:, :1] - within @ axes[:, :2].T
    if np.abs(np.linalg.solve(axes, off.reshape(-1, 3).T)).max() > NEGLIGIBLE:
        return None
    stored = StoredGrid((columns, rows, slices), axes[:, :2], corners[:, 0])
    return stored if np.diff(stored.positions @ stored.directions[:, 2]).min() > 0 else None


def _moved(volume_node: Any, points: np.ndarray) -> np.ndarray | None:
    """Return points of a volume's own space in the world, shape (n, 4), or None where a transform is another one."""
    for transform in transforms_of(volume_node):
        if isinstance(transform, np.ndarray):
            points = points @ transform.T
        elif transform.IsA("vtkMRMLGridTransformNode") and ACQUISITION in transform.GetName():
            to_parent = transform.GetTransformToParent()
            points = np.array([[*to_parent.TransformPoint(point[:3]), 1.0] for point in points])
        else:
            return None
    return points


def coarse_volume(volume_node: Any, voxels: int = 1_000_000) -> Volume:
    """Return every n-th voxel of a volume node, about ``voxels`` of them: enough to forecast a run, and fast.

    Raises
    ------
    InputError
        The node cannot be segmented, see `stored_volume`.
    """
    volume, _stored = stored_volume(volume_node)
    step = max(1, round((volume.array.size / voxels) ** (1 / 3)))
    coarse = np.ascontiguousarray(volume.array[::step, ::step, ::step])
    spacing = tuple(step * each for each in volume.geometry.spacing)
    geometry = replace(volume.geometry, size=coarse.shape[::-1], spacing=spacing)
    return Volume(coarse, geometry, volume.modality)
