"""Random contents, walls and widths of the bowels of one sample, along their centrelines.

Nothing here touches the device. Proportions and attenuations are our own, from textbooks' ranges, made wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from scipy import ndimage

from segmamba.training.colorectal.parameters import Tumour
from segmamba.training.colorectal.seeds import STEP
from segmamba.training.colorectal.zones import ZONES, zones_of

# Share of each content along the large bowel: unprepared, prepared as for colonography, with contrast by mouth or anus.
CONTENTS = (
    "gas", "gas over fluid", "gas over paste", "stool", "old stool", "lumps", "paste", "contrast", "layers",
    "tagged stool", "fluid", "collapsed",
)  # fmt: skip
PREPARATIONS = {
    "none": (0.14, 0.09, 0.06, 0.20, 0.08, 0.06, 0.09, 0.0, 0.0, 0.0, 0.10, 0.18),
    "prepared": (0.50, 0.22, 0.0, 0.02, 0.02, 0.03, 0.0, 0.03, 0.03, 0.02, 0.05, 0.08),
    "oral contrast": (0.16, 0.06, 0.03, 0.06, 0.04, 0.03, 0.03, 0.22, 0.13, 0.12, 0.03, 0.09),
}
PREPARATION_SHARES = (0.56, 0.16, 0.28)
# Whole parts of the bowel are filled alike in this part of the samples: a full rectum, a full caecum and ascending
# colon, and gas in the transverse colon, which lies at the front.
FILLED_ZONES = {
    "rectum": (0.35, ("stool", "old stool", "old stool", "lumps", "paste")),
    "right": (0.3, ("stool", "old stool", "lumps", "tagged stool", "contrast", "fluid")),
    "transverse": (0.3, ("gas", "gas", "gas over fluid")),
}
CONTRAST_HU = (120.0, 1000.0)
DIVERTICULA_SHARE, DIVERTICULA_ZONES = 0.2, ("sigmoid", "left")
INFLAMED_SHARE = 0.25
# Contrast by mouth fills small bowel and stomach in this part of the samples, by preparation.
SMALL_BOWEL_CONTRAST = {"none": 0.12, "prepared": 0.1, "oral contrast": 0.9}
STOMACH_LOOP = 0
# Contracted stomach and small bowel: their walls all but meet. Jejunum enhances more than ileum, and both vary.
CONTRACTED_MM, ENHANCED_HU = (5.0, 25.0), 18.0
CONTRACTED_STOMACH = 0.35


class Row(IntEnum):
    """Rows of a table of the bowel's parameters along its centreline."""

    SHRINK = 0  # mm that the outer surface moves inwards
    WALL = 1  # thickness in mm
    LEVEL = 2  # height in its run above which there is gas, 0 posterior to 1 anterior
    FILLING = 3  # HU
    MOTTLE = 4  # part of the filling that is bubbles
    FOLDS = 5  # mm
    STRANDS = 6  # fat stranding, 0 to 1
    LUMPS = 7  # part of what would be gas that is lumps of stool
    SEDIMENT = 8  # height in its run below which there is contrast
    DENSE = 9  # HU of that contrast
    DIVERTICULA = 10  # 0 to 1
    RUN = 11  # number of the run of steps that share contents and levels
    ZONE = 12  # index in `segmamba.training.colorectal.zones.ZONES`; -1 in other bowels
    ENHANCED = 13  # HU of the wall above that of other walls


