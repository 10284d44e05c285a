"""Atlas and axis without parts of the skull or of each other. The rules are our own.

The occipital condyles lie on the atlas and look like its lateral masses, and the dens stands in its ring: networks mix
the three up. The shapes of the two vertebrae tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from segmamba.spine.frames import Frame, column_frames
from segmamba.spine.levels import C1, C2
from segmamba.spine.shape_model import Fit, FitTogether, ShapeModel, fit_one, part_near
from segmamba.utils.arrays import label_boxes
from segmamba.utils.morphology import CONNECTIVITY_26
from segmamba.utils.parallel import at_once

# A shape is fitted again to those voxels of a mask that lie this near to it (fits err by 1 to 2 mm), so that
# parts of other bones do not bias it.
FITS, NEAR_MM = 2, 1.5
# A shape is believed if so much of the mask is near it, with at least this Dice.
LEAST_PART, LEAST_DICE = 0.7, 0.72
# Foreign parts reach so far out of the shape in at least one voxel (a hysteresis threshold: a shape that is a little
# wrong changes nothing). They are all that is connected to it outside of the shape and nearer to the other vertebra's,
# at most `AT_OTHER_MM` outside of that; and for the skull, all that is further than `SKULL_MM` outside.
SURE_MM, AT_OTHER_MM, SKULL_MM = 6.0, 0.5, 2.0


def separate_atlas(
    labels: np.ndarray,
    spacing_mm: float,
    model: ShapeModel,
    check: Callable[[], None] = lambda: None,
    together: FitTogether | None = None,
) -> np.ndarray:
    """Return labels whose atlas and axis have no parts of the skull or of each other.

    Those that the upper or lower border truncates, and those whose shape is not found, are left as they are.

    Parameters
    ----------
    labels : ndarray of uint8
        Shape (z, y, x): levels; axes up, to posterior and to the left.
    spacing_mm : float
        Of the isotropic grid.
    model : ShapeModel
    check, together : callable
        As for `segmamba.spine.refine.refine`.
    """
    boxes = label_boxes(labels)
    whole = [n for n in (C1, C2) if n in boxes and boxes[n][0].start > 0 and boxes[n][0].stop < len(labels)]
    frames = column_frames(labels, spacing_mm) if whole else {}
    fits = at_once(
        lambda level: fit_without_outliers(labels == level, level, model, frames[level], spacing_mm, together),
        [level for level in whole if level in frames],
        check,
    )
    distances = {level: _everywhere(found, labels.shape) for level, found in fits.items() if found is not None}
    refined = labels.copy()
    for level, own in distances.items():
        outside = (labels == level) & (own > 0)
        if C1 + C2 - level in distances:
            other = distances[C1 + C2 - level]
            theirs = outside & (other < np.minimum(own, AT_OTHER_MM))
            refined[connected_to(theirs, theirs & (own > SURE_MM) & (other < 0))] = C1 + C2 - level
        outside &= refined == level
        refined[connected_to(outside & (own > SKULL_MM), outside & (own > SURE_MM))] = 0
    return refined


def fit_without_outliers(
    mask: np.ndarray,
    level: int,
    model: ShapeModel,
    frame: Frame,
    spacing_mm: float,
    together: FitTogether | None = None,
) -> Fit | None:
    """Fit a shape to the part of a mask that is near it; None if it is not like that shape.

    Parameters as for `segmamba.spine.shape_model.fit_one`. The estimate is an iteratively trimmed one, as least trimmed
    squares (Rousseeuw 1984) is.
    """
    found = fit_one(together, mask, level, model, frame, spacing_mm)
    for _ in range(FITS):
        near = part_near(mask, found, NEAR_MM)
        if near.sum() < LEAST_PART * mask.sum():
            return None
        found = fit_one(together, near, level, model, found.frame, spacing_mm)
    return found if found.dice >= LEAST_DICE else None


def connected_to(mask: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Return the components of a mask (z, y, x) that hold a seed."""
    reached: np.ndarray = ndimage.binary_propagation(seeds, structure=CONNECTIVITY_26, mask=mask)
    return reached


def _everywhere(found: Fit, shape: tuple[int, ...]) -> np.ndarray:
    """Return the signed distance in mm at all voxels; far away it is infinite."""
    distance = np.full(shape, np.inf, np.float32)
    distance[found.box] = found.distance
    return distance
