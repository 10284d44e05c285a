"""Networks that look at single voxels, some of which fail."""

from __future__ import annotations

import torch
from torch import nn

PATCH = (32, 32, 32)


class PerVoxel(nn.Module):
    """Logits that depend on the voxel alone: blending must give what the whole volume at once gives."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(image[:, :1]), image[:, :1], -2 * image[:, :1]], dim=1)


class OneConvolution(nn.Conv3d):
    """The smallest network that can be trained."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)


class OutOfMemoryAt(PerVoxel):
    """Runs out of memory on some calls, as a GPU would."""

    def __init__(self, *calls: int) -> None:
        super().__init__()
        self.calls = calls
        self.count = 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.count += 1
        if self.count in self.calls:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(image)


def volume(*size: int) -> torch.Tensor:
    return torch.randn((1, *size), generator=torch.Generator().manual_seed(0))


class NotANumberIn(PerVoxel):
    def __init__(self, *precisions: torch.dtype) -> None:
        super().__init__()
        self.precisions = precisions

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        half = torch.is_autocast_enabled("cpu")
        bad = (torch.get_autocast_dtype("cpu") if half else torch.float32) in self.precisions
        return super().forward(image) * (float("nan") if bad else 1.0)
