"""Cases side by side in one engine: the next is read while one is in the networks, and a crash loses none for good."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.repository import REPOSITORY

from segmamba.batch.engine import Engine
from segmamba.errors import Cancelled, WorkerError
from segmamba.request import Request
from segmamba.worker.client import WorkerProcess
from segmamba.worker.stations import STATIONS, Stations, process_memory


def never() -> bool:
    return False


def way(stations: Stations, job: str, *stages: str) -> threading.Thread:
    """Send a job through some stages, in a thread of its own."""

    def go() -> None:
        for stage in stages:
            stations.enter(job, stage, never)
        stations.leave(job, True)

    thread = threading.Thread(target=go)
    thread.start()
    return thread


def test_the_first_job_goes_alone_and_the_next_ones_follow_each_other_station_by_station() -> None:
    stations = Stations(lambda: (1, 10))
    stations.enter("a", "read", never)
    stations.enter("a", "predict", never)
    with pytest.raises(Cancelled):
        stations.enter("b", "read", lambda: True)
    stations.leave("a", True)
    stations.enter("b", "read", never)
    stations.enter("b", "load", never)
    stations.enter("c", "read", never)
    with pytest.raises(Cancelled):
        stations.enter("c", "predict", lambda: True)
    stations.enter("b", "predict", never)
    follower = way(stations, "c", "predict", "write")
    stations.enter("b", "postprocess", never)
    stations.enter("b", "write", never)
    stations.leave("b", True)
    follower.join(10)
    assert not follower.is_alive()


def test_two_jobs_are_written_at_a_time_and_the_third_waits_where_it_is() -> None:
    stations = Stations(lambda: (1, 10))
    stations.enter("first", "read", never)
    stations.leave("first", True)
    for job in "ab":
        for stage in STATIONS:
            stations.enter(job, stage, never)
    for stage in ("read", "predict", "postprocess"):
        stations.enter("c", stage, never)
    with pytest.raises(Cancelled):
        stations.enter("c", "write", lambda: True)
    # The one that came later may be done first.
    stations.leave("b", True)
    stations.enter("c", "write", never)


def test_a_job_waits_where_memory_does_not_suffice_for_one_more() -> None:
    memory = [3, 5]
    stations = Stations(lambda: (memory[0], memory[1]))
    stations.enter("first", "read", never)
    stations.leave("first", True)
    stations.enter("a", "read", never)
    stations.enter("a", "load", never)
    with pytest.raises(Cancelled):
        stations.enter("b", "read", lambda: True)
    memory[:] = 4, 6  # the first job alone took 3
    stations.enter("b", "read", never)


def test_a_job_that_failed_says_nothing_of_the_memory_that_one_takes() -> None:
    stations = Stations(lambda: (1, 10))
    stations.enter("a", "read", never)
    stations.leave("a", False)
    stations.enter("b", "read", never)
    stations.enter("b", "load", never)
    with pytest.raises(Cancelled):
        stations.enter("c", "read", lambda: True)


@pytest.fixture
def engine() -> Iterator[Engine]:
    """An engine whose jobs do what their names say; one has been done."""
    made = Engine()
    environment = {"PYTHONPATH": str(REPOSITORY / "Testing")}
    made._worker = WorkerProcess(environment=environment, module="helpers.staged_worker")
    yield made
    made.stop()


@pytest.fixture
def run(engine: Engine, tmp_path: Path) -> Callable[..., object]:
    """Does a case, alone or not, and returns its name."""
    return lambda name, alone=False: engine.run(Request(name, str(tmp_path / "out")), alone)["own"]


def wait_until_read(case: Future[object], begun: Path) -> None:
    """Wait until a case is being read: the next one comes behind it then, and cannot take its place."""
    while not begun.exists() and not case.done():
        time.sleep(0.005)


def test_one_case_is_read_and_another_written_while_the_networks_run_on_a_third(
    run: Callable[..., object], tmp_path: Path
) -> None:
    assert run("first") == "first"
    with ThreadPoolExecutor(3) as threads:
        # Each can only go on once the other two are where they should be.
        last = threads.submit(run, "a@write:c@read")
        wait_until_read(last, tmp_path / "a@read")
        here = threads.submit(run, "b@predict:a@write")
        wait_until_read(here, tmp_path / "b@read")
        following = threads.submit(run, "c@read:b@predict")
        assert [each.result(60) for each in (last, here, following)] == ["a", "b", "c"]


def test_a_crash_is_told_to_all_cases_that_it_took_and_they_are_done_alone(
    run: Callable[..., object], tmp_path: Path
) -> None:
    assert run("first") == "first"
    with ThreadPoolExecutor(2) as threads:
        crash = threads.submit(run, "crash@predict:b@read")
        wait_until_read(crash, tmp_path / "crash@read")
        beside = threads.submit(run, "b@read:never")
        for each in (crash, beside):
            with pytest.raises(WorkerError, match="exit status 9"):
                each.result(60)
        alone = [threads.submit(run, name, True) for name in ("b", "crash@predict:b@read", "c")]
        assert alone[0].result(60) == "b"
        with pytest.raises(WorkerError):
            alone[1].result(60)
        assert alone[2].result(60) == "c"


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_process_that_ends_just_before_another_case_comes_leaves_no_case_waiting(
    engine: Engine, run: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("first") == "first"
    ready = engine._wait_until_ready

    def ready_and_killed() -> None:
        ready()
        monkeypatch.setattr(engine, "_wait_until_ready", ready)
        os.kill(engine._worker.pid or 0, signal.SIGKILL)
        while engine._worker.pid is not None:
            time.sleep(0.005)

    with ThreadPoolExecutor(1) as threads:
        lost = threads.submit(run, "a@predict:never")
        while not (tmp_path / "a@predict").exists():
            time.sleep(0.005)
        monkeypatch.setattr(engine, "_wait_until_ready", ready_and_killed)
        assert run("b") == "b"
        with pytest.raises(WorkerError, match="ended while it worked"):
            lost.result(60)


def test_a_process_never_had_less_than_it_has(tmp_path: Path) -> None:
    most, possible = process_memory()
    assert 10 * 2**20 < most < possible
