"""Many clients at one server, while its workers are killed and connections break, and what came of it."""

from __future__ import annotations

import contextlib
import os
import queue
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from helpers import tiny
from helpers.flaky_link import Link, flaky_link
from helpers.many_cases import changed, write
from helpers.phantoms import grid_around_patient, phantom, rotation
from helpers.processes import is_alive
from segmamba.io.read import read_volume
from segmamba.remote.client import Client
from segmamba.remote.job import segment_on_server
from segmamba.request import Request
from segmamba.worker.client import WorkerProcess, worker_environment

TOKEN = "a-token-that-only-the-load-knows"
INPUTS = 4


class Load:
    """A server in a process of its own, inputs with the results that they should have, and a tally."""

    def __init__(
        self, folder: Path, jobs: int, clients: int, kills: int, drops: int, say: Callable[[str], None]
    ) -> None:
        self._folder, self._jobs, self._clients, self._say = folder, jobs, clients, say
        self._random = random.Random(jobs)
        self._manifest = tiny.write_model(folder)
        turned = grid_around_patient((6.0, 6.0, 8.0), rotation(4, -3))
        self._inputs = [write(changed(phantom(turned), number), folder / f"ct{number}.nii") for number in range(INPUTS)]
        self._kill_at = sorted(self._random.sample(range(1, jobs), kills))
        self._drop_at = set(self._random.sample(range(1, jobs), drops))
        self._expected: list[np.ndarray] = []
        self._begun = 0
        self._lock = threading.Lock()
        self.wrong: list[str] = []
        self.memory: list[float] = []
        self.killed = 0

    def run(self) -> dict[str, Any]:
        """Do all jobs, and return what came of them."""
        with WorkerProcess() as worker:
            for number in range(INPUTS):
                worker.run(self._request(number, f"expected{number}"))
                self._expected.append(read_volume(self._folder / f"expected{number}.nii.gz").array)
        place = self._folder / "server"
        place.mkdir()
        command = ["serve", "--port", "0", "--folder", str(place), "--manifest", str(self._manifest), "--device", "cpu"]
        process = subprocess.Popen(
            [sys.executable, "-m", "segmamba", *command],
            env=worker_environment() | {"SEGMAMBA_SERVER_TOKEN": TOKEN},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        found = re.search(r"http://\S+", process.stderr.readline())
        assert found is not None
        threading.Thread(target=process.stderr.read, daemon=True).start()
        begun = time.monotonic()
        with flaky_link(found[0]) as link:
            self._do_all(process, link)
            seconds = time.monotonic() - begun
            broken = link.broken
        left = [path for path in place.rglob("jobs/**/*") if path.is_file()]
        below = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
        time.sleep(1.0)
        return {
            "jobs": self._jobs,
            "seconds": round(seconds, 1),
            "wrong": self.wrong,
            "killed": self.killed,
            "broken": broken,
            "server_mib": [round(each, 1) for each in self.memory],
            "files_left": len(left),
            "orphans": sum(is_alive(each) for each in below),
            "status": status,
            "folder_left": len(list(place.iterdir())),
        }

    def _do_all(self, process: subprocess.Popen[str], link: Link) -> None:
        numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(self._jobs):
            numbers.put(number)
        threads = [
            threading.Thread(target=self._client, args=(client, numbers, process, link))
            for client in range(self._clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _client(self, client: int, numbers: queue.SimpleQueue[int], process: subprocess.Popen[str], link: Link) -> None:
        connection = Client(link.address, TOKEN)
        with contextlib.suppress(queue.Empty):
            while True:
                number = numbers.get_nowait()
                self._note(number, process, link)
                name = f"out{client}"
                try:
                    # A seed of its own makes a job another one than those of the same input.
                    request = self._request(number % INPUTS, name, seed=number)
                    segment_on_server(request, connection, self._progress(process), lambda: False)
                    labels = read_volume(self._folder / f"{name}.nii.gz").array
                    if not np.array_equal(labels, self._expected[number % INPUTS]):
                        self.wrong.append(f"{number}: other labels")
                except Exception as error:
                    self.wrong.append(f"{number}: {type(error).__name__}: {error}")

    def _note(self, number: int, process: subprocess.Popen[str], link: Link) -> None:
        with self._lock:
            if number % max(1, self._jobs // 10) == 0:
                self.memory.append(psutil.Process(process.pid).memory_info().rss / 2**20)
                self._say(f"{number} of {self._jobs}: the server has {self.memory[-1]:.1f} MiB")
            if number in self._drop_at:
                # Whatever a connection is for, more than this goes through it.
                link.cuts.append(self._random.randrange(100, 700))
            self._begun = number

    def _progress(self, process: subprocess.Popen[str]) -> Callable[[str, float], None]:
        def progress(stage: str, fraction: float) -> None:
            with self._lock:
                if stage != "predict" or not self._kill_at or self._begun < self._kill_at[0]:
                    return
                self._kill_at.pop(0)
            for worker in psutil.Process(process.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
                    self.killed += 1

        return progress

    def _request(self, number: int, name: str, seed: int = 0) -> Request:
        return Request.of(
            str(self._inputs[number]),
            str(self._folder / f"{name}.nii.gz"),
            task="vertebrae",
            manifest=str(self._manifest),
            overwrite=True,
            device="cpu",
            seed=seed,
        )


def sound(tally: dict[str, Any]) -> bool:
    """Say whether nothing happened that must not."""
    return not (tally["wrong"] or tally["files_left"] or tally["orphans"] or tally["folder_left"] or tally["status"])
