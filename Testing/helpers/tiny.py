"""A model so small that tests can run it, SpineMamba with a few channels: a manifest, and a training configuration."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

ARGUMENTS = {"in_channels": 1, "out_channels": 4, "features": [8, 8, 8, 16, 16], "depths": [1, 1]}
TRAINING: dict[str, Any] = {
    "architecture": "spine_mamba",
    # Half as wide as a model that runs: PyTorch trains it in half of the time.
    "arguments": ARGUMENTS | {"features": [4, 8, 8, 16, 16], "out_channels": 33, "prior_tokens": 5},
    "channels": [{"scheme": "clip", "low": -1000.0, "high": 1000.0, "mean": 0.0, "std": 500.0}],
    "mr_channels": [{"scheme": "relative", "low": 0.0, "high": 2.0, "mean": 1.0, "std": 1.0}],
    "mr_share": 0.5,
    "anatomies": "maps/*.npz",
    "evaluation": "cases/*.npz",
    "patch": [32, 32, 32],
    "spacing": 3.0,
    "folder": "run",
    "batch": 1,
    "iterations": 4,
    "warmup": 2,
    "log_every": 2,
    "checkpoint_every": 2,
    "device": "cpu",
}
MODEL_ID, MISSING_ID = "tiny-spine", "tiny-missing"
BOWEL_ID, CAUTION = "tiny-bowel", "nothing that it was trained on was real"
BOWEL_ARGUMENTS = {"in_channels": 1, "out_channels": 4, "features": [8, 16, 32, 32], "depths": [1, 1, 1, 1]}
STRUCTURE = ["SCT", "123037004", "Anatomical Structure"]
LABELS = [
    {
        "value": 20 + number,
        "name": f"L{number + 1} vertebra",
        "color": [60 + 60 * number, 160, 220],
        "category": STRUCTURE,
        "type": ["SCT", code, f"L{number + 1} vertebra"],
    }
    for number, code in enumerate(("66794005", "14293000", "36470004"))
]


def write_model(folder: Path, empty: bool = False, **changes: Any) -> Path:
    """Write a manifest and the checkpoint that it names, and return the manifest's path.

    ``empty`` makes a network that finds nothing; ``changes`` replace fields of the model's entry.
    """
    import torch

    from segmamba.networks import build_network
    from segmamba.networks.checkpoint import save_safetensors

    torch.manual_seed(1)
    network = build_network("spine_mamba", **ARGUMENTS)
    if empty:
        state = network.state_dict()
        bias = [name for name, value in state.items() if name.endswith("bias") and value.shape == (4,)][-1]
        state[bias][0] = 1000.0
    checkpoint = folder / "tiny.safetensors"
    save_safetensors(network, checkpoint)
    content = checkpoint.read_bytes()
    file = {
        "name": checkpoint.name,
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "bundled": checkpoint.name,
    }
    entry = model_entry(file) | changes
    missing = model_entry({"name": "missing.pt", "size": None, "sha256": None, "bundled": None}) | {"id": MISSING_ID}
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps({"schema_version": 2, "label_sets": {"three": LABELS}, "models": [entry, missing]}))
    return manifest


def write_bowel_model(folder: Path) -> Path:
    """Write a manifest of a colorectal model, its checkpoint in eight bits, and return the manifest's path.

    The labels are those of the software's own manifest; the network is `SegMambaV2Paper` with few channels and
    random weights, so that it labels noise.
    """
    import torch

    from segmamba.models.resources import MANIFEST_NAME, resource_root
    from segmamba.networks import build_network
    from segmamba.networks.checkpoint import save_quantized

    labels = json.loads((resource_root() / MANIFEST_NAME).read_text(encoding="utf-8"))["label_sets"]["colorectal"]
    torch.manual_seed(2)
    checkpoint = folder / "bowel.safetensors"
    save_quantized(build_network("segmamba_v2_paper", **BOWEL_ARGUMENTS).state_dict(), checkpoint)
    content = checkpoint.read_bytes()
    file = {"name": checkpoint.name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    entry = model_entry(file | {"bundled": checkpoint.name}) | {
        "id": BOWEL_ID,
        "task": "colorectal",
        "architecture": "segmamba_v2_paper",
        "arguments": BOWEL_ARGUMENTS,
        "label_set": "colorectal",
        "channel_values": [0, 1, 2, 3],
        "postprocessing": "bowel",
        "margin_threshold": {"label": 1, "high": 0.1},
        "caution": CAUTION,
    }
    manifest = folder / "bowel.json"
    manifest.write_text(json.dumps({"schema_version": 2, "label_sets": {"colorectal": labels}, "models": [entry]}))
    return manifest


def model_entry(file: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": MODEL_ID,
        "version": "1",
        "title": "Tiny test model",
        "task": "vertebrae",
        "architecture": "spine_mamba",
        "arguments": ARGUMENTS,
        "modalities": ["CT"],
        "label_set": "three",
        "channel_values": [0, 20, 21, 22],
        "preprocessing": {
            "orientation": "LPS",
            "spacing_mm": [4.0, 4.0, 4.0],
            "interpolation": "linear",
            "crop_threshold": -500.0,
            "fill_value": -1024.0,
            "normalization": [{"scheme": "clip", "low": -1000.0, "high": 1000.0, "mean": 0.0, "std": 500.0}],
            "estimated": "the weights are random",
        },
        "patch": [32, 32, 32],
        "overlap": 0.5,
        "flip_axes": [0],
        "postprocessing": "none",
        "file": file,
        "limits": ["It knows nothing."],
    }
