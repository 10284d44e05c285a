"""Calls on all processors."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
from helpers.own_time import PATIENCE

from segmamba.errors import Cancelled
from segmamba.utils.parallel import at_once
from segmamba.worker.client import worker_environment


def test_results_come_in_the_order_of_the_items() -> None:
    assert list(at_once(lambda item: item**2, [3, 1, 2]).items()) == [(3, 9), (1, 1), (2, 4)]


def test_what_a_call_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        at_once(lambda item: 1 / item, [1, 0, 2])


def test_a_check_that_raises_ends_what_has_not_begun() -> None:
    begun, go_on = [], threading.Event()

    def call(item: int) -> None:
        begun.append(item)
        go_on.wait(PATIENCE)

    def check() -> None:
        go_on.set()
        raise Cancelled()

    with pytest.raises(Cancelled):
        at_once(call, range(10_000), check)
    assert len(begun) < 10_000


def test_no_more_threads_run_than_asked_for() -> None:
    names = at_once(lambda _: threading.current_thread().name, range(50), most=1)
    assert len(set(names.values())) == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be kept to some processors here")
def test_no_more_threads_run_than_the_process_may_use_processors() -> None:
    program = (
        "import os\n"
        "from segmamba.utils.parallel import processors\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "print(processors())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=worker_environment(), capture_output=True, text=True)
    assert done.stdout.strip() == "1", done.stderr
