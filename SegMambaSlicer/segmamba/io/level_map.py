"""Reading a segmentation of vertebrae as a map of levels, whoever made it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from segmamba.errors import InputError
from segmamba.io.labelmap import SEGMENTATION_EXTENSION
from segmamba.io.read import quiet, read_volume
from segmamba.io.volume import Volume
from segmamba.spine.levels import ORDER, SACRUM, level_name, level_named
from segmamba.utils.arrays import as_labels, label_boxes

HIGHEST = 255


def read_levels(path: Path) -> Volume:
    """Return a segmentation as a volume of uint8 whose values are levels (`segmamba.spine.levels`), and the sacrum's.

    Parameters
    ----------
    path : Path
        A label map with VerSe's numbers, or a ``.seg.nrrd``, whose segments' names ("L5 vertebra", "L5") count. Other
        values and segments are left out.

    Raises
    ------
    InputError
        It cannot be read, or has no vertebrae.
    """
    volume = read_volume(path)
    labels = as_labels(volume.array, HIGHEST, str(path))
    levels = _levels_by_value(path)
    present = label_boxes(labels)
    if not any(levels.get(value) in ORDER for value in present):
        raise InputError(
            f"{path} has no vertebrae: give a label map with VerSe's numbers (L1 is 20), or a .seg.nrrd whose segments "
            "are called after their levels."
        )
    table = np.zeros(HIGHEST + 1, np.uint8)
    for value, level in levels.items():
        table[value] = level
    return replace(volume, array=table[labels])


def _levels_by_value(path: Path) -> dict[int, int]:
    """Return the level that each value of a segmentation stands for."""
    usual = {level: level for level in (*ORDER, SACRUM)}
    if not str(path).lower().endswith(SEGMENTATION_EXTENSION):
        return usual
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with quiet():
        reader.ReadImageInformation()
    fields = {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()}
    found = {}
    for key, value in fields.items():
        word = value.split()[0] if key.endswith("_Name") and value.split() else ""
        level = SACRUM if word.lower() == level_name(SACRUM) else level_named(word)
        if level is not None:
            found[int(fields[key.removesuffix("Name") + "LabelValue"])] = level
    return found or usual
