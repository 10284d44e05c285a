"""The network that draws one vertebra again."""

from __future__ import annotations

import torch

from segmamba.networks.vertebra_refiner import VertebraRefiner

CHANNELS, SIZE = 3, (8, 16, 24)


def patch() -> torch.Tensor:
    return torch.randn((2, CHANNELS, *SIZE), generator=torch.Generator().manual_seed(0))


def test_an_untrained_network_changes_nothing() -> None:
    with torch.no_grad():
        change = VertebraRefiner(CHANNELS, (2, 2, 2))(patch())
    assert change.shape == (2, *SIZE) and not change.any()


def test_every_point_comes_back_to_its_place() -> None:
    """Parts of 2 x 2 x 2 points become channels and points again: what is put in at a point comes out there."""
    network = VertebraRefiner(CHANNELS, (8, 2, 2))
    network.down[0] = torch.nn.Identity()
    network.up[-1] = torch.nn.Identity()
    with torch.no_grad():
        network.narrow[-1].weight.zero_()
        network.first.weight.zero_()
        network.last.weight.zero_()
        for part in range(8):
            network.first.weight[part, 1 * 8 + part] = 1.0
            network.last.weight[part, part] = 1.0
        assert torch.equal(network(patch()), patch()[:, 1])
