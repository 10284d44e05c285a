"""Levels that a person sets by pointing at a vertebra: points that stay with the volume and hold for later runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from segmamba.errors import InputError
from segmamba.spine.levels import ORDER, level_name
from segmamba.spine.renumber import ABOVE, BELOW, WHOLE
from segmamba_mrml.renumber import level_of, renumber, renumber_part
from segmamba_mrml.segmentation import BINARY_LABELMAP, place_beside, volume_node_of
from segmamba_mrml.vertebra_segments import LEVELS, vertebrae_of
from segmamba_mrml.volumes import world_matrix

# The volume's reference to its points: it is saved with the scene, and gone with the points.
ROLE = "SegMamba.Levels"
# A point is on the nearest vertebra within this distance, as in `segmamba.spine.anchors`.
NEAR_MM = 15.0
FAR = "No vertebra of '{}' lies within {:g} mm of this point: click on the vertebra itself."
# What Slicer calls a point that is not called after a level yet: the node's name and a number.
NEW_LABEL = "%N-%d"
Point = tuple[float, float, float]
LevelPoint = tuple[str, float, float, float]


def points_node(volume_node: Any) -> Any:
    """Return the markups node with a volume's points, or None."""
    return volume_node.GetNodeReference(ROLE) if volume_node is not None else None


def make_points_node(volume_node: Any) -> Any:
    """Return the markups node with a volume's points, a new one where it has none."""
    node = points_node(volume_node)
    if node is None:
        scene = volume_node.GetScene()
        name = scene.GenerateUniqueName(f"{volume_node.GetName()} levels")
        node = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", name)
        node.CreateDefaultDisplayNodes()
        node.SetControlPointLabelFormat(NEW_LABEL)
        place_beside(node, volume_node)
        volume_node.SetNodeReferenceID(ROLE, node.GetID())
    return node


def level_points(volume_node: Any) -> list[LevelPoint]:
    """Return the levels that are set in a volume, each with its point (world, RAS, mm): what the option anchor takes.

    A point counts if its label is a level; of two for one level, the last.
    """
    return list({place[0]: place for _index, place in _points(points_node(volume_node))}.values())


def set_points(volume_node: Any, places: Sequence[LevelPoint]) -> None:
    """Let a volume have these points and no others that are called after a level."""
    if places == level_points(volume_node):
        return
    points = make_points_node(volume_node)
    for index in reversed([index for index, _place in _points(points)]):
        points.RemoveNthControlPoint(index)
    for name, *place in places:
        points.AddControlPointWorld(place, name)
    _remove_if_empty(points)


def take_new_point(volume_node: Any) -> Point | None:
    """Return the point (world, RAS, mm) that a person has just placed, not called after a level yet, and remove it.

    So is what the mouse has left behind where no point was placed: then None is returned.
    """
    points, found = points_node(volume_node), None
    if points is None:
        return None
    for index in reversed(range(points.GetNumberOfControlPoints())):
        placed = points.GetNthControlPointPositionStatus(index) == points.PositionDefined
        if placed and not points.GetNthControlPointLabel(index).startswith(f"{points.GetName()}-"):
            continue
        if placed and found is None:
            r, a, s = points.GetNthControlPointPositionWorld(index)
            found = (r, a, s)
        points.RemoveNthControlPoint(index)
    _remove_if_empty(points)
    return found


def forget_points(volume_node: Any) -> None:
    """Remove all points of a volume."""
    node = points_node(volume_node)
    if node is not None:
        node.GetScene().RemoveNode(node)


def set_level(node: Any, level: str, point: Point) -> str:
    """Renumber a segmentation so that the vertebra at a point has a level, and keep the point with the volume.

    All other vertebrae follow. Where other points of the volume say that some are right, only those above or below
    follow.

    Parameters
    ----------
    node : vtkMRMLSegmentationNode
    level : str
        "C1" to "L6".
    point : tuple of float
        World coordinates, RAS, mm.

    Returns
    -------
    str
        What moved: "whole", "below" or "above".

    Raises
    ------
    InputError
        There is no vertebra near the point, or its level contradicts other points or would leave another vertebra
        without one. Nothing was changed.
    """
    after = level_of(level)
    identifier = _vertebra_near(node, point)
    volume_node = volume_node_of(node)
    levels = vertebrae_of(node)
    others = [place for place in level_points(volume_node) if place[0] != level] if volume_node is not None else []
    right = {each: place for place in others for each in [vertebra_at(node, place[1:])] if each is not None}
    right.pop(identifier, None)
    part = _part(levels, identifier, after, right)
    kept = [(level, *point), *right.values()]
    told = [
        {"level": name, "ras_mm": [round(float(value), 2) for value in place], "set_by": "person", "used": True}
        for name, *place in sorted(kept, key=lambda place: ORDER.index(LEVELS[place[0]]))
    ]
    renumber_part(node, identifier, after, part, told)
    if volume_node is not None:
        _keep(volume_node, node, level, point)
    return part


def renumber_with_points(node: Any, segment: str, level: str, below: bool = False) -> None:
    """Renumber a segmentation as `segmamba_mrml.renumber.renumber` does, and let its volume's points follow."""
    renumber(node, segment, level, below)
    volume_node, levels = volume_node_of(node), vertebrae_of(node)
    points = points_node(volume_node)
    for index, place in _points(points):
        identifier = vertebra_at(node, place[1:])
        if identifier is not None:
            points.SetNthControlPointLabel(index, level_name(levels[identifier]))


