"""A model whose one file a server gives, and a process that fetches it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from helpers import tiny
from helpers.repository import PACKAGES
from segmamba.models import store
from segmamba.models.manifest import Model

CONTENT = bytes(range(256)) * 1200
HALF = len(CONTENT) // 2
# The one file of the model; its record, and nothing else, lies beside it.
NAME = f"weights-{hashlib.sha256(CONTENT).hexdigest()[:8]}.safetensors"
PART = f"{NAME}.part"


def write_manifest(folder: Path, *urls: str, content: bytes = CONTENT) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = {
        "name": "weights.safetensors",
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "bundled": None,
        "urls": list(urls),
    }
    entry = tiny.model_entry(file)
    path = folder / "manifest.json"
    path.write_text(json.dumps({"schema_version": 2, "label_sets": {"three": tiny.LABELS}, "models": [entry]}))
    return path


def folder_of(model: Model) -> Path:
    return store.models_folder() / model.id


def files_of(model: Model) -> set[str]:
    folder = folder_of(model)
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


PROGRAM = """
import sys
from pathlib import Path
from segmamba.cli.main import main
sys.exit(main(["models", "--manifest", sys.argv[1], "fetch", "tiny-spine"]))
"""


def start_fetch(manifest: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGES)}
    command = [sys.executable, "-c", PROGRAM, str(manifest)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
