"""The parts of a batch, each alone: when a case is done, retries, table, overview, wrong calls."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import many_cases
import pytest
import tiny
from many_cases import in_two_folders, write_series
from phantoms import grid_around_patient, phantom, rotation
from pyarrow import parquet
from quick_engine import QuickEngine, SlowEngine, quick_run, write_inputs

from segmamba import cli
from segmamba.batch import cluster, dispatch, engine, identity
from segmamba.batch import plan as planning
from segmamba.batch.case import do_case
from segmamba.batch.cases import Case, find_cases
from segmamba.batch.dispatch import LOST, WAITING, look_through, run_cases, wait_for_workers
from segmamba.batch.places import (
    CASES,
    OVERVIEW,
    PARQUET,
    RECORD,
    ROWS,
    TABLE,
    WORKING,
    prepare,
    publish,
    working_folder,
)
from segmamba.batch.plan import Plan, make_plan
from segmamba.batch.record import standing_record
from segmamba.batch.rows import NUMBERS_UNCERTAIN, OUTDATED, flags
from segmamba.batch.run import run_batch
from segmamba.batch.show import Progress
from segmamba.batch.table import flattened, write_table
from segmamba.errors import Cancelled, DeviceError, InputError, InstallationError, OutputError, WorkerError
from segmamba.request import Options, Request

SMALL = grid_around_patient((6.0, 6.0, 8.0), rotation(0, 0))


@pytest.fixture(scope="module")
def manifest_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def plan(tmp_path: Path, manifest_file: Path) -> Plan:
    """The plan of a run into ``tmp_path / "out"``, whose input is ``tmp_path / "in"``."""
    prepare(tmp_path / "out")
    return make_plan(request(manifest_file), tmp_path / "out", "seg.nrrd")


@pytest.fixture
def case(tmp_path: Path) -> Case:
    write_inputs(tmp_path / "in", 1)
    (found,) = find_cases([str(tmp_path / "in")], tmp_path / "out")
    return found


def request(manifest: Path, **options: object) -> Request:
    given = Options(device="cpu", **options)  # type: ignore[arg-type]
    return Request(input="", output="", task="vertebrae", manifest=str(manifest), options=given)


def refuse(request: Request) -> dict[str, Any]:
    raise AssertionError("the engine was asked")


def failing(error: Exception) -> Callable[[Request], dict[str, Any]]:
    def run(request: Request) -> dict[str, Any]:
        raise error

    return run


# When a case is done


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
        from segmamba.volume import read_volume

        seen.append(len(read_volume(request.input).array))
        # The preview's title.
        assert Path(request.input).name == case.name
        return quick_run(request)

    row, _ = do_case(case, plan, 1, run)
    assert row["status"] == "done", row["error"]
    assert seen == [len(slices)]


def change_input(case: Case, plan: Plan) -> Plan:
    Path(case.path).write_bytes(b"another")
    return plan


def change_settings(case: Case, plan: Plan) -> Plan:
    return make_plan(
        request(Path(plan.request["manifest"]), structures=("L1 vertebra",)), Path(plan.folder), "seg.nrrd"
    )


def damage_output(case: Case, plan: Plan) -> Plan:
    (Path(plan.folder) / CASES / case.name / "preview.png").write_bytes(b"cut")
    return plan


def lose_output(case: Case, plan: Plan) -> Plan:
    (Path(plan.folder) / CASES / case.name / "segmentation.seg.nrrd").unlink()
    return plan


def damage_record(case: Case, plan: Plan) -> Plan:
    (Path(plan.folder) / CASES / case.name / RECORD).write_text('{"version": 1, "na')
    return plan


@pytest.mark.parametrize("change", [change_input, change_settings, damage_output, lose_output, damage_record])
def test_a_case_is_done_again_when_something_changed(
    case: Case, plan: Plan, change: Callable[[Case, Plan], Plan]
) -> None:
    assert do_case(case, plan, 1, quick_run)[0]["this_run"]
    assert not do_case(case, plan, 1, refuse)[0]["this_run"]
    plan = change(case, plan)
    row, _ = do_case(case, plan, 1, quick_run)
    assert row["status"] == "done"
    assert row["this_run"]
    assert not do_case(case, plan, 1, refuse)[0]["this_run"]


def test_a_file_that_was_only_touched_or_copied_back_is_read_once_and_not_done_again(
    case: Case, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    do_case(case, plan, 1, quick_run)
    os.utime(case.path, (1.0, 1.0))
    read: list[str] = []
    digest = identity.file_digest
    monkeypatch.setattr(identity, "file_digest", lambda file: (read.append(file), digest(file))[1])
    for _ in range(3):
        assert not do_case(case, plan, 1, refuse)[0]["this_run"]
    assert read == [case.path]


def test_what_somebody_put_into_a_folder_stays_there(case: Case, plan: Plan) -> None:
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


def other_model(folder: Path) -> Path:
    return tiny.write_model(folder, empty=True)


def test_a_case_that_fails_leaves_no_folder(case: Case, plan: Plan) -> None:
    row, again = do_case(case, plan, 1, failing(InputError(f"{case.path} is broken: mend it.")))
    assert (row["status"], row["error"], again) == ("failed", f"{case.path} is broken: mend it.", False)
    assert not list((Path(plan.folder) / CASES).iterdir())
    assert not list((Path(plan.folder) / WORKING).iterdir())


def test_results_that_no_longer_stand_are_kept_and_flagged_when_the_case_now_fails(case: Case, plan: Plan) -> None:
    do_case(case, plan, 1, quick_run)
    Path(case.path).write_bytes(b"broken")
    row, _ = do_case(case, plan, 1, failing(InputError("It is broken: mend it.")))
    assert row["flags"] == [OUTDATED]
    assert (Path(plan.folder) / CASES / case.name / RECORD).is_file()


@pytest.mark.parametrize(
    ("error", "expected"), [(WorkerError("died"), True), (DeviceError("full"), True), (OutputError("no"), False)]
)
def test_only_crashes_and_lack_of_memory_are_worth_another_attempt(
    case: Case, plan: Plan, error: Exception, expected: bool
) -> None:
    assert do_case(case, plan, 1, failing(error))[1] is expected


def test_a_worker_with_another_checkpoint_is_told(case: Case, plan: Plan) -> None:
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


def test_a_record_is_of_its_own_input_only(case: Case, plan: Plan, tmp_path: Path) -> None:
    do_case(case, plan, 1, quick_run)
    folder = Path(plan.folder) / CASES / case.name
    write_inputs(tmp_path / "other", 2)
    assert standing_record(folder, case.files(), plan.settings) is not None
    assert standing_record(folder, [str(tmp_path / "other" / "ct0001.nii")], plan.settings) is None


# Many cases over workers


class Counting(QuickEngine):
    """Counts how many cases run at a time; one whose name holds a word fails or kills."""

    running, most, attempts = 0, 0, {}  # type: ignore[var-annotated]

    def run(self, request: Request) -> dict[str, Any]:
        kind = type(self)
        name = Path(request.input).name
        kind.attempts[name] = [*kind.attempts.get(name, []), request.options.device]
        kind.running += 1
        kind.most = max(kind.most, kind.running)
        time.sleep(0.01)
        kind.running -= 1
        if name == "ct0003.nii" or (name == "ct0005.nii" and len(kind.attempts[name]) < 3):
            raise WorkerError("The worker was killed.")
        return quick_run(request)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    Counting.running, Counting.most, Counting.attempts = 0, 0, {}
    monkeypatch.setattr(engine, "Engine", Counting)
    with cluster.connected("local", 3, "cpu") as client:
        yield client


def test_cases_come_a_few_at_a_time_and_crashes_are_tried_again_within_a_limit(
    client: Any, tmp_path: Path, plan: Plan
) -> None:
    write_inputs(tmp_path / "in", 20)
    cases = find_cases([str(tmp_path / "in")], tmp_path / "out")
    auto = replace(plan, request={**plan.request, "options": {**plan.request["options"], "device": "auto"}})
    said = {Path(row["input"]).name: row for row in run_cases(client, cases, auto, 3, lambda: False)}
    assert len(said) == 20
    assert Counting.most <= 3
    assert [name for name, row in said.items() if row["status"] == "failed"] == ["ct0003.nii"]
    # The last attempt is made on the processor.
    assert Counting.attempts["ct0003.nii"] == ["auto", "auto", "auto", "cpu"]
    assert said["ct0005.nii"]["attempts"] == 3
    assert "repeated" in said["ct0005.nii"]["flags"]
    assert len(Counting.attempts["ct0001.nii"]) == 1


def test_a_wish_to_stop_ends_the_run_between_cases(client: Any, tmp_path: Path, plan: Plan) -> None:
    write_inputs(tmp_path / "in", 20)
    cases = find_cases([str(tmp_path / "in")], tmp_path / "out")
    done: list[Any] = []
    with pytest.raises(Cancelled, match="same command"):
        done.extend(row for row in run_cases(client, cases, plan, 0, lambda: len(Counting.attempts) > 5))
    assert len(Counting.attempts) < 20


def test_a_scheduler_that_goes_is_told_in_one_sentence_and_the_table_is_written(
    tmp_path: Path, manifest_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dask
    from distributed import LocalCluster

    monkeypatch.setattr(engine, "Engine", QuickEngine)
    write_inputs(tmp_path / "in", 20)
    # The workers look for their scheduler at the end.
    brief = dask.config.set({"distributed.comm.timeouts.connect": "1s"})
    local = LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0")
    with brief, local as running:
        shown: list[Progress] = []

        def stopped() -> bool:
            if shown and shown[0].counts["done"] == 2:
                running.sync(running.scheduler.close)
            return False

        with pytest.raises(WorkerError) as told:
            start_run(tmp_path, manifest_file, shown, stopped, running.scheduler_address)
    assert str(told.value) == LOST
    assert parquet.read_table(tmp_path / "out" / PARQUET).num_rows == 2


def test_a_result_that_was_lost_with_its_worker_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import distributed

    futures = [SimpleNamespace(status=status) for status in ("lost", "finished", "pending", "error")]
    monkeypatch.setattr(distributed, "wait", lambda given, **options: SimpleNamespace(done=set_of(given)))
    assert [future.status for future in dispatch._finished(futures)] == ["finished", "error"]  # type: ignore[arg-type]


def set_of(given: Sequence[Any]) -> list[Any]:
    """What Dask's wait calls done: whatever is not pending."""
    return [future for future in given if future.status != "pending"]


