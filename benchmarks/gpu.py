"""Speed on a CUDA GPU: the plain networks against the fast path, and against peers, in the same run.

python benchmarks/gpu.py CHEST_CT.nii.gz        (needs monai and dynamic-network-architectures for the peers)

Weights of the released network are random, but for a head that is fitted to the CT so that it answers surely.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from timing import keep, milliseconds, peak_gib, relative_error, seconds
from torch import Tensor, nn

from segmamba import scan
from segmamba.fast import forget
from segmamba.fast.accelerate import accelerate
from segmamba.inference.context import RunContext
from segmamba.inference.file_to_file import segment_file
from segmamba.inference.sliding_window import argmax, predict
from segmamba.inference.windows import Windows
from segmamba.models.resources import resource_root
from segmamba.networks import build_network
from segmamba.networks.checkpoint import load_state_dict, load_weights
from segmamba.networks.segmamba_v2 import SegMambaV2
from segmamba.request import Options, Request
from segmamba.scan import reference, torch_scan

WINDOW = (128, 128, 128)
VOLUME = (160, 512, 512)
Row = dict[str, Any]


def plain(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the reference: the network under autocast in float16."""

    def run(image: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast("cuda", torch.float16):
            return network(image)

    return run


def compared(what: str, network: nn.Module, image: Tensor) -> Row:
    """Time a network on both ways, with errors against float32."""
    with torch.no_grad():
        expected = network(image)
    reference_run, fast = plain(network), accelerate(network)
    errors = {
        "plain error": relative_error(reference_run(image), expected),
        "fast error": relative_error(fast(image), expected),
    }
    times = milliseconds(lambda: reference_run(image)), milliseconds(lambda: fast(image))
    return {"what": what, "plain ms": times[0], "fast ms": times[1], "ratio": times[0] / times[1], **errors}


def unet(kind: str, channels: int, classes: int) -> nn.Module:
    """Return nnU-Net's plain U-Net or its ResEnc-L, as its planner makes them for a patch of this size."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet

    common: Row = dict(
        input_channels=channels, n_stages=6, features_per_stage=(32, 64, 128, 256, 320, 320), conv_op=nn.Conv3d,
        kernel_sizes=3, strides=(1, 2, 2, 2, 2, 2), num_classes=classes, conv_bias=True, norm_op=nn.InstanceNorm3d,
        norm_op_kwargs=dict(eps=1e-5, affine=True), nonlin=nn.LeakyReLU, nonlin_kwargs=dict(inplace=True),
        deep_supervision=False,
    )  # fmt: skip
    if kind == "plain":
        return PlainConvUNet(n_conv_per_stage=2, n_conv_per_stage_decoder=2, **common).eval().cuda()
    blocks = (1, 3, 4, 6, 6, 6)
    return ResidualEncoderUNet(n_blocks_per_stage=blocks, n_conv_per_stage_decoder=1, **common).eval().cuda()


def networks() -> list[Row]:
    """The released network, the bundled one, and nnU-Net's on the same patches."""
    torch.manual_seed(0)
    image = torch.randn(2, 1, *WINDOW, device="cuda")
    rows = [compared("SegMamba-V2 as released, 2 x 128^3", SegMambaV2(1, 2).eval().cuda(), image)]
    for kind in ("plain", "ResEnc-L"):
        run = plain(unet(kind, 1, 2))
        rows.append({"what": f"nnU-Net {kind}, 2 x 128^3", "plain ms": milliseconds(lambda run=run: run(image))})
    manifest = json.loads((resource_root() / "weights_manifest.json").read_text())
    entry = next(model for model in manifest["models"] if model["id"] == "spinemamba")
    both: Any = build_network(entry["architecture"], **entry["arguments"])
    load_weights(both, load_state_dict(resource_root() / "Resources/Models/spinemamba.safetensors"))
    both.eval().cuda()
    for name, network, patch, classes in (
        ("coarse", both.coarse, (160, 96, 96), 33),
        ("fine", both.fine, (128, 96, 96), 6),
    ):
        image = torch.randn(1, 2, *patch, device="cuda")
        row = compared(f"SpineMamba {name}, 1 x {patch}", network, image)
        run = plain(unet("plain", 2, classes))
        rows.append(row | {"nnU-Net plain ms": milliseconds(lambda run=run, image=image: run(image))})
    return rows


def scans() -> list[Row]:
    """The Triton scan against PyTorch's and mamba-ssm's, at the released network's sizes; errors against float64."""
    from segmamba.scan import triton_scan

    def inputs(batch: int, channels: int, length: int) -> list[Tensor]:
        x, B, C = (torch.randn(batch, count, length, device="cuda") for count in (channels, 16, 16))
        step = torch.rand(batch, channels, length, device="cuda") * 0.1
        return [x, step, -torch.rand(channels, 16, device="cuda") * 4, B, C, torch.ones(channels, device="cuda")]

    small = inputs(1, 8, 512)
    expected = reference.selective_scan(*(value.double().cpu() for value in small))
    error = relative_error(triton_scan.selective_scan(*small).cpu(), expected)
    rows = []
    for shape in ((6, 384, 4096), (6, 768, 512)):
        values = inputs(*shape)
        times = [scan_time(function, values) for function in (torch_scan.selective_scan, triton_scan.selective_scan)]
        row: Row = {"what": f"scan of {shape}", "torch ms": times[0], "triton ms": times[1], "triton error": error}
        if "mamba_ssm" in scan.available_backends():
            theirs = partial(scan.selective_scan, backend="mamba_ssm")
            row["mamba-ssm ms"] = scan_time(theirs, values)
            row["triton to mamba-ssm"] = relative_error(triton_scan.selective_scan(*values), theirs(*values))
        rows.append(row)
    return rows


def scan_time(function: Callable[..., Tensor], values: list[Tensor]) -> float:
    """Time a scan."""
    with torch.no_grad():
        return milliseconds(lambda: function(*values), 3)


def ct_volume(path: Path) -> Tensor:
    """Return a CT resampled to `VOLUME` and normalised as the released network expects, (1, z, y, x)."""
    image = sitk.ReadImage(str(path), sitk.sitkFloat32)
    size = VOLUME[::-1]
    spacing = [
        given * count / wanted for given, count, wanted in zip(image.GetSpacing(), image.GetSize(), size, strict=True)
    ]
    image = sitk.Resample(
        image, size, sitk.Transform(), sitk.sitkLinear, image.GetOrigin(), spacing, image.GetDirection(), -1024.0
    )
    return torch.from_numpy((np.clip(sitk.GetArrayFromImage(image), -57, 175) - 65.175) / 32.651)[None].float()


def fit_head(network: SegMambaV2, window: Tensor, classes: int) -> None:
    """Fit the last layer by least squares to ranges of intensity: a random one is unsure of every voxel."""
    seen: list[Tensor] = []
    hook = network.out.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    plain(network)(window[None])
    hook.remove()
    features = seen[0][0].float().flatten(1).T
    features = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
    values = window.flatten()
    parts = torch.linspace(0, 1, classes + 1, device="cuda")[1:-1]
    edges = torch.quantile(values[::101], parts) if classes > 2 else torch.tensor([1.5], device="cuda")
    wanted = nn.functional.one_hot(torch.bucketize(values, edges), classes).float() * 10
    ridge = 1e-3 * torch.eye(features.shape[1], device="cuda")
    solution = torch.linalg.solve(features.T @ features + ridge, features.T @ wanted)
    head: Any = network.out.conv.conv
    head.weight.data.copy_(solution[:-1].T[..., None, None, None])
    head.bias.data.copy_(solution[-1])


def volume(image: Tensor, classes: int) -> Row:
    """From an image in main memory to labels there: ours, and for two classes MONAI's inferer on the plain network."""
    torch.manual_seed(0)
    network = SegMambaV2(1, classes).eval().cuda()
    fit_head(network, image[:, :128, 128:256, 128:256].cuda(), classes)
    network.cpu()

    def ours() -> Tensor:
        context = RunContext(torch.device("cuda"), torch.float16)
        return predict(network, image, Windows(WINDOW), context, argmax).values[0].cpu()

    row: Row = {"what": f"CT of {VOLUME}, {classes} classes", "fast s": seconds(ours)}
    forget(network)
    row["fast GiB"] = peak_gib(ours)
    if classes == 2:
        labels = ours()
        forget(network)
        network.cuda()
        half = plain(network)
        row["MONAI s"] = seconds(lambda: by_monai(half, image), 1)
        row["ratio"] = row["MONAI s"] / row["fast s"]
        # In half precision MONAI's sums of our weights would overflow.
        row["same labels"] = float((by_monai(lambda window: half(window).float(), image) == labels).float().mean())
        with torch.no_grad():
            row["same labels as float32"] = float((by_monai(network, image) == labels).float().mean())
    return row


def by_monai(forward: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """Return the labels (z, y, x) by MONAI's sliding window, blended with our weights."""
    from monai.inferers import sliding_window_inference

    position = torch.exp(-0.5 * ((torch.arange(128).double() - 63.5) / 16) ** 2)
    # So large that MONAI, which raises weights to 0.001, leaves them as they are.
    weights = (1e9 * position[:, None, None] * position[:, None] * position).float().cuda()
    logits = sliding_window_inference(image[None].cuda(), WINDOW, 2, forward, 0.5, "gaussian", roi_weight_map=weights)
    return logits.argmax(dim=1).to(torch.uint8).cpu()[0]


def whole_file(path: Path) -> list[Row]:
    """Vertebrae of a CT from file to file, in a warm process."""
    with tempfile.TemporaryDirectory() as folder:
        request = Request(
            str(path), f"{folder}/labels.nii.gz", model="spinemamba", overwrite=True, options=Options(device="cuda")
        )
        report = segment_file(request)
        taken = seconds(lambda: report.update(segment_file(request)), 1)
    return [{"what": f"vertebrae of {path.name}, file to file", "s": taken, **report["timings_s"]}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ct", type=Path, help="a CT, 512 x 512 x 133 in the committed results")
    path = parser.parse_args().ct
    if not torch.cuda.is_available():
        sys.exit("There is no CUDA GPU here.")
    image = ct_volume(path)
    rows: list[Row] = []
    try:
        for part in (
            networks,
            scans,
            lambda: [volume(image, 2)],
            lambda: [volume(image, 26)],
            lambda: whole_file(path),
        ):
            rows += part()
    finally:  # what was measured before an error is kept
        keep(rows, torch.cuda.get_device_name())


if __name__ == "__main__":
    main()
