"""Hysteresis threshold on the logit margin of one label.

As edge detectors have it (Canny, IEEE TPAMI 1986): a connected component counts if the network is very sure of some
part of it, and then reaches as far as it is likely at all. To ask the same of every voxel would leave a core of each
component.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from segmamba.utils.arrays import bounding_box, grown_box
from segmamba.utils.morphology import CONNECTIVITY_26

# A GPU computes this many slices at a time: the output and the recorded networks may leave little memory.
SLAB = 16


def logit_margin(probabilities: Tensor, channel: int) -> Tensor:
    """Return the logit of a class minus the highest logit of all others: (z, y, x) of (classes, z, y, x).

    Positive where the class is the most probable one.
    """
    others = functools.reduce(torch.maximum, (one for n, one in enumerate(probabilities) if n != channel))
    margin: Tensor = probabilities[channel].log() - others.log()
    return margin


def label_components_with_peak(margin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the connected components with a positive margin, and the highest margin of each.

    Parameters
    ----------
    margin : ndarray of float
        Shape (z, y, x), as `logit_margin` gives it.

    Returns
    -------
    components : ndarray of int32
        Shape (z, y, x): the number of each voxel's component, from 1; 0 outside. Voxels that share a corner are
        connected.
    peaks : ndarray of float
        The highest margin of each number; minus infinity for 0.
    """
    components = np.zeros(margin.shape, np.int32)
    box = bounding_box(margin > 0)
    if box is None:
        return components, np.array([-np.inf])
    components[box], count = ndimage.label(margin[box] > 0, CONNECTIVITY_26)
    return components, np.r_[-np.inf, ndimage.maximum(margin[box], components[box], np.arange(1, count + 1))]


def suppress_below_margin(probabilities: Tensor, channel: int, high: float) -> np.ndarray:
    """Suppress, in place, the components of a class whose margin nowhere reaches ``high``, and return their sizes.

    The class keeps its probability in the other components and in the voxels next to them, and loses it everywhere
    else: or between two voxels where it is second, interpolation could make it the first. The other classes get there
    the probability that they have without this class.

    Parameters
    ----------
    probabilities : Tensor
        Shape (classes, z, y, x), on any device; the classes sum to one, also afterwards.
    channel : int
        The class.
    high : float
        Margin of its logit that a component must reach in one voxel at least.

    Returns
    -------
    ndarray of int
        The number of voxels of each suppressed component.
    """
    slabs = probabilities.split(SLAB, dim=1)
    margin = torch.cat([logit_margin(slab, channel).cpu() for slab in slabs]).numpy()
    components, peaks = label_components_with_peak(margin)
    kept = (peaks >= high)[components]
    near = np.zeros_like(kept)
    box = bounding_box(kept)
    if box is not None:
        box = grown_box(box, kept.shape)
        near[box] = ndimage.binary_dilation(kept[box], CONNECTIVITY_26)
    for slab, part in zip(slabs, torch.from_numpy(~near).split(SLAB), strict=True):
        elsewhere = part.to(slab.device)
        slab[channel].masked_fill_(elsewhere, 0.0)
        slab /= torch.where(elsewhere, slab.sum(dim=0), 1.0)
    box = bounding_box(components)
    if box is None:
        return np.zeros(0, np.int64)
    sizes: np.ndarray = np.bincount(components[box].ravel(), minlength=len(peaks))
    return sizes[1:][peaks[1:] < high]
