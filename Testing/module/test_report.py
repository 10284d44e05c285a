"""The panel's report: a page, charts, heights as lines, and doubts in a signal colour."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import qt
import slicer
from helpers.measured_spine import Vertebra, painted, turned

from segmamba.io.volume import Geometry
from segmamba.models.manifest import load_manifest
from segmamba_mrml.doubts import DOUBTFUL, SURE
from segmamba_mrml.height_lines import height_lines
from segmamba_mrml.measurements import measure
from segmamba_mrml.segment import REPORT_ATTRIBUTE
from segmamba_mrml.segmentation import segmentation_from_labels

GEOMETRY = Geometry((50, 58, 60), (1.8, 1.8, 2.0), (-45.0, -30.0, -60.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
VERTEBRAE = {20: Vertebra((0, 0, 17.0), turned(8)), 21: Vertebra((0, 0, -17.0), turned(-4), anterior=20.0)}


@pytest.fixture(scope="module")
def a_painted_spine():
    return painted(VERTEBRAE, GEOMETRY)


@pytest.fixture
def shown(panel, add_volume, a_slicer_host, a_painted_spine):
    """Show a segmentation of L1 and L2, whose mask is doubtful, as a run's result."""
    labels, ct = a_painted_spine
    structures = load_manifest().default("vertebrae").labels
    node = segmentation_from_labels(labels, add_volume("case 7", ct), structures, "case 7 vertebrae")
    rows = [
        {"value": value, "name": f"L{value - 19} vertebra", "segment_id": f"L{value - 19}_vertebra", "volume_ml": 40.0}
        | {"mean_confidence": 0.9 if value == 20 else 0.6, "at_border": False}
        for value in VERTEBRAE
    ]
    node.SetAttribute(REPORT_ATTRIBUTE, json.dumps({"segments": rows}))
    panel._parameterNode.resultSegmentation = node
    panel.sections.results.show(node)
    a_slicer_host.process_events()
    return node


def choose(monkeypatch, path):
    monkeypatch.setattr(qt.QFileDialog, "getSaveFileName", staticmethod(lambda *_arguments: path))


def colours(node):
    segmentation = node.GetSegmentation()
    return [segmentation.GetNthSegment(each).GetColor() for each in range(segmentation.GetNumberOfSegments())]


def test_report_is_a_page_of_the_spine_as_it_is_and_is_opened(panel, shown, click, tmp_path, monkeypatch, screenshot):
    opened = []
    choose(monkeypatch, str(tmp_path / "case 7"))
    monkeypatch.setattr(qt, "QDesktopServices", SimpleNamespace(openUrl=opened.append))
    click(panel.ui.reportButton)
    page = (tmp_path / "case 7.html").read_text(encoding="utf-8")
    assert [url.toLocalFile() for url in opened] == [str(tmp_path / "case 7.html")]
    assert panel.ui.statusLabel.text.startswith("The report is in case 7.html. ")
    row = measure(shown)[1]
    for key in ("anterior_height_mm", "posterior_height_mm", "trabecular_hu", "height_sd_mm"):
        assert f'data-key="{key}">{row[key]}<' in page
    assert "L2 is uncertain: probability of mask 0.6." in page and "data:image/png;base64," in page
    assert "measured as it was in the scene" in page
    screenshot("report")


def test_a_report_that_is_called_off_or_cannot_be_written_is_none(panel, shown, click, tmp_path, monkeypatch):
    choose(monkeypatch, "")
    click(panel.ui.reportButton)
    assert not panel.ui.statusLabel.text
    choose(monkeypatch, str(tmp_path / "no" / "p.html"))
    click(panel.ui.reportButton)
    assert "does not exist" in panel.ui.statusLabel.text


def test_an_earlier_exam_is_compared_and_its_changes_are_a_page(panel, shown, add_volume, click, tmp_path, monkeypatch):
    structures = load_manifest().default("vertebrae").labels
    # L2 has lost height since.
    sound = VERTEBRAE | {21: replace(VERTEBRAE[21], anterior=26.0)}
    labels, ct = painted(sound, GEOMETRY)
    earlier = segmentation_from_labels(labels, add_volume("case 6", ct), structures, "case 6 vertebrae")
    assert not panel.ui.compareButton.enabled
    panel.ui.earlierSelector.setCurrentNode(earlier)
    opened = []
    choose(monkeypatch, str(tmp_path / "c.html"))
    monkeypatch.setattr(qt, "QDesktopServices", SimpleNamespace(openUrl=opened.append))
    click(panel.ui.compareButton)
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    before, after = measure(earlier)[1], measure(shown)[1]
    for key, row in (("first", before), ("second", after)):
        assert f'data-key="anterior_height_mm_{key}">{row["anterior_height_mm"]}<' in page
    assert "case 6 vertebrae" in page and len(opened) == 1
    assert panel.ui.statusLabel.text.startswith("The comparison is in c.html. ")
    panel.ui.earlierSelector.setCurrentNode(shown)
    assert not panel.ui.compareButton.enabled


