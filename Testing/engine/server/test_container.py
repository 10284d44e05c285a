"""What the container of the server is made of, as far as that can be seen without building one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import requests
from helpers.repository import REPOSITORY
from packaging.requirements import Requirement
from packaging.version import Version

from segmamba.worker.client import worker_environment

SCRIPT = REPOSITORY / "container" / "run"
CONTAINERFILE = (REPOSITORY / "Containerfile").read_text()


def test_all_that_is_installed_is_pinned_to_what_the_project_asks_for() -> None:
    lines = (REPOSITORY / "container" / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for text in (*project["dependencies"], *extras["server"], *extras["dicom"]):
        wanted = Requirement(text)
        if wanted.name != "torch":
            assert Version(pinned[wanted.name.lower()]) in wanted.specifier, text


def test_it_says_that_it_was_never_built_and_copies_what_is_there() -> None:
    assert "NEVER BUILT" in CONTAINERFILE
    assert "USER 64123:64123" in CONTAINERFILE
    for line in re.findall(r"^COPY (.+) \S+$", CONTAINERFILE, re.MULTILINE):
        for path in line.split():
            assert (REPOSITORY / path).exists(), path


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_its_script_serves_without_a_home_and_ends_without_a_trace(tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="the server's packages are not installed")
    # Nothing of the user's settings, and a port that is free.
    own = {"PYTHON": sys.executable, "SEGMAMBA_FOLDER": str(tmp_path), "HOME": "/nonexistent"}
    own |= {"SEGMAMBA_HOST": "127.0.0.1", "SEGMAMBA_PORT": "0"}
    given = {name: value for name, value in worker_environment().items() if not name.startswith(("XDG_", "SEGMAMBA_"))}
    with subprocess.Popen(
        [str(SCRIPT), "serve", "--device", "cpu"], env=given | own, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline().decode()
        address = re.search(r"http://127.0.0.1:\d+", first)
        assert address is not None, first
        token = tmp_path / "segmamba" / "server-token"
        assert str(token) in first or sys.platform == "darwin"
        assert requests.get(f"{address[0]}/models", timeout=60).status_code == 401
        os.kill(process.pid, signal.SIGTERM)
    assert process.returncode == 0
    assert not list(tmp_path.glob("segmamba-server-*"))


def test_it_explains_itself() -> None:
    if sys.platform == "win32":
        pytest.skip("a shell script")
    done = subprocess.run([str(SCRIPT), "nonsense"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: run install | run serve")
