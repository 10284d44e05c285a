"""Results by part of the bowel, content and field of view."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import small_bowel

from segmamba.errors import InputError
from segmamba.training.colorectal.labels import LABELS
from segmamba.training.colorectal.map_format import BowelMap, field_centre
from segmamba.training.colorectal.render_scans import render_scans, scan_centre
from segmamba.training.colorectal.seeds import COLUMNS
from segmamba.training.colorectal.validation import (
    CONTENT_NAMES,
    field_of_view,
    found_in,
    read_regions,
    read_scan,
    tumours_by_part,
)
from segmamba.training.colorectal.zones import ZONES
from segmamba.training.synthesis.tissue_labels import VERTEBRAE


def test_a_rendered_scan_says_where_what_is(tmp_path: Path) -> None:
    render_scans([small_bowel.small_map()], tmp_path, 1, 3.0, seed=2)
    (file,) = tmp_path.glob("*.npz")
    labels = read_scan(file)[1]
    parts, contents, centre = read_regions(file)
    bowel = labels > 0
    assert ((parts > 0) == bowel).all() and set(np.unique(parts[bowel])) == set(range(1, len(ZONES) + 1))
    filled = contents > 0
    assert bowel[filled].all() and filled.sum() > 0.2 * bowel.sum() and contents.max() <= len(CONTENT_NAMES)
    assert (parts[labels == LABELS["rectum"]] <= 2).all()
    assert ((centre > 0) & (centre < labels.shape[1:])).all()
    np.savez(tmp_path / "old.npz", image=labels, labels=labels)
    with pytest.raises(InputError, match="render_scans"):
        read_regions(tmp_path / "old.npz")


def test_a_scan_of_a_whole_body_is_centred_on_the_bowel_and_does_not_leave_the_map() -> None:
    seeds = np.zeros((2, COLUMNS), np.float32)
    seeds[:, 0] = 30, 90
    body = BowelMap(
        "who", torch.zeros((400, 10, 20), dtype=torch.int32), seeds, np.zeros((0, 3)), np.zeros(256), np.zeros(2)
    )
    np.testing.assert_allclose(scan_centre(body, np.array([100, 10, 20])), (59.5, 4.5, 9.5))
    np.testing.assert_allclose(scan_centre(body, np.array([300, 10, 20])), (149.5, 4.5, 9.5))  # its lowest slice is 0
    np.testing.assert_allclose(scan_centre(body, np.array([400, 10, 20])), (199.5, 4.5, 9.5))


def test_a_field_of_view_is_a_square_in_mm_before_the_spine_and_ends_with_the_image() -> None:
    tissues = np.zeros((3, 100, 80), np.uint8)
    tissues[1, 70:80, 35:45] = VERTEBRAE
    centre = field_centre(tissues, 2.0)
    np.testing.assert_allclose(centre, (64.5, 39.5))
    index = field_of_view(tissues.shape, centre, 60.0, (2.0, 2.0))
    assert tissues[index].shape == (3, 30, 30)
    np.testing.assert_array_equal(
        field_of_view(tissues.shape, centre, 1000.0, (2.0, 1.0)), [slice(None), slice(0, 100), slice(0, 80)]
    )
    np.testing.assert_allclose(field_centre(np.zeros((3, 11, 21), np.uint8), 1.0), (5, 10))


def test_what_is_found_is_counted_for_each_region_and_tumours_for_the_part_they_lie_in() -> None:
    reference = np.zeros((20, 40, 40), np.uint8)
    reference[:, :20] = LABELS["colon"]
    reference[:8, 2:10, 2:10] = reference[:8, 2:10, 25:33] = LABELS["tumour"]
    labels, parts = reference.copy(), np.where(reference > 0, 1, 0)
    parts[:, :20, 20:] = 3
    labels[:, :, :20] = 0
    assert found_in(labels, reference, parts, ZONES) == {"rectum": 0.0, "left": 1.0}
    assert tumours_by_part(labels, reference, parts, 3.0) == {1: (1, 0), 3: (1, 1)}
