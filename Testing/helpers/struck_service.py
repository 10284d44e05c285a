"""A server, its workers, its clients and the connections between them, to which faults happen."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from helpers import faulty_worker, tiny
from helpers.flaky_link import Link, flaky_link
from helpers.many_cases import write
from helpers.phantoms import grid_around_patient, phantom, rotation
from helpers.running_server import TOKEN, RunningServer, running_server
from helpers.strikes import cut, later, remove
from segmamba.errors import InputError
from segmamba.io.read import read_volume
from segmamba.remote.client import Client
from segmamba.remote.job import segment_on_server
from segmamba.remote.servers import KnownServer
from segmamba.remote.worker import RemoteWorker
from segmamba.request import Request

# A job takes about so long.
JOB_SECONDS = 0.5
# Seconds that the server may need to see that nobody wants a job.
SOON = 30.0
# Seconds for which a client waits for a server that is out of reach.
PATIENCE = 0.3
INSIDE = ("crash", "memory", "gpu lost", "disk full", "clock")


class Service:
    """A server with a stand-in network and two ways to it: in this process, and through the panel's own process."""

    kinds = (
        *(f"server: {kind}" for kind in INSIDE),
        *(f"{who}: {what}" for who in ("client", "panel") for what in ("connection broken", "cancelled", "input cut")),
        *("server: worker killed", "server: job's folder deleted", "client: output folder deleted"),
        *("client: server out of reach", "panel: process killed", "panel: process aborted"),
    )

    def __init__(self, folder: Path, server: RunningServer, link: Link, seed: int) -> None:
        self._folder, self._server, self._link = folder, server, link
        self._draw = random.Random(seed)
        self._input, self._out = folder / "ct.nii.gz", folder / "out"
        self._whole = self._input.read_bytes()
        self._expected = faulty_worker.labels_of(read_volume(self._input).array)
        self._panel = RemoteWorker(KnownServer(link.address, TOKEN))
        self._prepare("none")

    def close(self) -> None:
        """End the panel's process."""
        self._panel.close()

    def strike(self, kind: str) -> None:
        who, _, what = kind.partition(": ")
        self._prepare(what)
        cancelled = threading.Event()
        if what == "connection broken":
            self._link.cuts[:] = [self._draw.choice((None, self._draw.randrange(20, 9000))) for _ in range(6)]
        elif what == "server out of reach":
            self._link.cuts[:] = [None] * self._draw.randrange(4) + [0] * 100
        actions = {
            "cancelled": cancelled.set,
            "input cut": lambda: cut(self._input, self._draw),
            "output folder deleted": remove(self._out),
            "job's folder deleted": self._delete_jobs,
            "worker killed": lambda: self._signal(self._server.jobs._workers[0].pid, signal.SIGKILL),
            "process killed": lambda: self._signal(self._panel.pid, signal.SIGKILL),
            "process aborted": lambda: self._signal(self._panel.pid, signal.SIGABRT),
        }
        moment = self._draw.uniform(0, JOB_SECONDS)
        try:
            with later(moment, actions[what]) if what in actions else contextlib.nullcontext():
                self._run(who, cancelled)
        finally:
            if what == "memory":
                # The limit is the process's own; it stands for other programs, which end.
                self._server.jobs._workers[0].kill()

    def again(self) -> None:
        self._prepare("none")
        self._link.cuts.clear()
        self._run("client", threading.Event())

    def wrong(self, complete: bool) -> list[str]:
        found = []
        labels, report = self._out / "spine.nrrd", self._out / "r.json"
        if complete and not (labels.exists() and report.exists()):
            found.append(f"no result: {labels.exists()} {report.exists()}")
        with contextlib.suppress(FileNotFoundError):
            try:
                if labels.exists() and not np.array_equal(read_volume(labels).array, self._expected):
                    found.append("other labels")
                if report.exists():
                    json.loads(report.read_text())
            except (InputError, ValueError) as error:
                found.append(repr(error))
        if complete:
            end = time.monotonic() + SOON
            while (left := self._server.files()) and time.monotonic() < end:
                time.sleep(0.05)
            found += [f"the server keeps {path.name}" for path in left]
        return found

    def _run(self, who: str, cancelled: threading.Event) -> None:
        request = Request.of(
            str(self._input),
            str(self._out / "spine.nrrd"),
            task="vertebrae",
            manifest=str(self._folder / "manifest.json"),
            report=str(self._out / "r.json"),
            overwrite=True,
        )
        if who == "panel":
            self._panel.run(request, cancelled=cancelled.is_set)
            return
        client = Client(self._link.address, TOKEN)
        patience = PATIENCE if self._link.cuts[-1:] == [0] else SOON
        segment_on_server(request, client, lambda *_: None, cancelled.is_set, patience=patience)

    def _prepare(self, kind: str) -> None:
        shutil.rmtree(self._out, ignore_errors=True)
        self._out.mkdir()
        self._input.write_bytes(self._whole)
        told = {"kind": kind, "window": self._draw.randrange(faulty_worker.WINDOWS)}
        (self._folder / faulty_worker.FAULT).write_text(json.dumps(told))

    def _delete_jobs(self) -> None:
        for place in self._server.folder.glob("*/jobs/*"):
            shutil.rmtree(place, ignore_errors=True)

    @staticmethod
    def _signal(pid: int | None, number: signal.Signals) -> None:
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


@contextmanager
def struck_service(folder: Path, seed: int) -> Iterator[Service]:
    """Run the server and give its scene."""
    manifest = tiny.write_model(folder)
    write(phantom(grid_around_patient((6.0, 6.0, 8.0), rotation(0, 0))), folder / "ct.nii.gz")
    (folder / "server").mkdir()
    with running_server(folder / "server", manifest, kept_s=2.0) as server, flaky_link(server.address) as link:
        server.jobs._workers[0]._command = [sys.executable, faulty_worker.__file__]
        scene = Service(folder, server, link, seed)
        try:
            yield scene
        finally:
            scene.close()
