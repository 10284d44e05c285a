"""Choosing a device and a precision."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from segmamba.errors import DeviceError
from segmamba.inference.device import choose_device, cpu_precision, onednn_has_bfloat16
from segmamba.utils.memory import gibibytes, system_memory

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


def test_the_cpu_is_always_there_and_knows_its_memory() -> None:
    device = choose_device("cpu")
    assert (device.name, device.kind) == ("cpu", "cpu")
    assert device.dtype in (torch.float32, torch.bfloat16)
    assert 0 < device.free_memory <= device.total_memory


def test_bfloat16_is_chosen_only_where_the_processor_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segmamba.inference.device.onednn_has_bfloat16", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert cpu_precision() == "float32"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert cpu_precision() == "bfloat16"
    monkeypatch.setattr("segmamba.inference.device.onednn_has_bfloat16", lambda: False)
    assert cpu_precision() == "float32"
    monkeypatch.setattr("segmamba.inference.device.onednn_has_bfloat16", lambda: True)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert cpu_precision() == "float32"


@pytest.mark.processor
def test_the_processor_runs_in_bfloat16_only_if_onednn_convolves_in_it() -> None:
    if not onednn_has_bfloat16():
        assert cpu_precision() == "float32"
    assert choose_device("cpu").precision == cpu_precision()


@pytest.mark.processor
def test_a_processor_that_is_held_to_avx2_runs_in_float32() -> None:
    program = "from segmamba.inference.device import cpu_precision; print(cpu_precision())"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "float32", done.stderr


def test_a_precision_that_is_asked_for_is_taken() -> None:
    assert choose_device("cpu", "float32").precision == "float32"
    assert choose_device("cpu", "bfloat16").precision == "bfloat16"


@without_cuda
def test_auto_is_some_device_that_works() -> None:
    assert choose_device("auto").kind in ("cpu", "mps")


@without_cuda
def test_asking_a_cpu_build_for_cuda_says_which_build_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(DeviceError, match="install the CUDA build"):
        choose_device("cuda")


@without_cuda
def test_asking_for_cuda_without_a_driver_says_to_update_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(DeviceError, match="update the NVIDIA driver"):
        choose_device("cuda:0")


def test_asking_for_a_gpu_number_that_is_not_there_names_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DeviceError, match="cuda:0, cuda:1"):
        choose_device("cuda:2")


@pytest.mark.parametrize(("name", "precision"), [("tpu", "auto"), ("cpu", "float8"), ("cpu", "float16")])
def test_an_unknown_device_or_precision_names_the_choices(name: str, precision: str) -> None:
    with pytest.raises(DeviceError, match="choose"):
        choose_device(name, precision)


def test_memory_is_written_in_gibibytes() -> None:
    assert gibibytes(3.1 * 2**30) == "3.1 GiB"
    assert system_memory()[0] > 2**20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_auto_takes_the_gpu_in_float16() -> None:
    device = choose_device("auto")
    assert (device.kind, device.precision) == ("cuda", "float16")
    assert device.total_memory > 0
