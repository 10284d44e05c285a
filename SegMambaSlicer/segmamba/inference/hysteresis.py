"""Pieces of a structure that a network is nowhere sure of.

Hysteresis, as edge detectors have it (Canny, IEEE TPAMI 1986): a piece counts if the network is very sure of some part
of it, and then reaches as far as it is likely at all. To ask the same of every voxel would leave a core of each piece.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from segmamba.utils.arrays import bounding_box
from segmamba.utils.morphology import TOUCHING

# A GPU computes this many slices at a time: beside the answer and the recorded networks there may be little memory.
SLAB = 16


def lead(probabilities: Tensor, channel: int) -> Tensor:
    """Return by how much the logit of a class leads those of all others: (z, y, x) of (classes, z, y, x).

    Positive where the class is the most probable one.
    """
    others = functools.reduce(torch.maximum, (one for n, one in enumerate(probabilities) if n != channel))
    return probabilities[channel].log() - others.log()


def pieces_and_peaks(leads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the connected pieces with a positive lead, numbered from 1, and the highest lead of each number.

    That of number 0, which is what lies in no piece, is minus infinity.
    Voxels that share a corner are connected. ``leads`` is (z, y, x).
    """
    pieces = np.zeros(leads.shape, np.int32)
    box = bounding_box(leads > 0)
    if box is None:
        return pieces, np.array([-np.inf])
    pieces[box], count = ndimage.label(leads[box] > 0, TOUCHING)
    return pieces, np.r_[-np.inf, ndimage.maximum(leads[box], pieces[box], np.arange(1, count + 1))]


def leave_unsure(probabilities: Tensor, channel: int, least: float) -> None:
    """Leave each piece of a class in which its lead is nowhere ``least`` to what is second there, in place.

    The class keeps its probability in the other pieces and in the voxels next to them, and has none elsewhere: or
    between two voxels where it is second, interpolation could make it the first. What the others are then is their
    probability if it is not this class.

    Parameters
    ----------
    probabilities : Tensor
        Shape (classes, z, y, x), on any device; the classes sum to one, also afterwards.
    channel : int
        The class.
    least : float
        Lead of its logit before all others that a piece must reach in one voxel at least.
    """
    slabs = probabilities.split(SLAB, dim=1)
    pieces, peaks = pieces_and_peaks(torch.cat([lead(slab, channel).cpu() for slab in slabs]).numpy())
    near = ndimage.binary_dilation((peaks >= least)[pieces], TOUCHING)
    for slab, part in zip(slabs, torch.from_numpy(~near).split(SLAB), strict=True):
        elsewhere = part.to(slab.device)
        slab[channel].masked_fill_(elsewhere, 0.0)
        slab /= torch.where(elsewhere, slab.sum(dim=0), 1.0)
