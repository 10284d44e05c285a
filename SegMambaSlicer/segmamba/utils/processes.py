"""Calls in child processes, for work that holds Python's lock: matplotlib's, and many small steps of numpy.

``python -m segmamba.utils.processes`` makes the calls that its parent sends, until its input ends. Calls and answers
are pickled: only these two processes have the pipes that they go through.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import pickle
import queue
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

from segmamba.utils.child import NO_WINDOW, take_input, take_output
from segmamba.utils.parallel import FEW, processors

logger = logging.getLogger(__name__)

# The folder that this package lies in.
PACKAGES = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "segmamba.utils.processes")
# What it imports before the first call: what is called for each case.
FIRST = "segmamba.measurements.vertebrae"
# What an answer begins with, and what says that a function had an error.
ANSWER, ERROR = "answer", "error"

Found = TypeVar("Found")


class HelperProcesses:
    """Child processes that make calls, each of any thread; before `begin` and after `end`, calls are made here.

    Attributes
    ----------
    allowed : bool
        Whether `begin` does anything. An engine in a process of its own sets it: others would have them in the way.
    """

    def __init__(self) -> None:
        self.allowed = False
        self._all: list[HelperProcess] = []
        self._idle: queue.LifoQueue[HelperProcess] = queue.LifoQueue()

    def begin(self, ahead: bool) -> None:
        """From now on have calls made in child processes, where this process may use enough processors.

        They start now (``ahead``), or each with its first call.
        """
        if not self._all and self.allowed and processors() > FEW:
            # Each takes 150 MB, and with twice as many a chest CT took as long.
            self._all = [HelperProcess() for _ in range(FEW)]
            for helper in self._all:
                self._idle.put(helper)
        if ahead:
            for helper in self._all:
                helper.start()

    def end(self) -> None:
        """End all, while they make no calls."""
        for helper in self._all:
            helper.end()
        self._all, self._idle = [], queue.LifoQueue()

    def call(self, function: Callable[..., Found], *arguments: Any) -> Found:
        """Return what a function of a module gives, which must not depend on anything but its arguments."""
        if not self._all:
            return function(*arguments)
        idle = self._idle
        helper = idle.get()
        try:
            return helper.call(function, *arguments)
        finally:
            idle.put(helper)


class HelperProcess:
    """Makes calls in a child process, which ends with this one; one that fails is replaced with the next call."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the child process, if there is none; it is ready for calls a second later."""
        if self._child is not None:
            return
        try:
            # Not a `Child`: it belongs to the engine's process group, which is ended as a whole. From another folder
            # Python might import a user's numpy.py.
            self._child = subprocess.Popen(
                COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PACKAGES, creationflags=NO_WINDOW
            )
        except OSError as error:
            logger.warning("No process could be started beside the engine: %s", error)

    def call(self, function: Callable[..., Found], *arguments: Any) -> Found:
        """Return what a function gives; it is called here where the child process does not answer."""
        self.start()
        if self._child is None:
            return function(*arguments)
        try:
            word, answer = _answered(self._child, function, arguments)
        except Exception as error:
            # It may have failed in any way, and what it sends may be anything.
            logger.warning("%s was called by the engine, as the process for it failed: %r", function.__name__, error)
            self.end()
            return function(*arguments)
        # An error of the function comes again, with all that belongs to it.
        return answer if word == ANSWER else function(*arguments)

    def end(self) -> None:
        """End the child process, if there is one."""
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            # What was not sent is not sent any more.
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]


def serve(given: IO[bytes], taken: IO[bytes]) -> None:
    """Make the calls that come in, until no more come."""
    while True:
        try:
            function, arguments = pickle.load(given)  # nosec B301
        except EOFError:
            return
        try:
            answer = ANSWER, function(*arguments)
        except Exception as error:
            answer = ERROR, repr(error)
        _send(answer, taken)


def _answered(
    child: subprocess.Popen[bytes], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> tuple[str, Any]:
    assert child.stdin is not None and child.stdout is not None
    _send((function, arguments), child.stdin)
    word, answer = pickle.load(child.stdout)  # nosec B301
    if word not in (ANSWER, ERROR):
        raise ValueError("it did not answer")
    return word, answer


def _send(message: tuple[Any, Any], stream: IO[bytes]) -> None:
    pickle.dump(message, stream, pickle.HIGHEST_PROTOCOL)
    stream.flush()


# Those of this process.
helper_processes = HelperProcesses()

if __name__ == "__main__":
    answers = take_output()
    importlib.import_module(FIRST)
    serve(take_input(), answers)
