"""Read and write network weights: safetensors, and PyTorch files without running code from them."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segmamba.errors import InstallationError, ModelError
from segmamba.networks.quantization import INT8_ROWS, STORAGE, dequantize, quantize_int8

WRAPPERS = ("module", "model", "state_dict")
DATA_PARALLEL_PREFIX = "module."
# Names of data types in safetensors.
TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
}


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the weights in a ``.safetensors``, ``.pt`` or ``.pth`` file, on the CPU.

    A state dict wrapped as ``module``, ``model`` or ``state_dict`` is unwrapped, and a leading ``module.`` is
    stripped from its keys. The weights stay in the file, mapped into memory, where its format allows that; those
    stored in 8 bits (`save_quantized`) are returned as float32.

    Raises
    ------
    ModelError
        The file is missing, damaged, or does not hold named tensors.
    InstallationError
        The file is ``.safetensors`` and the package that reads it is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"There is no checkpoint file {path}: download or import the model first.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    state = _unwrap(content)
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"The file {path} does not hold network weights: choose a checkpoint of the model.")
    return {key.removeprefix(DATA_PARALLEL_PREFIX): value for key, value in state.items()}


def load_weights(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy `state` into `network`, which must have exactly its names and shapes.

    Raises
    ------
    ModelError
        A weight is missing, unexpected or of another shape; the message names the first one.
    """
    advice = "the checkpoint belongs to another architecture or other arguments."
    expected = network.state_dict()
    for key, value in expected.items():
        if key not in state:
            raise ModelError(f"The checkpoint has no weight '{key}': {advice}")
        if state[key].shape != value.shape:
            shapes = f"{tuple(state[key].shape)} where the network has {tuple(value.shape)}"
            raise ModelError(f"The checkpoint's weight '{key}' has the shape {shapes}: {advice}")
    for key in state:
        if key not in expected:
            raise ModelError(f"The checkpoint's weight '{key}' is not in the network: {advice}")
    network.load_state_dict(dict(state))


def save_safetensors(
    weights: nn.Module | Mapping[str, Tensor],
    path: str | Path,
    dtype: torch.dtype = torch.float16,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the weights of a network, or a state dict, as safetensors; floating-point weights in `dtype`.

    Raises
    ------
    ModelError
        A weight is not finite, or is too large for `dtype`.
    """
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    converted = {}
    for key, value in state.items():
        kept = value.detach().cpu()
        converted[key] = (kept.to(dtype) if kept.is_floating_point() else kept).contiguous()
        if not converted[key].isfinite().all():
            raise ModelError(f"The weight '{key}' is not finite in {dtype}: save the checkpoint in float32.")
    _safetensors().save_file(converted, str(path), metadata=dict(metadata or {}))


def save_quantized(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Write a state dict as safetensors in half the space of float16: see `segmamba.networks.quantization`.

    Raises
    ------
    ModelError
        A weight is not finite, or is too large for float16.
    """
    # One entry only: the order of several is not fixed, and the file's hash would not be reproducible.
    _safetensors().save_file(quantize_int8(state), str(path), metadata={STORAGE: INT8_ROWS})


def write_safetensors(
    state: Mapping[str, Tensor], path: str | Path, progress: Callable[[float], None] = lambda fraction: None
) -> None:
    """Write a state dict unchanged, weight by weight, so that only one needs additional memory at a time.

    The package's own writer holds a copy of all of them.

    Raises
    ------
    ModelError
        A weight is not finite, or not a plain array of numbers.
    """
    header, end = {}, 0
    for key, value in state.items():
        if value.dtype not in TYPE_NAMES or value.layout != torch.strided:
            raise ModelError(f"The weight '{key}' is not a plain array of numbers: choose a checkpoint of the model.")
        start, end = end, end + value.numel() * value.element_size()
        name = TYPE_NAMES[value.dtype]
        header[key] = {"dtype": name, "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with Path(path).open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for index, (key, value) in enumerate(state.items(), start=1):
            if not value.isfinite().all():
                raise ModelError(f"The weight '{key}' has NaN or infinity: get the checkpoint again.")
            stream.write(value.detach().contiguous().flatten().view(torch.uint8).numpy().data)
            progress(index / len(state))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    library = _safetensors()
    try:
        with library.safe_open(str(path), "pt") as file:
            storage = (file.metadata() or {}).get(STORAGE)
        weights = library.load_file(str(path))  # in the file's order
    except Exception as error:
        raise ModelError(f"The checkpoint {path} is damaged, get it again: {error}.") from error
    if storage not in (None, INT8_ROWS):
        raise ModelError(f"The checkpoint {path} is in a newer storage format ('{storage}'): update SegMambaSlicer.")
    return dequantize(weights) if storage else weights


def _read_torch(path: Path) -> Any:
    try:
        # The format of PyTorch before 1.6 is not a zip archive and cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, KeyError, AttributeError) as error:
        # Without PyTorch's text, which says how to load such a file anyway.
        raise ModelError(
            f"The checkpoint {path} is damaged or holds more than weights, so it is not loaded: get it again."
        ) from error


def _unwrap(content: Any) -> dict[str, Any]:
    while isinstance(content, Mapping):
        inner = next((content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            return dict(content)
        content = inner
    return {}


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise InstallationError("The package safetensors is missing: install it (pip install safetensors).") from error
    return safetensors.torch
