"""A selective scan held against the reference, values and gradients."""

from __future__ import annotations

import torch

from segmamba.scan import reference

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


def assert_matches_reference(function, length: int, device: str = "cpu", channels: int = 5) -> None:
    inputs = scan_inputs(length, channels=channels)
    expected = values_and_gradients(reference.selective_scan, [value.double() for value in inputs])
    measured = values_and_gradients(function, inputs, device)
    for name, value in expected.items():
        error = (measured[name] - value).abs().max() / value.abs().max().clamp(min=1e-6)
        assert error < TOLERANCE, f"{name} at length {length}: relative error {error:.2e}"
