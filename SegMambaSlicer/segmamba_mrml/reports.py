"""The report that a segmentation node carries: it fits the segments, also after Segment Editor's undo."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import vtk

from segmamba_mrml.segmentation import segment_ids

# An attribute and not a text node: it goes where the segmentation goes (copies, the saved scene, the bin) and adds
# nothing to the Data tree that a clinician has to tidy up.
REPORT_ATTRIBUTE = "SegMamba.Report"
# All reports that the node has had. Undo brings segments back with their tags, and the highest number among these is
# that of the report which fits; the node's attribute of the same name is the number of the report that it carries.
ALL_REPORTS_ATTRIBUTE = "SegMamba.AllReports"
NUMBER = "SegMamba.ReportNumber"
# What a segmentation node refers to the volumes by, where there are several, with their numbers in the model's order.
CHANNEL_ROLE = "SegMamba.Channel"


def read_report(node: Any) -> dict[str, Any]:
    """Return the report that fits the segments of a node; an empty one where it carries none.

    ``earlier`` in it holds the reports of runs before, whose segments were kept; see `parts`.
    """
    follow_undo(node)
    text = node.GetAttribute(REPORT_ATTRIBUTE)
    return json.loads(text) if text else {}


def write_report(node: Any, report: Mapping[str, Any], segments: Iterable[str]) -> None:
    """Let a node carry a report; where undo takes back what was done to ``segments``, it carries the last one again.

    Parameters
    ----------
    node : vtkMRMLSegmentationNode
    report : mapping
        For JSON.
    segments : iterable of str
        The IDs of the segments that were added or changed.
    """
    every, last = _all_reports(node), _highest(node)
    number = max(last, *every) + 1 if every else last
    changed = list(segments)
    if every and not changed:
        # Nothing that undo could take back.
        number = int(node.GetAttribute(NUMBER) or 0)
    for identifier in changed:
        node.GetSegmentation().GetSegment(identifier).SetTag(NUMBER, str(number))
    _carry(node, {**every, number: json.dumps(report)}, number)


def refer_to_channels(node: Any, channels: Mapping[str, Any]) -> None:
    """Let a node refer to the volume nodes of a model that takes several, which are given by name in its order."""
    for number, volume_node in enumerate(channels.values()):
        node.SetNodeReferenceID(f"{CHANNEL_ROLE}{number}", volume_node.GetID())


def channel_nodes(node: Any) -> dict[str, Any]:
    """Return by name the volume nodes that a result is of, in the model's order; None for one that is gone.

    Empty for a result of a model that takes one volume.
    """
    names = parts(read_report(node))[0].get("channels", {})
    return {name: node.GetNodeReference(f"{CHANNEL_ROLE}{number}") for number, name in enumerate(names)}


def follow_undo(node: Any) -> None:
    """Let a node carry the report that fits its segments, where undo or redo has brought others back."""
    number = _highest(node)
    if segment_ids(node) and node.GetAttribute(REPORT_ATTRIBUTE) and number != int(node.GetAttribute(NUMBER) or 0):
        every = _all_reports(node)
        if number in every:
            _carry(node, every, number)


def report_number(node: Any) -> int:
    """Return the number of the report that a node carries: reports later in its history have higher ones."""
    return int(node.GetAttribute(NUMBER) or 0)


def parts(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a report and the earlier ones that it holds, one for each run, the last run first."""
    return [report, *report.get("earlier", [])]


def kept_parts(node: Any) -> list[dict[str, Any]]:
    """Return what the report of a node, run by run, says of the segments that are still there."""
    there = set(segment_ids(node))
    kept = []
    for part in parts(read_report(node)):
        rows = [row for row in part.get("segments", []) if row.get("segment_id") in there]
        if rows:
            kept.append({**{key: value for key, value in part.items() if key != "earlier"}, "segments": rows})
    return kept


def _all_reports(node: Any) -> dict[int, str]:
    """Return the reports as texts by their numbers; the one that the node carries as it is now, added to by others."""
    number, now = int(node.GetAttribute(NUMBER) or 0), node.GetAttribute(REPORT_ATTRIBUTE)
    every = {int(key): text for key, text in json.loads(node.GetAttribute(ALL_REPORTS_ATTRIBUTE) or "{}").items()}
    return every | ({number: now} if now else {})


def _carry(node: Any, every: Mapping[int, str], number: int) -> None:
    was_modified = node.StartModify()
    if number or len(every) > 1:
        node.SetAttribute(ALL_REPORTS_ATTRIBUTE, json.dumps(every))
        node.SetAttribute(NUMBER, str(number))
    node.SetAttribute(REPORT_ATTRIBUTE, every[number])
    node.EndModify(was_modified)


def _highest(node: Any) -> int:
    """Return the highest number among the segments' tags; 0 where there is none."""
    numbers = [0]
    for identifier in segment_ids(node):
        tag = vtk.reference("")
        if node.GetSegmentation().GetSegment(identifier).GetTag(NUMBER, tag):
            numbers.append(int(str(tag)))
    return max(numbers)
