"""Random parameters of the tumours of one sample. Nothing here touches the device.

Sizes and intensities follow the literature that `Docs/colorectal.md` lists; the rest is our own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segmamba.training.colorectal.seeds import RADIUS, STEP
from segmamba.training.colorectal.zones import ZONE_SHARES, ZONES, zones_of

KINDS = ("polypoid", "asymmetric", "circumferential", "apple core")
SHARES = (0.27, 0.28, 0.25, 0.20)
TUMOUR_SHARE, SECOND_SHARE = 0.75, 0.12
APART = 15  # steps along the centreline between two tumours
# A lumen narrowed by a tumour keeps this radius at least, in mm.
LUMEN_MM = (1.5, 5.0)
LARGEST_OUTWARD_MM = 12.0


@dataclass(frozen=True)
class Tumour:
    """Parameters of a tumour; lengths in mm.

    Attributes
    ----------
    seed : int
        Row of the map's table of seeds.
    kind : str
        One of `KINDS`.
    half_length : float
        Along the bowel.
    half_width : float
        Of a polypoid one, along the circumference.
    inward, outward : float
        Extent from the bowel's outer surface.
    half_angle : float
        Extent along the circumference to either side, in radians; pi for all of it.
    steepness : float
        Of its shoulders; 2 is round.
    eccentricity : float
        Reduction of its thickness on the far side, as a part of it.
    lobes : float
        Roughness of its surface.
    crater : float
        Depth of an ulcer as a part of the thickness, or 0.
    necrosis : float
        Part of the core that is necrotic, or 0.
    narrowing : float
        Reduction of the bowel's outer radius.
    """

    seed: int
    kind: str
    half_length: float
    half_width: float
    inward: float
    outward: float
    half_angle: float
    steepness: float
    eccentricity: float
    lobes: float
    crater: float
    necrosis: float
    narrowing: float


def draw_tumour(seed: int, radius: float, rng: np.random.Generator, kind: str = "") -> Tumour:
    """Return a random tumour at a seed where the bowel has a radius in mm; by default of a random kind."""
    kind = kind or str(rng.choice(KINDS, p=SHARES))
    half_angle, steepness, eccentricity, narrowing = np.pi, rng.uniform(2, 4), rng.uniform(0, 0.5), 0.0
    outward = float(np.clip(rng.normal(2.0, 3.0), 0.0, LARGEST_OUTWARD_MM))
    if kind == "polypoid":
        half_length = float(np.clip(np.exp(rng.normal(np.log(15), 0.4)), 6, 34))
        thickness = half_length * rng.uniform(0.9, 1.7)
        inward = min(thickness, 1.7 * radius)
    else:
        half_length = float(np.clip(np.exp(rng.normal(np.log(28), 0.45)), 9, 52))
        thickness = float(np.clip(np.exp(rng.normal(np.log(12), 0.4)), 6, 32))
        lumen = rng.uniform(*LUMEN_MM)
        if kind == "asymmetric":
            half_angle = float(np.deg2rad(rng.uniform(45, 120)))
        if kind == "apple core":
            half_length, steepness = min(half_length, 28.0), rng.uniform(5, 9)
            eccentricity, narrowing = rng.uniform(0, 0.25), radius * rng.uniform(0.1, 0.4)
            thickness = max(radius - narrowing - lumen, 5.0)
        inward = max(min(thickness, radius - narrowing - lumen), 0.6 * (radius - narrowing))
        # Without enough room in the lumen it grows beyond the wall.
        outward = min(outward + thickness - inward, LARGEST_OUTWARD_MM) if thickness > inward else outward
    large = inward + outward > 14
    return Tumour(
        seed,
        kind,
        half_length,
        half_length * rng.uniform(0.6, 1.1),
        inward,
        outward,
        half_angle,
        steepness,
        eccentricity,
        lobes=rng.uniform(0.08, 0.3),
        crater=rng.uniform(0.35, 0.7) if kind != "polypoid" and rng.random() < 0.3 else 0.0,
        necrosis=rng.uniform(0.15, 0.5) if large and rng.random() < 0.45 else 0.0,
        narrowing=narrowing,
    )


def draw_tumours(seeds: np.ndarray, rng: np.random.Generator, more: int = 0) -> list[Tumour]:
    """Return no, one or two random tumours, in each part of the bowel as often as in patients.

    If there is one, up to ``more`` are added; all are at least `APART` steps from each other.
    """
    if rng.random() >= TUMOUR_SHARE:
        return []
    rows = [draw_seed(seeds, rng)]
    for _ in range(more + int(rng.random() < SECOND_SHARE)):
        row = draw_seed(seeds, rng)
        if (np.abs(seeds[row, STEP] - seeds[rows, STEP]) > APART).all():
            rows.append(row)
    return [draw_tumour(row, float(seeds[row, RADIUS]), rng) for row in rows]


def draw_seed(seeds: np.ndarray, rng: np.random.Generator) -> int:
    """Return a random row of the table of seeds: first the part of the bowel, then centreline index, then seed."""
    zones = zones_of(seeds)[seeds[:, STEP].astype(int)]
    rows = np.flatnonzero(zones == rng.choice(len(ZONES), p=ZONE_SHARES))
    rows = rows if len(rows) else np.arange(len(seeds))
    step = rng.choice(np.unique(seeds[rows, STEP]))
    return int(rng.choice(rows[seeds[rows, STEP] == step]))
