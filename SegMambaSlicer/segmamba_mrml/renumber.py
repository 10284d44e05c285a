"""Renumbering by a person: the vertebrae of a segmentation get other levels, and its report follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
from vtk.util.numpy_support import vtk_to_numpy

from segmamba.errors import InputError
from segmamba.io.labelmap import segment_id
from segmamba.labels import Label
from segmamba.reporting.report import summary
from segmamba.spine.levels import T13, level_name
from segmamba.spine.renumber import ABOVE, BELOW, WHOLE, moved_level, moves, new_levels
from segmamba_mrml.doubts import OWN_COLOUR
from segmamba_mrml.reports import parts, read_report, write_report
from segmamba_mrml.segmentation import BINARY_LABELMAP, segment_ids
from segmamba_mrml.terminology import load_terminology
from segmamba_mrml.vertebra_segments import LEVELS, find_vertebra, vertebra_labels, vertebrae_of

# How the report says what moved.
FROM_THERE = {WHOLE: "", BELOW: ", from there down", ABOVE: ", from there up"}
# How a person has chosen to see a segment; it belongs to a segment's ID, and has to be given to the new one.
DISPLAY_PROPERTIES = (
    *("Visibility", "Visibility3D", "Visibility2DFill", "Visibility2DOutline"),
    *("Opacity3D", "Opacity2DFill", "Opacity2DOutline", "Pickable"),
)


def renumber(node: Any, segment: str, level: str, below: bool = False) -> None:
    """Give a vertebra another number, and with it all other vertebrae of the segmentation, so that they stay in order.

    Where the column has a vertebra more or less than others have (a T13, say), the numbers are wrong only from there
    down. Names, colours, terms, the segments' IDs ("L1_vertebra") and their label values follow, and so does the node's
    report; a file that is read as plain voxels has the new numbers, too. Shapes are not touched.

    Parameters
    ----------
    node : vtkMRMLSegmentationNode
    segment : str
        What the vertebra is called: "T12", or a segment's name or ID.
    level : str
        What it really is: "C1" to "L6".
    below : bool
        Leave the vertebrae above it as they are.

    Raises
    ------
    InputError
        There is no such vertebra or level, one of the others would not stay within C1 to L6, or a number would be there
        twice.
    """
    renumber_part(node, find_vertebra(node, segment), level_of(level), BELOW if below else WHOLE)


def renumber_part(
    node: Any, identifier: str, after: int, part: str = WHOLE, anchors: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Give a vertebra another level, and with it others: as `renumber`.

    Parameters
    ----------
    node : vtkMRMLSegmentationNode
    identifier : str
        The vertebra's segment ID.
    after : int
        Its level.
    part : str
        What moves with it, see `segmamba.spine.renumber`.
    anchors : sequence of mapping
        Points at which a person has said so, for the report; then it is also written where no level changes.

    Raises
    ------
    InputError
        As `renumber`.
    """
    levels = vertebrae_of(node)
    before = levels[identifier]
    shifted = new_levels(levels.values(), before, after, part)
    if after == before and not anchors:
        return
    load_terminology()
    labels = vertebra_labels()
    moved = {each: shifted[level] for each, level in levels.items() if shifted.get(level, level) != level}
    chosen = {each: labels[value] for each, value in moved.items()}
    names = _new_names(before, after, part, T13 in levels.values())
    told = _Told(f"{level_name(before)} is {level_name(after)}{FROM_THERE[part]}", list(anchors))
    was_modified = node.StartModify()
    try:
        # Read before the segments, which say which report fits them, are changed.
        report = read_report(node)
        identifiers = _renamed(node, chosen)
        if report:
            write_report(node, _renumbered(report, chosen, identifiers, names, told), identifiers.values())
    finally:
        node.EndModify(was_modified)


@dataclass(frozen=True)
class _Told:
    """What the report says of a renumbering: a text, and the points at which a person has set levels."""

    by_hand: str
    anchors: list[Mapping[str, Any]]


def level_of(name: str) -> int:
    """Return the level that a name stands for.

    Raises
    ------
    InputError
        There is no such level.
    """
    if name not in LEVELS:
        raise InputError(f"'{name}' is not a vertebra: give one of C1 to C7, T1 to T13 and L1 to L6.")
    return LEVELS[name]


def _renamed(node: Any, labels: Mapping[str, Label]) -> dict[str, str]:
    """Make other structures of segments, and return their new IDs by the old ones.

    Slicer cannot change an ID: the segments are taken out and put in again, in their places displayed as they were.
    """
    segmentation, order = node.GetSegmentation(), segment_ids(node)
    _relabel(segmentation, {each: label.value for each, label in labels.items()})
    held = {each: segmentation.GetSegment(each) for each in labels}
    display = {each: _display_properties(node, each) for each in labels}
    masks = {each: _take_masks(segment) for each, segment in held.items()}
    for each in labels:
        segmentation.RemoveSegment(each)
    identifiers: dict[str, str] = {}
    for each, label in labels.items():
        segment = held[each]
        segment.SetName(label.name)
        segment.SetColor(*(channel / 255 for channel in label.color))
        segment.RemoveTag(OWN_COLOUR)
        segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), label.terminology_tag)
        for name, mask in masks[each].items():
            segment.AddRepresentation(name, mask)
        identifiers[each] = segmentation.GenerateUniqueSegmentID(segment_id(label))
        segmentation.AddSegment(segment, identifiers[each])
        for setter, value in display[each]:
            setter(identifiers[each], value)
    segmentation.ReorderSegments([identifiers.get(each, each) for each in order])
    return identifiers


