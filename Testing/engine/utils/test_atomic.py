"""A file is replaced whole or stays as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from segmamba.utils.atomic import replacing


def test_a_file_is_replaced_when_all_of_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text("old")
    with replacing(path) as draft:
        draft.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_stays_as_it_was_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as draft:
        draft.write_text("new")
        draft.write_text(str(1 // 0))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