def vertebra_at(node: Any, point: Point) -> str | None:
    """Return the ID of the vertebra that a point (world, RAS, mm) is on or next to, or None."""
    nearest, found = NEAR_MM, None
    for array, to_world, values in _layers(node):
        # Only the box around the point is looked at.
        inverse = np.linalg.inv(to_world)
        middle = (inverse @ [*point, 1.0])[:3]
        reach = NEAR_MM * np.linalg.norm(inverse[:3, :3], axis=1)
        low = np.clip(np.floor(middle - reach), 0, array.shape[::-1]).astype(int)
        high = np.clip(np.ceil(middle + reach) + 1, 0, array.shape[::-1]).astype(int)
        part = array[low[2] : high[2], low[1] : high[1], low[0] : high[0]]
        index = np.argwhere(np.isin(part, list(values)))
        if not len(index):
            continue
        places = (index[:, ::-1] + low) @ to_world[:3, :3].T + to_world[:3, 3]
        distances = np.linalg.norm(places - point, axis=1)
        first = int(distances.argmin())
        # The point of a voxel is its centre.
        if distances[first] <= nearest:
            nearest, found = float(distances[first]), values[int(part[tuple(index[first])])]
    return found


def centroids(node: Any) -> dict[str, Point]:
    """Return the centroid (world, RAS, mm) of each vertebra of a segmentation, by level.

    Raises
    ------
    InputError
        It has no vertebrae, or is not made of label maps.
    """
    levels, found = vertebrae_of(node), {}
    for array, to_world, values in _layers(node):
        for value, identifier in values.items():
            index = np.argwhere(array == value)
            if len(index):
                r, a, s = (to_world @ [*index.mean(axis=0)[::-1], 1.0])[:3].tolist()
                found[level_name(levels[identifier])] = (r, a, s)
    if not found:
        raise InputError(f"'{node.GetName()}' has no vertebrae: choose a segmentation whose segments are vertebrae.")
    return found


def _vertebra_near(node: Any, point: Point) -> str:
    identifier = vertebra_at(node, point)
    if identifier is None:
        raise InputError(FAR.format(node.GetName(), NEAR_MM))
    return identifier


def _part(levels: dict[str, int], identifier: str, after: int, right: dict[str, LevelPoint]) -> str:
    """Return which vertebrae may move with one where others are ``right``: all, those above it or those below it."""
    before = levels[identifier]
    if after == before or not right:
        return WHOLE
    own = ORDER.index(before)
    above = any(ORDER.index(levels[each]) < own for each in right)
    below = any(ORDER.index(levels[each]) > own for each in right)
    if above and below:
        names = " and ".join(place[0] for place in right.values())
        raise InputError(f"{level_name(after)} contradicts the levels set before ({names}): remove these points first.")
    return BELOW if above else ABOVE


def _points(points: Any) -> Iterator[tuple[int, LevelPoint]]:
    """Yield index, level and world coordinates of each point that is placed and called after a level."""
    for index in range(points.GetNumberOfControlPoints() if points is not None else 0):
        label = points.GetNthControlPointLabel(index)
        if label in LEVELS and points.GetNthControlPointPositionStatus(index) == points.PositionDefined:
            r, a, s = points.GetNthControlPointPositionWorld(index)
            yield index, (label, r, a, s)


def _remove_if_empty(points: Any) -> None:
    if not points.GetNumberOfControlPoints():
        points.GetScene().RemoveNode(points)


def _keep(volume_node: Any, node: Any, level: str, point: Point) -> None:
    """Keep a point, in the place of others that are for the same level or the same vertebra."""
    points = make_points_node(volume_node)
    identifier = vertebra_at(node, point)
    old = [i for i, place in _points(points) if place[0] == level or vertebra_at(node, place[1:]) == identifier]
    for index in reversed(old):
        points.RemoveNthControlPoint(index)
    points.AddControlPointWorld(point, level)


def _layers(node: Any) -> Iterator[tuple[np.ndarray, np.ndarray, dict[int, str]]]:
    """Yield each label map that has vertebrae: voxels (z, y, x), index (x, y, z) to world, and segment IDs by value."""
    segmentation, levels = node.GetSegmentation(), vertebrae_of(node)
    if segmentation.GetSourceRepresentationName() != BINARY_LABELMAP:
        return
    for layer in range(segmentation.GetNumberOfLayers(BINARY_LABELMAP)):
        identifiers = segmentation.GetSegmentIDsForLayer(layer, BINARY_LABELMAP)
        values = {segmentation.GetSegment(each).GetLabelValue(): each for each in identifiers if each in levels}
        image = segmentation.GetLayerDataObject(layer, BINARY_LABELMAP)
        scalars = image.GetPointData().GetScalars()
        if not values or scalars is None:
            continue
        voxels = vtk_to_numpy(scalars).reshape(image.GetDimensions()[::-1])
        yield voxels, world_matrix(node) @ _index_to_local(image), values


def _index_to_local(image: Any) -> np.ndarray:
    """Return the matrix from the index of an image's array to its node's space; the extent need not begin at 0."""
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    to_local: np.ndarray = slicer.util.arrayFromVTKMatrix(matrix)
    first = image.GetExtent()[::2]
    to_local[:3, 3] += to_local[:3, :3] @ first
    return to_local
