"""The selective scan: every backend against the float64 reference."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from segmamba import scan
from segmamba.errors import ModelError
from segmamba.job import worker_environment
from segmamba.scan import reference, torch_scan

LENGTHS = (1, 2, 17, 64, 300)
TOLERANCE = 1e-5
INPUT_NAMES = ("x", "delta", "A", "B", "C", "D")


def scan_inputs(length: int, batch: int = 2, channels: int = 5, state: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    x, B, C = normal(batch, channels, length), normal(batch, state, length), normal(batch, state, length)
    delta = torch.nn.functional.softplus(normal(batch, channels, length) - 1)
    A = -torch.rand(channels, state, generator=generator) * 4 - 0.05
    return [x, delta, A, B, C, normal(channels)]


def values_and_gradients(function, inputs: list[torch.Tensor], device: str = "cpu") -> dict[str, torch.Tensor]:
    inputs = [value.clone().to(device).requires_grad_() for value in inputs]
    y = function(*inputs)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).reshape(y.shape).cos()
    gradients = torch.autograd.grad((y * weight).sum(), inputs)
    results = {"y": y, **dict(zip(INPUT_NAMES, gradients, strict=True))}
    return {name: value.detach().cpu().double() for name, value in results.items()}


def assert_matches_reference(function, length: int, device: str = "cpu") -> None:
    inputs = scan_inputs(length)
    expected = values_and_gradients(reference.selective_scan, [value.double() for value in inputs])
    measured = values_and_gradients(function, inputs, device)
    for name, value in expected.items():
        error = (measured[name] - value).abs().max() / value.abs().max().clamp(min=1e-6)
        assert error < TOLERANCE, f"{name} at length {length}: relative error {error:.2e}"


@pytest.mark.parametrize("length", LENGTHS)
def test_torch_scan_matches_the_reference(length: int) -> None:
    assert_matches_reference(torch_scan.selective_scan, length)


def test_torch_scan_in_slices_matches_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_scan, "MAX_STATES", 4000)
    assert_matches_reference(torch_scan.selective_scan, 300)


def test_recurrence_passes_gradcheck_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(4, 3, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    b = torch.randn(4, 3, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(torch_scan.LinearRecurrence.apply, (a, b))


def test_strong_decay_over_a_long_sequence_stays_finite() -> None:
    x, delta, A, B, C, D = scan_inputs(3000)
    results = values_and_gradients(torch_scan.selective_scan, [x, delta * 50, A, B, C, D])
    assert all(value.isfinite().all() for value in results.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_scanned_in_float32(dtype: torch.dtype) -> None:
    inputs = [value.to(dtype) for value in scan_inputs(64)]
    y = scan.selective_scan(*inputs)
    expected = torch_scan.selective_scan(*[value.float() for value in inputs])
    assert y.dtype == dtype
    assert torch.equal(y, expected.to(dtype))


def test_autocast_does_not_change_the_scan() -> None:
    inputs = scan_inputs(64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = scan.selective_scan(*inputs)
    assert torch.equal(inside, scan.selective_scan(*inputs))


def test_triton_kernels_match_the_reference_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    package = Path(scan.__file__).parents[2]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(package), str(Path(__file__).parent)])
    lengths = ", ".join(map(str, LENGTHS))
    program = (
        "from test_scan import assert_matches_reference\n"
        "from segmamba.scan.triton_scan import selective_scan\n"
        f"for length in ({lengths},):\n"
        "    assert_matches_reference(selective_scan, length)\n"
        "print('all lengths match')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "all lengths match", done.stderr


def test_triton_refuses_cpu_tensors_in_a_clear_sentence() -> None:
    pytest.importorskip("triton")
    with pytest.raises(ModelError, match="runs on CUDA only, not on cpu: use 'torch' there"):
        scan.selective_scan(*scan_inputs(4), backend="triton")


@pytest.mark.gpu
@pytest.mark.parametrize("backend", scan.available_backends())
@pytest.mark.parametrize("length", LENGTHS)
def test_backend_matches_the_reference_on_cuda(backend: str, length: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    assert_matches_reference(lambda *inputs: scan.selective_scan(*inputs, backend=backend), length, "cuda")


@pytest.mark.gpu
def test_triton_is_chosen_on_cuda_and_its_gradients_are_deterministic() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    pytest.importorskip("triton")
    assert scan.chosen_backend("cuda") == "triton"
    first, second = (values_and_gradients(scan.selective_scan, scan_inputs(300), "cuda") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_cpu_uses_the_torch_backend() -> None:
    assert scan.chosen_backend("cpu") == "torch"


def test_unknown_backend_is_named_in_a_clear_sentence() -> None:
    with pytest.raises(ModelError, match="no scan backend 'cuda': choose one of torch, triton, mamba_ssm"):
        scan.set_backend("cuda")


def test_environment_variable_is_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGMAMBA_SCAN", "fast")
    with pytest.raises(ModelError, match="no scan backend 'fast'"):
        scan.chosen_backend("cpu")


def test_set_backend_overrides_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGMAMBA_SCAN", "fast")
    monkeypatch.setattr(scan, "_override", None)
    scan.set_backend("torch")
    assert scan.chosen_backend("cuda") == "torch"


def test_loading_the_scan_does_not_load_pytorchs_compiler() -> None:
    """It takes a second at each start of a worker; torch.compile loads it where it is used."""
    program = (
        "import sys, torch\n"
        "before = 'torch._dynamo' in sys.modules\n"
        "import segmamba.scan\n"
        "print(before == ('torch._dynamo' in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=worker_environment(), capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr
