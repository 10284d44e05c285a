"""How a tumour grows in the wall of the bowel, on the device. Our own construction.

A tumour is the region where a field, in mm, is positive. Bands of the wall follow the bowel: their field comes from the
distance to its surface, so they bend with it and never leave it; polyps are ellipsoids that sit on the surface.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from segmamba.training.colorectal.centreline import STEP_MM
from segmamba.training.colorectal.parameters import Tumour
from segmamba.training.synthesis.context import SamplingContext
from segmamba.training.synthesis.tissue_labels import SPACING

# Distance, in voxels of the map, of the two points that give a seed's directions: into the bowel and along it.
ARM_VOXELS = 6.0
# A thinner wall is not a tumour.
LEAST_MM = 3.0
LOBE_MM, TONGUE_MM = 12.0, 9.0
CRATER_WIDTH = 0.5  # of the half length
FAR = -100.0


def local_axes(points: Tensor, context: SamplingContext, arm_mm: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return coordinates in mm around a seed, and the scale there.

    Parameters
    ----------
    points : Tensor (3, 3)
        Positions of a seed, of a point into the bowel and of a point along it in the sample: z, y, x in voxels.
    context : SamplingContext
    arm_mm : float
        Distance of these points from the seed in the map.

    Returns
    -------
    along, around, inward : Tensor (z, y, x)
    scale : Tensor ()
        Millimetres of the sample for one of the map.
    """
    into, on = (points[1:] - points[0]) * context.spacing
    scale = into.norm() / arm_mm
    on = on / on.norm()
    into = into - (into * on).sum() * on
    into = into / into.norm()
    axes = torch.stack([on, torch.linalg.cross(on, into), into])
    offset = (axes * points[0]).sum(dim=1) * context.spacing
    z, y, x = (torch.arange(n, device=context.device) * context.spacing for n in context.patch)
    part = axes[:, 0, None, None, None] * z[:, None, None] + axes[:, 1, None, None, None] * y[:, None]
    along, around, inward = part + axes[:, 2, None, None, None] * x - offset[:, None, None, None]
    return along, around, inward, scale


def grow_tumour(
    tumour: Tumour, radius: float, step: int, fields: tuple[Tensor, Tensor], points: Tensor, context: SamplingContext
) -> tuple[Tensor, Tensor]:
    """Return the field of a tumour and that of its crater, both (z, y, x), in mm and positive inside.

    Parameters
    ----------
    tumour : Tumour
    radius, step
        Of the bowel at the seed: radius in the map's mm, and centreline index.
    fields : tuple of Tensor (z, y, x)
        Depth below the bowel's (narrowed) surface in the map's mm, and centreline index.
    points : Tensor (3, 3)
        See `local_axes`.
    context : SamplingContext
    """
    depth, centreline_index = fields
    along, around, inward, scale = local_axes(points, context, ARM_VOXELS * SPACING)
    inward = inward - tumour.narrowing * scale  # from the surface as it is now
    depth, radius_here = depth * scale, (radius - tumour.narrowing) * scale
    noise = context.smooth_noise(1, LOBE_MM)[0]
    near = (centreline_index - step).abs() <= tumour.half_length / STEP_MM + 3
    if tumour.kind == "polypoid":
        field = torch.minimum(_ellipsoid(tumour, along, around, inward, noise), depth + tumour.outward)
        return torch.where(near, field, FAR), torch.full_like(depth, FAR)
    share = _band_share(tumour, along, around, inward, radius_here, noise)
    # Outside the wall it grows in tongues.
    outward = tumour.outward * share.clamp(0, 1)
    inner = tumour.inward * scale * share
    tongues = (0.9 + 0.6 * context.smooth_noise(1, TONGUE_MM)[0]).clamp(0.4, 1)
    field = torch.minimum(inner - depth, depth + outward * tongues)
    near = near & (inner + outward > LEAST_MM)
    from_axis = (along**2 + around**2 + (inward - radius_here) ** 2).sqrt()
    near = near & (from_axis < tumour.half_length + 1.6 * radius_here + tumour.outward)
    return torch.where(near, field, FAR), _crater(tumour, along, around, inward, depth, scale, radius_here)


def _ellipsoid(tumour: Tumour, along: Tensor, around: Tensor, inward: Tensor, noise: Tensor) -> Tensor:
    height, middle = (tumour.inward + tumour.outward) / 2, (tumour.inward - tumour.outward) / 2
    shape = (along / tumour.half_length) ** 2 + (around / tumour.half_width) ** 2 + ((inward - middle) / height) ** 2
    return min(tumour.half_length, tumour.half_width, height) * (1 + tumour.lobes * noise - shape.sqrt())


def _crater(
    tumour: Tumour, along: Tensor, around: Tensor, inward: Tensor, depth: Tensor, scale: Tensor, radius: Tensor
) -> Tensor:
    """Return the field of an ulcer: a bowl in the middle of the tumour's inner side."""
    if not tumour.crater:
        return torch.full_like(depth, FAR)
    shape = (along**2 + around**2) / (CRATER_WIDTH * tumour.half_length) ** 2
    floor = tumour.inward * scale * (1 - tumour.crater * (1 - shape).clamp(min=0).sqrt())
    return torch.where((shape < 1) & (inward < radius), depth - floor, FAR)


def _band_share(tumour: Tumour, along: Tensor, around: Tensor, inward: Tensor, radius: Tensor, noise: Tensor) -> Tensor:
    """Return how much of its full thickness a band of wall has at each voxel: 1 at the seed, falling to its margins."""
    to_axis = radius - inward
    cosine = to_axis / (to_axis**2 + around**2 + 1e-3).sqrt()
    share = 1 - (along.abs() / tumour.half_length) ** tumour.steepness
    if tumour.half_angle < math.pi:
        share = torch.minimum(share, 1 - ((1 - cosine) / (1 - math.cos(tumour.half_angle))) ** 2)
    else:
        share = share * (1 - tumour.eccentricity * (1 - cosine) / 2)
    return share * (1 + tumour.lobes * noise)