def test_charts_of_heights_and_density_are_made_once_and_shown(panel, shown, click):
    click(panel.ui.plotButton)
    click(panel.ui.plotButton)
    charts = slicer.util.getNodesByClass("vtkMRMLPlotChartNode")
    assert [chart.GetName() for chart in charts] == ["Heights of case 7 vertebrae", "Density of case 7 vertebrae"]
    assert "Heights of case 7 vertebrae" in panel.ui.statusLabel.text
    heights = charts[0]
    assert heights.GetNumberOfPlotSeriesNodes() == 6 and charts[1].GetNumberOfPlotSeriesNodes() == 1
    series = heights.GetNthPlotSeriesNode(0)
    table = series.GetTableNode().GetTable()
    values = [table.GetColumnByName(series.GetYColumnName()).GetValue(row) for row in range(2)]
    assert values == [row["anterior_height_mm"] for row in measure(shown)]
    assert [table.GetColumnByName(series.GetLabelColumnName()).GetValue(row) for row in range(2)] == ["L1", "L2"]
    assert slicer.util.getNodesByClass("vtkMRMLTableNode") == [series.GetTableNode()]
    assert slicer.app.applicationLogic().GetSelectionNode().GetActivePlotChartID() == heights.GetID()


def test_heights_are_lines_of_the_selected_vertebra_or_of_all(panel, shown, click):
    click(panel.ui.heightsButton)
    lines = height_lines(shown)
    assert len(lines) == 10 and all(line.GetDisplayNode().GetVisibility() for line in lines)
    rows = measure(shown)
    assert lines[0].GetName() == f"L1 anterior {rows[0]['anterior_height_mm']} mm" and lines[0].GetLocked()
    ends = [lines[0].GetNthControlPointPositionWorld(number) for number in range(2)]
    for end, point in zip(ends, rows[0]["height_points_ras_mm"][0], strict=True):
        assert tuple(end) == pytest.approx(tuple(point))
    click(panel.ui.resultTable, 1)
    visible = [line.GetName().split()[0] for line in lines if line.GetDisplayNode().GetVisibility()]
    assert visible == ["L2"] * 5
    click(panel.ui.heightsButton)
    assert height_lines(shown) == [] and not slicer.util.getNodesByClass("vtkMRMLMarkupsLineNode")


def test_doubtful_segments_are_orange_on_demand_and_get_their_colours_back(panel, shown, click, screenshot):
    own = colours(shown)
    click(panel.ui.doubtsButton)
    assert [tuple(colour) for colour in colours(shown)] == [SURE, DOUBTFUL]
    assert panel.ui.statusLabel.text == "L2 is uncertain: probability of mask 0.6."
    screenshot("doubts")
    # Another panel on the same scene knows it.
    panel.sections.results.show(shown)
    assert panel.ui.doubtsButton.checked
    click(panel.ui.doubtsButton)
    assert colours(shown) == [pytest.approx(colour, abs=1e-5) for colour in own]


def test_only_vertebrae_are_reported_on(panel, shown):
    buttons = [panel.ui.reportButton, panel.ui.plotButton, panel.ui.heightsButton, panel.ui.doubtsButton]
    assert all(button.enabled for button in buttons)
    panel.sections.results.show(None)
    assert not any(button.enabled for button in buttons)


def test_console_writes_the_page_and_gives_the_charts(logic, shown, tmp_path):
    report = logic.report(shown, tmp_path / "p.html")
    assert [row["name"] for row in report["measurements"]] == ["L1 vertebra", "L2 vertebra"]
    assert (tmp_path / "p.html").is_file()
    assert [chart.GetClassName() for chart in logic.plot(shown)] == ["vtkMRMLPlotChartNode"] * 2
