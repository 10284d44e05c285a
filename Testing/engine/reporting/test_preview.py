"""The preview: planes of the patient, outlines where the structures are, names that do not overlap."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from helpers.phantoms import ANISOTROPIC, OBLIQUE, STRAIGHT, VERTEBRAE, phantom, restored, spine_model, true_labels
from matplotlib.figure import Figure
from matplotlib.image import imread

from segmamba.io.volume import Geometry, Volume
from segmamba.models.manifest import Model
from segmamba.reporting import preview
from segmamba.reporting.preview import choose_planes, compose, display_window, draw, spread_apart
from segmamba.reporting.slice_planes import AXIAL, CORONAL, SAGITTAL, Plane, best_slice_position, labelled_points


def outlined_area(plane: Plane, value: int) -> float:
    pixel = (plane.right[1] - plane.right[0]) * (plane.down[1] - plane.down[0])
    return float(np.count_nonzero(plane.sections[value].mask > 0.5) * pixel)


def titles(model: Model, certain: bool = True) -> list[str]:
    figure = Figure()
    preview._write_titles(figure, compose(phantom(), true_labels(STRAIGHT), model, "case", certain=certain))
    return [text.get_text() for text in figure.texts]


@pytest.mark.parametrize("geometry", [STRAIGHT, OBLIQUE, ANISOTROPIC], ids=["straight", "oblique", "anisotropic"])
def test_the_planes_are_those_of_the_patient_whatever_the_grid(geometry: Geometry) -> None:
    planes = choose_planes(phantom(geometry), true_labels(geometry))
    axial, coronal, sagittal = planes
    assert [plane.view for plane in planes] == [AXIAL, CORONAL, SAGITTAL]
    assert axial.position == pytest.approx(99.0, abs=3)
    # The vertebrae are ellipsoids with half axes of 28, 21 and 13 mm.
    assert outlined_area(axial, 21) == pytest.approx(np.pi * 28 * 21, rel=0.1)
    for plane in (coronal, sagittal):
        assert set(plane.sections) == set(VERTEBRAE)
        sections = [plane.sections[value] for value in VERTEBRAE]
        first, middle, last = (float(each.down[np.nonzero(each.mask > 0.5)[0]].mean()) for each in sections)
        # Head up: L1 is above L2 is above L3, 27 mm from centre to centre.
        assert middle - first == pytest.approx(27, abs=2)
        assert last - middle == pytest.approx(27, abs=2)


def test_the_patients_left_is_on_the_right_and_the_front_at_the_left_of_a_sagittal_plane() -> None:
    labels = true_labels(STRAIGHT)
    array = phantom().array.copy()
    left = Volume(np.where(np.arange(array.shape[2]) > 50, 1000, array).astype(np.int16), STRAIGHT)
    axial, coronal, _ = choose_planes(left, labels)
    for plane in (axial, coronal):
        assert plane.image[:, -20:].mean() > plane.image[:, :20].mean()
    back = Volume(np.where(np.arange(array.shape[1])[:, None] > 50, 1000, array).astype(np.int16), STRAIGHT)
    axial, _, sagittal = choose_planes(back, labels)
    assert axial.image[-20:].mean() > axial.image[:20].mean()
    assert sagittal.image[:, -20:].mean() > sagittal.image[:, :20].mean()


def test_copies_stored_along_other_axes_show_the_same() -> None:
    volume = phantom()
    labels = Volume(true_labels(STRAIGHT), STRAIGHT)
    expected = choose_planes(volume, labels.array)
    for copy, copied_labels in zip(restored(volume), restored(labels), strict=True):
        for plane, other in zip(expected, choose_planes(copy, copied_labels.array), strict=True):
            assert other.position == pytest.approx(plane.position, abs=1.0)
            assert other.image.shape == plane.image.shape


def test_a_curved_column_is_cut_in_as_many_vertebrae_as_possible() -> None:
    labels = np.zeros((60, 20, 60), dtype=np.uint8)
    # A big structure aside, and three small ones in a line.
    labels[0:20, 5:15, 0:25] = 1
    for value, z in ((2, 25), (3, 35), (4, 45)):
        labels[z : z + 8, 8:12, 40:44] = value
    geometry = Geometry((60, 20, 60), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    points, values = labelled_points(labels, geometry)
    assert 40 <= best_slice_position(SAGITTAL, points, values, geometry) <= 44


def test_names_are_moved_apart_and_stay_in_order() -> None:
    heights = spread_apart([1.0, 1.1, 1.2, 9.9], gap=1.0, low=0.0, high=10.0)
    assert all(b - a >= 1.0 - 1e-9 for a, b in zip(heights, heights[1:], strict=False))
    assert heights[0] >= 0
    assert heights[-1] <= 10
    assert spread_apart([5.0] * 5, gap=10.0, low=0.0, high=8.0) == [0, 2, 4, 6, 8]
    assert spread_apart([], gap=1.0, low=0.0, high=1.0) == []


def test_a_picture_is_drawn_in_the_colours_of_the_structures() -> None:
    model = spine_model()
    composed = compose(phantom(), true_labels(STRAIGHT), model, "case & $name_1$")
    picture = imread(io.BytesIO(draw(composed)), format="png")
    assert picture.shape[1] > picture.shape[0] > 500
    for label in model.labels:
        distance = np.abs(picture[..., :3] * 255 - label.color).max(axis=-1)
        assert np.count_nonzero(distance < 12) > 50, label.name


def test_a_picture_says_what_of_the_model_is_an_estimate() -> None:
    texts = [" ".join(titles(spine_model(estimated=each))) for each in ("the figures are an estimate", None)]
    assert "the figures are an estimate" in texts[0] and "estimate" not in texts[1]


def test_a_picture_says_what_has_to_be_said_with_each_result() -> None:
    model = replace(spine_model(), entry={"caution": "its tumours were synthetic"})
    assert "its tumours were synthetic" in " ".join(titles(model))


def test_a_picture_says_that_numbers_are_not_certain() -> None:
    texts = [titles(spine_model(), certain=each) for each in (True, False)]
    assert texts[1] == [*texts[0], "Vertebral levels are uncertain"]
    composed = compose(phantom(), true_labels(STRAIGHT), spine_model(), "x")
    pictures = [draw(replace(composed, certain=each)) for each in (True, False)]
    assert pictures[0] != pictures[1]


@pytest.mark.parametrize("size", [(30, 30, 2), (2, 60, 30), (500, 4, 4)])
def test_odd_shapes_are_drawn_too(size: tuple[int, int, int]) -> None:
    geometry = Geometry(size, (1.0, 1.0, 5.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    labels = np.zeros(size[::-1], dtype=np.uint8)
    labels[:1, :2, :1] = 20
    assert draw(compose(Volume(labels.astype(np.int16), geometry), labels, spine_model(), "odd")).startswith(b"\x89PNG")


def test_an_empty_segmentation_still_gives_a_picture() -> None:
    empty = np.zeros(STRAIGHT.size[::-1], dtype=np.uint8)
    planes = choose_planes(phantom(), empty)
    assert all(plane.sections == {} for plane in planes)
    assert draw(compose(phantom(), empty, spine_model(), "empty")).startswith(b"\x89PNG")


def test_the_window_is_the_models_narrowest_and_else_of_percentiles() -> None:
    from segmamba.models.manifest import IntensityNormalization

    planes = choose_planes(phantom(), true_labels(STRAIGHT))
    wide, narrow = IntensityNormalization("clip", -1000, 1000, 0, 1), IntensityNormalization("clip", -150, 450, 0, 1)
    assert display_window(spine_model(normalization=(wide, narrow)), planes) == (-150, 450)
    assert display_window(spine_model(normalization=(IntensityNormalization("percentile", 1, 99),)), planes) == (
        -1000,
        500,
    )
