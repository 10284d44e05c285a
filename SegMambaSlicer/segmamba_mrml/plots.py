"""Heights and density along the column as charts in Slicer's plot views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import vtk

from segmamba_mrml.measurements import SEGMENTATION_ROLE, measure
from segmamba_mrml.segmentation import place_beside

# The segmentation's references to what is made here.
TABLE_ROLE, HEIGHTS_ROLE, DENSITY_ROLE = "SegMamba.ColumnTable", "SegMamba.HeightsChart", "SegMamba.DensityChart"
LEVEL = "Level"
# Series: title, key of the measurement, colour.
HEIGHTS = (
    ("Anterior", "anterior_height_mm", (0.70, 0.15, 0.12)),
    ("Middle", "middle_height_mm", (0.12, 0.44, 0.26)),
    ("Posterior", "posterior_height_mm", (0.12, 0.30, 0.55)),
)
EXPECTED = "{} expected"
DENSITY = ("Density", "trabecular_hu", (0.20, 0.20, 0.20))


def column_charts(segmentation_node: Any, volume_node: Any = None) -> list[Any]:
    """Measure the vertebrae of a segmentation, and return the chart of their heights and, on CT, that of their density.

    Table, series and charts are made once for each segmentation, and filled again by later calls. Along the horizontal
    axis lie the levels that have heights, from the head down. Parameters and errors are those of
    `segmamba_mrml.measurements.measured_spine`; on an error the scene stays as it was.
    """
    rows = [row for row in measure(segmentation_node, volume_node) if row["height_points_ras_mm"] is not None]
    table = _node(segmentation_node, TABLE_ROLE, "vtkMRMLTableNode", "Column of {}")
    was_modified = table.StartModify()
    _fill(table, rows)
    table.EndModify(was_modified)
    wide = " to ".join(dict.fromkeys(_short(row) for row in (rows[0], rows[-1]))) if rows else ""
    heights = [(title, colour, False) for title, _key, colour in HEIGHTS]
    heights += [(EXPECTED.format(title), colour, True) for title, _key, colour in HEIGHTS]
    charts = [
        _chart(segmentation_node, table, (HEIGHTS_ROLE, "Heights of {}", "height, mm", wide), heights),
    ]
    if any(row[DENSITY[1]] is not None for row in rows):
        named = (DENSITY_ROLE, "Density of {}", "density, HU", wide)
        charts.append(_chart(segmentation_node, table, named, [(DENSITY[0], DENSITY[2], False)]))
    return charts


def _fill(table: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = {title: key for title, key, _colour in (*HEIGHTS, DENSITY)}
    columns |= {EXPECTED.format(title): f"expected_{key}" for title, key, _colour in HEIGHTS}
    table.RemoveAllColumns()
    names = vtk.vtkStringArray()
    names.SetName(LEVEL)
    for row in rows:
        names.InsertNextValue(_short(row))
    table.AddColumn(names)
    for title, key in columns.items():
        values = vtk.vtkDoubleArray()
        values.SetName(title)
        for row in rows:
            values.InsertNextValue(float("nan") if row[key] is None else row[key])
        table.AddColumn(values)


def _chart(
    segmentation_node: Any,
    table: Any,
    named: tuple[str, str, str, str],
    series: Sequence[tuple[str, tuple[float, float, float], bool]],
) -> Any:
    """Return a chart: its role, name, title of the vertical axis and levels, and its series: title, colour, dashed."""
    role, name, title, levels = named
    chart = _node(segmentation_node, role, "vtkMRMLPlotChartNode", name)
    chart.SetTitle(chart.GetName())
    chart.SetXAxisTitle(f"levels from the head down, {levels}")
    chart.SetYAxisTitle(title)
    for number, (column, colour, dashed) in enumerate(series):
        node = chart.GetNthPlotSeriesNode(number)
        if node is None:
            node = chart.GetScene().AddNewNodeByClass("vtkMRMLPlotSeriesNode", column)
            chart.AddAndObservePlotSeriesNodeID(node.GetID())
        node.SetAndObserveTableNodeID(table.GetID())
        node.SetPlotType(node.PlotTypeLine)
        node.SetYColumnName(column)
        node.SetLabelColumnName(LEVEL)
        node.SetColor(*colour)
        node.SetLineStyle(node.LineStyleDash if dashed else node.LineStyleSolid)
        node.SetMarkerStyle(node.MarkerStyleNone if dashed else node.MarkerStyleCircle)
    return chart


def _node(segmentation_node: Any, role: str, kind: str, name: str) -> Any:
    """Return the node that a segmentation has in a role, a new one where it has none of its own."""
    node = segmentation_node.GetNodeReference(role)
    if node is None or node.GetNodeReference(SEGMENTATION_ROLE) is not segmentation_node:
        node = segmentation_node.GetScene().AddNewNodeByClass(kind, name.format(segmentation_node.GetName()))
        segmentation_node.SetNodeReferenceID(role, node.GetID())
        node.SetNodeReferenceID(SEGMENTATION_ROLE, segmentation_node.GetID())
        place_beside(node, segmentation_node)
    return node


def _short(row: Mapping[str, Any]) -> str:
    return str(row["name"]).removesuffix(" vertebra")
