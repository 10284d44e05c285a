"""The network of a run: its weights, its device, and the memory that it holds."""

from __future__ import annotations

import functools
import gc
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakSet

import torch

from segmamba import scan
from segmamba.errors import DeviceError
from segmamba.fast import release_memory
from segmamba.inference.device import Device, choose_device
from segmamba.models import store
from segmamba.models.manifest import Model
from segmamba.networks import build_network
from segmamba.networks.checkpoint import load_state_dict, load_weights
from segmamba.request import Options
from segmamba.utils.memory import gibibytes


@dataclass(frozen=True, eq=False)
class Engine:
    """A network with its weights, and its device; the model has the normalization parameters of the import, if any.

    ``again`` says whether the network is the one of the last volume.
    """

    model: Model
    device: Device
    backend: str
    checkpoint: Path
    digest: str
    network: torch.nn.Module
    warnings: tuple[str, ...]
    again: bool = False


# Those that some volume was prepared for.
_networks: WeakSet[torch.nn.Module] = WeakSet()


def prepare(model: Model, options: Options, checkpoint: Path | None, root: Path | None) -> Engine:
    """Choose a device and load a model's network; parameters and errors as for `segment`."""
    device, warnings = device_for(model, options)
    scan.set_backend(None if options.scan_backend == "auto" else options.scan_backend)
    with ThreadPoolExecutor(1) as beside:
        # The first use of a GPU takes seconds, in the driver and outside of Python's lock.
        backend = beside.submit(scan.chosen_backend, device.name)
        if checkpoint is None:
            found = store.installed(model, root)
            model, path, digest = store.configured(model, found), found.path, store.verify(found, store.known_sha256)
        else:
            path, digest = checkpoint, store.known_sha256(checkpoint)
        network = _network(model.architecture, json.dumps(dict(model.arguments), sort_keys=True), path, digest)
    again = network in _networks
    _networks.add(network)
    return Engine(model, device, backend.result(), path, digest, network, warnings, again)


def device_for(model: Model, options: Options) -> tuple[Device, tuple[str, ...]]:
    """Choose the device; one chosen automatically that has too little memory for the model gives way to the CPU.

    Returns
    -------
    device : Device
    warnings : tuple of str
        A sentence where the device gave way.

    Raises
    ------
    DeviceError
        The device is not there, or one that was asked for has too little memory.
    """
    device = choose_device(options.device, options.precision)
    need = (model.entry.get("memory_gib") or 0) * 2**30
    if device.kind != "cuda" or device.free_memory >= need:
        return device, ()
    shortage = f"{device.title} has {gibibytes(device.free_memory)} free and '{model.id}' needs {gibibytes(need)}"
    if options.device != "auto":
        raise DeviceError(f"{shortage}: close other programs, or choose --device cpu.")
    # A half precision that was asked for the GPU does not hold for the processor.
    return choose_device("cpu", "auto"), (f"{shortage}: the CPU was used instead.",)


@functools.lru_cache(maxsize=1)
def _network(architecture: str, arguments: str, path: Path, digest: str) -> torch.nn.Module:
    """Return a network with its weights; the last one stays for the next volume.

    ``arguments`` is JSON, and ``digest`` the file's SHA-256: they make the call's identity.
    """
    network = build_network(architecture, **json.loads(arguments))
    load_weights(network, load_state_dict(path))
    return network.eval()


def free_gpu() -> None:
    """Give a GPU's memory back: the network that stayed for the next volume, and the graphs made of it, go."""
    if torch.cuda.is_initialized():
        _network.cache_clear()
        gc.collect()
        release_memory()
