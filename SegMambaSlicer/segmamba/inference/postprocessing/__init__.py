"""Post-processing of label maps: each rule is one file here and one entry in `RULES`.

A model's manifest entry names its rule. The rules are our own, not a paper's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from segmamba.inference.model_grid import cropped_geometry
from segmamba.inference.postprocessing.bowel import clean_bowel
from segmamba.inference.postprocessing.largest_column import keep_largest_column
from segmamba.io.volume import Volume
from segmamba.models.manifest import Postprocessing
from segmamba.utils.arrays import bounding_box, grown_box

# Takes labels (z, y, x), uint8, and the volume on the same grid; returns new labels.
Rule = Callable[[np.ndarray, Volume], np.ndarray]

RULES: dict[Postprocessing, Rule] = {
    Postprocessing.LARGEST_COLUMN: keep_largest_column,
    Postprocessing.BOWEL: clean_bowel,
}


def postprocess(labels: np.ndarray, volume: Volume, rule: Postprocessing) -> np.ndarray:
    """Clean up a label map by one of the rules.

    The rule sees the box of the labelled voxels alone, with one voxel of background on all sides where there is one:
    then components at the border of the box see what surrounds them.

    Parameters
    ----------
    labels : ndarray of uint8
        Shape (z, y, x).
    volume : Volume
        What was labelled, on the same grid.
    rule : Postprocessing

    Returns
    -------
    ndarray of uint8
        A new array, or ``labels`` itself for `Postprocessing.NONE`.
    """
    if rule is Postprocessing.NONE:
        return labels
    foreground = bounding_box(labels)
    if foreground is None:
        return labels.copy()
    z, y, x = grown_box(foreground, labels.shape)
    part = Volume(volume.array[z, y, x], cropped_geometry(volume.geometry, (z, y, x)), volume.modality)
    result = np.zeros_like(labels)
    result[z, y, x] = RULES[rule](labels[z, y, x], part)
    return result
