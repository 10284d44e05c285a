"""Pictures of labelled cases: which slice is shown, and how it lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segmamba.training.dataset.pictures import color_of, draw_page, picture_of
from segmamba.training.dataset.plan import IGNORED


def labelled() -> tuple[np.ndarray, np.ndarray]:
    """An image whose values are its voxels' places (100 z + 10 y + x), and one label."""
    z, y, x = np.indices((4, 5, 6))
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[3, 1:4, 2] = 1
    return 100.0 * z + 10 * y + x, labels


def test_a_slice_lies_across_the_widest_spacing_where_most_is_labelled() -> None:
    image, labels = labelled()
    axial = picture_of("a", image, labels, (3.0, 1.0, 1.0), "LPS")
    assert axial.image.shape == (5, 6)
    assert axial.image[0, 0] == 300
    assert axial.extent == (5.0, 6.0)
    sagittal = picture_of("a", image, labels, (1.0, 1.0, 3.0), "LPS")
    assert sagittal.image.shape == (4, 5)
    # The head is up: the first row is the last slice.
    assert sagittal.image[0, 0] == 302
    assert sagittal.reference[0].tolist() == [0, 1, 1, 1, 0]
    turned = picture_of("a", image, labels, (1.0, 1.0, 3.0), "RAS")
    assert turned.image[0, 0] == 342


def test_an_answer_is_shown_where_it_is_wrong_and_what_nobody_labelled_does_not_count() -> None:
    image, labels = labelled()
    labels[0] = IGNORED
    found = labels.copy()
    found[0] = 0
    found[1, 2, 2] = 1
    picture = picture_of("a", image, labels, (3.0, 1.0, 1.0), "LPS", found)
    assert picture.image[0, 0] == 100
    assert picture.found is not None
    assert picture.found[2, 2] == 1


def test_a_page_is_a_picture_and_colours_differ(tmp_path: Path) -> None:
    image, labels = labelled()
    draw_page(
        [picture_of(str(n), image, labels, (3.0, 1.0, 1.0), "LPS") for n in range(5)], ["a"], tmp_path / "p.png", "t"
    )
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    colors = {color_of(value) for value in range(1, 31)}
    assert len(colors) == 30
