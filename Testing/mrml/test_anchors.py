"""A person points at a vertebra and says what it is: the column follows, and the point stays for later runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import slicer

from segmamba.errors import InputError
from segmamba_mrml.anchors import (
    centroids,
    forget_points,
    level_points,
    make_points_node,
    points_node,
    renumber_with_points,
    set_level,
    vertebra_at,
)
from segmamba_mrml.reports import REPORT_ATTRIBUTE, read_report
from segmamba_mrml.segmentation import segment_ids, segmentation_from_labels
from segmamba_mrml.vertebra_segments import vertebrae_of

ROWS = [
    {"value": 19, "name": "T12 vertebra", "segment_id": "T12_vertebra"},
    {"value": 20, "name": "L1 vertebra", "segment_id": "L1_vertebra"},
]


@pytest.fixture
def a_column(labels, a_volume_node, vertebrae):
    """T12, L1 and the sacrum, whose levels are not certain."""
    node = segmentation_from_labels(labels, a_volume_node, vertebrae, "case 7 vertebrae")
    numbering = {"certain": False, "reason": "T12 could be L1.", "levels": {"19": 0.6, "20": 0.6}}
    node.SetAttribute(REPORT_ATTRIBUTE, json.dumps({"segments": ROWS, "numbering": numbering}))
    return node


@pytest.fixture
def middle(labels, oblique_left_handed):
    """The centroid of each value, in the volume's own space."""

    def of(value, shift=(0, 0, 0)):
        index = np.argwhere(labels == value).mean(axis=0)[::-1]
        return tuple((oblique_left_handed @ [*index, 1.0])[:3] + shift)

    return of


def test_column_follows_the_vertebra_at_a_point_and_the_point_stays_with_the_volume(a_column, a_volume_node, middle):
    assert set_level(a_column, "L2", middle(20)) == "whole"
    assert list(vertebrae_of(a_column).values()) == [20, 21]
    ((level, *place),) = level_points(a_volume_node)
    assert level == "L2" and place == pytest.approx(middle(20))
    report = read_report(a_column)
    assert report["numbering"] == {
        "certain": True,
        "by_hand": ["L1 is L2"],
        "anchors": [
            {"level": "L2", "ras_mm": [round(value, 2) for value in middle(20)], "set_by": "person", "used": True}
        ],
    }
    assert report["summary"] == (
        "2 structures found: L1 vertebra, L2 vertebra. Vertebral levels were set by a person (L2)."
    )


def test_a_level_that_is_right_is_confirmed(a_column, middle):
    set_level(a_column, "T12", middle(19))
    assert segment_ids(a_column) == ["T12_vertebra", "L1_vertebra", "Sacrum"]
    numbering = read_report(a_column)["numbering"]
    assert numbering["certain"] and numbering["by_hand"] == ["T12 is T12"]


def test_a_point_next_to_a_vertebra_is_for_it_and_one_away_from_all_is_refused(a_column, a_volume_node, middle):
    assert vertebra_at(a_column, middle(19, (0, 10, 0))) == "T12_vertebra"
    away = middle(19, (0, 40, 0))
    assert vertebra_at(a_column, away) is None
    with pytest.raises(InputError) as caught:
        set_level(a_column, "L2", away)
    assert str(caught.value) == (
        "No vertebra of 'case 7 vertebrae' lies within 15 mm of this point: click on the vertebra itself."
    )
    assert level_points(a_volume_node) == [] and points_node(a_volume_node) is None


def test_a_second_point_moves_only_the_side_that_no_point_has_fixed(a_column, a_volume_node, middle):
    set_level(a_column, "T12", middle(19))
    assert set_level(a_column, "L2", middle(20)) == "below"
    assert list(vertebrae_of(a_column).values()) == [19, 21]
    assert [place[0] for place in level_points(a_volume_node)] == ["T12", "L2"]
    assert [each["level"] for each in read_report(a_column)["numbering"]["anchors"]] == ["T12", "L2"]
    assert set_level(a_column, "T11", middle(19)) == "above"
    assert list(vertebrae_of(a_column).values()) == [18, 21]
    # Of one vertebra the last word counts.
    assert [place[0] for place in level_points(a_volume_node)] == ["L2", "T11"]
    with pytest.raises(InputError, match=r"If T11 were L3, the levels would be out of order"):
        set_level(a_column, "L3", middle(19))
    assert [place[0] for place in level_points(a_volume_node)] == ["L2", "T11"]
    # A level has one point: set elsewhere, it is moved there.
    assert set_level(a_column, "L2", middle(19)) == "whole"
    assert [place[0] for place in level_points(a_volume_node)] == ["L2"]


def test_a_level_between_two_that_are_right_is_refused(a_volume_node, vertebrae):
    labels = np.zeros((12, 10, 9), np.uint8)
    for row, value in enumerate((20, 19, 18)):
        labels[4 * row : 4 * row + 3, 3:7, 3:6] = value
    node = segmentation_from_labels(labels, a_volume_node, vertebrae, "three")
    places = centroids(node)
    set_level(node, "T11", places["T11"])
    set_level(node, "L1", places["L1"])
    with pytest.raises(InputError, match=r"L3 contradicts the levels set before \(T11 and L1\): remove these points"):
        set_level(node, "L3", places["T12"])


def test_points_follow_the_patient_a_renumbering_and_are_forgotten_on_request(
    a_column, a_volume_node, a_linear_transform, middle
):
    for node in (a_volume_node, a_column):
        node.SetAndObserveTransformNodeID(a_linear_transform.GetID())
    place = (slicer.util.arrayFromTransformMatrix(a_linear_transform) @ [*middle(20), 1.0])[:3]
    assert centroids(a_column)["L1"] == pytest.approx(tuple(place))
    set_level(a_column, "L2", tuple(place))
    renumber_with_points(a_column, "L2", "L3")
    ((level, *found),) = level_points(a_volume_node)
    assert level == "L3" and found == pytest.approx(tuple(place))
    forget_points(a_volume_node)
    assert level_points(a_volume_node) == [] and points_node(a_volume_node) is None


def test_points_that_are_not_placed_or_not_called_after_a_level_do_not_count(a_volume_node):
    points = make_points_node(a_volume_node)
    points.AddControlPointWorld((1, 2, 3), "L5")
    points.AddControlPointWorld((1, 2, 3), "mine")
    points.AddControlPointWorld((4, 5, 6), "L4")
    points.UnsetNthControlPointPosition(2)
    assert level_points(a_volume_node) == [("L5", 1.0, 2.0, 3.0)]
    assert make_points_node(a_volume_node) is points


def test_points_are_saved_with_the_scene(a_column, a_volume_node, middle, a_slicer_scene):
    set_level(a_column, "L2", middle(20))
    a_slicer_scene.SetSaveToXMLString(1)
    a_slicer_scene.Commit()
    a_slicer_scene.SetSaveToXMLString(0)
    assert f"SegMamba.Levels:{points_node(a_volume_node).GetID()}" in a_slicer_scene.GetSceneXMLString()


def test_a_segmentation_without_vertebrae_has_no_centroids(a_volume_node, labels, vertebrae):
    node = segmentation_from_labels(np.where(labels == 26, labels, 0), a_volume_node, vertebrae, "pelvis")
    with pytest.raises(InputError, match="'pelvis' has no vertebrae: choose a segmentation whose segments are"):
        centroids(node)
