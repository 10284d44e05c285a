"""Many cases over workers: retries, stopping, and workers and schedulers that go."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import many_cases
from helpers.batch_runs import start_run
from helpers.quick_engine import QuickEngine, SlowEngine, quick_run, write_inputs
from helpers.repository import HELPERS, PACKAGES
from helpers.warm_child import cold_children
from pyarrow import parquet

from segmamba.batch import cluster, engine, local
from segmamba.batch.batch_case import BatchCase
from segmamba.batch.cases import find_cases
from segmamba.batch.cluster import LOST, ClusterPool
from segmamba.batch.dispatch import WAITING, run_cases, stoppable_map, wait_for_workers
from segmamba.batch.layout import PARQUET
from segmamba.batch.plan import Plan
from segmamba.batch.pool import Pool
from segmamba.batch.search import cases_below
from segmamba.cli.progress import CaseProgress
from segmamba.errors import Cancelled, InstallationError, WorkerError
from segmamba.request import Request

pytest_plugins = ("helpers.batch_runs",)


class Counting(QuickEngine):
    """Counts how many cases run at a time; one whose name holds a word fails or kills."""

    running, most, attempts = 0, 0, {}  # type: ignore[var-annotated]

    def run(self, request: Request, alone: bool = False) -> dict[str, Any]:
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


@contextmanager
def dask_cluster(workers: int, processes: bool = False) -> Iterator[Any]:
    """A Dask cluster on this computer, in threads of this process or in processes of its own."""
    from distributed import LocalCluster

    options = {"threads_per_worker": 1, "processes": processes, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=workers, **options) as running:
        yield running


@pytest.fixture(params=["local", "dask"])
def pool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """Three workers with counting engines, on this computer or on a Dask cluster."""
    Counting.running, Counting.most, Counting.attempts = 0, 0, {}
    monkeypatch.setattr(engine, "Engine", Counting)
    with ExitStack() as stack:
        if request.param == "local":
            yield stack.enter_context(local.local_pool(3, "cpu"))
        else:
            address = stack.enter_context(dask_cluster(3)).scheduler_address
            yield stack.enter_context(cluster.cluster_pool(address, print))


def test_cases_come_a_few_at_a_time_and_crashes_are_tried_again_within_a_limit(
    pool: Pool, tmp_path: Path, plan: Plan
) -> None:
    write_inputs(tmp_path / "in", 20)
    cases = find_cases([str(tmp_path / "in")], tmp_path / "out")
    auto = replace(plan, request={**plan.request, "options": {**plan.request["options"], "device": "auto"}})
    said = {Path(row["input"]).name: row for row in run_cases(pool, cases, auto, 3, lambda: False)}
    assert len(said) == 20
    assert Counting.most <= pool.size()
    assert [name for name, row in said.items() if row["status"] == "failed"] == ["ct0003.nii"]
    # The last attempt is made on the processor.
    assert Counting.attempts["ct0003.nii"] == ["auto", "auto", "auto", "cpu"]
    assert said["ct0005.nii"]["attempts"] == 3
    assert "repeated" in said["ct0005.nii"]["flags"]
    assert len(Counting.attempts["ct0001.nii"]) == 1


def test_a_wish_to_stop_ends_the_run_between_cases(pool: Pool, tmp_path: Path, plan: Plan) -> None:
    write_inputs(tmp_path / "in", 20)
    cases = find_cases([str(tmp_path / "in")], tmp_path / "out")
    done: list[Any] = []
    with pytest.raises(Cancelled, match="same command"):
        done.extend(row for row in run_cases(pool, cases, plan, 0, lambda: len(Counting.attempts) > 5))
    assert len(Counting.attempts) < 20


def test_a_scheduler_that_goes_is_told_in_one_sentence_and_the_table_is_written(
    tmp_path: Path, manifest_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dask

    monkeypatch.setattr(engine, "Engine", QuickEngine)
    write_inputs(tmp_path / "in", 20)
    with ExitStack() as brief, dask_cluster(1) as running:
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
    found = ClusterPool(None).finished(futures)
    assert [future.status for future in found] == ["finished", "error"]


def set_of(given: Sequence[Any]) -> list[Any]:
    """What Dask's wait calls done: whatever is not pending."""
    return [future for future in given if future.status != "pending"]


def test_a_run_on_the_same_cluster_takes_no_engine_away() -> None:
    def ask(run: str) -> int:
        return id(cluster.own_engine(run))

    def answer(pool: ClusterPool) -> Any:
        return pool.submit(ask, pool.client.id).result()

    with dask_cluster(1) as running:
        address = running.scheduler_address
        with cluster.cluster_pool(address, print) as one:
            before = answer(one)
            with cluster.cluster_pool(address, print) as other:
                assert answer(other) != before
            assert answer(one) == before


def test_looking_through_folders_can_be_stopped_and_ends_in_typed_errors(pool: Pool) -> None:
    def fail(error: Exception) -> list[BatchCase]:
        raise error

    def look(
        asked: Callable[[], bool], function: Callable[[Any], list[BatchCase]], place: Any
    ) -> list[list[BatchCase]]:
        return list(stoppable_map(pool, asked, function, [place]))

    assert look(lambda: False, lambda name: [BatchCase(name, name)], "a") == [[BatchCase("a", "a")]]
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

    monkeypatch.setattr(engine, "Engine", SlowEngine)
    write_inputs(tmp_path / "in", 8)
    shown: list[CaseProgress] = []
    with dask_cluster(2, processes=True) as running:
        victims = [psutil.Process(running.workers[0].pid)]

        def stopped() -> bool:
            if victims and shown and shown[0].counts["done"]:
                victims.pop().kill()
            return False

        start_run(tmp_path, manifest_file, shown, stopped, running.scheduler_address)
    assert not victims
    assert [status for status, _ in many_cases.outcomes(tmp_path / "out").values()] == ["done"] * 8


