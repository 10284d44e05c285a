"""Faults at random moments of real jobs in real worker processes, and what is left of each."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

from helpers import faulty_worker, tiny
from helpers.many_cases import write
from helpers.phantoms import grid_around_patient, phantom, rotation
from helpers.repository import HELPERS
from segmamba.errors import InputError, SegMambaError
from segmamba.io.read import read_volume
from segmamba.models import install as installing
from segmamba.models import store
from segmamba.models.manifest import load_manifest
from segmamba.request import Request
from segmamba.worker.client import WorkerProcess, worker_environment

INSIDE = ("hang", "memory", "gpu lost", "gpu memory", "crash", "disk full", "clock", "surprise")
SIGNALS = {"killed": signal.SIGKILL, "aborted": signal.SIGABRT, "stopped": signal.SIGSTOP}
OUTSIDE = (*SIGNALS, "cancelled", "output folder deleted", "temporary folder deleted", "input cut")
APART = ("parent killed", "installing killed")
KINDS = (*INSIDE, *OUTSIDE, *APART)
Kind = TypeVar("Kind")
MARK = "SEGMAMBA_FAULTS"
PATIENCE = 4.0
START_LIMIT = 300.0
# A new process and a job take about so long, and a job alone.
STARTING_SECONDS, JOB_SECONDS = 1.5, 0.3
# After its parent a worker lives for five seconds at most, if a window is that long; on a busy machine for longer.
ORPHAN_SECONDS = 120.0
LOCK_SECONDS = 60.0


@dataclass
class Tally:
    """What came of the faults: how many of each kind, how jobs ended, and what must not happen."""

    faults: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    orphans: int = 0
    half_written: list[str] = field(default_factory=list)
    unclear_errors: list[str] = field(default_factory=list)
    next_runs_failed: list[str] = field(default_factory=list)
    stuck_locks: int = 0
    hidden_files_left: int = 0

    def sound(self) -> bool:
        """Whether nothing happened that must not."""
        return not (
            self.orphans or self.half_written or self.unclear_errors or self.next_runs_failed or self.stuck_locks
        )


class Laboratory:
    """A folder with an input and a model, and a worker that faults happen to."""

    def __init__(self, folder: Path, seed: int, python: str = sys.executable) -> None:
        self.tally = Tally()
        self._python = python
        self._random = random.Random(seed)
        self._folder = folder
        self._mark = secrets.token_hex(8)
        self._manifest = tiny.write_model(folder)
        volume = phantom(grid_around_patient((6.0, 6.0, 8.0), rotation(0, 0)))
        self._expected = faulty_worker.labels_of(volume.array)
        self._whole = write(volume, folder / "whole.nii.gz").read_bytes()
        self._input, self._temporary, self._out = folder / "ct.nii.gz", folder / "tmp", folder / "out"
        self._worker = self._new_worker()
        self._struck = False

    def __enter__(self) -> Laboratory:
        return self

    def __exit__(self, *error: object) -> None:
        self._worker.close()

    def fault(self, kind: str) -> None:
        """Let a fault happen at a random moment of a job, look at what is left, and do a job in peace."""
        self._prepare(kind)
        self.tally.faults[kind] += 1
        if kind == "installing killed":
            self._kill_installing()
        elif kind == "parent killed":
            self._kill_parent()
        else:
            self._run_with(kind)
        self._look(f"after {kind}")
        self._free_memory(kind)
        self._prepare("none")
        try:
            self._wait_until_ready()
            self._worker.run(self._request())
        except SegMambaError as error:
            self.tally.next_runs_failed.append(f"after {kind}: {error}")
        self._look(f"of the run after {kind}", complete=True)

    def error_of(self, kind: str) -> SegMambaError:
        """Return the error of a job in whose network a fault happens."""
        self._prepare(kind)
        self._wait_until_ready()
        try:
            self._worker.run(self._request())
        except SegMambaError as error:
            self._free_memory(kind)
            return error
        raise AssertionError("no error")

    def pid_after(self, kind: str) -> int | None:
        """Return the worker's process id after a job."""
        self._prepare(kind)
        self._wait_until_ready()
        self._worker.run(self._request())
        return self._worker.pid

    def _free_memory(self, kind: str) -> None:
        if kind == "memory":
            # The limit is the process's own; it stands for other programs, which end.
            self._worker.kill()

    def _wait_until_ready(self) -> None:
        if self._worker.pid is None:
            self._worker.start()
            self._worker.poll(START_LIMIT)

    def _new_worker(self) -> WorkerProcess:
        environment = {MARK: self._mark, "TMPDIR": str(self._temporary)}
        worker = WorkerProcess(environment=environment, patience=PATIENCE)
        worker._command = [self._python, faulty_worker.__file__]
        return worker

    def _prepare(self, kind: str) -> None:
        for folder in (self._out, self._temporary):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        self._input.write_bytes(self._whole)
        told = {"kind": kind, "window": self._random.randrange(faulty_worker.WINDOWS)}
        (self._folder / faulty_worker.FAULT).write_text(json.dumps(told))

    def _request(self) -> Request:
        out = self._out
        return Request(
            str(self._input),
            str(out / "spine.nrrd"),
            "vertebrae",
            report=str(out / "r.json"),
            manifest=str(self._manifest),
        )

    def _run_with(self, kind: str) -> None:
        self._struck = False
        moment = self._random.uniform(0, JOB_SECONDS if self._worker.pid else STARTING_SECONDS)
        cancelled = threading.Event()
        self._worker.start()
        timer = threading.Timer(moment, self._strike, (kind, self._worker.pid, cancelled))
        if kind in OUTSIDE:
            timer.start()
        try:
            self._worker.run(self._request(), cancelled=cancelled.is_set)
            self.tally.ends["done"] += 1
        except SegMambaError as error:
            self.tally.ends[type(error).__name__] += 1
            expected = kind == "surprise" and "surprise" in str(error)
            if not expected and (type(error) is SegMambaError or not str(error).endswith(".")):
                self.tally.unclear_errors.append(f"{kind}: {error}")
        except Exception as error:
            self.tally.unclear_errors.append(f"{kind}: {type(error).__name__}: {error}")
        finally:
            timer.cancel()
            if kind in OUTSIDE:
                timer.join()
                self._end_late_strike(kind)

    def _end_late_strike(self, kind: str) -> None:
        """Let a worker that was struck between two jobs end, or go on if it was only stopped: no job met that fault."""
        pid = self._worker.pid
        if kind not in SIGNALS or pid is None:
            return
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
            if kind != "stopped" and self._struck:
                psutil.Process(pid).wait(START_LIMIT)

    def _strike(self, kind: str, pid: int | None, cancelled: threading.Event) -> None:
        self._struck = True
        if kind in SIGNALS and pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, SIGNALS[kind])
        elif kind == "cancelled":
            cancelled.set()
        elif kind == "output folder deleted":
            shutil.rmtree(self._out, ignore_errors=True)
        elif kind == "temporary folder deleted":
            shutil.rmtree(self._temporary, ignore_errors=True)
        elif kind == "input cut":
            os.truncate(self._input, len(self._whole) // 2)

    def _kill_parent(self) -> None:
        request = json.dumps(self._request().to_dict())
        self._kill_at_random(PARENT, request, faulty_worker.__file__)

    def _kill_installing(self) -> None:
        models = self._folder / "models"
        self._kill_at_random(INSTALLER, str(self._manifest), extra={"SEGMAMBA_MODELS": str(models)})
        model = load_manifest(self._manifest).model(tiny.MISSING_ID)
        before = os.environ.get("SEGMAMBA_MODELS")
        os.environ["SEGMAMBA_MODELS"] = str(models)
        started = time.monotonic()
        try:
            with installing.changing(model, lambda: time.monotonic() - started > LOCK_SECONDS) as folder:
                found = store.in_folder(model, folder, store.USER)
                if found is not None:
                    store.verify(found)
        except SegMambaError as error:
            if time.monotonic() - started > LOCK_SECONDS:
                self.tally.stuck_locks += 1
            else:
                self.tally.half_written.append(f"installing killed: {error}")
        finally:
            os.environ.pop("SEGMAMBA_MODELS")
            if before is not None:
                os.environ["SEGMAMBA_MODELS"] = before

    def _kill_at_random(self, program: str, *arguments: str, extra: dict[str, str] | None = None) -> None:
        paths = os.pathsep.join([str(HELPERS.parent), worker_environment().get("PYTHONPATH", "")])
        environment = {**os.environ, **(extra or {}), MARK: self._mark, "PYTHONPATH": paths}
        process = subprocess.Popen([sys.executable, "-c", program, *arguments], env=environment)
        time.sleep(self._random.uniform(0.2, 2 * STARTING_SECONDS))
        process.kill()
        process.wait()
        self.tally.ends["its parent is gone" if program is PARENT else "killed while it installed"] += 1

    def _look(self, when: str, complete: bool = False) -> None:
        """Find what should not be there: processes, and files that are not whole."""
        deadline = time.monotonic() + ORPHAN_SECONDS
        while (others := self._others()) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.tally.orphans += len(others)
        for process in others:
            process.kill()
        labels, report = self._out / "spine.nrrd", self._out / "r.json"
        if complete and not (labels.exists() and report.exists()):
            self.tally.half_written.append(f"result {when}: {labels.exists()} {report.exists()}")
        try:
            if labels.exists() and not np.array_equal(read_volume(labels).array, self._expected):
                self.tally.half_written.append(f"labels {when}")
            if report.exists():
                json.loads(report.read_text())
        except (InputError, ValueError) as error:
            self.tally.half_written.append(f"{when}: {error}")
        if self._out.is_dir():
            self.tally.hidden_files_left += sum(path.name.startswith(".") for path in self._out.iterdir())

    def _others(self) -> list[psutil.Process]:
        """Return the processes of this laboratory that nobody waits for."""
        found = []
        for process in psutil.process_iter(["pid"]):
            with contextlib.suppress(psutil.Error):
                if process.pid not in (os.getpid(), self._worker.pid) and process.environ().get(MARK) == self._mark:
                    found.append(process)
        return [process for process in found if _lives(process)]


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


# A program that waits for a job, as Slicer or the command line does.
PARENT = """
import json, sys
from segmamba.worker.client import WorkerProcess
from segmamba.request import Request
worker = WorkerProcess()
worker._command = [sys.executable, sys.argv[2]]
while True:
    worker.run(Request.from_dict({**json.loads(sys.argv[1]), "overwrite": True}))
"""

# A program that installs one version of a checkpoint after the other.
INSTALLER = """
import hashlib, itertools, sys
from pathlib import Path
import tiny
from segmamba.models.install import add, changing
from segmamba.models.manifest import load_manifest
from segmamba.models.record import Record
model = load_manifest(Path(sys.argv[1])).model(tiny.MISSING_ID)
for number in itertools.count():
    content = str(number).encode() * 100_000
    digest = hashlib.sha256(content).hexdigest()
    with changing(model) as folder:
        part = folder / "new.part"
        part.write_bytes(content)
        add(folder, part, Record(f"checkpoint-{digest[:8]}.pt", len(content), digest, "a test"))
"""


def in_random_order(kinds: Sequence[Kind], count: int, seed: int) -> list[Kind]:
    """Return so many kinds, each as often as the others, in a random order."""
    order = [kinds[number % len(kinds)] for number in range(count)]
    random.Random(seed).shuffle(order)
    return order


def inject(folder: Path, count: int, seed: int, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Let faults happen, each kind as often as the others, in a random order, and return the tally."""
    with Laboratory(folder, seed) as laboratory:
        for number, kind in enumerate(in_random_order(KINDS, count, seed), start=1):
            laboratory.fault(kind)
            if number % 50 == 0:
                say(f"{number} of {count}: {laboratory.tally}")
    return {**vars(laboratory.tally), "sound": laboratory.tally.sound()}
