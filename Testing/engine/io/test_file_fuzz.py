"""Random and damaged files of users; ``python benchmarks/fuzz.py --what files`` tries more of them."""

from __future__ import annotations

from pathlib import Path

from helpers.fuzzed_files import fuzz_files


def test_files_of_users_are_read_or_refused_in_a_sentence(tmp_path: Path) -> None:
    tally = fuzz_files(tmp_path, count=9, seed=1)
    assert not tally.wrong
    kinds = {end.split(":")[0].split()[0] for end in tally.ends}
    assert kinds == {"image", "DICOM", "grid", "values", "channels", "folder"}
