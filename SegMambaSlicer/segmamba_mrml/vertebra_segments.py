"""Which segments of a segmentation are vertebrae, and of which level."""

from __future__ import annotations

from typing import Any

from segmamba.errors import InputError
from segmamba.labels import Label
from segmamba.models.manifest import load_manifest
from segmamba.spine.levels import ORDER, SACRUM, level_name
from segmamba_mrml.segmentation import segment_ids, type_code

LEVELS = {level_name(value): value for value in ORDER}


def vertebra_labels() -> dict[int, Label]:
    """Return names, colours and codes of C1 to L6 by their numbers."""
    labels = load_manifest().default("vertebrae").labels
    return {label.value: label for label in labels if label.value in ORDER}


def vertebrae_of(node: Any) -> dict[str, int]:
    """Return the level of each segment whose term is a vertebra, by its ID, in the segments' order."""
    codes = {(label.type.scheme, label.type.value): value for value, label in vertebra_labels().items()}
    found = {}
    for identifier in segment_ids(node):
        level = codes.get(type_code(node.GetSegmentation().GetSegment(identifier)))
        if level is not None:
            found[identifier] = level
    return found


def bones_of(node: Any) -> dict[str, int]:
    """Return what `vertebrae_of` does, and the sacrum, which is measured with them."""
    sacrum = next(label for label in load_manifest().default("vertebrae").labels if label.value == SACRUM)
    code = (sacrum.type.scheme, sacrum.type.value)
    segmentation = node.GetSegmentation()
    others = {each: SACRUM for each in segment_ids(node) if type_code(segmentation.GetSegment(each)) == code}
    return {**vertebrae_of(node), **others}


def find_vertebra(node: Any, segment: str) -> str:
    """Return the ID of the one vertebra that is meant by a segment's ID, its name or a level ("T12").

    Raises
    ------
    InputError
        There is no such vertebra, or more than one.
    """
    levels, segmentation = vertebrae_of(node), node.GetSegmentation()
    if segment in levels:
        return segment
    wanted = LEVELS.get(segment)
    meant = [each for each in levels if segmentation.GetSegment(each).GetName() == segment or levels[each] == wanted]
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise InputError(f"'{node.GetName()}' has {len(meant)} segments '{segment}': give an ID ({', '.join(meant)}).")
    names = ", ".join(level_name(level) for level in levels.values()) or "none"
    raise InputError(f"'{node.GetName()}' has no vertebra '{segment}': choose from {names}.")
