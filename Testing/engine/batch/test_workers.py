"""Many cases over workers: retries, stopping, and workers and schedulers that go."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import many_cases
from helpers.batch_runs import start_run
from helpers.quick_engine import QuickEngine, SlowEngine, quick_run, write_inputs
from pyarrow import parquet

from segmamba.batch import cluster, dispatch, engine
from segmamba.batch.cases import Case, find_cases
from segmamba.batch.dispatch import LOST, WAITING, look_through, run_cases, wait_for_workers
from segmamba.batch.layout import PARQUET
from segmamba.batch.plan import Plan
from segmamba.cli.progress import CaseProgress
from segmamba.errors import Cancelled, InstallationError, WorkerError
from segmamba.request import Request

pytest_plugins = ("helpers.batch_runs",)


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
    local = LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0")
    with ExitStack() as brief, local as running:
        shown: list[CaseProgress] = []

        def stopped() -> bool:
            if shown and shown[0].counts["done"] == 2:
                # The workers look for their scheduler at the end.
                brief.enter_context(dask.config.set({"distributed.comm.timeouts.connect": "1s"}))
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


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_dask_worker_that_is_killed_loses_no_case(
    tmp_path: Path, manifest_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil
    from distributed import LocalCluster

    monkeypatch.setattr(engine, "Engine", SlowEngine)
    write_inputs(tmp_path / "in", 8)
    shown: list[CaseProgress] = []
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


@pytest.mark.parametrize(("workers", "threads"), [(3, "4"), (20, "1"), (1, None)])
def test_local_engines_share_the_processors_that_the_process_may_use(
    workers: int, threads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A queue gave the run 12 of a node's 64.
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(12)), raising=False)
    monkeypatch.delenv(engine.THREADS, raising=False)
    with cluster.connected("local", workers, "cpu") as client:
        name = engine.PREFIX + client.id
        given = client.run(lambda dask_worker: dask_worker.plugins[name]._worker._environment)
    assert [environment.get(engine.THREADS) for environment in given.values()] == [threads] * workers


def test_each_worker_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(engine.VISIBLE, raising=False)
    assert [engine.gpu_of(number, 2) for number in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv(engine.VISIBLE, "5,7")
    assert [engine.gpu_of(number, 2) for number in range(3)] == ["5", "7", "5"]
