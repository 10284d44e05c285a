"""Shapes of tumours, real and synthetic: ``python -m segmamba.training.colorectal.shape_statistics FILE ...``.

For masks (NIfTI, 1 is tumour) and synthetic CTs (``.npz``), a JSON line for each tumour of more than 0.2 mL.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from segmamba.errors import SegMambaError
from segmamba.io.read import read_volume
from segmamba.training.colorectal.labels import TUMOUR_LABEL
from segmamba.training.colorectal.validation import read_scan
from segmamba.training.vertebrae.label_maps import closing
from segmamba.utils.morphology import CONNECTIVITY_26

# Shapes are compared on this grid; smaller pieces are noise.
GRID_MM, LEAST_ML = 1.0, 0.2
CLOSING_MM = 10.0


def shape_statistics(mask: np.ndarray, spacing: tuple[float, float, float]) -> dict[str, float | list[float]]:
    """Return the statistics of the shape of one mask (z, y, x) with voxels of ``spacing`` mm (z, y, x).

    Returns
    -------
    dict
        ``ml``: volume. ``extents_mm``: along the three principal axes, largest first. ``sphericity``: surface of a ball
        of the volume against the own, 1 for a ball (counted in voxels' faces times 2/3). ``filled``: volume against
        that of the closing by a ball of `CLOSING_MM`, which hollows and lobes make smaller. ``thickest_mm``: diameter
        of the largest ball in it.
    """
    box = tuple(slice(*np.flatnonzero(mask.any(axis=axes))[[0, -1]] + (0, 1)) for axes in ((1, 2), (0, 2), (0, 1)))
    smooth = ndimage.gaussian_filter(np.pad(mask[box], 3).astype(np.float32), [0.5 * GRID_MM / n for n in spacing])
    fine = ndimage.zoom(smooth, [n / GRID_MM for n in spacing], order=1) > 0.5
    points = np.argwhere(fine) * GRID_MM
    centred = points - points.mean(axis=0)
    axes = np.linalg.eigh(np.cov(centred.T))[1]
    along = np.quantile(centred @ axes, (0.01, 0.99), axis=0)
    faces = sum((np.diff(np.pad(fine, 1).astype(np.int8), axis=axis) != 0).sum() for axis in range(3)) * 2 / 3
    depth = ndimage.distance_transform_edt(np.pad(fine, 1), sampling=GRID_MM)
    return {
        "ml": round(float(mask.sum() * np.prod(spacing)) / 1000, 2),
        "extents_mm": sorted((float(n) for n in np.round(along[1] - along[0], 1)), reverse=True),
        "sphericity": round(float(np.pi ** (1 / 3) * (6 * fine.sum()) ** (2 / 3) / faces), 3),
        "filled": round(float(fine.sum() / closing(fine, CLOSING_MM, GRID_MM).sum()), 3),
        "thickest_mm": round(2 * float(depth.max()), 1),
    }


def tumours_of(file: Path, spacing: float) -> list[dict[str, float | list[float]]]:
    """Return the statistics of each tumour of a mask or a synthetic CT (its grid has ``spacing`` mm)."""
    if file.suffix == ".npz":
        mask, steps = read_scan(file)[1] == TUMOUR_LABEL, (spacing,) * 3
    else:
        volume = read_volume(file)
        x, y, z = volume.geometry.spacing
        mask, steps = volume.array == 1, (z, y, x)
    pieces, count = ndimage.label(mask, CONNECTIVITY_26)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:] * np.prod(steps) / 1000
    return [shape_statistics(pieces == n + 1, steps) for n in range(count) if sizes[n] > LEAST_ML]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m segmamba.training.colorectal.shape_statistics", description="Measure the shapes of tumours."
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="masks or synthetic CTs")
    parser.add_argument("--spacing", type=float, default=1.75, help="of the synthetic CTs, in mm (1.75)")
    options = parser.parse_args(arguments)
    try:
        for file in options.files:
            for row in tumours_of(file, options.spacing):
                print(json.dumps({"file": file.name} | row), flush=True)
    except SegMambaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
