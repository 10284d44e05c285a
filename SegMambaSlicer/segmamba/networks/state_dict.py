"""Find the weights in what a training program has saved, and give them the network's own names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from segmamba.errors import ModelError

# Keys under which programs save a state dict, the averaged weights before those of the last step.
WRAPPERS = (
    *("model_ema", "ema_model", "ema_state_dict", "ema"),
    *("state_dict", "model_state_dict", "network_weights", "model_state", "model", "network", "net", "module"),
    *("net_state_dict", "network_state_dict", "weights", "params", "model_weights", "generator"),
)
# What PyTorch puts before the names of a wrapped network: DataParallel, torch.compile, Lightning, FSDP,
# activation checkpoints. No network of this software has a part of one of these names.
WRAPPING_PARTS = frozenset(
    {"module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
)
# Names that a training class gives to the network in it; its other weights (of a loss, say) are not the network's.
ATTRIBUTES = ("model", "_model", "network", "net", "ema_model", "backbone", "segmentor")
# How often torch.optim.swa_utils.AveragedModel has averaged: saved next to the weights.
COUNT_OF_AVERAGES = "n_averaged"


def find_state_dict(content: Any) -> dict[str, Tensor]:
    """Return the weights in the content of a checkpoint file, by their names in the network; empty if there are none.

    Mappings are unwrapped (`WRAPPERS`, in any depth), as are the names of their weights (`WRAPPING_PARTS` anywhere and
    in any order, `ATTRIBUTES` at the beginning). What is not a tensor, such as the epoch, is left out.

    Raises
    ------
    ModelError
        Two weights have the same name once unwrapped.
    """
    weights = _tensors(content)
    names = {name: _own_name(name) for name in weights}
    for attribute in ATTRIBUTES:
        beginning = f"{attribute}."
        inside = {name: own.removeprefix(beginning) for name, own in names.items() if own.startswith(beginning)}
        names = inside or names
    if len(names) > 1 and COUNT_OF_AVERAGES in names:
        del names[COUNT_OF_AVERAGES]
    found: dict[str, Tensor] = {}
    for name, own in names.items():
        if own in found:
            raise ModelError(f"The checkpoint has two weights '{own}': save the state dict of one network alone.")
        found[own] = weights[name]
    return found


def _tensors(content: Any) -> dict[str, Tensor]:
    """Return the tensors of the first mapping that is a state dict, looking into known wrappers before others."""
    if not isinstance(content, Mapping):
        return {}
    for inner in _inner(content):
        found = _tensors(inner)
        if found:
            return found
    return {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _inner(content: Mapping[Any, Any]) -> Iterator[Any]:
    """Give the mappings in one: those of known names and, where nothing else can be meant, a single unknown one."""
    known = [content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)]
    yield from known
    others = [value for value in content.values() if isinstance(value, Mapping)]
    tensors = any(isinstance(value, Tensor) for value in content.values())
    if not known and not tensors and len(others) == 1:
        yield others[0]


def _own_name(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPING_PARTS)
