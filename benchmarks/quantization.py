"""What does storage in eight bits change? ``python benchmarks/quantization.py CHECKPOINT [CT ...] [--model ID]``.

The network runs on the middle window of each volume with the weights of a checkpoint as they are and as
`segmamba.networks.quantization` stores them, of a model with two stages both networks. Prints as JSON lines the sizes
of the files; the relative L2 error of the large weights, also with scales of least squared error instead of those of
the largest number; and of each window the relative L2 error of the logits and the part of the voxels whose most
probable class changes. For Dice: ``segmamba evaluate`` with ``--checkpoint`` for each file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from segmamba.inference.preprocess import resample_to_model
from segmamba.io.modality import model_for_modality
from segmamba.io.read import read_volume
from segmamba.io.volume import Volume
from segmamba.models.manifest import Model, load_manifest
from segmamba.networks import build_network
from segmamba.networks.checkpoint import load_state_dict, load_weights, save_quantized, save_safetensors
from segmamba.networks.quantization import LARGEST
from segmamba.networks.spine_mamba import MASK
from segmamba.networks.two_stage import TwoStageSpineMamba


def stages(network: nn.Module, model: Model) -> Iterator[tuple[str, nn.Module, Model]]:
    """Give name, network and grid of each stage of a model."""
    if not isinstance(network, TwoStageSpineMamba):
        yield "network", network, model
        return
    assert model.fine is not None
    yield "coarse", network.coarse, model
    finer = replace(model.preprocessing, spacing=model.fine.spacing)
    yield "fine", network.fine, replace(model, preprocessing=finer, patch=model.fine.patch)


def middle_window(volume: Volume, model: Model) -> Tensor:
    """Return a network's input (1, channels, z, y, x) from the middle of a volume, at most the model's patch."""
    image = torch.from_numpy(resample_to_model(volume, model)[0])
    starts = [max(0, length - width) // 2 for length, width in zip(image.shape[1:], model.patch, strict=True)]
    box = tuple(slice(first, first + width) for first, width in zip(starts, model.patch, strict=True))
    return image[(slice(None), *box)][None]


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """Return the L2 norm of the difference by that of the reference."""
    return float((ours - reference).norm() / reference.norm())


def stored(state: dict[str, Tensor], folder: Path) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Return a state dict as it comes back from eight bits, and the bytes of both files."""
    half, eight = folder / "half.safetensors", folder / "eight.safetensors"
    save_safetensors(state, half)
    save_quantized(state, eight)
    return load_state_dict(eight), {"float16 bytes": half.stat().st_size, "8-bit bytes": eight.stat().st_size}


def errors(exact: dict[str, Tensor], rounded: dict[str, Tensor], large: list[str]) -> dict[str, float]:
    """Return the relative L2 error of the large weights: with the scales that are used, and with the best ones."""
    reference = torch.cat([exact[name].float().flatten() for name in large])
    ours = torch.cat([rounded[name].flatten() for name in large])
    best = torch.cat([least_squares(exact[name].float()).flatten() for name in large])
    return {
        "error of the large weights": round(relative_error(ours, reference), 5),
        "with scales of least squared error": round(relative_error(best, reference), 5),
    }


def least_squares(weight: Tensor) -> Tensor:
    """Return a weight rounded to 255 steps of a row's scale, of several scales the one with the least error."""
    rows = weight.flatten(1)
    best, error = torch.zeros_like(rows), torch.full((len(rows), 1), torch.inf)
    for part in torch.linspace(0.5, 1, 11):
        scale = part * rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / LARGEST
        numbers = (rows / scale).round().clamp(-LARGEST, LARGEST)
        scale = (rows * numbers).sum(dim=1, keepdim=True) / numbers.square().sum(dim=1, keepdim=True).clamp_min(1)
        trial = numbers * scale
        found = (trial - rows).square().sum(dim=1, keepdim=True)
        best, error = torch.where(found < error, trial, best), torch.minimum(found, error)
    return best


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("volumes", type=Path, nargs="*", metavar="CT")
    parser.add_argument("--model", default="spinemamba", metavar="ID")
    options = parser.parse_args()
    model = load_manifest().model(options.model)
    exact = load_state_dict(options.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        rounded, sizes = stored(exact, Path(folder))
    large = [name for name in exact if not torch.equal(rounded[name], exact[name].half())]
    print(json.dumps(sizes | errors(exact, rounded, large)), flush=True)
    networks = []
    for state in (rounded, exact):
        networks.append(build_network(model.architecture, **model.arguments).eval())
        load_weights(networks[-1], state)
    for path in options.volumes:
        volume = read_volume(path)
        own = model_for_modality(volume, model)
        for (name, ours, stage), (_, theirs, _) in zip(*(stages(one, own) for one in networks), strict=True):
            window = middle_window(volume, stage)
            answers = ours(window).float(), theirs(window).float()
            entry = {"volume": path.name, "stage": name, "relative error": round(relative_error(*answers), 5)}
            channels = MASK if isinstance(networks[0], TwoStageSpineMamba) else slice(None)
            classes = [answer[:, channels].argmax(dim=1) for answer in answers]
            entry["classes changed"] = round(float((classes[0] != classes[1]).float().mean()), 6)
            print(json.dumps(entry), flush=True)


if __name__ == "__main__":
    main()
