"""What Docs/security.md promises of the code: no code out of data, no shell, no way out of a folder, private files."""

from __future__ import annotations

import ast
import functools
import json
import os
import stat
import sys
from pathlib import Path

import psutil
import pytest
from helpers import tiny
from helpers.repository import PACKAGES
from helpers.warm_child import cold_children

from segmamba.batch.layout import WORKING, prepare
from segmamba.errors import ModelError
from segmamba.models import store
from segmamba.models.manifest import load_manifest
from segmamba.worker.client import WorkerProcess

SOURCES = sorted(path for path in PACKAGES.rglob("*.py"))
# Functions that run or build code, or a shell, out of what they are given.
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput", "tempfile.mktemp"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open", "yaml.load", "joblib.load"),
}
# What comes out of a pipe that only the engine and its own child have.
MAY_UNPICKLE = "segmamba/utils/processes.py"
# What talks to the network: downloads, a cluster, a PACS, a server and its clients.
NETWORK = {
    *("socket", "http", "urllib", "requests", "urllib3", "ftplib", "smtplib", "distributed", "dask"),
    *("dicomweb_client", "fastapi", "starlette", "uvicorn"),
}
MAY_USE_NETWORK = (
    *("segmamba/models/download.py", "segmamba/batch/cluster.py"),
    *("segmamba/pacs/", "segmamba/remote/", "segmamba/server/"),
)


@functools.cache
def nodes() -> list[tuple[str, ast.AST]]:
    """Return what matters here of every file of the module: its calls and imports, with the file's name."""
    found: list[tuple[str, ast.AST]] = []
    for path in SOURCES:
        name = path.relative_to(PACKAGES).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [(name, node) for node in ast.walk(tree) if isinstance(node, ast.Call | ast.Import | ast.ImportFrom)]
    return found


def test_nothing_runs_code_or_a_shell_out_of_data() -> None:
    found = []
    for file, node in nodes():
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        loads_code = name == "torch.load" and keywords.get("weights_only") != "True"
        opened = any(keywords.get(word, "False") != "False" for word in ("shell", "allow_pickle"))
        own_pipe = name == "pickle.load" and file == MAY_UNPICKLE
        if (name in FORBIDDEN and not own_pipe) or loads_code or opened:
            found.append(f"{file}:{node.lineno}: {name}")
    assert found == []


def test_only_what_is_meant_to_can_use_the_network() -> None:
    found = []
    for file, node in nodes():
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        if {name.partition(".")[0] for name in names} & NETWORK and not file.startswith(MAY_USE_NETWORK):
            found.append(f"{file}: {names}")
    assert found == []


def test_nothing_but_its_command_imports_the_server() -> None:
    found = set()
    for file, node in nodes():
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("segmamba.server"):
            found.add(file)
    assert {file for file in found if not file.startswith("segmamba/server/")} == {"segmamba/cli/serve.py"}


@pytest.mark.parametrize("bundled", ["../../secret.safetensors", "/etc/passwd", "models/../../secret", "C:\\secret"])
def test_a_manifest_cannot_name_a_file_outside_its_folder(bundled: str, tmp_path: Path) -> None:
    manifest = tiny.write_model(tmp_path)
    content = json.loads(manifest.read_text())
    content["models"][0]["file"]["bundled"] = bundled
    manifest.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="leads out of"):
        store.find(load_manifest(manifest).default("vertebrae"), tmp_path)


def test_the_worker_talks_over_its_pipes_alone() -> None:
    with cold_children(), WorkerProcess() as worker:
        worker.start()
        ready = worker.poll(120)
        assert ready is not None and ready["type"] == "ready"
        process = psutil.Process(worker.pid)
        assert process.net_connections(kind="all") == []
        assert worker._command[1:] == ["-m", "segmamba.worker"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_files_for_a_moment_are_the_users_own(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        prepare(tmp_path / "batch")
        assert stat.S_IMODE((tmp_path / "batch" / WORKING).stat().st_mode) == 0o700
    finally:
        os.umask(before)


def test_a_module_of_the_users_folder_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('run')")
    monkeypatch.chdir(tmp_path)
    with cold_children(), WorkerProcess() as worker:
        worker.start()
        ready = worker.poll(120)
        assert ready is not None and ready["type"] == "ready"
