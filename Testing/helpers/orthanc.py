"""A real PACS for tests: Orthanc with its DICOMweb plugin (Debian's packages), on this computer, empty."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from helpers.own_time import PATIENCE

PROGRAM = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
PLUGINS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc")
USER, PASSWORD = "radiology", "a-password-that-only-the-tests-know"


@dataclass
class Pacs:
    """A PACS: its address for batches and for its own interface, and the file of its log."""

    address: str
    url: str
    log: Path

    def ask(self, path: str, **more: Any) -> Any:
        """Return what Orthanc's own interface answers."""
        answer = requests.get(f"{self.url}{path}", auth=(USER, PASSWORD), timeout=60, **more)
        answer.raise_for_status()
        return answer.json()

    def add(self, files: list[Path]) -> None:
        """Store files."""
        for file in files:
            answer = requests.post(f"{self.url}/instances", file.read_bytes(), auth=(USER, PASSWORD), timeout=60)
            answer.raise_for_status()

    def instances(self, modality: str) -> list[bytes]:
        """Return the files of a modality."""
        found = []
        for series in self.ask("/series?expand"):
            if series["MainDicomTags"]["Modality"] == modality:
                for instance in series["Instances"]:
                    url = f"{self.url}/instances/{instance}/file"
                    found.append(requests.get(url, auth=(USER, PASSWORD), timeout=60).content)
        return found


@contextmanager
def orthanc(folder: Path) -> Iterator[Pacs]:
    """Run an Orthanc in a folder; the test is skipped where it is not installed."""
    plugins = [each for place in PLUGINS for each in Path(place).glob("libOrthancDicomWeb.so*")]
    if not Path(PROGRAM).is_file() or not plugins:
        pytest.skip("Orthanc with its DICOMweb plugin is not installed (Debian: orthanc, orthanc-dicomweb)")
    ports = _free_ports(2)
    configuration = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [str(plugins[0].resolve())],
        "HttpPort": ports[0],
        "DicomPort": ports[1],
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    file = folder / "orthanc.json"
    file.write_text(json.dumps(configuration))
    log = folder / "orthanc.log"
    with log.open("wb") as stream:
        process = subprocess.Popen([PROGRAM, str(file)], stdout=stream, stderr=subprocess.STDOUT)
    pacs = Pacs(f"dicomweb+http://127.0.0.1:{ports[0]}/dicom-web", f"http://127.0.0.1:{ports[0]}", log)
    try:
        end = time.monotonic() + PATIENCE
        while not _is_up(pacs):
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        yield pacs
    finally:
        process.terminate()
        process.wait(60)


def _is_up(pacs: Pacs) -> bool:
    try:
        return bool(pacs.ask("/system"))
    except requests.RequestException:
        return False


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
