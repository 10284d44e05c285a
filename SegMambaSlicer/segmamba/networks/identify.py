"""Identify the network of a checkpoint by the names and shapes of its weights, without allocating any."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from segmamba.networks import build_network

Shapes = Mapping[str, tuple[int, ...]]

OUTPUT = "out.conv.conv.weight"
# A weight that only this architecture has, the first layer's and the last layer's weight.
SIGNS = {
    "segmamba_v2_release": ("vit.downsample_layers.0.0.weight", "encoder1.layer.conv1.conv.weight", OUTPUT),
    "segmamba_v2_paper": ("downsamplings.0.branches.0.weight", "downsamplings.0.branches.0.weight", OUTPUT),
    "spine_mamba": ("encoders.0.conv1.conv.weight", "encoders.0.conv1.conv.weight", OUTPUT),
    "spine_mamba_two_stage": ("fine." + OUTPUT, "coarse.encoders.0.conv1.conv.weight", "coarse." + OUTPUT),
}


@dataclass(frozen=True)
class IdentifiedNetwork:
    """Architecture and channels of a checkpoint."""

    architecture: str
    in_channels: int
    out_channels: int

    def __str__(self) -> str:
        return f"{self.architecture} with {self.in_channels} input and {self.out_channels} output channels"


def identify(shapes: Shapes) -> IdentifiedNetwork | None:
    """Return the architecture and channels that names and shapes imply, or None."""
    for architecture, (sign, first, last) in SIGNS.items():
        if sign in shapes and len(shapes.get(first, ())) == 5 and len(shapes.get(last, ())) == 5:
            return IdentifiedNetwork(architecture, shapes[first][1], shapes[last][0])
    return None


def expected_shapes(architecture: str, arguments: Mapping[str, Any]) -> Shapes:
    """Return the names and shapes of a network's weights, without memory for the weights.

    Raises
    ------
    ModelError
        As `segmamba.networks.build_network`.
    """
    with torch.device("meta"):
        network = build_network(architecture, **arguments)
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def differences(expected: Shapes, found: Shapes) -> tuple[str, ...]:
    """Return the differences of two sets of weights: for each kind their number and the first one; empty if equal."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    reshaped = [name for name in expected if name in found and tuple(found[name]) != tuple(expected[name])]
    details: Sequence[str] = [
        f"{name} with {_shape(found[name])} where the network has {_shape(expected[name])}" for name in reshaped[:1]
    ]
    kinds: Iterable[tuple[Sequence[str], str, Sequence[str]]] = (
        (missing, "missing", missing),
        (unexpected, "unexpected", unexpected),
        (reshaped, "of a different shape", details),
    )
    return tuple(f"{len(names)} {kind}, first {shown[0]}" for names, kind, shown in kinds if names)


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "one number"
