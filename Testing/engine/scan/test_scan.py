"""The selective scan: every backend against the float64 reference."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from helpers.repository import HELPERS, PACKAGES
from helpers.scan_reference import assert_matches_reference, scan_inputs, values_and_gradients

from segmamba import scan
from segmamba.errors import ModelError
from segmamba.scan import torch_scan
from segmamba.worker.client import worker_environment

LENGTHS = (1, 2, 17, 64, 300)


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


@pytest.mark.processor
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_scanned_in_float32(dtype: torch.dtype) -> None:
    inputs = [value.to(dtype) for value in scan_inputs(64)]
    y = scan.selective_scan(*inputs)
    expected = torch_scan.selective_scan(*[value.float() for value in inputs])
    assert y.dtype == dtype
    assert torch.equal(y, expected.to(dtype))


@pytest.mark.processor
def test_autocast_does_not_change_the_scan() -> None:
    inputs = scan_inputs(64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = scan.selective_scan(*inputs)
    assert torch.equal(inside, scan.selective_scan(*inputs))


def interpreted(program: str) -> list[str]:
    """Return the lines that a program writes where Triton's kernels run in its interpreter."""
    if find_spec("triton") is None:
        pytest.skip("needs Triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(PACKAGES), str(HELPERS.parent)])
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_triton_kernels_match_the_reference_in_the_interpreter() -> None:
    # The interpreter is slow: three chunks of 64 steps have a first, a middle and a last one.
    program = (
        "from helpers.scan_reference import assert_matches_reference\n"
        "from segmamba.scan.triton_scan import selective_scan\n"
        "for length in (1, 17, 150):\n"
        "    assert_matches_reference(selective_scan, length, channels=2)\n"
        "print('all lengths match')\n"
    )
    assert interpreted(program) == ["all lengths match"]


def test_a_triton_scan_without_gradients_does_not_import_pytorchs_compiler() -> None:
    """It takes five seconds, which the first use of a GPU would wait for."""
    program = (
        "import sys, torch\n"
        "from helpers.scan_reference import scan_inputs\n"
        "from segmamba.scan.triton_scan import selective_scan\n"
        "inputs = scan_inputs(5)\n"
        "plain = selective_scan(*inputs)\n"
        "print('torch._dynamo' in sys.modules)\n"
        "with_gradients = selective_scan(*(each.clone().requires_grad_() for each in inputs))\n"
        "with_gradients.sum().backward()\n"
        "print(torch.equal(plain, with_gradients))\n"
    )
    assert interpreted(program) == ["False", "True"]


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


def test_neither_the_scan_nor_the_shapes_of_a_networks_weights_need_pytorchs_compiler() -> None:
    """It takes two seconds at the start of a worker or an import; torch.compile loads it where it is used."""
    program = (
        "import sys, torch\n"
        "before = 'torch._dynamo' in sys.modules\n"
        "import segmamba.scan\n"
        "from segmamba.models.manifest import load_manifest\n"
        "from segmamba.networks.identify import expected_shapes\n"
        "assert all(expected_shapes(model.architecture, model.arguments) for model in load_manifest().models)\n"
        "print(before == ('torch._dynamo' in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=worker_environment(), capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr
