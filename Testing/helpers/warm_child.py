"""Child processes that need not import anything: they are forked from one that has imported everything once.

For tests of what a worker or a command does: importing torch takes seconds. How these start is tested without this.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

from launcher import PYTHON, launch

from segmamba.utils import child as children
from segmamba.utils.child import Child
from segmamba.worker import client

IMPORTED = [
    "jinja2",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "nibabel",
    "segmamba.batch.run",
    "segmamba.cli.main",
    "segmamba.inference.pipeline",
    "segmamba.models.import_checkpoint",
    "segmamba.networks.spine_mamba",
    "segmamba.worker.server",
]


class WarmChild(Child):
    """Takes the place of `Child` where a module of ours is run: ``python -m segmamba...``, behind a launcher or not."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        one_stream: bool = False,
    ) -> None:
        context = warm_context()
        taken, given = context.Pipe(duplex=False)
        outputs = [context.Pipe(duplex=False) for _ in range(1 if one_stream else 2)]
        written = [end for _, end in outputs]
        own = list(command[command.index("-m") + 1 :])
        arguments = (own, dict(environment or os.environ), folder, taken, written, _is_launcher(command[0]))
        process = context.Process(target=_run, args=arguments, daemon=True)
        process.start()
        self._process = _Forked(process)  # type: ignore[assignment]
        self.pid = process.pid or 0
        self.input = _file(given, "wb")
        self.output, *logs = (_file(end, "rb") for end, _ in outputs)
        self.log = logs[0] if logs else None
        for end in (taken, *written):
            end.close()
        self._ending, self._ended = threading.Lock(), False
        threading.Thread(target=self._end_with_launcher, name="child", daemon=True).start()


class BatchChild(WarmChild):
    """Runs ``python -m segmamba batch`` with an engine that needs no process; ``engine`` is one of `quick_engine`."""

    def __init__(
        self,
        engine: str,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *more: Any,
        **options: Any,
    ) -> None:
        ours = ["helpers.batch_here" if part == "segmamba" else part for part in command]
        super().__init__(ours, {**(environment or os.environ), "TEST_ENGINE": engine}, *more, **options)


@contextmanager
def warm_children() -> Iterator[None]:
    """Let workers and commands of ours that start in the block be forked, where the system can."""
    with patch.object(client, "Child", start_child), patch.object(children, "Child", start_child):
        yield


@contextmanager
def cold_children() -> Iterator[None]:
    """Let them be started, as they are for the user."""
    with patch.object(client, "Child", Child), patch.object(children, "Child", Child):
        yield


def start_child(command: Sequence[str], *more: Any, **options: Any) -> Child:
    """Start a command; it is forked if it is a module of ours in a Python that is there."""
    ours = "-m" in command[:2] and command[2].startswith(("segmamba", "helpers"))
    known = command[0] in (PYTHON, sys.executable) or _is_launcher(command[0])
    return (WarmChild if ours and known and os.name != "nt" else Child)(command, *more, **options)


def start_file(path: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> Any:
    """Start ``python PATH ARGUMENTS...`` with these environment variables besides those of this process.

    Returns
    -------
    multiprocessing.Process
    """
    process = warm_context().Process(
        target=_run_file, args=(str(path), list(arguments), {**os.environ, **environment}), daemon=True
    )
    process.start()
    return process


def _run_file(path: str, arguments: list[str], environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = [path, *arguments]
    runpy.run_path(path, run_name="__main__")


def _is_launcher(program: str) -> bool:
    return Path(program).name == "PythonSlicer" and Path(program).is_file()


def warm_context() -> Any:
    """Return the context of `multiprocessing` whose processes are forked from one that has imported all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


class _Forked:
    """What `Child` asks of a `subprocess.Popen`; any thread may."""

    def __init__(self, process: Any) -> None:
        self._process = process
        self._reading = threading.Lock()

    def poll(self) -> int | None:
        with self._reading:
            status: int | None = self._process.exitcode
        return status

    def wait(self, seconds: float | None = None) -> int | None:
        if not connection.wait([self._process.sentinel], seconds):
            raise subprocess.TimeoutExpired("", seconds or 0.0)
        return self.poll()

    def kill(self) -> None:
        with self._reading:
            self._process.kill()


def _file(end: connection.Connection, mode: str) -> Any:
    # Unbuffered would be another kind of object than Popen's.
    taken = os.fdopen(os.dup(end.fileno()), mode)
    end.close()
    return taken


def _run(
    command: list[str],
    environment: dict[str, str],
    folder: Path | None,
    given: connection.Connection,
    written: list[connection.Connection],
    launched: bool,
) -> None:
    """Become what the command starts, in the new process."""
    os.setsid()
    for number, end in enumerate((given, written[0], written[-1])):
        os.dup2(end.fileno(), number)
    for end in (given, *written):
        end.close()
    if launched:
        launch(PYTHON, os.fork)
    # As at Python's own start, none of them closes its number: that would be the next file's.
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    if folder is not None:
        os.chdir(folder)
    module, *sys.argv[1:] = command
    runpy.run_module(module, run_name="__main__", alter_sys=True)
