"""The Triton kernels of the fast path against float64: run in the interpreter on the processor, and on CUDA."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from segmamba.fast import convolution, kernels, maps, norm
from segmamba.fast.conv_weights import Convolution, TransposedConv
from segmamba.fast.gemm import launch_gemm
from segmamba.fast.march import launch_march
from segmamba.fast.tiles import Tiles

TOLERANCE = 1e-3
# Images, input and output channels, edge, dilation, stride, size, and tiles: every way a kernel is used.
CONVOLUTIONS = [
    (2, 8, 48, 3, 1, 1, (3, 8, 17), Tiles(True, 128, 48, 32, 4, 2, True)),
    (1, 24, 32, 3, 2, 1, (5, 6, 7), Tiles(True, 128, 16, 32, 4, 2, True)),
    (1, 8, 16, 5, 1, 1, (3, 8, 8), Tiles(True, 128, 16, 64, 4, 2, False)),
    (2, 1, 16, 3, 1, 1, (6, 6, 6), Tiles(False, 64, 16, 32, 4, 2)),
    (2, 16, 24, 3, 1, 2, (6, 8, 7), Tiles(False, 64, 16, 32, 4, 2)),
    (1, 64, 24, 3, 2, 1, (4, 4, 4), Tiles(False, 64, 32, 16, 4, 2)),
]


def relative_error(measured: torch.Tensor, expected: torch.Tensor) -> float:
    return float((measured.double().cpu() - expected.double()).norm() / expected.double().norm())


def in_a_wider_buffer(feature: maps.FeatureMap) -> maps.FeatureMap:
    """The same map as the last channels of a buffer that holds others too."""
    wide = maps.empty_map(feature.data, feature.batch, feature.size, feature.channels + 8, feature.border)
    wide.data.fill_(7.0)
    maps.clear_border(wide)
    part = wide.part(8, feature.channels)
    part.inner().copy_(feature.inner())
    return part


def check_convolutions(device: str) -> None:
    torch.manual_seed(0)
    for batch, channels, out, edge, dilation, stride, size, tiles in CONVOLUTIONS:
        margin = dilation * (edge // 2)
        layer = nn.Conv3d(channels, out, edge, stride, margin, dilation, bias=False).half()
        volume = torch.randn(batch, channels, *size).half()
        x = in_a_wider_buffer(maps.as_map(volume.to(device), margin))
        packed = Convolution.of(layer.to(device))
        expected = functional.conv3d(volume.double(), layer.weight.cpu().double(), None, stride, margin, dilation)
        made = maps.empty_map(x.data, batch, expected.shape[2:], out)
        made.data.fill_(float("nan"))
        launch = launch_march if tiles.march else launch_gemm
        sums = launch(x, packed, made, tiles, True)
        assert relative_error(maps.as_volume(made), expected) < TOLERANCE, (channels, out, edge, dilation, stride)
        if sums is not None:
            squares = expected.square().sum(dim=(2, 3, 4))
            assert relative_error(sums.sum(dim=1)[:, 1], squares) < TOLERANCE
            assert relative_error(sums.sum(dim=1)[:, 0] + 100, expected.sum(dim=(2, 3, 4)) + 100) < TOLERANCE


def check_a_biased_convolution_with_gelu(device: str) -> None:
    layer = nn.Conv3d(16, 24, 1).half()
    volume = torch.randn(2, 16, 4, 5, 6).half()
    made, _ = convolution.convolve(maps.as_map(volume.to(device)), Convolution.of(layer.to(device)), gelu=True)
    weight, bias = (value.detach().cpu().double() for value in (layer.weight, layer.bias))
    expected = functional.gelu(functional.conv3d(volume.double(), weight, bias))
    assert relative_error(maps.as_volume(made), expected) < TOLERANCE


def check_norms(device: str) -> None:
    torch.manual_seed(0)
    first, second, third = (torch.randn(2, 24, 4, 5, 6).half() * 3 + 2 for _ in range(3))
    x, r, t = (maps.as_map(value.to(device), border) for value, border in ((first, 0), (second, 1), (third, 2)))
    weight, bias = torch.rand(24, device=device) + 0.5, torch.randn(24, device=device)
    terms = norm.Term(x, norm.finish(x, None, weight, bias), 0.01), norm.Term(r, norm.finish(r, None), 0.0)
    wide = maps.empty_map(x.data, 2, (4, 5, 6), 48, 1)
    wide.data.fill_(float("nan"))
    made = norm.apply(terms[0], wide.part(24, 24), terms[1], t, 0.1)
    normed = functional.instance_norm(first.double(), weight=weight.cpu().double(), bias=bias.cpu().double())
    total = functional.leaky_relu(normed, 0.01) + functional.instance_norm(second.double()).relu() + third.double()
    assert relative_error(maps.as_volume(made), functional.leaky_relu(total, 0.1)) < TOLERANCE
    assert wide.data[..., :24].isnan().all()
    border = wide.data[..., 24:].clone()
    border[:, 1:-1, 1:-1, 1:-1] = 0
    assert (border == 0).all()


def check_the_norm_of_one_channel_spread_over_several(device: str) -> None:
    torch.manual_seed(0)
    image, gains = torch.randn(2, 1, 4, 5, 6).half(), torch.randn(16, device=device)
    first = torch.randn(2, 16, 4, 5, 6).half()
    x, base = maps.as_map(image.to(device), 1), maps.as_map(first.to(device))
    term = norm.Term(x, norm.finish_spread(x, gains))
    made = norm.apply(norm.Term(base), maps.empty_map(base.data, 2, (4, 5, 6), 16), term)
    spread = functional.instance_norm(image.double() * gains.cpu().double()[:, None, None, None])
    assert relative_error(maps.as_volume(made), first.double() + spread) < TOLERANCE


def check_doubling_and_depthwise(device: str) -> None:
    torch.manual_seed(0)
    volume = torch.randn(2, 24, 3, 4, 5).half()
    x = maps.as_map(volume.to(device), 1)
    weight = torch.randn(24, 16, 2, 2, 2).half()
    both = maps.empty_map(x.data, 2, (6, 8, 10), 32, 1)
    both.data.fill_(float("nan"))
    convolution.transposed_convolve(x, TransposedConv(weight.to(device)), both.part(16, 16))
    expected = functional.conv_transpose3d(volume.double(), weight.double(), stride=2)
    assert relative_error(maps.as_volume(both.part(16, 16)), expected) < TOLERANCE
    assert both.part(0, 16).inner().isnan().all()
    taps = torch.randn(24, 1, 3, 3, 3).half()
    filtered = convolution.depthwise(x, taps.to(device))
    expected = functional.conv3d(volume.double(), taps.double(), padding=1, groups=24)
    assert relative_error(maps.as_volume(filtered), expected) < TOLERANCE


def check_all(device: str) -> None:
    check_convolutions(device)
    check_a_biased_convolution_with_gelu(device)
    check_norms(device)
    check_the_norm_of_one_channel_spread_over_several(device)
    check_doubling_and_depthwise(device)
    assert not kernels.fallbacks, kernels.fallbacks


if __name__ == "__main__":
    check_all("cpu")
    print("all kernels match")
