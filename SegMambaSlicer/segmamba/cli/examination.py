"""Checks of an installation: what works, what does not, and what to do."""

from __future__ import annotations

import importlib
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec

from segmamba import __version__
from segmamba.errors import ModelError, SegMambaError, package_problem
from segmamba.inference.device import Device, choose_device, import_torch
from segmamba.models import store
from segmamba.models.library import load_models
from segmamba.models.settings import MODELS, VARIABLES
from segmamba.utils.memory import gibibytes, system_memory
from segmamba.utils.words import counted
from segmamba.worker.client import WorkerProcess

OK, WARN, FAIL = "OK", "WARN", "FAIL"
OLDEST_PYTHON = (3, 11)
# A chest CT of 512 x 512 x 133 voxels takes about 3 GiB with 27 classes.
MEMORY_WANTED = 4 * 2**30
DISK_WANTED = 2**30
WORKER_SECONDS = 60.0
NEEDED = ("numpy", "scipy", "SimpleITK", "nibabel", "safetensors")
# Package, and what is missing without it.
USEFUL = (
    ("matplotlib", "the preview"),
    ("tqdm", "the progress bar"),
    ("filelock", "importing and downloading models"),
    ("requests", "downloading models"),
    ("pydicom", "finding DICOM series and writing DICOM SEG"),
)


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's. ``text`` says what to do unless ``state`` is OK."""

    state: str
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.state:4}  {self.subject}: {self.text}"


def examine(device: str = "auto") -> Iterator[Finding]:
    """Check everything that a run needs, on a device of `segmamba.inference.device.choose_device`."""
    yield _python()
    yield from _packages()
    parts: dict[str, Callable[[], Iterable[Finding]]] = {
        "torch": lambda: _torch_and_device(device),
        "worker": lambda: [_worker()],
        "models": _models,
    }
    for subject, part in parts.items():
        try:
            yield from part()
        except ImportError as error:
            # A package that was found missing above may be needed for looking further.
            yield Finding(FAIL, subject, str(package_problem(error)))
    yield _memory()
    yield _disk()


def _python() -> Finding:
    text = f"{platform.python_version()} on {platform.platform()}, segmamba {__version__}"
    if sys.version_info < OLDEST_PYTHON:
        return Finding(FAIL, "Python", f"{text}: install Python {'.'.join(map(str, OLDEST_PYTHON))} or later.")
    return Finding(OK, "Python", text)


def _packages() -> Iterator[Finding]:
    for name in NEEDED:
        try:
            importlib.import_module(name)
            yield Finding(OK, name, metadata.version(name))
        except ImportError as error:
            text = f"does not load ({error}): install it with 'pip install --force-reinstall {name}'."
            yield Finding(FAIL, name, text)
    for name, use in USEFUL:
        if find_spec(name) is not None:
            yield Finding(OK, name, metadata.version(name))
        else:
            yield Finding(WARN, name, f"is missing, so {use} is unavailable: install it with 'pip install {name}'.")


def _torch_and_device(device: str) -> Iterator[Finding]:
    try:
        version = import_torch().__version__
    except SegMambaError as error:
        yield Finding(FAIL, "torch", str(error))
        return
    yield from _torch(version)
    yield from _device(device)


def _torch(version: str) -> Iterator[Finding]:
    import numpy as np
    import torch

    try:
        torch.from_numpy(np.zeros(1)).numpy()
    except RuntimeError as error:
        text = f"{version} does not work with numpy {np.__version__} ({error}): reinstall both with pip."
        yield Finding(FAIL, "torch", text)
        return
    if version.startswith("2.9."):
        text = f"{version} is 4 times slower in 3-D convolutions and its memory grows: install 2.10 or later, or 2.8."
        yield Finding(WARN, "torch", text)
    else:
        yield Finding(OK, "torch", version)
    if torch.version.cuda is not None and not torch.cuda.is_available():
        text = f"torch is built for CUDA {torch.version.cuda} but finds no GPU: if there is one, update its driver."
        yield Finding(WARN, "CUDA", text)
    elif torch.version.cuda is None and shutil.which("nvidia-smi") is not None:
        text = "an NVIDIA GPU seems to be present, but torch is built for the CPU only: install torch's CUDA build."
        yield Finding(WARN, "CUDA", text)


