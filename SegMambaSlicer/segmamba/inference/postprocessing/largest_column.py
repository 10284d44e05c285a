"""Post-processing of vertebrae: only the vertebral column stays."""

from __future__ import annotations

import numpy as np

from segmamba.io.volume import Volume
from segmamba.spine.column import SMALL_COMPONENT_MM3, extract_column
from segmamba.utils.morphology import HOLE_MM3, fill_holes, merge_small_components


def keep_largest_column(labels: np.ndarray, volume: Volume) -> np.ndarray:
    """Drop what is neither connected to the vertebral column nor a piece of it, then repair each label.

    Small components of a label go to the label that they touch most, or to the background if they touch none; small
    holes in a label are filled.

    Parameters
    ----------
    labels : ndarray of uint8
        Shape (z, y, x).
    volume : Volume
        On the same grid; its intensities do not matter.

    Returns
    -------
    ndarray of uint8
    """
    kept = np.where(extract_column(labels > 0, volume.geometry.affine), labels, np.uint8(0))
    merge_small_components(kept, SMALL_COMPONENT_MM3 / volume.geometry.voxel_volume)
    fill_holes(kept, HOLE_MM3 / volume.geometry.voxel_volume)
    return kept
