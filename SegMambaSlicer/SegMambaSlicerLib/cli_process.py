"""Programs, and the command line ``segmamba``, in a process of their own that Slicer does not wait for.

Not through ``slicer.util.launchConsoleProcess``: what that starts cannot be ended, since `PythonSlicer` is a launcher
(see `segmamba.utils.child`), and a callback that raises keeps it from saying that the process has ended.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence

import qt

from segmamba.errors import InstallationError
from segmamba.utils.child import Child
from segmamba.worker.client import worker_environment
from segmamba_mrml.application import worker_python

INTERVAL_MS = 50
# Python's other threads, which read from the process, only run while the main thread waits or runs Python.
LISTENING_S = 0.002


class Program:
    """A program that runs; its lines and its end are told from Qt's event loop.

    Parameters
    ----------
    command : sequence of str
    onLine : callable
        Called with each line that it writes.
    onEnd : callable
        Called with its exit status, once.
    environment : mapping, optional
        All of its environment variables; by default those of Slicer.

    Raises
    ------
    OSError
        It cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        onLine: Callable[[str], None],
        onEnd: Callable[[int], None],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._onLine, self._onEnd = onLine, onEnd
        self._heard: queue.SimpleQueue[str | int] = queue.SimpleQueue()
        self._over = False
        self.child = Child(command, environment, one_stream=True)
        # It knows nothing of the timer: what a thread is the last to hold is destroyed there, and a timer must not be.
        threading.Thread(target=_read, args=(self.child, self._heard), name="program", daemon=True).start()
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.connect("timeout()", self._listen)
        self._timer.start(INTERVAL_MS)

    def askToStop(self) -> None:
        """Ask it to stop, as Ctrl-C does; its end is told."""
        self.child.close_input()

    def end(self) -> None:
        """End it at once, with all that it has started; from now on nothing is told of it."""
        self._over = True
        self._timer.stop()
        self.child.end()

    def _listen(self) -> None:
        try:
            self._tell()
        except Exception:
            # A mistake in a callback must not hide the end from the others.
            logging.exception("SegMambaSlicer")
        finally:
            if not self._over:
                self._timer.start(INTERVAL_MS)

    def _tell(self) -> None:
        # A callback may end it.
        while not self._over:
            try:
                heard = self._heard.get(timeout=LISTENING_S)
            except queue.Empty:
                return
            if isinstance(heard, str):
                self._onLine(heard)
            else:
                self._over = True
                self._onEnd(heard)


def _read(child: Child, heard: queue.SimpleQueue[str | int]) -> None:
    """Put the lines that a program writes into a queue, then its exit status."""
    with child.output as stream:
        for raw in stream:
            heard.put(raw.decode("utf-8", errors="replace").rstrip())
    status = child.wait()
    assert status is not None
    heard.put(status)


def startCommand(arguments: list[str], onLine: Callable[[str], None], onEnd: Callable[[int], None]) -> Program:
    """Start ``segmamba`` with arguments. It stops by itself when Slicer ends, in whatever way.

    Parameters
    ----------
    arguments : list of str
    onLine, onEnd : callable
        As for `Program`.

    Raises
    ------
    InstallationError
        Python is not there, or cannot be run.
    """
    command = [worker_python(), "-m", "segmamba", "--stop-at-eof", *arguments]
    try:
        # On Windows a pipe would get the old encoding of the system.
        return Program(command, onLine, onEnd, {**worker_environment(), "PYTHONIOENCODING": "utf-8"})
    except OSError as error:
        raise InstallationError(f"{command[0]} cannot be run ({error}): install 3D Slicer again.") from error
