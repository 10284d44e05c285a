"""Parts of the large bowel by the position along its centreline, and how often cancers lie in them."""

from __future__ import annotations

import numpy as np

from segmamba.training.colorectal.seeds import IN_RECTUM, STEP

# "left" is the descending colon with the splenic flexure, "right" caecum, ascending colon and hepatic flexure.
ZONES = ("rectum", "sigmoid", "left", "transverse", "right")
# Part of the colon's length above the rectum at which each of the last four ends: the mean of four people with labelled
# parts (Docs/experiments/colorectal-training.md).
ZONE_ENDS = (0.19, 0.53, 0.78, 1.0)
# Of cancers: assumed. About 40 % lie in the right and transverse colon, half in sigmoid and rectum.
ZONE_SHARES = (0.30, 0.20, 0.08, 0.10, 0.32)


def zones_of(seeds: np.ndarray) -> np.ndarray:
    """Return the index in `ZONES` for each centreline index (256,) of a map with these seeds (n, columns)."""
    steps = seeds[:, STEP]
    rectum = seeds[:, IN_RECTUM] > 0
    begin = steps[rectum].max() + 1 if rectum.any() else 0.0
    fraction = (np.arange(256) - begin) / max(steps.max() - begin + 1, 1.0)
    return np.where(fraction < 0, 0, 1 + np.digitize(fraction, ZONE_ENDS[:-1]))
