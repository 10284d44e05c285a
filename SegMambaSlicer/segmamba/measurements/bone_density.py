"""Density of trabecular bone over the lumbar vertebrae of a CT, and whether contrast medium is in the aorta.

Density is the mean in Hounsfield units inside each body (`segmamba.measurements.vertebrae`). Contrast medium raises it,
so that it is looked for: the aorta lies in front of the thoracic and lumbar bodies as a round, even area that goes on
from one level to the next. The search is our own.

Hounsfield units become mg/cm3 only by a phantom that the user measured. Air and fat of a scan cannot do that
(`benchmarks/calibration.py`); they only tell a scan whose numbers are plainly off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import ndimage

from segmamba.io.modality import CT
from segmamba.io.volume import Volume
from segmamba.measurements.vertebral_body import Body
from segmamba.spine.levels import L1, L4, from_top, level_name

T8 = 15
# Section in front of a body: mm from its front wall forwards, and to both sides; step, and heights of the planes that
# are averaged, mm.
DEPTH_MM, SIDE_MM, STEP_MM, PLANES_MM = 50.0, 40.0, 2.0, (-4.0, 0.0, 4.0)
GAP_MM = 3.0
# Radius of the area that must be even, mm: smaller than any aorta. Its standard deviation, HU, at most: with a factor
# of that of the most even tenth of areas, the noise.
RADIUS_MM, EVEN_HU, NOISE_PART, NOISE_FACTOR = 6.0, 20.0, 10, 1.6
# Blood without contrast medium, HU, and from where on it has some: well above blood, muscle and organs without any.
BLOOD_HU, CONTRAST_HU, DENSEST_HU = (15.0, 80.0), 110.0, 700.0
# So many neighbours must show it, at most so far apart in their frames, mm, and alike up to this part.
FEWEST_LEVELS, APART_MM, ALIKE = 3, 12.0, 0.2
# This part of a section must lie in the image.
IN_VIEW = 0.7
# The peaks of fat and air are looked for among such values, HU, in bins of so many; they must rise this far above the
# valleys on both sides, the upper one before soft tissue or lung, and hold so many voxels.
FAT_HU, BIN_HU, VALLEY_HU, RISE, FEWEST_VOXELS = (-250.0, -30.0), 5.0, 15.0, 1.5, 1000
# Adipose tissue of 0.925 to 0.970 g/cm3 has -130 to -48 HU at 55 to 80 keV (`benchmarks/calibration.py spread`).
RIGHT_FAT_HU = (-135.0, -45.0)
# Air, HU: where it is looked for, where lung begins, which a small view may show alone, and what is right.
AIR_HU, LUNG_HU, RIGHT_AIR_HU = (-1150.0, -930.0), -880.0, (-1030.0, -960.0)
# The check looks at voxels whose neighbours are alike, HU, and at so many of them at most.
ALIKE_HU, MOST_VOXELS = 40.0, 2_000_000
WRONG = (
    "{} has {} HU, where a scan in Hounsfield units has {:.0f} to {:.0f}: do not rely on densities, and check how this "
    "image was converted."
)
# Densities of a column in HU, and what they are called in mg/cm3.
CALIBRATED = {"lumbar_hu": "lumbar_mg_cm3", "mean_hu": "mean_mg_cm3", "l1_hu": "l1_mg_cm3"}
GIVEN = "phantom, given by the user"
NO_UNITS = "The density calibration was not used: this image is {}, which has no Hounsfield units."
CONTRAST, NO_CONTRAST, NOT_ASSESSED = "contrast", "no contrast seen", "not assessed"


def bone_density(
    densities: Mapping[int, float], bodies: Mapping[int, Body], volume: Volume, scanner: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the density of a column, and the phase of its CT.

    Parameters
    ----------
    densities : mapping of int to float
        Trabecular density in HU, by level.
    bodies : mapping of int to Body
    volume : Volume
        A CT.
    scanner : mapping
        Its `scanner_check`.

    Returns
    -------
    dict
        ``lumbar_hu``: mean of what is known of L1 to L4, and ``lumbar_levels``: their names; ``mean_hu`` of all levels
        in view, and ``levels``: how many; ``l1_hu``; ``phase``: one of "contrast", "no contrast seen" and
        "not assessed", and ``aorta_hu``: the density of what was taken for the aorta; ``air_hu``, ``fat_hu`` and
        ``scanner``: see `scanner_check`; ``calibration``, ``lumbar_mg_cm3``, ``mean_mg_cm3`` and ``l1_mg_cm3``: see
        `calibrated`. None where there is no value.
    """
    lumbar = [level for level in from_top(densities) if L1 <= level <= L4]
    phase, aorta = phase_of(bodies, volume)
    return {
        "lumbar_hu": _mean([densities[level] for level in lumbar]),
        "lumbar_levels": [level_name(level) for level in lumbar],
        "mean_hu": _mean(list(densities.values())),
        "levels": len(densities),
        "l1_hu": densities.get(L1),
        "phase": phase,
        "aorta_hu": aorta,
        **scanner,
        "calibration": None,
        **dict.fromkeys(CALIBRATED.values()),
    }


