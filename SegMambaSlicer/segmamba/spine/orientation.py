"""Does the patient lie as the header says? A check of labelled vertebrae against anatomy that everybody shares.

A wrong header cannot be proven from an image, and left cannot be told from right by the spine. Three things can be
seen: vertebrae lie in the back half of the trunk, arches lie behind bodies, and there is no lung from L3 downwards.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from segmamba.spine.levels import L1, ORDER, T1
from segmamba.utils.arrays import LabelBox, label_boxes, mean_index
from segmamba.utils.parallel import FEW, at_once

T5, L3 = T1 + 4, L1 + 2
# Where a vertebra of the trunk lies from the front (0) to the back (1): 0.62 to 0.84 in labelled CTs, 0.20 to 0.42 in
# the same ones turned or flipped.
FRONT_HALF = 0.48
# By how many mm the centroid of a vertebra lies in front of the middle of its body where the arches do. It lies 4 to
# 18 mm behind it in labelled spines.
ARCH_IN_FRONT_MM = 3.0
FEWEST_VERTEBRAE = 2
# Axial planes through vertebrae are sampled at this distance, and the body is looked at this far beside its middle.
PLANE_MM, BESIDE_MM = 2.0, 30.0
# A table's shell is thinner than twice this. Lung is thicker, the edge of gas in bowel is not.
SHELL_MM, LUNG_MM = 4.0, 6.0
BODY_HU, LUNG_HU, LUNG_CM2 = -300, (-950, -550), 40.0
# Part of the body's inscribed sphere that makes its middle.
DEEP = 0.85

SPINE_IN_FRONT = "the spine lies in the front half of the body"
ARCHES_IN_FRONT = "the arches of the vertebrae lie in front of their bodies"
LUNG_BELOW = "there is lung beside the lower lumbar vertebrae or below them"


def orientation_doubt(
    labels: np.ndarray, affine: np.ndarray, ct: np.ndarray | None, boxes: Mapping[int, LabelBox] | None = None
) -> str:
    """Return in a sentence why the patient seems to lie otherwise than the header says, or an empty text.

    Parameters
    ----------
    labels : ndarray of uint8
        Shape (z, y, x): levels as in `segmamba.spine.levels`.
    affine : ndarray, shape (4, 4)
        From voxel index (x, y, z, 1) to LPS millimetres.
    ct : ndarray or None
        Shape (z, y, x), in Hounsfield units; None for MR, which does not outline the body well enough.
    boxes : mapping, optional
        Those of `label_boxes`, where they are known.
    """
    boxes = label_boxes(labels) if boxes is None else boxes
    centres = _centres(labels, affine, boxes)
    found = []
    if ct is not None:
        planes = at_once(lambda level: _Plane(ct, affine, centres[level][0]), [n for n in centres if n >= T5], most=FEW)
        depths = [plane.depth for plane in planes.values() if plane.depth is not None]
        if len(depths) >= FEWEST_VERTEBRAE and np.median(depths) < FRONT_HALF:
            found.append(SPINE_IN_FRONT)
        lower = {level: plane for level, plane in planes.items() if level >= L3}
        if lower:
            end = _Plane(ct, affine, _lower_end(ct, affine, centres[max(lower)][0]))
            if max(plane.lung for plane in (*lower.values(), end)) > LUNG_CM2:
                found.append(LUNG_BELOW)
    # LPS counts to the back.
    arches = [centroid[1] - middle[1] for centroid, middle in centres.values() if middle is not None]
    if len(arches) >= FEWEST_VERTEBRAE and np.median(arches) < -ARCH_IN_FRONT_MM:
        found.append(ARCHES_IN_FRONT)
    if not found:
        return ""
    return (
        f"The patient seems to lie otherwise than the header says ({' and '.join(found)}): check the image's "
        "orientation, as levels, sides and measurements are of no use if it is wrong."
    )


def _centres(
    labels: np.ndarray, affine: np.ndarray, boxes: Mapping[int, LabelBox]
) -> Mapping[int, tuple[np.ndarray, np.ndarray | None]]:
    """Return the centroid of each vertebra above the sacrum, and the middle of its body where the border cuts nothing.

    Both are LPS, in mm.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[::-1]
    # Finer voxels would only take longer.
    steps = np.maximum(1, np.rint(PLANE_MM / spacing)).astype(int)

    def measured(level: int) -> tuple[np.ndarray, np.ndarray | None] | None:
        box = boxes[level]
        coarse = tuple(slice(part.start, part.stop, step) for part, step in zip(box, steps, strict=True))
        mask = np.pad(labels[coarse] == level, 1)
        if not mask.any():
            return None  # thinner than the steps
        corner = np.array([part.start for part in box]) - steps
        centroid = _to_lps(mean_index(mask) * steps + corner, affine)
        cut = any(part.start == 0 or part.stop == length for part, length in zip(box, labels.shape, strict=True))
        middle = None
        if not cut:
            depth = ndimage.distance_transform_edt(mask, spacing * steps)
            middle = _to_lps(mean_index(depth >= DEEP * depth.max()) * steps + corner, affine)
        return centroid, middle

    found = at_once(measured, [level for level in boxes if level in ORDER], most=FEW)
    return {level: one for level, one in found.items() if one is not None}


