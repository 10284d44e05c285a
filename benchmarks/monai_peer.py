"""MONAI's plain U-Net under a name that a training configuration can give: not part of the product."""

from __future__ import annotations

from monai.networks.nets import UNet
from torch import Tensor, nn

from segmamba.networks import ARCHITECTURES


class ResidualUNet(nn.Module):
    """A residual U-Net with instance norms and a stride of 2 between its levels.

    It is a part of a name of its own: MONAI calls its layers "model", and such a beginning of a weight's name is taken
    for a training program's when a checkpoint is read.
    """

    def __init__(self, in_channels: int, out_channels: int, features: tuple[int, ...]) -> None:
        super().__init__()
        self.unet = UNet(
            spatial_dims=3,
            in_channels=in_channels,
            out_channels=out_channels,
            channels=features,
            strides=(2,) * (len(features) - 1),
            num_res_units=2,
            norm=("INSTANCE", {"affine": True}),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (batch, classes, z, y, x) of an image (batch, channels, z, y, x)."""
        logits: Tensor = self.unet(image)
        return logits


def register() -> None:
    """Make "monai_unet" known to `segmamba.networks.build_network`."""
    ARCHITECTURES["monai_unet"] = ("monai_peer", "ResidualUNet")