def calibrated(found: Mapping[str, Any], line: tuple[float, float] | None) -> dict[str, Any]:
    """Return the measurements of a column with its densities in mg/cm3.

    Parameters
    ----------
    found : mapping
        As `segmamba.measurements.vertebrae.measure_spine` returns it.
    line : tuple of float or None
        Slope, mg/cm3 for each HU, and intercept, mg/cm3, of a phantom in the same scanner; without it nothing changes.

    Returns
    -------
    dict
        The same, with ``trabecular_mg_cm3`` in each row, and in ``bone`` ``lumbar_mg_cm3``, ``mean_mg_cm3``,
        ``l1_mg_cm3`` and ``calibration``: ``slope_mg_cm3_per_hu``, ``intercept_mg_cm3`` and ``source``.
    """
    bone = found["bone"]
    if line is None or bone is None:
        return dict(found)
    slope, intercept = line

    def converted(hu: float | None) -> float | None:
        return None if hu is None else round(slope * hu + intercept, 1)

    rows = [{**row, "trabecular_mg_cm3": converted(row["trabecular_hu"])} for row in found["measurements"]]
    line_said = {"slope_mg_cm3_per_hu": slope, "intercept_mg_cm3": intercept, "source": GIVEN}
    densities = {name: converted(bone[hu]) for hu, name in CALIBRATED.items()}
    return {**found, "measurements": rows, "bone": {**bone, **densities, "calibration": line_said}}


def calibration_note(volume: Volume, line: tuple[float, float] | None) -> str | None:
    """Return a sentence where a phantom's line was given for an image that has no densities; else None."""
    return NO_UNITS.format(volume.modality) if line is not None and volume.modality != CT else None


def scanner_check(volume: Volume) -> dict[str, Any]:
    """Return where air and fat lie in a CT, and what is wrong with that.

    Returns
    -------
    dict
        ``air_hu`` and ``fat_hu``, None where there is none or too little of it, and ``scanner``: a sentence if one of
        them is where it is in no scan in Hounsfield units, else None.
    """
    step = max(1, int(np.ceil((volume.array.size / MOST_VOXELS) ** (1 / 3))))
    lines = [slice(None, -1, step)] * 3
    inner = volume.array[tuple(lines)].astype(np.float32)
    even = np.ones(inner.shape, bool)
    for axis in range(3):
        beside = [slice(1, None, step) if axis == each else part for each, part in enumerate(lines)]
        even &= np.abs(volume.array[tuple(beside)].astype(np.float32) - inner) <= ALIKE_HU
    # What the lowest value fills has no noise: it is padding, or was cut off.
    values = inner[even & (inner > volume.array.min())]
    air, fat = _peak(values, AIR_HU, LUNG_HU), _peak(values, FAT_HU, VALLEY_HU)
    ranges = (("Air", air, RIGHT_AIR_HU), ("Fat", fat, RIGHT_FAT_HU))
    wrong = [WRONG.format(name, hu, *right) for name, hu, right in ranges if hu is not None and not _is_in(hu, right)]
    return {"air_hu": air, "fat_hu": fat, "scanner": wrong[0] if wrong else None}


def _is_in(value: float, ends: tuple[float, float]) -> bool:
    return ends[0] <= value <= ends[1]


def _peak(values: np.ndarray, ends: tuple[float, float], valley: float) -> float | None:
    """Return the most frequent values between two ends, HU, if they rise from both sides; the upper up to a valley."""
    edges = np.arange(ends[0], valley + BIN_HU, BIN_HU)
    counts = ndimage.uniform_filter1d(np.histogram(values, edges)[0].astype(float), 3)
    middles = edges[:-1] + BIN_HU / 2
    peak = int(np.where(middles <= ends[1], counts, -1).argmax())
    # Neither end of the range is a peak.
    if peak == 0 or counts[peak] < RISE * max(counts[peak:].min(), counts[: peak + 1].min(), 1.0):
        return None
    near = values[np.abs(values - middles[peak]) <= 3 * BIN_HU]
    return round(float(np.median(near)), 1) if len(near) >= FEWEST_VOXELS else None


