"""Symmetric per-row int8 quantization of weights, for files only: networks run on the result of `dequantize`.

A row of a weight (its first axis: the output channel of a convolution or linear layer, the input channel of a
transposed convolution) becomes integers from -127 to 127 and one scale, stored under the weight's name plus `SCALES`.
Small weights become float16: together they are under 2% of a network's parameters, and they include the most sensitive
ones (norms, biases, A_log, D, the first and the last convolution).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from segmamba.errors import ModelError

# Key and value in the metadata of a file.
STORAGE, INT8_ROWS = "storage", "eight bits, one scale a row"
SCALES = ".scales"
LARGEST = 127
# Weights with fewer elements are stored in float16.
SMALLEST_WEIGHT = 2**14


def quantize_int8(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors to store of a state dict: large weights in int8, other floating-point weights in float16.

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
            stored[name], stored[name + SCALES] = quantize_tensor(weight.float())
        else:
            stored[name] = weight.half().contiguous()
        if not (weight.isfinite().all() and stored[name].isfinite().all()):
            raise ModelError(f"The weight '{name}' is not finite in 8-bit storage: leave the checkpoint as it is.")
    return stored


def quantize_tensor(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a float32 weight (rows, ...) as int8 and the scale of each row, float32 (rows,)."""
    rows = weight.flatten(1)
    scales = rows.abs().amax(dim=1) / LARGEST
    scales[scales == 0] = 1.0
    integers = (rows / scales[:, None]).round().clamp(-LARGEST, LARGEST)
    return integers.to(torch.int8).reshape(weight.shape), scales


def dequantize(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict from the tensors of `quantize_int8`; quantized weights are float32.

    Raises
    ------
    ModelError
        A weight in int8 has no scales, or their numbers differ.
    """
    state = {}
    for name, value in stored.items():
        if name.endswith(SCALES) and stored.get(name.removesuffix(SCALES), value).dtype == torch.int8:
            continue
        state[name] = value
        if value.dtype == torch.int8:
            scales = stored.get(name + SCALES)
            if scales is None or scales.shape != value.shape[:1]:
                raise ModelError(
                    f"The checkpoint's weight '{name}' does not have one scale per row: get the file again."
                )
            state[name] = value.float() * scales.reshape(-1, *[1] * (value.dim() - 1))
    return state
