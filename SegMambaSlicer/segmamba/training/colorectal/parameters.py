"""Random parameters of one sample: its tumours and the contents of its bowel. Nothing here touches the device.

Sizes and intensities follow the literature that `Docs/colorectal.md` lists; the rest is our own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from scipy import ndimage

from segmamba.training.colorectal.seeds import IN_RECTUM, RADIUS, STEP

KINDS = ("polypoid", "asymmetric", "circumferential", "apple core")
SHARES = (0.27, 0.28, 0.25, 0.20)
TUMOUR_SHARE, SECOND_SHARE, RECTUM_SHARE = 0.75, 0.12, 0.33
APART = 15  # steps along the centreline between two tumours
# A lumen narrowed by a tumour keeps this radius at least, in mm.
LUMEN_MM = (1.5, 5.0)
LARGEST_OUTWARD_MM = 8.0
# Share of each content along the large bowel: unprepared, prepared as for colonography, with contrast by mouth or anus.
CONTENTS = ("gas", "gas over fluid", "gas over paste", "stool", "paste", "contrast", "fluid", "collapsed")
PREPARATIONS = {
    "none": (0.16, 0.06, 0.08, 0.32, 0.13, 0.0, 0.04, 0.21),
    "prepared": (0.55, 0.25, 0.0, 0.04, 0.0, 0.0, 0.06, 0.10),
    "contrast": (0.17, 0.10, 0.03, 0.10, 0.03, 0.37, 0.05, 0.15),
}
PREPARATION_SHARES = (0.6, 0.2, 0.2)


class Row(IntEnum):
    """Rows of a table of the bowel's parameters along its centreline."""

    SHRINK = 0  # mm that the outer surface moves inwards
    WALL = 1  # thickness in mm
    LEVEL = 2  # height above which there is gas, 0 posterior to 1 anterior
    FILLING = 3  # HU
    MOTTLE = 4  # part of the filling that is bubbles
    FOLDS = 5  # mm
    STRANDS = 6  # fat stranding, 0 to 1


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
    outward = float(np.clip(rng.normal(1.5, 2.5), 0.0, LARGEST_OUTWARD_MM))
    if kind == "polypoid":
        half_length = float(np.clip(np.exp(rng.normal(np.log(14), 0.4)), 6, 32))
        thickness = half_length * rng.uniform(0.9, 1.7)
        inward = min(thickness, 1.7 * radius)
    else:
        half_length = float(np.clip(np.exp(rng.normal(np.log(20), 0.35)), 9, 42))
        thickness = float(np.clip(np.exp(rng.normal(np.log(11.5), 0.35)), 6, 28))
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
        lobes=rng.uniform(0.05, 0.25),
        crater=rng.uniform(0.35, 0.7) if kind != "polypoid" and rng.random() < 0.3 else 0.0,
        necrosis=rng.uniform(0.2, 0.8) if large and rng.random() < 0.45 else 0.0,
        narrowing=narrowing,
    )


