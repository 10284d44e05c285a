"""What the doctor finds on computers that are not as they should be, and what the command line makes of trouble."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import tiny

from segmamba import scan
from segmamba.cli import doctor, examination
from segmamba.cli.interrupt import stop_signal
from segmamba.cli.main import main
from segmamba.errors import (
    DEBUG_VARIABLE,
    Cancelled,
    InputError,
    InstallationError,
    ModelError,
    SegMambaError,
    WorkerError,
)
from segmamba.inference.device import choose_device
from segmamba.models.manifest import load_manifest

GIB = 2**30


def found(findings: object) -> dict[str, tuple[str, str]]:
    """Return state and text by subject."""
    return {finding.subject: (finding.state, finding.text) for finding in findings}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("version", "state"), [("2.8.0", examination.OK), ("2.9.1", examination.WARN), ("2.13.0", examination.OK)]
)
def test_a_slow_pytorch_is_warned_of(version: str, state: str) -> None:
    said = found(examination._torch(version))["torch"]
    assert said[0] == state
    assert ("install 2.10 or later" in said[1]) == (state == examination.WARN)


def test_a_pytorch_that_does_not_go_with_numpy_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(array: np.ndarray) -> None:
        raise RuntimeError("Numpy is not available")

    monkeypatch.setattr(torch, "from_numpy", refuse)
    assert found(examination._torch("2.13.0")) == {
        "torch": (
            examination.FAIL,
            f"2.13.0 does not work with numpy {np.__version__} (Numpy is not available): reinstall both with pip.",
        )
    }


@pytest.mark.parametrize(
    ("cuda", "tool", "says"),
    [("13.0", None, "built for CUDA 13.0 but finds no GPU"), (None, "/bin/nvidia-smi", "install torch's CUDA build")],
)
def test_a_gpu_that_torch_cannot_use_is_warned_of(
    cuda: str | None, tool: str | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: tool)
    state, text = found(examination._torch("2.13.0"))["CUDA"]
    assert state == examination.WARN
    assert says in text


def test_without_a_sign_of_a_gpu_nothing_is_said_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "CUDA" not in found(examination._torch("2.13.0"))


def test_a_scan_that_does_not_run_is_a_failure_only_where_it_is_the_chosen_one(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(name="cuda:0", kind="cuda", title="GPU", precision="float16", free_memory=1, total_memory=2)
    monkeypatch.setattr(examination, "choose_device", lambda name: gpu)
    monkeypatch.setattr(scan, "available_backends", lambda: ("triton", "torch"))
    monkeypatch.setattr(scan, "chosen_backend", lambda name: "torch")

    def broken(device: object, backend: str) -> None:
        raise OSError(f"no {backend} here")

    monkeypatch.setattr(examination, "_try_network", broken)
    findings = found(examination._device("auto"))
    assert findings["device"][0] == examination.OK
    assert findings["scan backend triton"][0] == examination.WARN
    state, text = findings["scan backend torch"]
    assert state == examination.FAIL
    assert text == "a small network does not run (no torch here): choose --scan-backend torch, or another --device."


def test_a_network_that_gives_nan_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from segmamba import networks

    class Bad(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image * float("nan")

    monkeypatch.setattr(networks, "build_network", lambda *arguments, **keywords: Bad())
    with pytest.raises(ModelError, match="NaN"):
        examination._try_network(choose_device("cpu", "float32"), "torch")


class FakeWorker:
    """Says one thing, or nothing, or cannot start."""

    def __init__(self, says: object) -> None:
        self.says = says

    def __enter__(self) -> FakeWorker:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def start(self) -> None:
        if isinstance(self.says, SegMambaError):
            raise self.says

    def poll(self, timeout: float) -> object:
        return self.says


@pytest.mark.parametrize(
    ("says", "text"),
    [
        (None, "did not answer within 60 s: check whether security software blocks Python."),
        ({"type": "error", "message": "It died: do this."}, "It died: do this."),
        (WorkerError("The worker cannot be started: check."), "The worker cannot be started: check."),
    ],
)
def test_a_worker_that_does_not_come_up_fails(says: object, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "WorkerProcess", lambda: FakeWorker(says))
    finding = examination._worker()
    assert (finding.state, finding.text) == (examination.FAIL, text)


def test_models_that_are_missing_or_damaged_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from segmamba.models import store

    manifest = load_manifest(tiny.write_model(tmp_path))
    monkeypatch.setattr(examination, "load_models", lambda: manifest)
    monkeypatch.setattr(store, "resource_root", lambda: tmp_path)
    monkeypatch.setenv("SEGMAMBA_MODELS", str(tmp_path / "models"))
    whole = found(examination._models())
    assert whole[f"model {tiny.MODEL_ID}"][0] == examination.OK
    assert whole[f"model {tiny.MISSING_ID}"][0] == examination.WARN
    (tmp_path / "tiny.safetensors").write_bytes(b"damaged")
    assert found(examination._models())[f"model {tiny.MODEL_ID}"][0] == examination.FAIL
    (tmp_path / "tiny.safetensors").unlink()
    assert "install SegMambaSlicer again" in found(examination._models())[f"model {tiny.MODEL_ID}"][1]


def test_a_manifest_that_cannot_be_read_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ModelError("The manifest is damaged: install again.")

    monkeypatch.setattr(examination, "load_models", refuse)
    assert found(examination._models()) == {"manifest": (examination.FAIL, "The manifest is damaged: install again.")}


def test_little_memory_or_disk_is_warned_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SEGMAMBA_MODELS", str(tmp_path))
    monkeypatch.setattr(examination, "system_memory", lambda: (8 * GIB, 2 * GIB))
    assert examination._memory().state == examination.WARN
    monkeypatch.setattr(examination, "system_memory", lambda: (8 * GIB, 5 * GIB))
    assert examination._memory().state == examination.OK
    for free, state in ((GIB // 2, examination.WARN), (2 * GIB, examination.OK)):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        assert examination._disk().state == state


def test_an_old_python_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert examination._python().state == examination.OK
    monkeypatch.setattr(examination, "OLDEST_PYTHON", (99, 0))
    assert "install Python 99.0 or later" in examination._python().text


def test_a_broken_settings_file_fails_at_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ModelError("The settings are damaged: mend them.")

    monkeypatch.setattr(examination.store, "models_folder", refuse)
    assert str(examination._disk()) == "FAIL  settings: The settings are damaged: mend them."


def failing(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def run(options: argparse.Namespace) -> int:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (InputError("It is bad: mend it."), 3, "segmamba: error: It is bad: mend it."),
        (ModuleNotFoundError("No module named 'torch'"), InstallationError.exit_code, "pip install torch"),
        (PermissionError(13, "Permission denied"), 1, "Operating system error ([Errno 13] Permission denied): check"),
        (KeyboardInterrupt(), Cancelled.exit_code, "Interrupted."),
    ],
)
def test_trouble_is_one_line_and_a_status_unless_it_is_to_be_looked_into(
    error: BaseException,
    status: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv(DEBUG_VARIABLE, raising=False)
    monkeypatch.setattr(doctor, "_run", failing(error))
    assert main(["doctor"]) == status
    printed = capsys.readouterr().err
    assert says in printed and printed.count("\n") == 1
    monkeypatch.setenv(DEBUG_VARIABLE, "1")
    if not isinstance(error, KeyboardInterrupt):
        with pytest.raises(type(error)):
            main(["doctor"])


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_is_a_wish_at_first_and_an_interrupt_the_second_time() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stop_signal() as stopped:
        assert not stopped()
        signal.raise_signal(signal.SIGINT)
        assert stopped()
        signal.raise_signal(signal.SIGINT)
        time.sleep(0)
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_ctrl_c_is_left_alone() -> None:
    seen = []

    def use() -> None:
        with stop_signal() as stopped:
            seen.append(stopped())

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [False]