def _lower_end(ct: np.ndarray, affine: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Return the LPS point of a volume's lowest plane that is below another point."""
    last = np.array(ct.shape[::-1]) - 1
    ends = np.array([[x, y, z] for x in (0, last[0]) for y in (0, last[1]) for z in (0, last[2])])
    heights = ends @ affine[2, :3] + affine[2, 3]
    return np.array([above[0], above[1], heights.min() + PLANE_MM])


def _to_lps(index: np.ndarray, affine: np.ndarray) -> np.ndarray:
    point: np.ndarray = (affine @ [*index[::-1], 1.0])[:3]
    return point


class _Plane:
    """The axial plane of a CT through a vertebra.

    Attributes
    ----------
    depth : float or None
        Where the vertebra lies in the body at its sides: 0 in front, 1 at the back; None where the image cuts the body.
    lung : float
        Area of lung, cm2.
    """

    def __init__(self, ct: np.ndarray, affine: np.ndarray, centroid: np.ndarray) -> None:
        self.depth: float | None = None
        self.lung = 0.0
        values, (row, column) = _axial_plane(ct, affine, centroid)
        outside = np.isnan(values)
        shell = round(SHELL_MM / PLANE_MM)
        body = ndimage.binary_opening(values > BODY_HU, iterations=shell)
        components, _ = ndimage.label(body)
        number = components[row, column]
        if number == 0:
            return
        body = components == number
        side = round(BESIDE_MM / PLANE_MM)
        lines = (slice(None), slice(max(0, column - side), column + side + 1))
        rows = np.flatnonzero(body[lines].any(axis=1))
        around = ndimage.binary_dilation(body, iterations=shell)
        if not (around & outside)[lines].any():
            self.depth = float((row - rows[0]) / max(1, rows[-1] - rows[0]))
        inside = ndimage.binary_fill_holes(body) & (values > LUNG_HU[0]) & (values < LUNG_HU[1])
        lung = ndimage.binary_opening(inside, iterations=round(LUNG_MM / PLANE_MM))
        self.lung = float(np.count_nonzero(lung)) * PLANE_MM**2 / 100


def _axial_plane(ct: np.ndarray, affine: np.ndarray, centroid: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the values (y, x) of the axial plane through a point, NaN outside the volume, and the point's index."""
    size = np.array(ct.shape[::-1])
    ends = np.array([[x, y, z] for x in (0, size[0]) for y in (0, size[1]) for z in (0, size[2])]) - 0.5
    reach = ends @ affine[:3, :3].T + affine[:3, 3] - centroid
    low, high = np.floor(reach.min(axis=0) / PLANE_MM) - 1, np.ceil(reach.max(axis=0) / PLANE_MM) + 1
    x, y = PLANE_MM * np.arange(low[0], high[0] + 1), PLANE_MM * np.arange(low[1], high[1] + 1)[:, None]
    inverse = np.linalg.inv(affine)
    first = inverse[:3, :3] @ centroid + inverse[:3, 3]
    i, j, k = (
        np.rint(start + along_x * x + along_y * y).astype(int)
        for start, along_x, along_y in zip(first, *inverse[:3, :2].T, strict=True)
    )
    within = (i >= 0) & (i < size[0]) & (j >= 0) & (j < size[1]) & (k >= 0) & (k < size[2])
    values = np.full(within.shape, np.nan)  # float64, as a file may hold any number
    values[within] = ct[k[within], j[within], i[within]]
    return values, (int(-low[1]), int(-low[0]))
