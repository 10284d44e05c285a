"""Cases of several files in a batch, told by nnU-Net's numbers or the channels' names where the model has several."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from helpers import brain
from helpers.quick_engine import EngineHere

from segmamba.batch import engine
from segmamba.batch.batch_case import file_case
from segmamba.batch.cases import find_cases
from segmamba.batch.channels import SERIES, cases_of_channels
from segmamba.batch.layout import CASES, TABLE
from segmamba.cli.batch import SOME_FAILED
from segmamba.cli.main import main
from segmamba.errors import InputError
from segmamba.io.read import read_volume

CHANNELS = ("t1c", "t1n", "t2f")


def grouped(*paths: str) -> dict[str, tuple[str, ...]]:
    """Return the files of each case, the input first, by what is said of it."""
    cases = cases_of_channels(map(file_case, paths), CHANNELS)
    return {
        case.error or case.skipped or case.name.rsplit("-", 1)[0]: (case.path, *(path for _, path in case.channels))
        for case in cases
    }


def test_nnunets_numbers_and_names_of_channels_tell_the_files_of_a_case() -> None:
    assert grouped(
        *("/d/a_0002.nii.gz", "/d/a_0000.nii.gz", "/d/a_0001.nii.gz"),
        *("/b/BraTS-1/BraTS-1-t1n.nii.gz", "/b/BraTS-1/BraTS-1-t2f.nii.gz", "/b/BraTS-1/BraTS-1-t1c.nii.gz"),
        *("/p1/T1C.nrrd", "/p1/t1n.nrrd", "/p1/T2F.mha"),
    ) == {
        "d_a": ("/d/a_0000.nii.gz", "/d/a_0001.nii.gz", "/d/a_0002.nii.gz"),
        "BraTS-1_BraTS-1": tuple(f"/b/BraTS-1/BraTS-1-{name}.nii.gz" for name in CHANNELS),
        "p1": ("/p1/T1C.nrrd", "/p1/t1n.nrrd", "/p1/T2F.mha"),
    }


def test_a_case_has_its_name_whichever_channels_are_there() -> None:
    first, second = (
        cases_of_channels(map(file_case, paths), CHANNELS)
        for paths in (["/d/a_0000.nii", "/d/a_0001.nii", "/d/a_0002.nii"], ["/d/a_0001.nii"])
    )
    assert [case.name for case in first] == [case.name for case in second]


def test_a_missing_channel_is_an_error_of_its_case_alone() -> None:
    found = grouped("/d/a_0000.nii", "/d/a_0002.nii", "/d/b_t1c.nii", "/d/b_t1n.nii", "/d/b_t2f.nii")
    assert "a has no file of channel 't1n' (a_0001 or a-t1n): add it." in found and "d_b" in found


def test_two_files_of_one_channel_are_an_error() -> None:
    found = grouped("/d/a_0000.nii", "/d/a_0001.nii", "/d/a_0002.nii", "/d/a-t1n.nrrd")
    ours = [text for text in found if "both are 't1n' of one case: remove one of the two." in text]
    # The numbers' case is whole all the same.
    assert len(ours) == 1 and "d_a" in found


def test_other_files_are_left_out_with_the_reason() -> None:
    found = grouped("/d/a_0000.nii", "/d/a_0001.nii", "/d/a_0002.nii", "/d/a_0003.nii", "/d/ct.nii")
    (text,) = (text for text in found if text.startswith("Its name does not tell which channel"))
    assert "_0000 to _0002 or in t1c, t1n, t2f" in text
    series = file_case("/s/1.dcm")
    cases = cases_of_channels([file_case(f"/d/{n}.nii") for n in CHANNELS] + [_listed(series)], CHANNELS)
    assert [case.skipped for case in cases if case.skipped] == [SERIES]


def _listed(case):  # type: ignore[no-untyped-def]
    from dataclasses import replace

    return replace(case, listing="/run/listing.json")


def test_names_that_tell_no_channel_at_all_end_the_run_in_a_sentence() -> None:
    with pytest.raises(InputError, match=r"No file's name tells which channel .*\(t1c, t1n, t2f\): end names in _0000"):
        grouped("/d/a.nii", "/d/b.nii")


def test_without_channels_each_file_is_a_case_of_its_own(tmp_path: Path) -> None:
    brain.write_channels(tmp_path / "in", "a-")
    assert len(find_cases([str(tmp_path / "in")], tmp_path / "out")) == 3


@pytest.mark.slow
def test_a_batch_segments_cases_of_several_files_and_does_them_again_when_one_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "Engine", EngineHere)
    manifest = brain.write_brain_model(tmp_path)
    whole = brain.write_channels(tmp_path / "in", "a-")
    brain.write_channels(tmp_path / "in", "b-", brain.CHANNELS[:2])
    command = ["batch", str(tmp_path / "in"), str(tmp_path / "out"), "--model", brain.BRAIN_ID, "--device", "cpu"]
    command += ["--manifest", str(manifest), "--workers", "1", "--format", "nii.gz", "--precision", "float32"]
    assert main([*command, "--quiet"]) == SOME_FAILED
    (folder,) = (tmp_path / "out" / CASES).iterdir()
    labels = read_volume(folder / "segmentation.nii.gz").array
    assert (labels == brain.expected_labels([brain.channel(seed) for seed in range(3)])).mean() > 0.999
    assert json.loads((folder / "report.json").read_text())["channels"] == whole
    with (tmp_path / "out" / TABLE).open(encoding="utf-8", newline="") as stream:
        rows = {Path(row["input"]).name: row for row in csv.DictReader(stream)}
    assert rows["a-t1c.nii.gz"]["status"] == "done"
    assert "has no file of channel 't2f'" in rows["b-t1c.nii.gz"]["error"]
    brain.write_channels(tmp_path / "other", "a-", ("x", "y", "t2f"))
    first = np.asarray(labels)
    (tmp_path / "in" / "a-t2f.nii.gz").write_bytes((tmp_path / "other" / "a-x.nii.gz").read_bytes())
    (tmp_path / "in" / "a-t1c.nii.gz").write_bytes((tmp_path / "other" / "a-t2f.nii.gz").read_bytes())
    assert main([*command, "--quiet"]) == SOME_FAILED
    assert (read_volume(folder / "segmentation.nii.gz").array != first).any()