def _relabel(segmentation: Any, values: Mapping[str, int]) -> None:
    """Give segments, by ID, other label values, and their voxels with them.

    Another segment in the same label map that has one of these values gets a free one.
    """
    for layer in range(segmentation.GetNumberOfLayers(BINARY_LABELMAP)):
        identifiers = segmentation.GetSegmentIDsForLayer(layer, BINARY_LABELMAP)
        segments = {each: segmentation.GetSegment(each) for each in identifiers}
        old = {each: segment.GetLabelValue() for each, segment in segments.items()}
        new = {old[each]: values[each] for each in segments if each in values}
        scalars = segmentation.GetLayerDataObject(layer, BINARY_LABELMAP).GetPointData().GetScalars()
        array = vtk_to_numpy(scalars) if scalars is not None else np.zeros(0, np.uint8)
        # Segments of one level can only be told apart by the values that they have.
        if len(set(new.values())) < len(values.keys() & segments.keys()):
            continue
        if array.dtype.kind not in "iu" or array.min(initial=0) < 0:
            continue
        unused = iter(sorted(set(range(1, 256)) - set(old.values()) - set(new.values())))
        others = set(old.values()) - set(new)
        new |= {value: next(unused) if value in new.values() else value for value in others}
        # What belongs to no segment must not become part of one.
        table = np.zeros(max([*old.values(), int(array.max(initial=0))]) + 1, array.dtype)
        for value, other in new.items():
            table[value] = other
        array[:] = table[array]
        if scalars is not None:
            # Not the image: no shape changes, so surfaces stay right. Segment Editor's undo and views ask the voxels.
            scalars.Modified()
        for each, segment in segments.items():
            segment.SetLabelValue(new[old[each]])


def _take_masks(segment: Any) -> dict[str, Any]:
    """Take a segment's representations from it: one that shares its voxels cannot be removed without copying them."""
    names: list[str] = []
    segment.GetContainedRepresentationNames(names)
    masks = {name: segment.GetRepresentation(name) for name in names}
    segment.RemoveAllRepresentations()
    return masks


def _display_properties(node: Any, identifier: str) -> list[tuple[Callable[[str, Any], None], Any]]:
    """Return the setter and the value of each of a segment's display properties."""
    display = node.GetDisplayNode()
    if display is None:
        return []
    getters = ((name, getattr(display, f"GetSegment{name}")) for name in DISPLAY_PROPERTIES)
    return [(getattr(display, f"SetSegment{name}"), get(identifier)) for name, get in getters]


def _new_names(before: int, after: int, part: str, with_t13: bool) -> dict[str, str]:
    """Return the new name of each level by its old one; what leaves C1 to L6 has none."""
    names = {}
    for name, level in LEVELS.items():
        if level == T13 and not with_t13:
            continue
        new = moved_level(level, before, after, with_t13) if after != before and moves(level, before, part) else level
        if new is not None:
            names[name] = level_name(new)
    return names


def _renumbered(
    report: dict[str, Any],
    labels: Mapping[str, Label],
    identifiers: Mapping[str, str],
    names: Mapping[str, str],
    told: _Told,
) -> dict[str, Any]:
    """Return a report whose rows follow their segments, and in which a person answers for the numbers."""
    last, *earlier = (_renumbered_part(part, labels, identifiers, names, told) for part in parts(report))
    return {**last, "summary": summary(last)} | ({"earlier": earlier} if earlier else {})


def _renumbered_part(
    part: Mapping[str, Any],
    labels: Mapping[str, Label],
    identifiers: Mapping[str, str],
    names: Mapping[str, str],
    told: _Told,
) -> dict[str, Any]:
    changed = {**part, "segments": [_row(row, labels, identifiers) for row in part.get("segments", [])]}
    if "refinement" in part:
        # What was removed from the end of the column has no number now.
        left = [change for change in part["refinement"] if change["level"] in names or change["level"] not in LEVELS]
        changed["refinement"] = [{**change, "level": names.get(change["level"], change["level"])} for change in left]
    if "numbering" in part:
        by_hand = [*part["numbering"].get("by_hand", []), told.by_hand]
        changed["numbering"] = {"certain": True, "by_hand": by_hand}
        if told.anchors:
            changed["numbering"]["anchors"] = told.anchors
    return changed


def _row(row: dict[str, Any], labels: Mapping[str, Label], identifiers: Mapping[str, str]) -> dict[str, Any]:
    identifier = row.get("segment_id", "")
    if identifier not in labels:
        return row
    label = labels[identifier]
    return {**row, "value": label.value, "name": label.name, "segment_id": identifiers[identifier]}