def _device(name: str) -> Iterator[Finding]:
    try:
        device = choose_device(name)
    except SegMambaError as error:
        yield Finding(FAIL, "device", str(error))
        return
    free = f"{gibibytes(device.free_memory)} of {gibibytes(device.total_memory)} free"
    yield Finding(OK, "device", f"{device.name} ({device.title}), {device.precision}, {free}")
    from segmamba import scan

    chosen = scan.chosen_backend(device.name)
    for backend in scan.available_backends():
        if backend != "torch" and device.kind != "cuda":
            continue
        use = "chosen" if backend == chosen else "not chosen automatically"
        try:
            _try_network(device, backend)
            yield Finding(OK, f"scan backend {backend}", f"a small network runs ({use})")
        except Exception as error:
            # Any failure of a foreign kernel is a finding, not the end of the examination.
            state = FAIL if backend == chosen else WARN
            text = f"a small network does not run ({error}): choose --scan-backend torch, or another --device."
            yield Finding(state, f"scan backend {backend}", text)


def _try_network(device: Device, backend: str) -> None:
    import torch

    from segmamba import scan
    from segmamba.networks import build_network

    torch.manual_seed(0)
    network = build_network("spine_mamba", in_channels=1, out_channels=2, features=[8, 8, 8, 16, 16], depths=[1, 1])
    image = torch.randn(1, 1, 32, 32, 32, device=device.name)
    scan.set_backend(backend)
    try:
        with torch.no_grad(), torch.autocast(device.kind, device.dtype, device.dtype != torch.float32):
            logits = network.eval().to(device.name)(image)
    finally:
        scan.set_backend(None)
    if not logits.isfinite().all():
        raise ModelError("it gives NaN or infinity")


def _worker() -> Finding:
    try:
        with WorkerProcess() as worker:
            worker.start()
            message = worker.poll(WORKER_SECONDS)
    except SegMambaError as error:
        return Finding(FAIL, "worker", str(error))
    if message is None:
        return Finding(
            FAIL,
            "worker",
            f"did not answer within {WORKER_SECONDS:.0f} s: check whether security software blocks Python.",
        )
    if message["type"] == "ready":
        return Finding(OK, "worker", "starts and answers")
    return Finding(FAIL, "worker", str(message.get("message")))


def _models() -> Iterator[Finding]:
    try:
        models = load_models().models
    except SegMambaError as error:
        yield Finding(FAIL, "manifest", str(error))
        return
    yield Finding(OK, "manifest", counted(len(models), "model"))
    for model in models:
        subject = f"model {model.id}"
        try:
            found = store.installed(model)
        except ModelError as error:
            # What comes with the software has to be there; the rest is the user's choice.
            yield Finding(FAIL if model.file.bundled else WARN, subject, str(error))
            continue
        try:
            digest = store.verify(found)
        except ModelError as error:
            yield Finding(FAIL, subject, str(error))
            continue
        known = "matches" if found.sha256 else "unknown, so not compared"
        yield Finding(OK, subject, f"{found.path.name}, {found.origin}, SHA-256 {digest[:12]} {known}")


def _memory() -> Finding:
    total, free = system_memory()
    text = f"{gibibytes(free)} of {gibibytes(total)} free"
    if total and free < MEMORY_WANTED:
        return Finding(WARN, "memory", f"{text}: close other programs, or give a region of interest for large volumes.")
    return Finding(OK, "memory", text)


def _disk() -> Finding:
    try:
        folder = store.models_folder()
    except ModelError as error:
        return Finding(FAIL, "settings", str(error))
    existing = next(part for part in (folder, *folder.absolute().parents) if part.is_dir())
    free = shutil.disk_usage(existing).free
    text = f"{gibibytes(free)} free for models in {folder}"
    if free < DISK_WANTED:
        return Finding(WARN, "disk", f"{text}: free some space, or set {VARIABLES[MODELS]} to another folder.")
    return Finding(OK, "disk", text)
