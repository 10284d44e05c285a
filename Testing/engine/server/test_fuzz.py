"""Random and damaged input of strangers; ``python benchmarks/fuzz.py`` tries more of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import tiny

pytest.importorskip("fastapi", reason="the server's packages are not installed")
pytest.importorskip("dicomweb_client", reason="dicomweb-client is not installed")

from helpers.fuzzed import fuzz
from helpers.running_server import running_server


def test_strangers_get_answers_or_sentences_and_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    manifest = tiny.write_model(tmp_path)
    with running_server(tmp_path / "server", manifest, patience=1.0, upload_bytes=1 << 24) as server:
        tally = fuzz(server, tmp_path, count=40, seed=1)
    assert not tally.wrong
    kinds = {end.split(":")[0].split()[0] for end in tally.ends}
    assert kinds == {"upload", "DICOM", "HTTP", "PACS", "server's"}