def bowel_tables(
    radii: np.ndarray, seeds: np.ndarray, tumours: Sequence[Tumour], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return random parameters of the large bowel and of the others, both (rows, 256), see `Row`.

    Parameters
    ----------
    radii : ndarray (256,)
        Of the large bowel at each centreline index, in mm.
    seeds : ndarray (n, columns)
        See `segmamba.training.colorectal.seeds`.
    tumours : sequence of Tumour
        Where they are, the bowel is neither collapsed nor wide.
    rng : numpy.random.Generator
    """
    preparation = str(rng.choice(list(PREPARATIONS), p=PREPARATION_SHARES))
    large = large_bowel(radii, seeds, tumours, preparation, rng)
    return large, other_bowel(rng.random() < SMALL_BOWEL_CONTRAST[preparation], rng)


def large_bowel(
    radii: np.ndarray, seeds: np.ndarray, tumours: Sequence[Tumour], preparation: str, rng: np.random.Generator
) -> np.ndarray:
    """Return random parameters of the large bowel at each centreline index: (rows, 256), see `bowel_tables`."""
    table = np.zeros((len(Row), 256))
    free = np.ones(256, dtype=bool)  # not collapsed at a tumour
    for tumour in tumours:
        around = int(tumour.half_length / 8) + 3
        step = int(seeds[tumour.seed, STEP])
        free[max(0, step - around) : step + around + 1] = False
    contrast = rng.uniform(*CONTRAST_HU)
    zones = zones_of(seeds)
    table[Row.ZONE] = zones
    for number, (run, content) in enumerate(_runs(zones, PREPARATIONS[preparation], rng)):
        if content == "collapsed" and not free[run].all():
            content = "stool" if rng.random() < 0.5 else "gas"
        _fill(table, run, content, radii, contrast, rng)
        table[Row.RUN, run] = number
    if rng.random() < INFLAMED_SHARE:  # or tense: a long part with a thicker wall and strands in the fat
        first = int(rng.integers(0, 200))
        long = slice(first, first + int(rng.integers(12, 40)))
        table[Row.WALL, long] += rng.uniform(0.5, 3.0)
        table[Row.ENHANCED, long] = rng.uniform(-10, 30)
        table[Row.STRANDS, long] = rng.uniform(0, 0.8)
    if rng.random() < DIVERTICULA_SHARE:
        diseased = np.isin(zones, [ZONES.index(zone) for zone in DIVERTICULA_ZONES])
        table[Row.DIVERTICULA, diseased] = rng.uniform(0.2, 1.0)
        table[Row.WALL, diseased] += rng.uniform(0, 1.5)
    table[:2] = ndimage.gaussian_filter1d(table[:2], 0.8, axis=1, mode="nearest")
    steps = np.arange(256)
    for tumour in tumours:
        bump = np.exp(-(((steps - seeds[tumour.seed, STEP]) * 8.0 / (tumour.half_length + 8)) ** 2))
        table[Row.SHRINK] = np.maximum(table[Row.SHRINK] * (1 - bump), tumour.narrowing * bump)
        table[Row.STRANDS] = np.maximum(
            table[Row.STRANDS], bump * np.clip(tumour.outward / 6 + rng.normal(0, 0.25), 0, 1)
        )
    return table


def _runs(zones: np.ndarray, shares: Sequence[float], rng: np.random.Generator) -> list[tuple[np.ndarray, str]]:
    """Return the steps of each run and its content: whole zones first, then runs of 2 to 20 cm in between."""
    left = np.ones(256, dtype=bool)
    runs: list[tuple[np.ndarray, str]] = []
    for zone, (share, contents) in FILLED_ZONES.items():
        if rng.random() < share:
            run = np.flatnonzero(zones == ZONES.index(zone))
            runs.append((run, str(rng.choice(contents))))
            left[run] = False
    start = 0
    while start < 256:
        stop = start + int(rng.integers(3, 25))
        run = np.arange(start, min(stop, 256))
        if left[run].any():
            runs.append((run[left[run]], str(rng.choice(CONTENTS, p=shares))))
        start = stop
    return runs


def _fill(
    table: np.ndarray, run: np.ndarray, content: str, radii: np.ndarray, contrast: float, rng: np.random.Generator
) -> None:
    """Write one content into a run of steps, in place."""
    table[Row.SHRINK, run] = rng.uniform(0, 2.0)
    table[Row.WALL, run] = rng.uniform(1.0, 2.8)
    table[Row.FOLDS, run] = rng.uniform(0, 8)
    table[Row.SEDIMENT, run] = -1.0
    level, filling, mottle = {
        "gas": (rng.uniform(-0.1, 0.15), rng.uniform(0, 60), rng.uniform(0, 0.3)),
        "gas over fluid": (rng.uniform(0.25, 0.75), rng.uniform(0, 40), 0.0),
        "gas over paste": (rng.uniform(0.3, 0.85), rng.uniform(25, 80), rng.uniform(0, 0.04)),
        "stool": (rng.uniform(0.7, 1.3), rng.uniform(10, 90), rng.uniform(0.05, 0.6)),
        "old stool": (rng.uniform(0.85, 1.3), rng.uniform(35, 150), rng.uniform(0.0, 0.12)),
        "lumps": (rng.uniform(-0.1, 0.5), rng.uniform(20, 120), rng.uniform(0.0, 0.3)),
        "paste": (rng.uniform(0.8, 1.3), rng.uniform(25, 80), rng.uniform(0, 0.05)),
        "contrast": (rng.uniform(0.4, 1.3), contrast, rng.choice((0.0, rng.uniform(0, 0.4)))),
        "layers": (rng.uniform(0.5, 1.0), rng.uniform(0, 0.5) * contrast, 0.0),
        "tagged stool": (rng.uniform(0.6, 1.3), rng.uniform(0.2, 0.7) * contrast, rng.uniform(0.05, 0.6)),
        "fluid": (rng.uniform(0.85, 1.2), rng.uniform(-5, 30), 0.0),
        "collapsed": (rng.choice((0.5, 1.2)), rng.uniform(-20, 50), 0.0),
    }[content]
    table[Row.LEVEL, run], table[Row.FILLING, run], table[Row.MOTTLE, run] = level, filling, mottle
    if content == "lumps":
        table[Row.LUMPS, run] = rng.uniform(0.15, 0.75)
    if content == "layers":
        table[Row.SEDIMENT, run], table[Row.DENSE, run] = rng.uniform(0.1, 0.9) * level, contrast
    if content == "collapsed":
        left = rng.uniform(4.0, 8.0)
        table[Row.SHRINK, run] = np.maximum(radii[run] - left, 0)
        table[Row.WALL, run] = rng.uniform(0.55, 1.0) * left
        table[Row.FOLDS, run] = 0.0


def other_bowel(contrast: bool, rng: np.random.Generator) -> np.ndarray:
    """Return random parameters of each loop of stomach, duodenum and small bowel: (rows, 256), see `Row`.

    ``contrast``: whether contrast by mouth has got this far.
    """
    table = np.zeros((len(Row), 256))
    table[Row.RUN], table[Row.ZONE] = np.arange(256), -1.0
    table[Row.SEDIMENT] = -1.0
    table[Row.WALL] = rng.uniform(1.0, 3.5, 256)
    table[Row.LEVEL] = rng.choice((-0.1, 0.5, 1.2), 256, p=(0.04, 0.16, 0.8)) + rng.uniform(-0.2, 0.2, 256)
    table[Row.FILLING] = rng.uniform(0, 45, 256)
    table[Row.MOTTLE] = rng.choice((0.0, 0.25), 256, p=(0.9, 0.1))
    contracted = rng.random(256) < rng.uniform(0.0, 0.6)  # a slit of a lumen with some gas, or none
    table[Row.WALL, contracted] = rng.uniform(*CONTRACTED_MM, contracted.sum())
    table[Row.MOTTLE, contracted] = rng.uniform(0.0, 0.6, contracted.sum())
    table[Row.ENHANCED] = rng.normal(0, ENHANCED_HU, 256)
    if contrast:
        reached = rng.random(256) < rng.uniform(0.2, 1.0)
        table[Row.FILLING, reached] = rng.uniform(*CONTRAST_HU) * rng.uniform(0.7, 1.0, reached.sum())
    _fill_stomach(table, contrast, rng)
    return table


def _fill_stomach(table: np.ndarray, contrast: bool, rng: np.random.Generator) -> None:
    """Give the stomach its thick wall with rugae, and fluid, food or contrast under gas, in place."""
    column = table[:, STOMACH_LOOP]
    column[Row.WALL], column[Row.FOLDS] = rng.uniform(2.5, 6.5), rng.uniform(3.0, 14.0)
    column[Row.LEVEL] = rng.choice((0.15, 0.6, 0.85, 1.2)) + rng.uniform(-0.12, 0.12)
    column[Row.FILLING], column[Row.MOTTLE] = rng.uniform(0, 50), rng.choice((0.0, rng.uniform(0.05, 0.6)))
    if contrast:
        column[Row.FILLING] = rng.uniform(*CONTRAST_HU)
        column[Row.MOTTLE] *= rng.random() < 0.3
    if rng.random() < CONTRACTED_STOMACH:
        column[Row.WALL] = rng.uniform(*CONTRACTED_MM)
