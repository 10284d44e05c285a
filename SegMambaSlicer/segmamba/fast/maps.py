"""Feature maps as the fast path keeps them: channels last, half precision, with a border of zeros.

The border is what the next convolution pads with, so its kernel needs no bounds checks; and several maps can share one
buffer's channels, so joining a skip costs no copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Size = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """Channels ``first`` to ``first + channels`` of a buffer.

    Attributes
    ----------
    data : Tensor
        Shape (B, D + 2 border, H + 2 border, W + 2 border, stored channels), contiguous.
    border : int
        Voxels of zeros around the map.
    first, channels : int
        The map's channels in the buffer.
    """

    data: Tensor
    border: int
    first: int
    channels: int

    @property
    def size(self) -> Size:
        """D, H, W."""
        depth, height, width = (length - 2 * self.border for length in self.data.shape[1:4])
        return depth, height, width

    @property
    def batch(self) -> int:
        """B."""
        return self.data.shape[0]

    @property
    def stored(self) -> int:
        """Channels of the buffer, the distance between two voxels."""
        return self.data.shape[4]

    @property
    def strides(self) -> tuple[int, int, int]:
        """Voxels between two batch items, planes and rows."""
        _, depth, height, width, _ = self.data.shape
        return depth * height * width, height * width, width

    def inner(self) -> Tensor:
        """The map without its border, shape (B, D, H, W, channels)."""
        low, (depth, height, width) = self.border, self.size
        return self.data[
            :, low : low + depth, low : low + height, low : low + width, self.first : self.first + self.channels
        ]

    def start(self, margin: int = 0) -> Tensor:
        """The buffer as a flat tensor that starts at voxel (-margin, -margin, -margin) of the map."""
        if margin > self.border:
            raise ValueError(f"a map with a border of {self.border} has no margin of {margin}")
        _, plane, row = self.strides
        voxel = (self.border - margin) * (plane + row + 1)
        return self.data.view(-1)[voxel * self.stored + self.first :]

    def items(self) -> list[FeatureMap]:
        """The batch's items, each a map in the same buffer."""
        return [
            FeatureMap(self.data[index : index + 1], self.border, self.first, self.channels)
            for index in range(self.batch)
        ]

    def part(self, first: int, channels: int) -> FeatureMap:
        """Some of the channels, in the same buffer."""
        return FeatureMap(self.data, self.border, self.first + first, channels)


def empty_map(like: Tensor, batch: int, size: Size, channels: int, border: int = 0) -> FeatureMap:
    """Return a map with undefined contents; type and device are those of ``like``."""
    shape = (batch, *(length + 2 * border for length in size), channels)
    return FeatureMap(torch.empty(shape, dtype=like.dtype, device=like.device), border, 0, channels)


def clear_border(feature: FeatureMap) -> None:
    """Set the border of all channels of the buffer to zero."""
    width = feature.border
    for axis in range(1, 4) if width else ():
        length = feature.data.shape[axis]
        feature.data.narrow(axis, 0, width).zero_()
        feature.data.narrow(axis, length - width, width).zero_()


def as_map(volume: Tensor, border: int = 0) -> FeatureMap:
    """Copy a volume (B, C, D, H, W) into a map."""
    batch, channels, depth, height, width = volume.shape
    feature = empty_map(volume, batch, (depth, height, width), channels, border)
    clear_border(feature)
    feature.inner().copy_(volume.movedim(1, -1))
    return feature


def as_volume(feature: FeatureMap) -> Tensor:
    """View a map as a volume (B, C, D, H, W); its memory stays channels last."""
    return feature.inner().movedim(-1, 1)
