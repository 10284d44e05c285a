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
import threading
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
# What the messages of a child process begin with: its first one, an answer, and the error of a function.
READY, ANSWER, ERROR = "ready", "answer", "error"
# So many at most. Each takes 150 MB; with four the vertebrae of a chest CT took 0.07 s more, with eight not less.
MOST = 6

Found = TypeVar("Found")


class HelperProcesses:
    """Child processes that make calls, each of any thread; until they are ready, calls are made here.

    Attributes
    ----------
    allowed : bool
        Whether `begin` does anything. An engine in a process of its own sets it: others would have them in the way.
    """

    def __init__(self) -> None:
        self.allowed = False
        self._begun = False
        self._pool: _Pool | None = None
        self._lock = threading.Lock()

    def begin(self, ahead: bool) -> None:
        """From now on have calls made in child processes, where this process may use enough processors.

        They start now (``ahead``), or with the first call.
        """
        self._begun = self.allowed and processors() > FEW
        if ahead:
            self._started()

    @property
    def at_a_time(self) -> int:
        """How many calls are worth making at a time."""
        pool = self._pool
        return FEW if pool is None or not pool.ready.is_set() else len(pool.helpers)

    def end(self) -> None:
        """End all, while they make no calls."""
        with self._lock:
            pool, self._pool, self._begun = self._pool, None, False
        if pool is not None:
            pool.end()

    def call(self, function: Callable[..., Found], *arguments: Any) -> Found:
        """Return what a function of a module gives, which must not depend on anything but its arguments."""
        pool = self._started()
        if pool is None or not pool.ready.is_set():
            return function(*arguments)
        helper = pool.idle.get()
        try:
            return helper.call(function, *arguments)
        finally:
            pool.idle.put(helper)

    def _started(self) -> _Pool | None:
        with self._lock:
            if self._begun and self._pool is None:
                self._pool = _Pool()
            return self._pool


class _Pool:
    """Some helper processes: those that started and make no call are in ``idle``, once they are ``ready``."""

    def __init__(self) -> None:
        self.helpers = [HelperProcess() for _ in range(min(MOST, processors() - 1))]
        self.idle: queue.LifoQueue[HelperProcess] = queue.LifoQueue()
        self.ready = threading.Event()
        for helper in self.helpers:
            helper.start()
        threading.Thread(target=self._wait, name="helpers", daemon=True).start()

    def end(self) -> None:
        for helper in self.helpers:
            helper.end()

    def _wait(self) -> None:
        for helper in self.helpers:
            if helper.is_ready():
                self.idle.put(helper)
        # Not with the first one: until the others were there, all calls would wait for it.
        if not self.idle.empty():
            self.ready.set()


class HelperProcess:
    """Makes calls in a child process, which ends with this one; one that fails is replaced with the next call."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the child process; it is ready for calls a second later."""
        try:
            # Not a `Child`: it belongs to the engine's process group, which is ended as a whole. From another folder
            # Python might import a user's numpy.py.
            self._child = subprocess.Popen(
                COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PACKAGES, creationflags=NO_WINDOW
            )
        except OSError as error:
            logger.warning("No process could be started beside the engine: %s", error)

    def is_ready(self) -> bool:
        """Wait for the child process to say that it is ready; say whether it did."""
        child = self._child
        try:
            return child is not None and _message(child)[0] == READY
        except Exception as error:
            logger.warning("A process beside the engine did not start: %r", error)
            return False

    def call(self, function: Callable[..., Found], *arguments: Any) -> Found:
        """Return what a function gives; it is called here where the child process does not answer."""
        if self._child is None:
            self.start()
            if not self.is_ready():
                self.end()
                return function(*arguments)
        assert self._child is not None
        try:
            word, answer = _answered(self._child, function, arguments)
        except Exception as error:
            # It may have failed in any way, and what it sends may be anything.
            logger.warning("%s was called by the engine, as the process for it failed: %r", function.__name__, error)
            self.end()
            return function(*arguments)
        if word == ANSWER:
            return answer  # type: ignore[no-any-return]
        found = function(*arguments)  # an error of the function comes again, with all that belongs to it
        logger.warning("%s was called by the engine, as it failed in its process: %s", function.__name__, answer)
        return found

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
    """Say that this process is ready, and make the calls that come in until no more come."""
    _send(_packed(READY, None), taken)
    while True:
        try:
            function, arguments = pickle.load(given)  # nosec B301
        except EOFError:
            return
        try:
            answer = _packed(ANSWER, function(*arguments))
        except Exception as error:
            answer = _packed(ERROR, repr(error))
        _send(answer, taken)


def _answered(
    child: subprocess.Popen[bytes], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> tuple[str, Any]:
    assert child.stdin is not None
    _send(_packed(function, arguments), child.stdin)
    word, answer = _message(child)
    if word not in (ANSWER, ERROR):
        raise ValueError("it did not answer")
    return word, answer


def _message(child: subprocess.Popen[bytes]) -> tuple[str, Any]:
    assert child.stdout is not None
    word, content = pickle.load(child.stdout)  # nosec B301
    return word, content


def _packed(*message: Any) -> bytes:
    return pickle.dumps(message, pickle.HIGHEST_PROTOCOL)


def _send(message: bytes, stream: IO[bytes]) -> None:
    stream.write(message)
    stream.flush()


# Those of this process.
helper_processes = HelperProcesses()

if __name__ == "__main__":
    answers = take_output()
    importlib.import_module(FIRST)
    serve(take_input(), answers)
