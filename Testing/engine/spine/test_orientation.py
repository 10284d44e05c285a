"""A patient who lies otherwise than the header says is noticed, and nobody else is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import SimpleITK as sitk

from segmamba.io.volume import Geometry, image_geometry, to_image
from segmamba.spine.orientation import ARCHES_IN_FRONT, LUNG_BELOW, SPINE_IN_FRONT, orientation_doubt

SPACING, SIZE = 4.0, (80, 60, 60)
GRID = Geometry(SIZE, (SPACING,) * 3, (-160.0, -120.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))


def trunk(levels: range = range(17, 25), depth: float = 50.0, body: float = 95.0) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and CT, (z, y, x), of a trunk with a table below it: LPS, the highest level on top.

    ``depth`` is by how much the vertebrae lie behind the middle, ``body`` half of the trunk's depth, mm. There is lung
    above L1.
    """
    z, y, x = (np.arange(length) * SPACING for length in reversed(SIZE))
    z, y, x = np.meshgrid(z, y - 120.0, x - 160.0, indexing="ij")
    ct = np.where((x / 140) ** 2 + (y / body) ** 2 < 1, 40.0, -1000.0)
    ct[((y - body - 12) ** 2 < 9) & (np.abs(x) < 150)] = 100  # the table's shell
    labels = np.zeros(ct.shape, np.uint8)
    for place, level in enumerate(levels):
        middle = z.max() - 15 - 30 * place
        within = np.abs(z - middle) < 12
        labels[within & (x**2 + (y - depth) ** 2 < 20**2)] = level
        labels[within & (np.abs(x) < 8) & (y > depth) & (y < depth + 45)] = level
        ct[within & (level < 20) & (((np.abs(x) - 70) / 40) ** 2 + (y / 60) ** 2 < 1)] = -850
    ct[labels > 0] = 300
    return labels, ct


def doubt(labels: np.ndarray, ct: np.ndarray | None, geometry: Geometry = GRID) -> str:
    return orientation_doubt(labels, geometry.affine, ct)


def test_a_patient_who_lies_as_the_header_says_raises_no_doubt() -> None:
    for depth, body in itertools.product((20.0, 50.0), (80.0, 95.0, 110.0)):
        labels, ct = trunk(depth=depth, body=body)
        assert doubt(labels, ct) == "" == doubt(labels, None)


@pytest.mark.parametrize("flip", [(slice(None), slice(None, None, -1)), (slice(None), *[slice(None, None, -1)] * 2)])
def test_a_spine_in_front_of_the_bodys_middle_is_noticed(flip: tuple[slice, ...]) -> None:
    labels, ct = trunk()
    said = doubt(labels[flip], ct[flip])
    assert SPINE_IN_FRONT in said and ARCHES_IN_FRONT in said and said.endswith(".")
    assert ARCHES_IN_FRONT in doubt(labels[flip], None)


def test_lung_beside_lumbar_vertebrae_or_below_them_is_noticed() -> None:
    _, ct = trunk()
    labels = trunk()[0]
    assert LUNG_BELOW in doubt(labels, ct[::-1])


def test_a_volume_that_cuts_the_body_does_not_say_where_its_middle_is() -> None:
    labels, ct = trunk(depth=20.0)
    assert (
        doubt(labels[:, 22:], ct[:, 22:], Geometry((80, 38, 60), GRID.spacing, (-160.0, -32.0, 0.0), GRID.direction))
        == ""
    )


def test_one_vertebra_is_not_enough() -> None:
    labels, ct = trunk(range(21, 22))
    assert doubt(labels[:, ::-1], ct[:, ::-1]) == ""


def test_nothing_found_raises_no_doubt() -> None:
    labels, ct = trunk()
    assert doubt(np.zeros_like(labels), ct) == ""


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 2, 0)])
def test_it_is_the_patient_that_counts_and_not_the_order_of_axes(order: tuple[int, int, int]) -> None:
    labels, ct = trunk()
    for flip, expected in ((slice(None), False), (slice(None, None, -1), True)):
        images = [
            sitk.Flip(sitk.PermuteAxes(to_image(np.ascontiguousarray(each[:, flip]), GRID), order), (True, False, True))
            for each in (labels, ct)
        ]
        geometry = image_geometry(images[0])
        said = doubt(*(sitk.GetArrayFromImage(image) for image in images), geometry)
        assert (SPINE_IN_FRONT in said) == expected


@pytest.mark.filterwarnings("error")
def test_slivers_and_values_beyond_single_precision_are_no_trouble() -> None:
    fine = Geometry((8, 8, 8), (0.1,) * 3, (0.0, 0.0, 0.0), GRID.direction)
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[1::2, 1::2, 1::2] = 20
    assert doubt(labels, np.full(labels.shape, 1e300), fine) == ""
