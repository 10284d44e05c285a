"""MONAI's plain U-Net under a name that a training configuration can give: not part of the product."""

from __future__ import annotations

from monai.networks.nets import UNet
from torch import nn

from segmamba.networks import ARCHITECTURES


def monai_unet(in_channels: int, out_channels: int, features: tuple[int, ...]) -> nn.Module:
    """Return a residual U-Net with instance norms and a stride of 2 between its levels."""
    return UNet(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=out_channels,
        channels=features,
        strides=(2,) * (len(features) - 1),
        num_res_units=2,
        norm=("INSTANCE", {"affine": True}),
    )


def register() -> None:
    """Make "monai_unet" known to `segmamba.networks.build_network`."""
    ARCHITECTURES["monai_unet"] = ("monai_peer", "monai_unet")
