"""A model of several channels and overlapping regions, so small that tests can run it, and images for it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from helpers import tiny
from segmamba.io.volume import Geometry, Volume, to_image

BRAIN_ID, TASK = "tiny-brain", "brain-tumour"
CHANNELS = ("t1c", "t1n", "t2f")
# Two regions, of which the second lies over the first.
REGIONS = {"whole tumour": 5, "tumour core": 7}
ARGUMENTS = {"in_channels": 3, "out_channels": 2, "features": [8, 8, 8, 16, 16], "depths": [1, 1]}
EYE = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
GRID = Geometry((24, 26, 28), (2.0, 2.0, 2.0), (-20.0, -30.0, 40.0), EYE)
PATCH = 32


def write_brain_model(folder: Path, **changes: Any) -> Path:
    """Write a manifest and its checkpoint, and return the manifest's path; ``changes`` are of the entry."""
    import torch

    from segmamba.networks.checkpoint import save_safetensors

    checkpoint = folder / "brain.safetensors"
    save_safetensors(brain_network(), checkpoint, torch.float32)
    content = checkpoint.read_bytes()
    file = {"name": checkpoint.name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    entry = tiny.model_entry(file | {"bundled": checkpoint.name}) | brain_entry() | changes
    labels = [
        {"value": value, "name": name, "color": [30 * value, 90, 200], "category": tiny.STRUCTURE, "type": code}
        for (name, value), code in zip(
            REGIONS.items(), (["99SEGMAMBA", "A", "A"], ["99SEGMAMBA", "B", "B"]), strict=True
        )
    ]
    manifest = folder / "brain.json"
    manifest.write_text(json.dumps({"schema_version": 2, "label_sets": {"brain": labels}, "models": [entry]}))
    return manifest


def brain_network() -> Any:
    """Return the network, whose random weights put about half of the voxels of noise into each region."""
    import torch

    from segmamba.networks import build_network

    torch.manual_seed(4)
    network = build_network("spine_mamba", **ARGUMENTS)
    network.get_parameter("out.conv.conv.bias").data -= torch.tensor([0.54, 0.18])
    return network.eval()


def brain_entry() -> dict[str, Any]:
    return {
        "id": BRAIN_ID,
        "title": "Tiny brain model",
        "task": TASK,
        "arguments": ARGUMENTS,
        "input_channels": [{"name": name, "modality": "MR"} for name in CHANNELS],
        "modalities": ["MR"],
        "label_set": "brain",
        "output": "regions",
        "channel_values": list(REGIONS.values()),
        "preprocessing": {
            "orientation": "LPS",
            "spacing_mm": [2.0, 2.0, 2.0],
            "interpolation": "linear",
            "crop_threshold": None,
            "fill_value": 0.0,
            "normalization": [
                {"scheme": "clip", "low": 0.0, "high": 400.0, "mean": 100.0 * (number + 1), "std": 50.0 * (number + 1)}
                for number in range(len(CHANNELS))
            ],
            "estimated": None,
        },
        "patch": [PATCH] * 3,
    }


def channel(seed: int, geometry: Geometry = GRID) -> Volume:
    """Return an MR of noise."""
    rng = np.random.default_rng(seed)
    return Volume(rng.uniform(0, 400, geometry.size[::-1]).astype(np.float32), geometry)


def write_channels(folder: Path, stem: str = "brain_", names: tuple[str, ...] = CHANNELS) -> dict[str, str]:
    """Write one image for each channel, and return their paths by name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: str(folder / f"{stem}{name}.nii.gz") for name in names}
    for seed, path in enumerate(paths.values()):
        volume = channel(seed)
        sitk.WriteImage(to_image(volume.array, volume.geometry), path)
    return paths


def expected_labels(volumes: list[Volume]) -> np.ndarray:
    """Return what the model finds in volumes on `GRID`, in its order: computed apart from the engine."""
    import torch

    image = np.stack([(v.array - 100 * (number + 1)) / (50 * (number + 1)) for number, v in enumerate(volumes)]).astype(
        np.float32
    )
    padded = np.stack([np.full((PATCH,) * 3, -2.0, np.float32)] * len(volumes))
    starts = [(PATCH - size) // 2 for size in image.shape[1:]]
    inside = tuple(slice(first, first + size) for first, size in zip(starts, image.shape[1:], strict=True))
    padded[(slice(None), *inside)] = image
    with torch.no_grad():
        logits = brain_network()(torch.from_numpy(padded)[None])[0].numpy()[(slice(None), *inside)]
    labels = np.zeros(image.shape[1:], np.uint8)
    for region, value in zip(logits, REGIONS.values(), strict=True):
        labels[region > 0] = value
    return labels