def phase_of(bodies: Mapping[int, Body], volume: Volume) -> tuple[str, float | None]:
    """Return the phase of a CT by what lies in front of the bodies, and the density of the aorta in HU if it is seen.

    Without contrast medium, blood is as dense as muscle: that no contrast is seen means that there is even soft tissue
    and nothing denser in front of enough levels.
    """
    order = [level for level in from_top(bodies) if T8 <= level <= L4]
    sections = [_areas(bodies[level], volume) for level in order]
    bright = [_within(areas, CONTRAST_HU, DENSEST_HU) for areas in sections]
    chain = _longest_chain(bright)
    if len(chain) >= FEWEST_LEVELS:
        return CONTRAST, round(float(np.median(chain[:, 2])), 1)
    shown = sum(len(_within(areas, *BLOOD_HU)) > 0 for areas in sections)
    return (NO_CONTRAST if shown >= FEWEST_LEVELS else NOT_ASSESSED), None


def _mean(values: list[float]) -> float | None:
    return round(float(np.mean(values)), 1) if values else None


def _areas(body: Body, volume: Volume) -> np.ndarray:
    """Return the even round areas in front of a body, shape (n, 3): mm posterior and left of its centre, mean in HU."""
    front = float(body.walls[0, 0]) - GAP_MM
    back, left = np.arange(front - DEPTH_MM, front, STEP_MM), np.arange(-SIDE_MM, SIDE_MM + 1, STEP_MM)
    up, deep, wide = np.meshgrid(PLANES_MM, back, left, indexing="ij")
    points = body.centre + np.stack([up, deep, wide], axis=-1) @ body.axes
    to_index = np.linalg.inv(volume.geometry.affine)
    index = np.moveaxis(points @ to_index[:3, :3].T + to_index[:3, 3], -1, 0)[::-1]
    values = ndimage.map_coordinates(volume.array, index, np.float32, order=1, cval=np.nan).mean(axis=0)
    if np.isfinite(values).mean() < IN_VIEW:
        return np.empty((0, 3))
    reach = int(RADIUS_MM / STEP_MM)
    disc = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1]) <= RADIUS_MM / STEP_MM
    weights = disc / disc.sum()
    mean = ndimage.convolve(values, weights, mode="constant", cval=np.nan)
    spread = np.sqrt(np.maximum(ndimage.convolve(values**2, weights, mode="constant", cval=np.nan) - mean**2, 0))
    soft = np.isfinite(mean) & (mean >= BLOOD_HU[0]) & (mean <= DENSEST_HU)
    if not soft.any():
        return np.empty((0, 3))
    limit = max(EVEN_HU, NOISE_FACTOR * float(np.percentile(spread[soft], NOISE_PART)))
    rows, columns = np.nonzero(soft & (spread <= limit))
    return np.stack([back[rows], left[columns], mean[rows, columns]], axis=1)


def _within(areas: np.ndarray, low: float, high: float) -> np.ndarray:
    return areas[(areas[:, 2] >= low) & (areas[:, 2] <= high)]


def _longest_chain(levels: list[np.ndarray]) -> np.ndarray:
    """Return the longest chain (n, 3) of areas of neighbouring levels that lie close to each other and are alike."""
    lengths: list[np.ndarray] = []
    before: list[np.ndarray] = []
    for number, areas in enumerate(levels):
        length, link = np.ones(len(areas), int), np.full(len(areas), -1)
        if number and len(areas) and len(levels[number - 1]):
            above = levels[number - 1]
            apart = np.hypot(areas[:, None, 0] - above[:, 0], areas[:, None, 1] - above[:, 1])
            close = (apart <= APART_MM) & (np.abs(areas[:, None, 2] / above[:, 2] - 1) <= ALIKE)
            onwards = np.where(close, lengths[-1] + 1, 1)
            length, link = onwards.max(axis=1), np.where(close.any(axis=1), onwards.argmax(axis=1), -1)
        lengths.append(length)
        before.append(link)
    ends = [(int(row.max()), number, int(row.argmax())) for number, row in enumerate(lengths) if len(row)]
    found: list[np.ndarray] = []
    if ends:
        _, number, index = max(ends)
        while index >= 0:
            found.append(levels[number][index])
            index, number = int(before[number][index]), number - 1
    return np.array(found).reshape(-1, 3)