def test_a_cluster_without_a_worker_is_waited_for_until_there_is_a_wish_to_stop() -> None:
    from distributed import Client

    said: list[str] = []
    asked: list[int] = []

    def stopped() -> bool:
        asked.append(1)
        return len(asked) > 1

    with dask_cluster(0) as empty, Client(empty) as client, pytest.raises(Cancelled):
        wait_for_workers(ClusterPool(client), stopped, said.append)
    assert said == [WAITING]


# Refuses Dask and all that comes with it, then runs the command line with an engine that takes no time.
WITHOUT_DASK = """
import sys
sys.modules.update(dict.fromkeys(("dask", "distributed", "tornado")))
from helpers.quick_engine import QuickEngine
from segmamba.cli import main as cli
from segmamba.batch import engine
engine.Engine = QuickEngine
status = cli.main(sys.argv[1:])
import psutil
assert not psutil.Process().net_connections(), "a connection is open"
sys.exit(status)
"""


def test_a_local_batch_needs_no_dask_and_opens_no_port(tmp_path: Path, manifest_file: Path) -> None:
    write_inputs(tmp_path / "in", 4)
    arguments = many_cases.command(tmp_path / "in", tmp_path / "out", manifest_file, "--workers", "2")[3:]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (PACKAGES, HELPERS.parent)))}
    done = subprocess.run([sys.executable, "-c", WITHOUT_DASK, *arguments], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert [status for status, _ in many_cases.outcomes(tmp_path / "out").values()] == ["done"] * 4


def test_a_search_in_threads_of_this_process_ends_at_the_next_file(tmp_path: Path) -> None:
    write_inputs(tmp_path / "in" / "deep", 20)
    asked: list[int] = []

    def stopped() -> bool:
        asked.append(1)
        return len(asked) > 3

    with pytest.raises(Cancelled):
        cases_below(str(tmp_path / "in"), str(tmp_path / "out"), stopped)
    assert len(asked) == 4


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_the_end_of_a_local_pool_ends_its_engines_wherever_they_are(tmp_path: Path) -> None:
    import psutil

    # The panel's tests keep a worker of their own.
    others = many_cases.engines_below(os.getpid())

    def left() -> list[psutil.Process]:
        return [process for process in many_cases.engines_below(os.getpid()) if process not in others]

    def ended(call: Callable[[], Any]) -> bool:
        with pytest.raises(WorkerError):
            call()
        return True

    # A forked one could not be told from others of its kind.
    with cold_children(), local.local_pool(2, "cpu") as workers:
        # One starts or has started, the other may not even have a process yet.
        begun = [workers.submit(ended, lambda one=one: one.run(Request("", ""))) for one in workers.engines]
        deadline = time.monotonic() + 60
        while not left():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        started = time.monotonic()
    assert time.monotonic() - started < 5
    assert left() == []
    assert all(future.result() for future in begun if not future.cancelled())


@pytest.mark.parametrize(("workers", "threads"), [(3, "4"), (20, "1"), (1, None)])
def test_local_engines_share_the_processors_that_the_process_may_use(
    workers: int, threads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A queue gave the run 12 of a node's 64.
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(12)), raising=False)
    monkeypatch.delenv(local.THREADS, raising=False)
    with local.local_pool(workers, "cpu") as given:
        environments = [one._worker._environment for one in given.engines]
    assert [environment.get(local.THREADS) for environment in environments] == [threads] * workers


@pytest.mark.parametrize(
    ("gpus", "cores", "main", "gpu", "engines"),
    [
        (1, 16, 64, 80, 2),
        (2, 16, 64, 80, 2),
        (2, 32, 64, 80, 4),
        (1, 8, 64, 80, 1),
        (1, 16, 16, 80, 1),
        (1, 16, 64, 12, 1),
        (0, 16, 64, 0, 1),
    ],
)
def test_two_engines_share_a_gpu_where_there_is_room(
    gpus: int, cores: int, main: int, gpu: int, engines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "processors", lambda: cores)
    monkeypatch.setattr(local, "system_memory", lambda: (main * 2**30, main * 2**30))
    monkeypatch.setattr(local, "smallest_gpu", lambda: gpu * 2**30)
    monkeypatch.delenv(local.THREADS, raising=False)
    assert local.default_workers(gpus) == engines
    shared = [local.engine_environment(number, engines, gpus) for number in range(engines)]
    assert {environment.get(local.THREADS) for environment in shared} == {
        str(cores // engines) if engines > max(1, gpus) else None
    }


def test_a_computer_without_nvidia_smi_has_no_gpu_to_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert local.smallest_gpu() == 0


def test_each_worker_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(local.VISIBLE, raising=False)
    assert [local.gpu_of(number, 2) for number in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv(local.VISIBLE, "5,7")
    assert [local.gpu_of(number, 2) for number in range(3)] == ["5", "7", "5"]
