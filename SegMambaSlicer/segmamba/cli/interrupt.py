"""Ctrl-C as a wish to stop, instead of an exception in the midst of something."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from segmamba.utils.child import call_at_end_of_input

# Seconds that a command has to end by itself after its parent is gone: a batch writes its table.
LAST_SECONDS = 30.0


def stop_at_end_of_input() -> None:
    """Take the end of standard input for Ctrl-C from now on: a program that started this one asks so, or is gone."""

    def press() -> None:
        if sys.platform == "win32":
            signal.raise_signal(signal.SIGINT)
        else:
            # In the main thread, so that it does not go on waiting for something.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    call_at_end_of_input(press, LAST_SECONDS)


@contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether Ctrl-C was pressed; pressed twice it interrupts at once."""
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    if threading.current_thread() is not threading.main_thread():
        yield stopped.is_set
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped.is_set
    finally:
        signal.signal(signal.SIGINT, before)
