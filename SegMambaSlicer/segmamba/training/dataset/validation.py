"""How well a network does on whole cases that are held out, on its own grid and without any post-processing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from segmamba.inference.context import RunContext
from segmamba.inference.sliding_window import identity, predict
from segmamba.inference.windows import Windows
from segmamba.training.dataset.cache import CachedCase
from segmamba.training.dataset.plan import IGNORED
from segmamba.training.dataset.regions import dice_of_regions

OVERLAP = 0.5


class PlainNetwork(nn.Module):
    """A network that is run as it is: making its fast form would take longer than a validation."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        answer: Tensor = self.network(image)
        return answer


def logits_of(network: nn.Module, case: CachedCase, patch: tuple[int, int, int]) -> Tensor:
    """Return a network's blended logits (classes, z, y, x) of a whole case, on the network's device."""
    device = next(network.parameters()).device
    image = torch.from_numpy(np.asarray(case.image, np.float32))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    windows = Windows(patch, OVERLAP, pad_values=case.padding)
    return predict(PlainNetwork(network), image, windows, RunContext(device, dtype), identity).values


def validate(
    network: nn.Module,
    cases: Sequence[CachedCase],
    patch: tuple[int, int, int],
    names: Sequence[str],
    regions: Sequence[Sequence[int]] = (),
) -> dict[str, dict[str, float]]:
    """Return for each case the Dice of each structure that it has.

    Parameters
    ----------
    network : Module
        In evaluation mode, on its device.
    cases : sequence of CachedCase
    patch : tuple of int
        Window in voxels along z, y, x; windows overlap by half.
    names : sequence of str
        Of the classes from 1 on, or of the regions.
    regions : sequence of sequence of int
        The classes of each region, where the network's outputs are regions.
    """
    results = {}
    for case in cases:
        logits, reference = logits_of(network, case, patch), np.asarray(case.labels)
        if regions:
            results[case.name] = dice_of_regions((logits > 0).cpu().numpy(), reference, names, regions)
        else:
            results[case.name] = dice_of_classes(logits.argmax(dim=0).to(torch.uint8).cpu().numpy(), reference, names)
    return results


def dice_of_classes(classes: np.ndarray, reference: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Return the Dice of each structure in the reference; voxels that nobody has labelled do not count.

    Those with a code of `segmamba.training.dataset.partial` are background to the structures that were drawn.

    A structure that the reference lacks is left out, and so what is found of it is not held against a network here.
    """
    known = reference != IGNORED
    dice = {}
    for value, name in enumerate(names, start=1):
        ours, theirs = (classes == value) & known, reference == value
        if theirs.any():
            dice[name] = float(2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()))
    return dice


def mean_dice(results: Mapping[str, Mapping[str, float]]) -> float:
    """Return the mean over the structures of their mean over the cases; 0 where there is none."""
    by_name: dict[str, list[float]] = {}
    for found in results.values():
        for name, value in found.items():
            by_name.setdefault(name, []).append(value)
    return float(np.mean([np.mean(values) for values in by_name.values()])) if by_name else 0.0