def draw_tumours(seeds: np.ndarray, rng: np.random.Generator, more: int = 0) -> list[Tumour]:
    """Return no, one or two random tumours, in rectum and colon as often as in patients.

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
    """Return a random row of the table of seeds: first rectum or colon, then centreline index, then seed."""
    rectum = seeds[:, IN_RECTUM] > 0
    wanted = rng.random() < RECTUM_SHARE
    rows = np.flatnonzero(rectum == wanted)
    rows = rows if len(rows) else np.arange(len(seeds))
    step = rng.choice(np.unique(seeds[rows, STEP]))
    return int(rng.choice(rows[seeds[rows, STEP] == step]))


def large_bowel(radii: np.ndarray, seeds: np.ndarray, tumours: list[Tumour], rng: np.random.Generator) -> np.ndarray:
    """Return random parameters of the large bowel at each centreline index: (rows, 256), see `Row`."""
    table = np.zeros((len(Row), 256))
    shares = PREPARATIONS[str(rng.choice(list(PREPARATIONS), p=PREPARATION_SHARES))]
    free = np.ones(256, dtype=bool)  # not collapsed at a tumour
    for tumour in tumours:
        around = int(tumour.half_length / 8) + 3
        step = int(seeds[tumour.seed, STEP])
        free[max(0, step - around) : step + around + 1] = False
    contrast = rng.uniform(120, 700)
    start = 0
    while start < 256:
        stop = start + int(rng.integers(3, 25))
        run = slice(start, stop)
        content = str(rng.choice(CONTENTS, p=shares))
        if content == "collapsed" and not free[run].all():
            content = "stool" if rng.random() < 0.5 else "gas"
        _fill(table, run, content, radii, contrast, rng)
        start = stop
    if rng.random() < 0.25:  # inflamed, or tense: a long part with a thicker wall and strands in the fat
        first = int(rng.integers(0, 200))
        long = slice(first, first + int(rng.integers(12, 40)))
        table[Row.WALL, long] += rng.uniform(0.5, 3.0)
        table[Row.STRANDS, long] = rng.uniform(0, 0.8)
    table[:2] = ndimage.gaussian_filter1d(table[:2], 0.8, axis=1, mode="nearest")
    steps = np.arange(256)
    for tumour in tumours:
        bump = np.exp(-(((steps - seeds[tumour.seed, STEP]) * 8.0 / (tumour.half_length + 8)) ** 2))
        table[Row.SHRINK] = np.maximum(table[Row.SHRINK] * (1 - bump), tumour.narrowing * bump)
        table[Row.STRANDS] = np.maximum(
            table[Row.STRANDS], bump * np.clip(tumour.outward / 6 + rng.normal(0, 0.25), 0, 1)
        )
    return table


def _fill(
    table: np.ndarray, run: slice, content: str, radii: np.ndarray, contrast: float, rng: np.random.Generator
) -> None:
    """Write one content into a run of steps, in place."""
    table[Row.SHRINK, run] = rng.uniform(0, 2.0)
    table[Row.WALL, run] = rng.uniform(1.0, 2.8)
    table[Row.FOLDS, run] = rng.uniform(0, 8)
    level, filling, mottle = {
        "gas": (rng.uniform(-0.1, 0.15), rng.uniform(0, 60), rng.uniform(0, 0.3)),
        "gas over fluid": (rng.uniform(0.25, 0.75), rng.uniform(0, 40), 0.0),
        "gas over paste": (rng.uniform(0.3, 0.85), rng.uniform(25, 80), rng.uniform(0, 0.04)),
        "stool": (rng.uniform(0.7, 1.3), rng.uniform(10, 90), rng.uniform(0.05, 0.6)),
        "paste": (rng.uniform(0.8, 1.3), rng.uniform(25, 80), rng.uniform(0, 0.05)),
        "contrast": (rng.uniform(0.5, 1.3), contrast, rng.choice((0.0, rng.uniform(0, 0.4)))),
        "fluid": (rng.uniform(0.85, 1.2), rng.uniform(-5, 30), 0.0),
        "collapsed": (rng.choice((0.5, 1.2)), rng.uniform(-20, 50), 0.0),
    }[content]
    table[Row.LEVEL, run], table[Row.FILLING, run], table[Row.MOTTLE, run] = level, filling, mottle
    if content == "collapsed":
        left = rng.uniform(4.0, 8.0)
        table[Row.SHRINK, run] = np.maximum(radii[run] - left, 0)
        table[Row.WALL, run] = rng.uniform(0.55, 1.0) * left
        table[Row.FOLDS, run] = 0.0


def other_bowel(rng: np.random.Generator) -> np.ndarray:
    """Return random parameters of each loop of stomach, duodenum and small bowel: (rows, 256), see `Row`."""
    table = np.zeros((len(Row), 256))
    table[Row.WALL] = rng.uniform(1.0, 3.5, 256)
    table[Row.LEVEL] = rng.choice((-0.1, 0.5, 1.2), 256, p=(0.04, 0.16, 0.8)) + rng.uniform(-0.2, 0.2, 256)
    table[Row.FILLING] = rng.uniform(0, 45, 256)
    table[Row.MOTTLE] = rng.choice((0.0, 0.25), 256, p=(0.9, 0.1))
    if rng.random() < 0.35:  # oral contrast has got this far
        reached = rng.random(256) < rng.uniform(0.2, 1.0)
        table[Row.FILLING, reached] = rng.uniform(100, 500)
    soft = rng.random(256) < rng.uniform(0.0, 0.6)  # loops without a visible lumen
    table[Row.WALL, soft] = 30.0
    return table
