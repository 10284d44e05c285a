"""The heights of vertebrae as lines in the views, between the points that were measured: markups on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from segmamba_mrml.segmentation import place_beside

# The segmentation's references to its lines, and each line's to its segmentation and its level.
ROLE, SEGMENTATION_ROLE, LEVEL = "SegMamba.Heights", "SegMamba.Segmentation", "SegMamba.Level"
# Places in the order of a row's points, and the lines' colours.
PLACES = {
    "anterior": (0.80, 0.27, 0.22),
    "middle": (0.20, 0.62, 0.38),
    "posterior": (0.27, 0.47, 0.78),
    "left": (0.75, 0.60, 0.15),
    "right": (0.75, 0.60, 0.15),
}
LINE_THICKNESS, TEXT_SCALE, GLYPH_SCALE = 0.3, 2.0, 1.2


def show_heights(node: Any, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Make a line for each height of rows of measurements, in the place of earlier ones; return the nodes.

    Parameters
    ----------
    node : vtkMRMLSegmentationNode
        What was measured; its lines lie beside it in the subject hierarchy, are locked, and go with `hide_heights`.
    rows : sequence of mapping
        See `segmamba.measurements.vertebrae.measure`; those without heights have no lines.
    """
    hide_heights(node)
    made = []
    for row in rows:
        if row["height_points_ras_mm"] is None:
            continue
        for (place, colour), ends in zip(PLACES.items(), row["height_points_ras_mm"], strict=True):
            height = row[f"{place}_height_mm"]
            if height is None:
                continue
            name = f"{row['name'].removesuffix(' vertebra')} {place} {height} mm"
            line = node.GetScene().AddNewNodeByClass("vtkMRMLMarkupsLineNode", name)
            line.CreateDefaultDisplayNodes()
            for end in ends:
                line.AddControlPointWorld(*end)
            _style(line, colour)
            line.SetAttribute(LEVEL, str(row["value"]))
            line.SetNodeReferenceID(SEGMENTATION_ROLE, node.GetID())
            node.AddNodeReferenceID(ROLE, line.GetID())
            place_beside(line, node)
            made.append(line)
    return made


def height_lines(node: Any) -> list[Any]:
    """Return the lines of a segmentation that are in the scene."""
    lines = [node.GetNthNodeReference(ROLE, number) for number in range(node.GetNumberOfNodeReferences(ROLE))]
    # A copy of a segmentation has the references of the first one.
    return [line for line in lines if line is not None and line.GetNodeReference(SEGMENTATION_ROLE) is node]


def hide_heights(node: Any) -> None:
    """Remove the lines of a segmentation."""
    for line in height_lines(node):
        node.GetScene().RemoveNode(line)
    node.RemoveNodeReferenceIDs(ROLE)


def show_only(node: Any, level: int | None) -> None:
    """Show the lines of one level and hide the others; with None show all."""
    for line in height_lines(node):
        line.GetDisplayNode().SetVisibility(level is None or line.GetAttribute(LEVEL) == str(level))


def _style(line: Any, colour: tuple[float, float, float]) -> None:
    line.SetLocked(True)
    display = line.GetDisplayNode()
    display.SetSelectedColor(*colour)
    display.SetColor(*colour)
    display.SetGlyphScale(GLYPH_SCALE)
    display.SetTextScale(TEXT_SCALE)
    display.SetLineThickness(LINE_THICKNESS)
    # The name has the number already, as every table has it.
    display.SetPropertiesLabelVisibility(False)
    display.SetPointLabelsVisibility(False)
