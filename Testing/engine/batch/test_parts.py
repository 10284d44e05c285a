"""When a case of a batch is done, and what stays of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import many_cases, tiny
from helpers.batch_runs import request
from helpers.many_cases import in_two_folders, write_series
from helpers.phantoms import grid_around_patient, phantom, rotation
from helpers.quick_engine import quick_run, write_inputs

from segmamba.batch import fingerprint
from segmamba.batch.batch_case import BatchCase
from segmamba.batch.case import do_case
from segmamba.batch.case_record import up_to_date_record
from segmamba.batch.cases import find_cases
from segmamba.batch.layout import CASES, RECORD, REPORT, WORKING, prepare, publish, working_folder
from segmamba.batch.outcome import OUTDATED
from segmamba.batch.plan import Plan, make_plan
from segmamba.errors import DeviceError, InputError, OutputError, WorkerError
from segmamba.request import Options, Request

pytest_plugins = ("helpers.batch_runs",)
SMALL = grid_around_patient((6.0, 6.0, 8.0), rotation(0, 0))


def refuse(request: Request) -> dict[str, Any]:
    raise AssertionError("the engine was asked")


def failing(error: Exception) -> Callable[[Request], dict[str, Any]]:
    def run(request: Request) -> dict[str, Any]:
        raise error

    return run


@pytest.mark.parametrize("extension", ["mhd", "nhdr"])
def test_a_case_is_done_again_when_only_the_data_beside_its_header_changed(
    tmp_path: Path, plan: Plan, extension: str
) -> None:
    volume = phantom(SMALL)
    for number in range(2):
        many_cases.write(many_cases.changed(volume, number), tmp_path / "in" / f"ct.{extension}")
        (case,) = find_cases([str(tmp_path / "in")], tmp_path / "out")
        assert len(case.files()) == 2
        assert do_case(case, plan, 1, quick_run)[0]["this_run"]
        assert not do_case(case, plan, 1, refuse)[0]["this_run"]


def test_a_series_in_two_folders_is_segmented_as_one(tmp_path: Path, plan: Plan) -> None:
    slices = write_series(tmp_path / "in" / "study" / "a")
    in_two_folders(slices, tmp_path / "in" / "study")
    (case,) = find_cases([str(tmp_path / "in")], tmp_path / "out")
    seen: list[int] = []

    def run(request: Request) -> dict[str, Any]:
        from segmamba.io.read import read_volume

        seen.append(len(read_volume(request.input).array))
        # The preview's title.
        assert Path(request.input).name == case.name
        return quick_run(request)

    row, _ = do_case(case, plan, 1, run)
    assert row["status"] == "done", row["error"]
    assert seen == [len(slices)]


def change_input(case: BatchCase, plan: Plan) -> Plan:
    Path(case.path).write_bytes(b"another")
    return plan


def change_settings(case: BatchCase, plan: Plan) -> Plan:
    return make_plan(
        request(Path(plan.request["manifest"]), structures=("L1 vertebra",)), Path(plan.folder), "seg.nrrd"
    )


def damage_output(case: BatchCase, plan: Plan) -> Plan:
    (Path(plan.folder) / CASES / case.name / "preview.png").write_bytes(b"cut")
    return plan


def lose_output(case: BatchCase, plan: Plan) -> Plan:
    (Path(plan.folder) / CASES / case.name / "segmentation.seg.nrrd").unlink()
    return plan


def damage_record(case: BatchCase, plan: Plan) -> Plan:
    (Path(plan.folder) / CASES / case.name / RECORD).write_text('{"version": 1, "na')
    return plan


@pytest.mark.parametrize("change", [change_input, change_settings, damage_output, lose_output, damage_record])
def test_a_case_is_done_again_when_something_changed(
    case: BatchCase, plan: Plan, change: Callable[[BatchCase, Plan], Plan]
) -> None:
    assert do_case(case, plan, 1, quick_run)[0]["this_run"]
    assert not do_case(case, plan, 1, refuse)[0]["this_run"]
    plan = change(case, plan)
    row, _ = do_case(case, plan, 1, quick_run)
    assert row["status"] == "done"
    assert row["this_run"]
    assert not do_case(case, plan, 1, refuse)[0]["this_run"]


def test_a_file_that_was_only_touched_or_copied_back_is_read_once_and_not_done_again(
    case: BatchCase, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    do_case(case, plan, 1, quick_run)
    os.utime(case.path, (1.0, 1.0))
    read: list[str] = []
    digest = fingerprint.file_digest
    monkeypatch.setattr(fingerprint, "file_digest", lambda file: (read.append(file), digest(file))[1])
    for _ in range(3):
        assert not do_case(case, plan, 1, refuse)[0]["this_run"]
    assert read == [case.path]


def test_what_somebody_put_into_a_folder_stays_there(case: BatchCase, plan: Plan) -> None:
    do_case(case, plan, 1, quick_run)
    folder = Path(plan.folder) / CASES / case.name
    (folder / "corrected.seg.nrrd").write_text("mine")
    (folder / "scene").mkdir()
    (folder / "scene" / "one.mrml").write_text("mine too")
    assert not do_case(case, plan, 1, refuse)[0]["this_run"]
    # A case that is done again replaces its own files only: the former segmentation goes, also under another name.
    other = make_plan(request(Path(plan.request["manifest"])), Path(plan.folder), "nii.gz")
    assert do_case(case, other, 1, quick_run)[0]["this_run"]
    assert (folder / "corrected.seg.nrrd").read_text() == "mine"
    assert (folder / "scene" / "one.mrml").read_text() == "mine too"
    assert (folder / "segmentation.nii.gz").is_file()
    assert not (folder / "segmentation.seg.nrrd").exists()
    assert not do_case(case, other, 1, refuse)[0]["this_run"]


def test_an_error_names_the_files_of_a_series_themselves(tmp_path: Path, plan: Plan) -> None:
    slices = write_series(tmp_path / "in" / "study")
    (case,) = find_cases([str(tmp_path / "in")], tmp_path / "out")

    def run(request: Request) -> dict[str, Any]:
        fourth = sorted(Path(request.input).iterdir())[3]
        raise InputError(f"{fourth} in {request.input} is damaged: copy it again.")

    row, _ = do_case(case, plan, 1, run)
    assert row["error"] == f"{sorted(slices)[3]} in {tmp_path / 'in' / 'study'} is damaged: copy it again."


def test_the_device_changes_no_settings_and_the_model_does(manifest_file: Path, tmp_path: Path) -> None:
    given = request(manifest_file)
    hashes = {
        make_plan(changed, tmp_path, form).settings
        for changed, form in (
            (given, "seg.nrrd"),
            (replace(given, options=Options(device="auto")), "seg.nrrd"),
            (given, "nii.gz"),
            (replace(given, options=Options(precision="float32")), "seg.nrrd"),
            (replace(given, options=Options(structures=("L1", "L2"))), "seg.nrrd"),
            (replace(given, options=Options(structures=("L2 vertebra", "L1"))), "seg.nrrd"),
            (replace(given, manifest=str(other_model(tmp_path))), "seg.nrrd"),
        )
    }
    assert len(hashes) == 5


def test_levels_that_are_set_are_settings_and_where_none_are_finished_cases_stay_finished(
    manifest_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, hashed = request(manifest_file), []
    monkeypatch.setattr("segmamba.batch.plan.digest_of", lambda settings: hashed.append(settings["options"]) or "")
    make_plan(given, tmp_path, "nii.gz")
    assert not {"anchor", "levels_from", "output_spacing"} & set(hashed[0])
    levels, moved = tmp_path / "levels.nii", tmp_path / "moved.nii"
    for path in (levels, moved):
        path.write_bytes(b"the same")
    for options in (Options(anchor="L5=1,2,3"), *(Options(levels_from=path) for path in (levels, moved))):
        make_plan(replace(given, options=options), tmp_path, "nii.gz")
    assert hashed[1]["anchor"] == (("L5", 1.0, 2.0, 3.0),)
    assert hashed[2] == hashed[3] != hashed[0]


def test_isotropic_masks_lie_in_the_cases_folder_and_the_report_names_them(case: BatchCase, plan: Plan) -> None:
    def run(request: Request) -> dict[str, Any]:
        fine = Path(request.output).with_name("segmentation_iso.seg.nrrd")
        fine.write_bytes(b"fine labels")
        return quick_run(request) | {"isotropic": {"spacing_mm": [0.7] * 3, "output": str(fine)}}

    do_case(case, plan, 1, run)
    folder = Path(plan.folder) / CASES / case.name
    report = json.loads((folder / REPORT).read_text())
    assert report["isotropic"] == {"spacing_mm": [0.7] * 3, "output": "segmentation_iso.seg.nrrd"}
    assert (folder / "segmentation_iso.seg.nrrd").read_bytes() == b"fine labels"


def other_model(folder: Path) -> Path:
    return tiny.write_model(folder, empty=True)


def test_a_case_that_fails_leaves_no_folder(case: BatchCase, plan: Plan) -> None:
    row, again = do_case(case, plan, 1, failing(InputError(f"{case.path} is broken: mend it.")))
    assert (row["status"], row["error"], again) == ("failed", f"{case.path} is broken: mend it.", False)
    assert not list((Path(plan.folder) / CASES).iterdir())
    assert not list((Path(plan.folder) / WORKING).iterdir())


def test_results_that_no_longer_stand_are_kept_and_flagged_when_the_case_now_fails(case: BatchCase, plan: Plan) -> None:
    do_case(case, plan, 1, quick_run)
    Path(case.path).write_bytes(b"broken")
    row, _ = do_case(case, plan, 1, failing(InputError("It is broken: mend it.")))
    assert row["flags"] == [OUTDATED]
    assert (Path(plan.folder) / CASES / case.name / RECORD).is_file()


@pytest.mark.parametrize(
    ("error", "expected"), [(WorkerError("died"), True), (DeviceError("full"), True), (OutputError("no"), False)]
)
def test_only_crashes_and_lack_of_memory_are_worth_another_attempt(
    case: BatchCase, plan: Plan, error: Exception, expected: bool
) -> None:
    assert do_case(case, plan, 1, failing(error))[1] is expected


def test_a_worker_with_another_checkpoint_is_told(case: BatchCase, plan: Plan) -> None:
    row, _ = do_case(case, replace(plan, model=plan.model | {"checkpoint_sha256": "0"}), 1, quick_run)
    assert "another checkpoint" in row["error"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    prepare(tmp_path)
    target = tmp_path / CASES / "one"
    for content in ("old", "new"):
        with working_folder(tmp_path, "one") as work:
            (work / content).write_text(content)
            publish(work, target)
    assert [path.name for path in target.iterdir()] == ["new"]
    assert not list((tmp_path / WORKING).iterdir())


def test_what_a_broken_off_run_left_half_done_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / WORKING / "one.1234" / "results").mkdir(parents=True)
    prepare(tmp_path)
    assert not list((tmp_path / WORKING).iterdir())


def test_a_record_is_of_its_own_input_only(case: BatchCase, plan: Plan, tmp_path: Path) -> None:
    do_case(case, plan, 1, quick_run)
    folder = Path(plan.folder) / CASES / case.name
    write_inputs(tmp_path / "other", 2)
    assert up_to_date_record(folder, case.files(), plan.settings) is not None
    assert up_to_date_record(folder, [str(tmp_path / "other" / "ct0001.nii")], plan.settings) is None


def test_labels_that_no_writer_took_outlive_the_working_folder(tmp_path: Path, plan: Plan) -> None:
    write_inputs(tmp_path / "in", 1)
    (case,) = find_cases([str(tmp_path / "in")], tmp_path / "out")

    def run(request: Request) -> dict[str, Any]:
        kept = Path(request.output).with_name("segmentation-1234.nii.gz")
        kept.write_bytes(b"labels")
        raise OutputError(f"It cannot be written. The labels were kept in {kept}.")

    row, _ = do_case(case, plan, 1, run)
    kept = Path(row["error"].removesuffix(".").rpartition(" ")[2])
    assert kept.read_bytes() == b"labels" and kept.parent == Path(plan.folder)
