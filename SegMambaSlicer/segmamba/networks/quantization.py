"""Weights in eight bits, for files only: networks run on what `restored` gives back.

A row of a weight (its first axis: the output channel of a convolution or linear layer, the input channel of a
transposed convolution) becomes whole numbers from -127 to 127 and one scale, which stands beside it under the
weight's name with `SCALES` after it. Small weights become float16: together they are under 2% of a network's numbers,
and among them are those that act most (norms, biases, A_log, D, the first and the last convolution).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from segmamba.errors import ModelError

# What the metadata of a file says under this key.
STORAGE, EIGHT_BIT = "storage", "eight bits, one scale a row"
SCALES = ".scales"
LARGEST = 127
# Weights of fewer numbers stay in float16.
SMALLEST_WEIGHT = 2**14


def in_eight_bits(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what to store of a state dict: large weights in eight bits, all else in float16 or as it is.

    Raises
    ------
    ModelError
        A weight is not finite, or a small one is too large for float16.
    """
    stored = {}
    for name, value in state.items():
        weight = value.detach().cpu()
        if not weight.is_floating_point():
            stored[name] = weight.contiguous()
        elif name.endswith(".weight") and weight.dim() > 1 and weight.numel() >= SMALLEST_WEIGHT:
            stored[name], stored[name + SCALES] = rounded(weight.float())
        else:
            stored[name] = weight.half().contiguous()
        if not (weight.isfinite().all() and stored[name].isfinite().all()):
            raise ModelError(f"The weight '{name}' is not finite in 8-bit storage: leave the checkpoint as it is.")
    return stored


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a float32 weight (rows, ...) as int8 and the scale of each row, float32 (rows,)."""
    rows = weight.flatten(1)
    scales = rows.abs().amax(dim=1) / LARGEST
    scales[scales == 0] = 1.0
    numbers = (rows / scales[:, None]).round().clamp(-LARGEST, LARGEST)
    return numbers.to(torch.int8).reshape(weight.shape), scales


def restored(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict that `in_eight_bits` stored; its large weights are float32.

    Raises
    ------
    ModelError
        A weight in eight bits has no scales, or scales have no weight, or their numbers differ.
    """
    state = {}
    for name, value in stored.items():
        if name.endswith(SCALES) and stored.get(name.removesuffix(SCALES), value).dtype == torch.int8:
            continue
        state[name] = value
        if value.dtype == torch.int8:
            scales = stored.get(name + SCALES)
            if scales is None or scales.shape != value.shape[:1]:
                raise ModelError(f"The checkpoint's weight '{name}' has not one scale a row: get the file again.")
            state[name] = value.float() * scales.reshape(-1, *[1] * (value.dim() - 1))
    return state
