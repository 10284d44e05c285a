"""What a training leaves: the folder of a model, with the tiny network and random weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from helpers import tiny
from segmamba.models.resources import MANIFEST_NAME, resource_root

OWN = "own-cubes-fold-0"
TWO_STAGE = "tiny-two-stage"


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


def write_two_stage_run(run: Path) -> Path:
    """Write the folder of a model of vertebrae with two tiny stages, and return it; its levels are the software's.

    It finds nothing: what a random network finds are thousands of vertebrae, which take minutes to number.
    """
    import torch

    from segmamba.models.manifest import load_manifest
    from segmamba.networks import build_network
    from segmamba.networks.checkpoint import save_safetensors

    stage = {"in_channels": 1, "features": [4, 8, 8, 16, 16], "depths": [1, 1], "shape_prior": False}
    arguments = {"coarse": stage | {"out_channels": 33}, "fine": stage | {"out_channels": 6}}
    vertebrae = load_manifest().default("vertebrae")
    label_set = json.loads((resource_root() / MANIFEST_NAME).read_text(encoding="utf-8"))["label_sets"]["vertebrae"]
    preprocessing = tiny.model_entry({})["preprocessing"] | {"spacing_mm": [3.0, 3.0, 3.0], "estimated": None}
    relative = [{"scheme": "relative", "low": 0.0, "high": 2.0, "mean": 1.0, "std": 1.0}]
    changes = {
        "id": TWO_STAGE,
        "task": "vertebrae",
        "architecture": "spine_mamba_two_stage",
        "arguments": arguments,
        "modalities": ["CT", "MR"],
        "channel_values": list(vertebrae.channel_values),
        "preprocessing": preprocessing,
        "preprocessing_mr": preprocessing | {"normalization": relative, "crop_threshold": None, "fill_value": 0.0},
        "fine": {"spacing_mm": [2.0, 2.0, 2.0], "patch": [32, 32, 32], "overlap": 0.3, "refine": []},
        "flip_axes": [],
    }
    folder = run / "fold-0" / "model"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    network = build_network("spine_mamba_two_stage", **arguments)
    network.state_dict()["coarse.out.conv.conv.bias"][0] = 30.0
    save_safetensors(network, folder / "weights.safetensors")
    content = (folder / "weights.safetensors").read_bytes()
    file = {"name": "weights.safetensors", "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    entry = tiny.model_entry(file | {"bundled": None}) | {"origin": "random"} | changes
    description = {"schema_version": 2, "label_sets": {"three": label_set}, "models": [entry]}
    (folder / "model.json").write_text(json.dumps(description))
    return folder
