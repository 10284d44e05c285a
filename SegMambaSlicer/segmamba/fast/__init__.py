"""The fast way through the networks: the same weights and answers, by kernels of our own on CUDA."""

from __future__ import annotations

from segmamba.fast.accelerate import FastNetwork, accelerate, agrees, fast_network, forget

__all__ = ["FastNetwork", "accelerate", "agrees", "fast_network", "forget"]
