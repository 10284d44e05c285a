"""Read and write network weights: safetensors, and PyTorch files without running code from them."""

from __future__ import annotations

import _codecs
import argparse
import contextlib
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segmamba.errors import InstallationError, ModelError
from segmamba.networks.quantization import INT8_ROWS, STORAGE, dequantize, quantize_int8
from segmamba.networks.state_dict import find_state_dict
from segmamba.utils.file_kinds import is_safetensors, why_no_checkpoint

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

    Wrapped state dicts are unwrapped (`segmamba.networks.state_dict`). The format is told by the content, not by the
    name. The weights stay in the file, mapped into memory, where its format allows that; those stored in 8 bits
    (`save_quantized`) are returned as float32.

    Raises
    ------
    ModelError
        The file is missing, damaged, something else than a checkpoint, or does not hold named tensors.
    InstallationError
        The file is in the format safetensors and the package that reads it is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"There is no checkpoint file {path}: download or import the model first.")
    try:
        other = why_no_checkpoint(path)
        content = None if other else _read_safetensors(path) if is_safetensors(path) else _read_torch(path)
    except OSError as error:
        raise ModelError(f"The file {path} cannot be read ({error.strerror}): check the file.") from error
    if other:
        raise ModelError(f"The file {path} {other}")
    state = find_state_dict(content)
    if not state:
        raise ModelError(f"The file {path} does not hold network weights: choose a checkpoint of the model.")
    return state


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
        with _allowed_globals(), path.open("rb") as stream:
            # PyTorch goes by the name where it has one: a stream has none, but cannot be mapped.
            if path.suffix.lower() == ".safetensors":
                return torch.load(stream, map_location="cpu", weights_only=True)
            # The format of PyTorch before 1.6 is not a zip archive and cannot be mapped either.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged file may raise anything
        # Without PyTorch's text, which says how to load such a file anyway.
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused is None:
            raise ModelError(f"The checkpoint {path} is damaged: get it again.") from error
        raise ModelError(
            f"The checkpoint {path} holds more than weights ({refused[1]}), so it is not loaded, as that could run "
            "code: save the weights alone, with torch.save(model.state_dict(), ...)."
        ) from error


def _allowed_globals() -> contextlib.AbstractContextManager[Any]:
    """Let PyTorch load what programs save next to weights and what cannot run code: arguments, numbers, paths."""
    if not hasattr(torch.serialization, "safe_globals"):  # PyTorch 2.4
        return contextlib.nullcontext()
    numbers = [type(np.dtype(kind)) for kind in (*np.typecodes["AllInteger"], *np.typecodes["Float"], "?")]
    core = np._core if hasattr(np, "_core") else np.core
    named: list[Any] = [argparse.Namespace, np.dtype, np.ndarray, _codecs.encode, *numbers]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        named.append((core.multiarray.scalar, f"{module}.scalar"))
        named.append((core.multiarray._reconstruct, f"{module}._reconstruct"))
    for module in ("pathlib", "pathlib._local"):
        named += [(PurePosixPath, f"{module}.PosixPath"), (PureWindowsPath, f"{module}.WindowsPath")]
    return torch.serialization.safe_globals(named)


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise InstallationError("The package safetensors is missing: install it (pip install safetensors).") from error
    return safetensors.torch
