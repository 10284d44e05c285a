"""What a training leaves: the folder of a model, with the tiny network and random weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from helpers import tiny

OWN = "own-cubes-fold-0"


def write_run(run: Path, seed: int = 1, **changes: Any) -> Path:
    """Write what a training leaves, and return the model's folder; ``changes`` are of its entry."""
    import torch

    from segmamba.networks import build_network
    from segmamba.networks.checkpoint import save_safetensors

    folder = run / "fold-0" / "model"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    save_safetensors(build_network("spine_mamba", **tiny.ARGUMENTS), folder / "weights.safetensors")
    content = (folder / "weights.safetensors").read_bytes()
    file = {"name": "weights.safetensors", "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    entry = tiny.model_entry(file | {"bundled": None}) | {"id": OWN, "task": OWN, "origin": "trained on cubes"}
    description = {"schema_version": 2, "label_sets": {"three": tiny.LABELS}, "models": [entry | changes]}
    (folder / "model.json").write_text(json.dumps(description))
    return folder
