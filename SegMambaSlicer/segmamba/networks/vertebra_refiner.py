"""A small network that draws one vertebra again, in its own frame. The construction is our own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


class VertebraRefiner(nn.Module):
    """A U-Net that changes the logit of one vertebra: (n, channels, z, y, x) -> (n, z, y, x).

    Every 2 x 2 x 2 points are channels of one, so that all layers work on an eighth of the points. What comes up is
    added to what was kept on the way down: joined, it would take twice the time.

    Parameters
    ----------
    channels : int
        Of a patch, see `segmamba.spine.vertebra_patch`.
    features : sequence of int
        Of each level of the U-Net; lengths of a patch are multiples of 2 to the power of their number.
    """

    def __init__(self, channels: int, features: Sequence[int] = (32, 64, 128)) -> None:
        super().__init__()
        self.first = nn.Conv3d(8 * channels, features[0], 1, bias=False)
        wide = [features[0], *features]
        # The finest level takes most of the time.
        down = [1] + [2] * (len(features) - 1)
        self.down = nn.ModuleList(map(_block, wide[:-1], wide[1:], down))
        self.narrow = nn.ModuleList(
            nn.Conv3d(deep, high, 1, bias=False) for deep, high in zip(features[:0:-1], features[-2::-1], strict=True)
        )
        self.up = nn.ModuleList(_block(number, number, 2) for number in features[-2::-1])
        self.last = nn.Conv3d(features[0], 8, 1)
        # An untrained network changes nothing.
        for weight in self.last.parameters():
            nn.init.zeros_(weight)

    def forward(self, given: Tensor) -> Tensor:
        """Return the change of the logit."""
        count, depth, height, width = len(given), *(length // 2 for length in given.shape[2:])
        parts = given.reshape(count, -1, depth, 2, height, 2, width, 2).permute(0, 1, 3, 5, 7, 2, 4, 6)
        values = self.first(parts.reshape(count, -1, depth, height, width))
        kept = []
        for block in self.down[:-1]:
            values = block(values)
            kept.append(values)
            values = functional.max_pool3d(values, 2)
        values = self.down[-1](values)
        for narrow, block in zip(self.narrow, self.up, strict=True):
            higher = functional.interpolate(narrow(values), scale_factor=2.0, mode="nearest")
            values = block(higher + kept.pop())
        parts = self.last(values).reshape(count, 2, 2, 2, depth, height, width).permute(0, 4, 1, 5, 2, 6, 3)
        return parts.reshape(count, *given.shape[2:])


def _block(before: int, after: int, count: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in [before] + [after] * (count - 1):
        layers += [
            nn.Conv3d(channels, after, 3, padding=1, bias=False),
            nn.InstanceNorm3d(after, affine=True),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)
