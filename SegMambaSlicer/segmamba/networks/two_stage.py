"""Two networks in one checkpoint: the first finds and labels, the second segments [our reconstruction]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from segmamba.networks.spine_mamba import SpineMamba


class TwoStageSpineMamba(nn.Module):
    """Two `SpineMamba`, for a coarse grid over the whole volume and a fine one around the column.

    Parameters
    ----------
    coarse, fine : mapping
        Arguments of each. The coarse one has 33 output channels, the fine one 6; see `segmamba.networks.spine_mamba`.
    """

    def __init__(self, coarse: Mapping[str, Any], fine: Mapping[str, Any]) -> None:
        super().__init__()
        self.coarse = SpineMamba(**_with_tuples(coarse))
        self.fine = SpineMamba(**_with_tuples(fine))

    def forward(self, image: Tensor) -> Tensor:
        """Return the coarse network's output: (B, in, D, H, W) -> (B, 33, D, H, W)."""
        return self.coarse(image)


def _with_tuples(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