def test_a_run_on_the_same_cluster_takes_no_engine_away() -> None:
    from distributed import LocalCluster

    def ask(run: str) -> int:
        return id(engine.own_engine(run))

    with LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0") as running:
        address = running.scheduler_address
        with cluster.connected(address, None, "cpu") as one:
            before = one.submit(ask, one.id, pure=False).result()
            with cluster.connected(address, None, "cpu") as other:
                assert other.submit(ask, other.id, pure=False).result() != before
            assert one.submit(ask, one.id, pure=False).result() == before


def test_looking_through_folders_can_be_stopped_and_ends_in_typed_errors(client: Any) -> None:
    def fail(error: Exception) -> list[Case]:
        raise error

    def look(asked: Callable[[], bool], function: Callable[[Any], list[Case]], place: Any) -> list[list[Case]]:
        return list(look_through(client, asked, function, [place]))

    assert look(lambda: False, lambda name: [Case(name, name)], "a") == [[Case("a", "a")]]
    with pytest.raises(Cancelled):
        look(lambda: True, time.sleep, 1.0)  # type: ignore[arg-type]
    with pytest.raises(InstallationError, match="pydicom"):
        look(lambda: False, fail, InstallationError("pydicom is missing"))
    with pytest.raises(WorkerError, match="ValueError: new"):
        look(lambda: False, fail, ValueError("new"))


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_dask_worker_that_is_killed_loses_no_case(
    tmp_path: Path, manifest_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil
    from distributed import LocalCluster

    monkeypatch.setattr(engine, "Engine", SlowEngine)
    write_inputs(tmp_path / "in", 8)
    shown: list[Progress] = []
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as running:
        victims = [psutil.Process(running.workers[0].pid)]

        def stopped() -> bool:
            if victims and shown and shown[0].counts["done"]:
                victims.pop().kill()
            return False

        start_run(tmp_path, manifest_file, shown, stopped, running.scheduler_address)
    assert not victims
    assert [status for status, _ in many_cases.outcomes(tmp_path / "out").values()] == ["done"] * 8


def test_a_cluster_without_a_worker_is_waited_for_until_there_is_a_wish_to_stop() -> None:
    from distributed import Client, LocalCluster

    said: list[str] = []
    asked: list[int] = []

    def stopped() -> bool:
        asked.append(1)
        return len(asked) > 1

    empty = LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0")
    with empty, Client(empty) as client, pytest.raises(Cancelled):
        wait_for_workers(client, stopped, said.append)
    assert said == [WAITING]


def test_a_local_run_opens_no_port_to_other_computers() -> None:
    import psutil

    with cluster.connected("local", 1, "cpu"):
        listening = [each.laddr.ip for each in psutil.Process().net_connections() if each.status == "LISTEN"]
    assert set(listening) <= {"127.0.0.1"}


def test_each_worker_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(engine.VISIBLE, raising=False)
    assert [engine.gpu_of(number, 2) for number in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv(engine.VISIBLE, "5,7")
    assert [engine.gpu_of(number, 2) for number in range(3)] == ["5", "7", "5"]


# What a run shows


def row(**changes: Any) -> dict[str, Any]:
    base = {"case": "one", "status": "done", "error": "", "flags": [], "summary": "", "input": "", "folder": ""}
    return base | {"seconds": 1.5} | changes


def test_nested_figures_become_columns_in_the_order_of_the_structures(tmp_path: Path) -> None:
    given = [
        row(structures={"L2": {"volume_ml": 2}, "L1": {"volume_ml": 1.5}}, flags=["a", "b"]),
        row(case="two", seconds=None, structures={"L3": {"volume_ml": 0.5, "cut": True}}),
    ]
    (tmp_path / ROWS).write_text("\n".join(map(json.dumps, given)))
    write_table(tmp_path / ROWS, tmp_path, ("L1", "L2", "L3"))
    table = parquet.read_table(tmp_path / PARQUET)
    assert table.column_names[-4:] == ["L1.volume_ml", "L2.volume_ml", "L3.volume_ml", "L3.cut"]
    assert [str(table.schema.field(name).type) for name in ("seconds", "L3.cut", "case")] == [
        "double",
        "bool",
        "string",
    ]
    assert table["flags"].to_pylist() == ["a; b", ""]
    assert flattened({"structures": {"L1": {"x": 1}}, "timings_s": {"read": 2}}) == {"L1.x": 1, "timings_s.read": 2}


def test_names_of_files_cannot_break_the_overview(tmp_path: Path, plan: Plan) -> None:
    from segmamba.batch.overview import write_overview

    (tmp_path / ROWS).write_text(json.dumps(row(input="<script>alert(1)</script>", flags=['"><b>'])))
    write_overview(tmp_path / ROWS, tmp_path, plan)
    page = (tmp_path / OVERVIEW).read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert '"><b>' not in page


def test_flags_say_what_to_look_at() -> None:
    report = {"segments": [{"at_border": False}], "run": {"fallbacks": []}}
    doubt = {"numbering": {"certain": False, "reason": "no landmark is in view."}}
    assert flags(report, 1) == []
    assert flags(report | doubt, 1) == [NUMBERS_UNCERTAIN]
    assert flags({"segments": [], "run": {"fallbacks": ["memory ran out"]}}, 2) == [
        "nothing found",
        "note",
        "repeated",
    ]


def test_measurements_of_the_report_are_in_the_row(case: Case, plan: Plan) -> None:
    done, _ = do_case(case, plan, 1, quick_run)
    assert done["structures"]["L1 vertebra"]["anterior_height_mm"] == 25.5
    assert done["structures"]["L1 vertebra"]["volume_ml"] == 1.5


def test_a_run_prints_a_json_line_a_case(
    tmp_path: Path, manifest_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine, "Engine", QuickEngine)
    write_inputs(tmp_path / "in", 3)
    call = ["batch", str(tmp_path / "in"), str(tmp_path / "out"), "--task", "vertebrae", "--json"]
    assert cli.main([*call, "--manifest", str(manifest_file), "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert [json.loads(line)["status"] for line in printed.out.splitlines()] == ["done"] * 3
    assert "3 done" in printed.err


def test_a_run_that_is_stopped_still_writes_its_table(
    tmp_path: Path, manifest_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "Engine", QuickEngine)
    write_inputs(tmp_path / "in", 5)
    output = tmp_path / "out"

    def stop_after(count: int) -> list[dict[str, Any]]:
        shown: list[Progress] = []
        with pytest.raises(Cancelled):
            start_run(tmp_path, manifest_file, shown, lambda: bool(shown) and shown[0].counts["done"] >= count)
        (output / OVERVIEW).read_text(encoding="utf-8")
        return parquet.read_table(output / PARQUET).to_pylist()

    assert len(stop_after(2)) == 2
    # One that is stopped sooner has what was done before, too.
    again = stop_after(0)
    assert [row["this_run"] for row in again] == [False, False]
    assert (output / OVERVIEW).read_text(encoding="utf-8").count("<article") == 2


def start_run(
    place: Path, manifest: Path, shown: list[Progress], stopped: Callable[[], bool], scheduler: str = "local"
) -> Progress:
    """Run on ``place / "in"``; what shows its rows is put into a list."""

    def show(total: int) -> Progress:
        shown.append(Progress(total, machine=False, quiet=True))
        return shown[0]

    given = [str(place / "in")], place / "out", request(manifest), "seg.nrrd"
    return run_batch(*given, scheduler, 1 if scheduler == "local" else None, 0, stopped, print, show)


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text")
def test_a_name_that_is_no_text_costs_nobody_the_table(
    tmp_path: Path, manifest_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "Engine", QuickEngine)
    write_inputs(tmp_path / "in", 1)
    Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/\xff.nii")).write_bytes(b"x")
    start_run(tmp_path, manifest_file, [], lambda: False)
    rows = parquet.read_table(tmp_path / "out" / PARQUET).to_pylist()
    assert sorted(Path(row["input"]).name for row in rows) == ["\\udcff.nii", "ct0000.nii"]
    for name in (TABLE, OVERVIEW):
        assert "\\udcff.nii" in (tmp_path / "out" / name).read_text(encoding="utf-8")


# Wrong calls


@pytest.mark.parametrize(
    ("more", "status", "says"),
    [
        (["--format", "jpg"], 3, "choose one of seg.nrrd"),
        (["--workers", "0"], 3, "at least 1"),
        (["--workers", "2", "--scheduler", "tcp://127.0.0.1:1"], 3, "has its own"),
        (["--scheduler", "tcp://127.0.0.1:1"], 7, "does not answer"),
        (["--retries", "-1"], 3, "0 or more"),
        (["--model", "x"], 4, "no model 'x'"),
    ],
)
def test_a_wrong_call_ends_in_one_sentence(
    tmp_path: Path,
    manifest_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    status: int,
    says: str,
) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.5)
    write_inputs(tmp_path / "in", 1)
    call = ["batch", str(tmp_path / "in"), str(tmp_path / "out"), "--task", "vertebrae", "--quiet"]
    assert cli.main([*call, "--manifest", str(manifest_file), "--device", "cpu", *more]) == status
    printed = capsys.readouterr().err
    assert says in printed
    assert printed.count("\n") == 1


def test_two_runs_into_one_folder_do_not_mix(tmp_path: Path, manifest_file: Path) -> None:
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    write_inputs(tmp_path / "in", 1)
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(OutputError, match="Another batch"):
        start_run(tmp_path, manifest_file, [], lambda: False)


def test_a_missing_package_is_told_with_the_command_that_installs_it(
    tmp_path: Path, manifest_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(InstallationError, match="pip install"), cluster.connected("local", 1, "cpu"):
        pass
    monkeypatch.setattr(planning, "find_spec", lambda name: None)
    with pytest.raises(InstallationError, match="highdicom"):
        make_plan(request(manifest_file), tmp_path, "dcm")
