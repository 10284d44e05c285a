"""Networks, built from the architecture and arguments of a model's entry in the manifest."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from torch import nn

from segmamba.errors import ModelError

ARCHITECTURES = {
    "segmamba_v2_release": ("segmamba.networks.segmamba_v2", "SegMambaV2"),
    "segmamba_v2_paper": ("segmamba.networks.segmamba_v2_paper", "SegMambaV2Paper"),
    "spine_mamba": ("segmamba.networks.spine_mamba", "SpineMamba"),
    "spine_mamba_two_stage": ("segmamba.networks.two_stage", "TwoStageSpineMamba"),
}


def build_network(architecture: str, **arguments: Any) -> nn.Module:
    """Build a network that maps (B, in, D, H, W), any D, H, W, to logits (B, out, D, H, W).

    Parameters
    ----------
    architecture : str
        A key of :data:`ARCHITECTURES`.
    **arguments
        Arguments of the network's constructor; lists stand for tuples, so that they can come from JSON.

    Raises
    ------
    ModelError
        The architecture or an argument is unknown, or the arguments do not describe a network.
    """
    if architecture not in ARCHITECTURES:
        raise ModelError(f"There is no architecture '{architecture}': choose one of {', '.join(ARCHITECTURES)}.")
    module, name = ARCHITECTURES[architecture]
    network = getattr(importlib.import_module(module), name)
    known = list(inspect.signature(network).parameters)
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise ModelError(
            f"The architecture '{architecture}' has no argument '{unknown[0]}': it has {', '.join(known)}."
        )
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    try:
        return network(**values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"The arguments {arguments} do not describe a '{architecture}' network: {error}.") from error


def parameter_count(network: nn.Module) -> int:
    """Number of parameters of `network`."""
    return sum(parameter.numel() for parameter in network.parameters())
