"""Fast inference on CUDA: the same networks, weights and results with kernels of our own."""

from __future__ import annotations

from segmamba.fast.accelerate import FastNetwork, fast_network, forget, release_memory

__all__ = ["FastNetwork", "fast_network", "forget", "release_memory"]
