"""Doubtful segments in a signal colour, and the others in grey: on demand, and back to their own colours."""

from __future__ import annotations

from typing import Any

import vtk

from segmamba_mrml.reports import parts, read_report
from segmamba_mrml.segmentation import segment_ids

# A segment's tag with its own colour while it has another one: it is saved with the scene.
OWN_COLOUR = "SegMamba.OwnColour"
DOUBTFUL, SURE = (1.0, 0.45, 0.0), (0.62, 0.66, 0.70)


def doubtful_segments(node: Any) -> dict[str, str]:
    """Return the IDs of the segments whose mask or level the network is not sure of, and a sentence about each."""
    from segmamba.reporting.look_first import doubtful

    there = set(segment_ids(node))
    found: dict[str, str] = {}
    for part in reversed(parts(read_report(node))):
        if "segments" not in part:
            continue
        said = dict(doubtful(part))
        for row in part["segments"]:
            if row.get("segment_id") in there:
                found.pop(row["segment_id"], None)
                if row["value"] in said:
                    found[row["segment_id"]] = said[row["value"]]
    return found


def mark_doubts(node: Any) -> list[str]:
    """Colour the segments of a node by whether they are doubtful, and return the sentences about those that are."""
    doubts = doubtful_segments(node)
    was_modified = node.StartModify()
    for identifier in segment_ids(node):
        segment = node.GetSegmentation().GetSegment(identifier)
        if _own_colour(segment) is None:
            segment.SetTag(OWN_COLOUR, " ".join(f"{part:.6g}" for part in segment.GetColor()))
        segment.SetColor(*(DOUBTFUL if identifier in doubts else SURE))
    node.EndModify(was_modified)
    return list(doubts.values())


def unmark_doubts(node: Any) -> None:
    """Give all segments their own colours again."""
    was_modified = node.StartModify()
    for identifier in segment_ids(node):
        segment = node.GetSegmentation().GetSegment(identifier)
        own = _own_colour(segment)
        if own is not None:
            segment.SetColor(*own)
            segment.RemoveTag(OWN_COLOUR)
    node.EndModify(was_modified)


def are_marked(node: Any) -> bool:
    """Say whether segments of a node have the colours of `mark_doubts`."""
    return any(_own_colour(node.GetSegmentation().GetSegment(each)) is not None for each in segment_ids(node))


def _own_colour(segment: Any) -> tuple[float, ...] | None:
    tag = vtk.reference("")
    return tuple(map(float, str(tag).split())) if segment.GetTag(OWN_COLOUR, tag) else None
