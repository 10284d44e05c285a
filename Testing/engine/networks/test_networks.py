"""The networks: any size in, logits of that size out, gradients everywhere, and the structure they promise."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from helpers.repository import REPOSITORY
from torch.nn import functional

from segmamba.errors import ModelError
from segmamba.inference.device import onednn_has_bfloat16
from segmamba.networks import build_network, cpu_blocks, parameter_count
from segmamba.networks.blocks import DecoderBlock, EncoderBlock, OutputBlock, pad_to_stride
from segmamba.networks.checkpoint import load_state_dict, load_weights, save_safetensors
from segmamba.networks.mamba import TriOrientedMamba, sum_of_orders, three_orders
from segmamba.networks.segmamba_v2_paper import enhance_certain_features
from segmamba.networks.shape_prior import CrossUpdate, resample
from segmamba.scan import reference

SHAPES = REPOSITORY / "Testing" / "data" / "segmamba_v2_release_state_dict_shapes.json"
TINY = {
    "spine_mamba": {"features": [4, 4, 8, 8, 8], "depths": [1, 1], "grid": [3, 2, 2]},
    "segmamba_v2_release": {"feat_size": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "hidden_size": 8},
    "segmamba_v2_paper": {"features": [4, 4, 8, 8], "depths": [1, 1, 1, 1], "full_features": 4},
}
every_architecture = pytest.mark.parametrize("architecture", TINY)


def tiny(architecture: str, **arguments) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network(architecture, in_channels=2, out_channels=5, **{**TINY[architecture], **arguments})


def random_image(*size: int) -> torch.Tensor:
    return torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(1))


@every_architecture
@pytest.mark.parametrize("size", [(32, 32, 48), (35, 33, 41), (5, 40, 16)])
def test_logits_have_the_size_of_the_image(architecture: str, size: tuple[int, int, int]) -> None:
    with torch.inference_mode():
        logits = tiny(architecture).eval()(random_image(*size))
    assert logits.shape == (1, 5, *size)
    assert logits.isfinite().all()


@every_architecture
def test_gradient_reaches_every_parameter(architecture: str) -> None:
    network = tiny(architecture)
    for name, value in network.named_parameters():
        if name.endswith("se.fc.0.bias"):
            # A squeeze-excite this narrow can start with every ReLU closed, which stops its gradient.
            torch.nn.init.constant_(value, 2.0)
    labels = torch.randint(0, 5, (1, 32, 32, 32), generator=torch.Generator().manual_seed(2))
    functional.cross_entropy(network(random_image(32, 32, 32)), labels).backward()
    without = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    # A bias before an instance norm is subtracted again by it: its gradient is zero but for rounding.
    assert [name for name in without if not name.endswith("bias")] == []
    assert all(value.grad is not None and value.grad.isfinite().all() for value in network.parameters())


@pytest.mark.processor
@every_architecture
def test_two_runs_give_identical_logits(architecture: str) -> None:
    network, image = tiny(architecture).eval(), random_image(32, 32, 32)
    with torch.inference_mode():
        assert torch.equal(network(image), network(image))


@pytest.mark.processor
@every_architecture
def test_bfloat16_autocast_stays_finite_and_close(architecture: str) -> None:
    network, image = tiny(architecture).eval(), random_image(32, 32, 32)
    with torch.inference_mode():
        exact = network(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = network(image).float()
    assert rounded.isfinite().all()
    assert (rounded - exact).norm() / exact.norm() < 0.1


@pytest.mark.processor
@every_architecture
def test_every_map_in_bfloat16_is_channels_last(architecture: str) -> None:
    """One map in another order and oneDNN reorders all that follow, which takes as long as convolving them."""
    if not onednn_has_bfloat16():
        pytest.skip("oneDNN does not convolve in bfloat16 here, and what PyTorch does instead lays maps out otherwise")
    network = tiny(architecture).eval()
    others = []

    def note(module: torch.nn.Module, _: object, answer: torch.Tensor) -> None:
        if not answer.is_contiguous(memory_format=torch.channels_last_3d):
            others.append(module)

    for module in network.modules():
        if isinstance(module, (torch.nn.Conv3d, torch.nn.ConvTranspose3d, torch.nn.InstanceNorm3d)):
            module.register_forward_hook(note)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        network(random_image(32, 32, 32))
    assert not others


def test_release_has_the_names_and_shapes_of_the_released_checkpoint() -> None:
    with torch.device("meta"):
        network = build_network("segmamba_v2_release")
    shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
    assert shapes == json.loads(SHAPES.read_text())
    assert parameter_count(network) == 138_772_694


def test_release_reproduces_the_golden_output(shared: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    path = shared / "parity" / "segmamba_v2_release_tiny.safetensors"
    if not path.is_file():
        pytest.skip("the golden file is not there")
    with safetensors.safe_open(path, "pt") as golden:
        about = golden.metadata()
        tensors = {key: golden.get_tensor(key) for key in golden.keys()}  # noqa: SIM118
    network = build_network(
        "segmamba_v2_release",
        in_channels=int(about["in_chans"]),
        out_channels=int(about["out_chans"]),
        feat_size=[int(value) for value in about["dims"].split(",")],
        depths=[int(value) for value in about["depths"].split(",")],
        hidden_size=int(about["hidden"]),
    )
    weights = {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}
    network.load_state_dict(weights, strict=True)
    with torch.inference_mode():
        output = network.eval()(tensors["input"])
    assert (output - tensors["output"]).abs().max() / tensors["output"].abs().max() < 1e-4


def test_defaults_stay_within_their_size_budgets() -> None:
    with torch.device("meta"):
        assert parameter_count(build_network("spine_mamba")) < 14_000_000
        assert 10_000_000 < parameter_count(build_network("segmamba_v2_paper")) < 18_000_000


def test_three_orders_run_along_the_three_axes_and_come_back() -> None:
    volume = torch.arange(24.0).view(1, 1, 2, 3, 4)
    first, second, third = three_orders(volume).view(3, -1).tolist()
    assert first == list(range(24))
    assert second[:8] == [0, 1, 2, 3, 12, 13, 14, 15]
    assert third[:6] == [0, 12, 4, 16, 8, 20]
    assert torch.equal(sum_of_orders(three_orders(volume), (2, 3, 4)), 3 * volume)


def plain_mamba(block: TriOrientedMamba, tokens: torch.Tensor) -> torch.Tensor:
    """Mamba-1 of (B, L, C) tokens in their given order, written out with the reference scan."""
    x, z = block.in_proj(tokens).transpose(1, 2).chunk(2, dim=1)
    x = functional.pad(x, (block.conv1d.kernel_size[0] - 1, 0))
    x = functional.silu(functional.conv1d(x, block.conv1d.weight, block.conv1d.bias, groups=x.shape[1]))
    rank, state = block.dt_proj.in_features, block.A_log.shape[1]
    step, B, C = block.x_proj(x.transpose(1, 2)).split((rank, state, state), dim=-1)
    delta = functional.softplus(block.dt_proj(step)).transpose(1, 2)
    A = -block.A_log.exp()
    y = reference.selective_scan(x, delta, A, B.transpose(1, 2), C.transpose(1, 2), block.D).float()
    return block.out_proj((y * functional.silu(z)).transpose(1, 2))


def test_tri_oriented_mamba_is_the_sum_of_plain_mamba_over_the_three_orders() -> None:
    torch.manual_seed(0)
    block = TriOrientedMamba(6)
    volume = torch.randn(2, 6, 3, 4, 5)
    expected = torch.zeros(2, 6, 3, 4, 5)
    for order in ((0, 1, 2, 3, 4), (0, 1, 3, 2, 4), (0, 1, 4, 3, 2)):
        turned = volume.permute(order)
        mixed = plain_mamba(block, turned.flatten(2).transpose(1, 2)).transpose(1, 2)
        expected += mixed.reshape(turned.shape).permute(order)
    measured = block(volume.flatten(2).transpose(1, 2), (3, 4, 5)).transpose(1, 2).reshape(volume.shape)
    assert torch.allclose(measured, expected, atol=1e-6)


def test_blocks_equal_the_ones_of_monai() -> None:
    monai_blocks = pytest.importorskip("monai.networks.blocks")
    pairs = [
        (EncoderBlock(3, 4), monai_blocks.UnetrBasicBlock(3, 3, 4, 3, 1, "instance", True), [(3, 4)]),
        (DecoderBlock(4, 3), monai_blocks.UnetrUpBlock(3, 4, 3, 3, 2, "instance", True), [(4, 4), (3, 8)]),
        (OutputBlock(4, 2), monai_blocks.UnetOutBlock(3, 4, 2), [(4, 4)]),
    ]
    for ours, theirs, inputs in pairs:
        theirs.load_state_dict(ours.state_dict(), strict=True)
        volumes = [torch.randn(1, channels, size, size, size) for channels, size in inputs]
        assert torch.allclose(ours(*volumes), theirs(*volumes), atol=1e-6), type(ours).__name__


def test_padding_repeats_the_border_and_leaves_multiples_alone() -> None:
    volume = torch.randn(1, 1, 32, 32, 33)
    padded = pad_to_stride(volume, 16)
    assert padded.shape == (1, 1, 32, 32, 48)
    assert torch.equal(padded[..., 33:], volume[..., -1:].expand(-1, -1, -1, -1, 15))
    assert pad_to_stride(padded, 16) is padded
    assert pad_to_stride(torch.zeros(1, 1, 1, 1, 1), 16).shape == (1, 1, 32, 32, 32)


@pytest.mark.parametrize("size", [(3, 5, 4), (9, 5, 2), (12, 10, 8)])
def test_resampling_keeps_constants_and_enlarges_like_pytorch(size: tuple[int, int, int]) -> None:
    assert torch.allclose(resample(torch.ones(1, 2, 6, 5, 4), size), torch.ones(1, 2, *size))
    coarse = torch.randn(1, 2, 3, 2, 2)
    expected = functional.interpolate(coarse, size=size, mode="trilinear", align_corners=False)
    assert torch.allclose(resample(coarse, size), expected, atol=1e-6)


def test_cross_update_adds_the_prior_map_that_a_feature_follows() -> None:
    prior = torch.randn(1, 4, 6, 6, 6)
    update = CrossUpdate()
    with torch.no_grad():
        update.sharpness.fill_(100.0)
    features = 0.1 * prior[:, 2:3] + 7
    assert torch.allclose(update(features, prior), features + prior[:, 2:3], atol=1e-3)


def test_the_shape_prior_has_a_token_map_an_output_channel_unless_another_number_is_given() -> None:
    by_default, chosen = tiny("spine_mamba"), tiny("spine_mamba", prior_tokens=7)
    assert by_default.shape_prior.prior.shape == (1, 5, 3, 2, 2)
    assert chosen.shape_prior.prior.shape == (1, 7, 3, 2, 2)
    assert chosen(random_image(32, 32, 32)).shape == (1, 5, 32, 32, 32)


def test_shape_prior_can_be_left_out() -> None:
    network = tiny("spine_mamba", shape_prior=False)
    assert not [name for name, _ in network.named_parameters() if "prior" in name]
    assert network(random_image(32, 32, 32)).shape == (1, 5, 32, 32, 32)


def test_certain_features_are_enhanced_more_than_uncertain_ones() -> None:
    most_uncertain = -0.5413  # sigmoid of it is 1/e, where -p log p is largest
    skip = torch.tensor([most_uncertain, 6.0]).view(1, 1, 1, 1, 2)
    uncertain, certain = (enhance_certain_features(skip) / skip).flatten().tolist()
    assert uncertain == pytest.approx(2 - 1 / torch.e, abs=1e-4)
    assert certain == pytest.approx(2, abs=0.01)


def test_the_u_net_of_the_comparison_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("monai.networks.nets")
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    peer = importlib.import_module("monai_peer")
    saved, loaded = (peer.ResidualUNet(1, 2, (2, 4)) for _ in range(2))
    save_safetensors(saved, tmp_path / "weights.safetensors", torch.float32)
    load_weights(loaded, load_state_dict(tmp_path / "weights.safetensors"))
    image = torch.randn(1, 1, 8, 8, 8)
    torch.testing.assert_close(loaded(image), saved(image))


def test_unknown_architecture_is_named_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match="no architecture 'unet': choose one of segmamba_v2_release"):
        build_network("unet")


def test_unknown_argument_is_named_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match="'spine_mamba' has no argument 'width': it has in_channels"):
        build_network("spine_mamba", width=3)


def test_arguments_that_make_no_network_are_refused() -> None:
    with pytest.raises(ModelError, match="do not describe a 'spine_mamba' network"):
        build_network("spine_mamba", features=[4, 8])


@pytest.mark.processor
@every_architecture
def test_inference_on_the_processor_gives_what_training_gives(architecture: str) -> None:
    # Without gradients, blocks run in place and joined; 48 voxels make the finer decoders join their convolutions.
    network, image = tiny(architecture).eval(), random_image(48, 48, 64) * 3 + 1
    expected = network(image).detach()
    with torch.no_grad():
        found = network(image)
    assert found.is_contiguous()
    assert (found - expected).norm() < 5e-5 * expected.norm()


def test_a_joined_decoder_gives_what_its_two_convolutions_give() -> None:
    torch.manual_seed(3)
    block = DecoderBlock(6, 3, affine=True)
    volume, skip = torch.randn(1, 6, 4, 5, 6), torch.randn(1, 3, 8, 10, 12)
    expected = block(volume, skip).detach()
    with torch.no_grad():
        assert volume[0, 0].numel() >= cpu_blocks.JOINED * 3
        torch.testing.assert_close(block(volume, skip), expected, rtol=1e-4, atol=1e-5)
        assert volume[:, :, :2, :2, :2].numel() < cpu_blocks.JOINED * 3 * 6
        small = block(volume[:, :, :2, :2, :2], skip[:, :, :4, :4, :4])
    torch.testing.assert_close(small, block(volume[:, :, :2, :2, :2], skip[:, :, :4, :4, :4]), rtol=1e-4, atol=1e-5)


def test_maps_that_are_convolved_in_their_own_place_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    block = DecoderBlock(8, 8, affine=True).eval()
    volume, skip = torch.randn(1, 8, 4, 5, 6), torch.randn(1, 8, 8, 10, 12)
    with torch.no_grad():
        assert skip[0].numel() < cpu_blocks.CONVOLVED
        expected = block(volume, skip.clone())
        monkeypatch.setattr(cpu_blocks, "CONVOLVED", 2 * 8 * 10 * 12)
        monkeypatch.setattr(cpu_blocks, "SMALLEST_CONVOLVED", 0)
        torch.testing.assert_close(block(volume, skip.clone(), last_use=True), expected, rtol=1e-5, atol=1e-5)
        untouched = skip.clone()
        torch.testing.assert_close(block(volume, skip), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(skip, untouched)
