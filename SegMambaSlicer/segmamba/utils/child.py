"""Child processes that end with all that they have started, and whose end is noticed.

In Slicer ``sys.executable`` is a launcher, `PythonSlicer`: it starts Python as a child of its own and waits for it. It
passes no signal on, so ending it alone leaves Python running, with its memory and its open pipes. Where Python crashes
or is killed, it writes that this did "exit abnormally" and exits with status 1.

So a child here is the leader of a process group, which is ended as a whole (on Windows, the tree of processes is); and
it has a pipe as standard input, whose end tells it that its parent is gone (`call_at_end_of_input`).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

# What PythonSlicer writes of a Python that a signal or an exception of Windows has ended.
ABNORMAL = "exit abnormally"
# What Python's faulthandler writes first.
FAULT = re.compile(r"(?:Fatal Python error|Windows fatal exception): (.+)")
# What Windows gives for a process that a crash ended, as signals do elsewhere.
WINDOWS_CRASH = 0xC0000000
# To wait for the end of a process that was killed.
LAST_SECONDS = 5.0
NEW_GROUP = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
NO_WINDOW = getattr(subprocess, "CREATE_NO_WINDOW", 0)


class Child:
    """A running child process with pipes for standard input and output.

    Parameters
    ----------
    command : sequence of str
    environment : mapping, optional
        All of its environment variables; by default those of this process.
    folder : Path, optional
        Where it starts; by default the folder of this process.
    one_stream : bool
        Whether standard error goes into standard output; otherwise it is a pipe of its own.

    Attributes
    ----------
    pid : int
        Of the process that was started; in Slicer that is a launcher.
    input, output, log : binary streams
        The ends of this process; ``log`` is None where there is one stream.

    Raises
    ------
    OSError
        It cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        one_stream: bool = False,
    ) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if one_stream else subprocess.PIPE,
            env=environment,
            cwd=folder,
            # Also, Ctrl-C in the terminal is the parent's affair.
            start_new_session=True,
            creationflags=NEW_GROUP | NO_WINDOW,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self.pid = self._process.pid
        self.input, self.output, self.log = self._process.stdin, self._process.stdout, self._process.stderr
        self._ending, self._ended = threading.Lock(), False
        # A launcher that ends alone leaves a Python that holds the pipes open.
        threading.Thread(target=self._end_with_launcher, name="child", daemon=True).start()

    @property
    def running(self) -> bool:
        """Whether the process that was started still runs."""
        return self._process.poll() is None

    def wait(self, seconds: float | None = None) -> int | None:
        """Return the exit status, negative for a signal; None if it still runs after ``seconds``."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def close_input(self) -> None:
        """Ask it to stop, if it is one that stops when its standard input ends."""
        with contextlib.suppress(OSError, ValueError):
            self.input.close()

    def end(self) -> None:
        """End it and all that it has started, at once; return when it is gone. Any thread may call this, repeatedly.

        A driver may hold a process back that is about to end; that is not waited for longer than `LAST_SECONDS`.
        """
        with self._ending:
            # Once only: later the number may be another process's.
            if not self._ended:
                self._end_all()
                self._ended = True
        # After that: a thread that waits to write into the pipe is free now.
        self.close_input()
        self.wait(LAST_SECONDS)

    def _end_all(self) -> None:
        if sys.platform == "win32":
            if self.running:
                command = ["taskkill", "/F", "/T", "/PID", str(self.pid)]
                with contextlib.suppress(OSError):
                    subprocess.run(command, capture_output=True, check=False, creationflags=NO_WINDOW)
        else:
            # There is none if all have ended; macOS does not permit it where only zombies are left.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self._process.kill()

    def _end_with_launcher(self) -> None:
        self._process.wait()
        self.end()


@dataclass(frozen=True)
class End:
    """How a process ended.

    Attributes
    ----------
    status : int
    killed : str
        The name of the signal by which somebody killed it, most likely the system because memory ran out; "killed"
        where a launcher hides the signal; else an empty text.
    crash : str
        The signal or exception of a crash, or an empty text.
    words : str
        The last line that it wrote itself.
    """

    status: int
    killed: str
    crash: str
    words: str


def how_it_ended(status: int, lines: Sequence[str]) -> End:
    """Tell crashed and killed processes from those that ended by themselves, with and without a launcher.

    Parameters
    ----------
    status : int
        The exit status, negative for a signal.
    lines : sequence of str
        The last lines that it wrote, with those of Python's faulthandler, and those of its launcher.
    """
    said = [line for line in lines if line.strip()]
    hidden = status == 1 and bool(said) and ABNORMAL in said[-1]
    if hidden:
        del said[-1]
    name = _signal_name(-status) if status < 0 else f"0x{status:08X}" if status >= WINDOWS_CRASH else ""
    if not (name or hidden):
        return End(status, "", "", said[-1] if said else "")
    # What follows it is a traceback of all threads.
    faults = [(index, found[1]) for index, line in enumerate(said) if (found := FAULT.match(line))]
    if faults:
        index, fault = faults[-1]
        del said[index:]
        name = name or fault
    words = said[-1] if said else ""
    if name == "SIGKILL" or not name:
        return End(status, name or "killed", "", words)
    return End(status, "", name, words)


def take_input() -> BinaryIO:
    """Take standard input from this process's own children, which get an empty one, and return it.

    A child on Windows would wait at its start for the thread that reads from the same pipe.
    """
    taken = os.dup(0)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return os.fdopen(taken, "rb")


def take_output() -> BinaryIO:
    """Return standard output, for a child process's own messages; whatever else writes there goes to standard error."""
    taken = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return taken


def call_at_end_of_input(stop: Callable[[], None], last_seconds: float) -> None:
    """In a child process: call ``stop`` when standard input ends, and end the process if it then does not.

    Parameters
    ----------
    stop : callable
        Called in another thread.
    last_seconds : float
        Seconds from that call to the end of the process.
    """
    stream = take_input()

    def follow() -> None:
        # Nothing is expected to be written into it.
        while stream.read(1):
            pass
        stop()
        time.sleep(last_seconds)
        os._exit(1)

    threading.Thread(target=follow, name="end of input", daemon=True).start()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
