"""The page of colorectal samples to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import small_bowel
from PIL import Image

from segmamba.training.colorectal import gallery as examples
from segmamba.training.colorectal.label_maps import bowel_arrays
from segmamba.training.colorectal.labels import TUMOUR_LABEL
from segmamba.training.colorectal.parameters import KINDS


@pytest.fixture(autouse=True)
def one_small_sample_of_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "PATCH", (24, 56, 56))
    monkeypatch.setattr(examples, "COLUMNS", 1)


def test_each_kind_of_tumour_is_shown_where_it_is_and_bowel_without_any() -> None:
    page = examples.pictures([small_bowel.small_map()], seed=0)
    assert [title.split(",")[0] for title, _, _ in page] == [*KINDS, examples.NO_TUMOUR]
    for title, image, labels in page:
        assert image.shape == labels.shape == (56, 56)
        assert (labels == TUMOUR_LABEL).any() == (title != examples.NO_TUMOUR)


def test_the_command_draws_a_page_of_maps_and_says_what_is_no_map(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = bowel_arrays(small_bowel.tissues(), np.random.default_rng(0))
    np.savez_compressed(tmp_path / "small_0.npz", **vars(arrays))
    assert examples.main([str(tmp_path), str(tmp_path / "page.png")]) == 0
    drawn = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))
    assert drawn.std() > 10
    (tmp_path / "broken.npz").write_bytes(b"no map")
    assert examples.main([str(tmp_path), str(tmp_path / "other.png")]) != 0
    assert "broken.npz" in capsys.readouterr().err
    assert not (tmp_path / "other.png").exists()
