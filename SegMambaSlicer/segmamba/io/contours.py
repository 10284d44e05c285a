"""Outlines of masks as closed polygons in whose inside lie the labelled voxels' centres, and no others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NEEDED = "Contours need contourpy, which comes with matplotlib: install it with 'pip install contourpy'."


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Return the outlines of a mask's regions; each runs half-way between voxels that are in and voxels that are out.

    A hole is cut out by a channel without width from the outer outline to the hole and back ("keyhole"), so that a
    region is one polygon for any reader. Channels pass no voxel's centre either.

    Parameters
    ----------
    mask : ndarray of bool
        Shape (y, x).

    Returns
    -------
    list of ndarray
        Of shape (n, 2): indices x and y, of which the centre of the first voxel has 0. The last point is joined to the
        first one.

    Raises
    ------
    ImportError
        contourpy is missing.

    Examples
    --------
    >>> outlines(np.array([[0, 0, 0], [0, 1, 1]], bool))[0].tolist()
    [[0.5, 1.0], [1.0, 0.5], [2.0, 0.5], [2.5, 1.0], [2.0, 1.5], [1.0, 1.5]]
    """
    import contourpy

    generator = contourpy.contour_generator(
        z=np.pad(mask, 1).astype(np.float64), name="serial", fill_type=contourpy.FillType.OuterOffset
    )
    regions: Sequence[np.ndarray]
    offsets: Sequence[np.ndarray]
    # From half-way to above all values: what is in.
    regions, offsets, *_ = generator.filled(0.5, 2.0)  # type: ignore[assignment]
    result = []
    for points, starts in zip(regions, offsets, strict=True):
        # In half voxels, and without the padding: whole numbers.
        halves = np.rint(2 * points).astype(np.int64) - 2
        rings = [halves[first : last - 1] for first, last in zip(starts[:-1], starts[1:], strict=True)]
        result.append(_without_midpoints(_with_keyholes(rings[0], rings[1:])) / 2)
    return result


def _with_keyholes(outer: np.ndarray, holes: list[np.ndarray]) -> np.ndarray:
    """Return one ring of a region's outer one and those of its holes, in half voxels.

    All points lie half-way between two neighbouring voxels, and each edge runs along a row, a column or a diagonal. So
    a diagonal line through such a point passes no centre of a voxel and meets edges in their ends only: from the first
    point of a hole along the diagonal, the next end of an edge is one that can be joined to it.
    """
    for hole in sorted(holes, key=lambda ring: int(ring.sum(axis=1).min())):
        start = int(hole.sum(axis=1).argmin())
        hole = np.roll(hole, -start, axis=0)
        along, across = outer.sum(axis=1), outer[:, 0] - outer[:, 1]
        (before,) = np.nonzero((across == hole[0, 0] - hole[0, 1]) & (along < hole[0].sum()))
        joint = before[along[before].argmax()]
        outer = np.concatenate([outer[: joint + 1], hole, hole[:1], outer[joint:]])
    return outer


def _without_midpoints(ring: np.ndarray) -> np.ndarray:
    """Return a ring without the points that lie on a straight line between their neighbours."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    # Where a channel ends the line turns back.
    kept: np.ndarray = ring[(turns != 0) | ((before * after).sum(axis=1) < 0)]
    return kept
