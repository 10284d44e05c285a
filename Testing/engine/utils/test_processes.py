"""Calls in child processes: the same answers, whatever becomes of those processes."""

from __future__ import annotations

import io
import logging
import math
import operator
import os
import pickle
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from helpers.own_time import PATIENCE
from helpers.phantoms import STRAIGHT, phantom, spine_model, true_labels
from matplotlib.image import imread

from segmamba.measurements.vertebrae import _measured_alone, masks_of, measure_labels
from segmamba.reporting import slice_planes
from segmamba.reporting.preview import compose, draw
from segmamba.spine.levels import L1
from segmamba.utils import processes
from segmamba.utils.processes import ANSWER, ERROR, MOST, READY, HelperProcess, HelperProcesses, helper_processes, serve


def children() -> list[subprocess.Popen[bytes]]:
    pool = helper_processes._pool
    return [] if pool is None else [helper._child for helper in pool.helpers if helper._child is not None]


def wait_until_ready() -> None:
    """Wait for all helpers of this process."""
    pool = helper_processes._pool
    assert pool is not None and pool.ready.wait(PATIENCE)
    assert pool.idle.qsize() == MOST


@contextmanager
def begun(ahead: bool = True) -> Iterator[None]:
    """Have calls made in helpers of this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "processors", lambda: 16)
        patch.setattr(helper_processes, "allowed", True)
        helper_processes.begin(ahead)
        try:
            yield
        finally:
            helper_processes.end()


def test_one_process_makes_all_calls_a_killed_one_loses_none_and_it_ends_with_its_input() -> None:
    helper = HelperProcess()
    try:
        # Not compared with the child's own number, which may be that of a launcher.
        first = helper.call(os.getpid)
        child = helper._child
        assert helper.call(os.getpid) == first != os.getpid()
        assert child is not None and helper._child is child
        child.kill()
        child.wait()
        assert helper.call(os.getpid) == os.getpid()
        assert helper._child is None
        assert helper.call(os.getpid) != os.getpid()
        assert helper._child is not None and helper._child is not child
        assert helper._child.stdin is not None
        helper._child.stdin.close()
        assert helper._child.wait(PATIENCE) == 0
    finally:
        helper.end()


@pytest.mark.parametrize(
    "code",
    [
        "raise SystemExit(3)",
        "print('no answer')",
        f"import os; os.write(1, {pickle.dumps(('words', 1))!r})",
        f"import os; os.write(1, {pickle.dumps((READY, None)) + pickle.dumps(('words', 1))!r})",
        f"import os; os.write(1, {pickle.dumps((READY, None)) + pickle.dumps((ANSWER, 'long' * 99))[:50]!r})",
    ],
)
def test_a_process_that_does_not_answer_costs_no_call(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "COMMAND", (processes.COMMAND[0], "-S", "-c", code))
    helper = HelperProcess()
    assert helper.call(os.getpid) == os.getpid()
    assert helper._child is None


def test_where_no_process_can_be_started_calls_are_made_here(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(processes, "COMMAND", ("/no/such/program",))
    with caplog.at_level(logging.WARNING):
        assert HelperProcess().call(os.getpid) == os.getpid()
    assert "No process could be started" in caplog.text


def test_the_error_of_a_call_comes_as_if_it_were_made_here_and_costs_no_process() -> None:
    helper = HelperProcess()
    try:
        before = helper.call(os.getpid)
        with pytest.raises(ValueError, match="math domain error"):
            helper.call(math.sqrt, -1.0)
        assert helper.call(os.getpid) == before
    finally:
        helper.end()


def test_what_fails_in_the_process_alone_is_called_here_and_told(caplog: pytest.LogCaptureFixture) -> None:
    helper = HelperProcess()
    try:
        before = helper.call(os.getpid)
        with caplog.at_level(logging.WARNING):
            assert isinstance(helper.call(threading.Lock), type(threading.Lock()))  # it cannot be pickled
        assert "failed in its process" in caplog.text and "pickle" in caplog.text
        assert helper.call(os.getpid) == before
    finally:
        helper.end()


def test_as_many_calls_are_made_at_a_time_as_there_are_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[HelperProcess] = []
    all_of_them = threading.Barrier(MOST)

    def called(helper: HelperProcess, *_: object) -> None:
        used.append(helper)
        if len(used) > 3:
            all_of_them.wait(30)

    monkeypatch.setattr(HelperProcess, "call", called)
    monkeypatch.setattr(HelperProcess, "start", lambda helper: None)
    monkeypatch.setattr(HelperProcess, "is_ready", lambda helper: True)
    with begun():
        wait_until_ready()
        for _ in range(3):
            helper_processes.call(os.getpid)
        assert len(set(used)) == 1
        with ThreadPoolExecutor(MOST) as threads:
            list(threads.map(helper_processes.call, [os.getpid] * MOST))
    assert len(set(used[3:])) == MOST


@pytest.mark.parametrize(("allowed", "count"), [(False, 16), (True, 4)])
def test_none_are_started_in_other_programs_or_where_there_is_no_processor_for_them(
    allowed: bool, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "processors", lambda: count)
    own = HelperProcesses()
    own.allowed = allowed
    own.begin(ahead=True)
    assert own.call(os.getpid) == os.getpid()
    assert own._pool is None


@pytest.mark.parametrize("ahead", [True, False])
def test_processes_start_ahead_or_with_a_call_and_until_they_are_ready_calls_are_made_here(
    ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_be = threading.Event()
    is_ready = HelperProcess.is_ready
    monkeypatch.setattr(HelperProcess, "is_ready", lambda helper: may_be.wait(PATIENCE) and is_ready(helper))
    with begun(ahead):
        assert len(children()) == MOST * ahead
        assert helper_processes.call(os.getpid) == os.getpid()
        assert len(children()) == MOST
        may_be.set()
        wait_until_ready()
        assert helper_processes.call(os.getpid) != os.getpid()


def test_calls_do_not_wait_for_the_process_that_is_ready_first(monkeypatch: pytest.MonkeyPatch) -> None:
    first, others = threading.Event(), threading.Event()

    def is_ready(helper: HelperProcess) -> bool:
        if first.is_set():
            return others.wait(PATIENCE)
        first.set()
        return True

    monkeypatch.setattr(HelperProcess, "start", lambda helper: None)
    monkeypatch.setattr(HelperProcess, "is_ready", is_ready)
    monkeypatch.setattr(HelperProcess, "call", lambda *_: -1)
    with begun():
        assert first.wait(PATIENCE)
        assert helper_processes.call(os.getpid) == os.getpid()
        others.set()
        wait_until_ready()
        assert helper_processes.call(os.getpid) == -1


def test_a_process_has_imported_what_its_calls_need_when_it_is_ready() -> None:
    # A first call that imports more is waited for: on a slow disk a second.
    masks = masks_of(true_labels(STRAIGHT), STRAIGHT, spine_model().labels)
    modules = "sorted(__import__('sys').modules)"
    helper = HelperProcess()
    try:
        before = helper.call(eval, modules)
        body, note, plates = helper.call(_measured_alone, masks[L1], np.array([0.0, 0.0, 1.0]), None)
        assert body is not None and note is None and plates is not None
        assert helper.call(eval, modules) == before
    finally:
        helper.end()


def test_after_the_end_calls_are_made_here() -> None:
    with begun():
        wait_until_ready()
        before = children()
        helper_processes.end()
        assert all(child.poll() is not None for child in before)
        assert helper_processes.call(os.getpid) == os.getpid()
        assert not children()


def test_calls_are_made_until_no_more_come() -> None:
    given, answers = io.BytesIO(), io.BytesIO()
    for number in (1, "a", 2):
        pickle.dump((operator.neg, (number,)), given)
    given.seek(0)
    serve(given, answers)
    answers.seek(0)
    ready, first, second, third = (pickle.load(answers) for _ in range(4))
    assert ready == (READY, None)
    assert (first, third) == ((ANSWER, -1), (ANSWER, -2))
    assert second[0] == ERROR and "TypeError" in second[1]


def test_a_preview_and_measurements_are_the_same_from_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slice_planes, "LONGEST_SIDE", 60)
    labels, model = true_labels(STRAIGHT), spine_model()
    composed = compose(phantom(), labels, model, "case")
    picture, rows = draw(composed), measure_labels(labels, phantom(), model.labels)
    assert any(row["anterior_height_mm"] for row in rows)
    called: list[str] = []

    def call(helper: HelperProcess, function: Callable[..., Any], *arguments: object) -> Any:
        called.append(function.__name__)
        return make_call(helper, function, *arguments)

    make_call = HelperProcess.call
    monkeypatch.setattr(HelperProcess, "call", call)
    with begun():
        wait_until_ready()
        before = children()
        assert measure_labels(labels, phantom(), model.labels) == rows
        drawn = helper_processes.call(draw, composed)
        assert children() == before  # none had to be replaced
    assert set(called) == {"_measured_alone", "draw"}
    one, other = (np.asarray(imread(io.BytesIO(each), format="png")) for each in (picture, drawn))
    assert (one == other).all()
