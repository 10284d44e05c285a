"""Cases of a data set as exams: vertebrae that are labelled by level, whole or their bodies only, on CT or MR.

What the labels do not say is unknown, and no background: most data sets begin and end somewhere along the column.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import SimpleITK as sitk

from segmamba.errors import InputError
from segmamba.evaluation.bodies import column_directions
from segmamba.evaluation.metrics import centroids
from segmamba.io.modality import CT
from segmamba.io.volume import Geometry, Volume, to_image
from segmamba.spine.levels import C1, C7, L1, L4, L6, SACRUM, T1, T11
from segmamba.training.losses import UNKNOWN
from segmamba.training.vertebrae.exams import SPACING, describe, on_grid
from segmamba.utils.arrays import label_boxes

# "L1", "L1 vertebra", "vertebrae_L1", "L1 body": a level and these words, and no others ("disc L1-L2" is a disc).
WORDS = re.compile(r"vertebra[el]?|bod(?:y|ies)|[\W_]+", re.IGNORECASE)
LEVEL_NAME = re.compile(r"([CTL])(\d{1,2})", re.IGNORECASE)
OTHER_NAMES = {"sacrum": SACRUM, "s1": SACRUM, "coccyx": UNKNOWN}
# What a data set without names calls its values.
VALUE_NAME = re.compile(r"label (\d+)")
BODY_NAME = re.compile(r"\bbod(?:y|ies)\b", re.IGNORECASE)
# First and last level of each part of the column, in VerSe's numbering. T13 and the coccyx have no class.
PARTS = {"C": (C1, C7), "T": (T1, L1 - 1), "L": (L1, L6)}
# Values of a CT that matter, and the range that an MR's largest value may lie in as it is.
HOUNSFIELD_UNITS, MR_UNITS = (-1024, 3071), (100.0, 30_000.0)
# Whole vertebrae are so many times as deep as they are high, bodies are not: the medians are 1.42 to 2.33 in the label
# maps of 24 people with whole ones, and 1.00 to 1.30 in those of 28 people with bodies, all of them for training.
WHOLE_PROPORTION, EXTENT_PERCENTILES, FEWEST_VOXELS = 1.36, (2, 98), 300
# Levels that may follow each other although their numbers do not: no T12, no L5 or no L6.
NEXT = ((T11, L1), (L4, SACRUM), (L4 + 1, SACRUM))


def levels_of(labels: Mapping[str, int]) -> dict[str, int]:
    """Return the level, in VerSe's numbering, of each label that is a vertebra or the sacrum.

    `UNKNOWN` stands for vertebrae that a network has no class for, such as T13. Labels that are left out are something
    else than vertebrae. Without names ("label 20") the values are taken for levels.

    Raises
    ------
    InputError
        No label is a vertebra, or two are one level.

    Examples
    --------
    >>> levels_of({"vertebrae_L1": 3, "T13": 4, "Sacrum": 5, "disc": 6})
    {'vertebrae_L1': 20, 'T13': 253, 'Sacrum': 26}
    """
    found = {name: level for name in labels if (level := _level(name)) is not None}
    if not any(level <= SACRUM for level in found.values()):
        raise InputError(
            "No label of the data set is a vertebra: name them by level, such as 'L1 vertebra' or 'Sacrum', or give "
            "pairs without names VerSe's values (L1 is 20)."
        )
    first: dict[int, str] = {}
    for name, level in found.items():
        if level != UNKNOWN and first.setdefault(level, name) != name:
            raise InputError(f"The labels '{first[level]}' and '{name}' are one level: make one label of them.")
    return found


def are_bodies(labels: Mapping[str, int]) -> bool:
    """Whether the names of the labels say that only vertebral bodies are drawn."""
    return any(BODY_NAME.search(name) for name in labels)


def _level(name: str) -> int | None:
    value = VALUE_NAME.fullmatch(name)
    if value:
        return int(value[1]) if int(value[1]) <= SACRUM else UNKNOWN
    core = WORDS.sub("", name).lower()
    match = LEVEL_NAME.fullmatch(core)
    if match:
        first, last = PARTS[match[1].upper()]
        level = first + int(match[2]) - 1
        return level if first <= level <= last else UNKNOWN
    return OTHER_NAMES.get(core)


def as_levels(
    values: np.ndarray, labels: Mapping[str, int], levels: Mapping[str, int], ignore: int | None
) -> np.ndarray:
    """Return a data set's label map as levels: 0 where it has none, `UNKNOWN` where nobody knows. uint8."""
    table = np.zeros(256, np.uint8)
    for name, level in levels.items():
        table[labels[name]] = level
    if ignore is not None:
        table[ignore] = UNKNOWN
    return table[values]


def storable(image: Volume, modality: str) -> Volume:
    """Return an image whose values fit half precision: CT without filler and metal, MR in another unit where needed."""
    if modality == CT:
        return replace(image, array=np.clip(image.array, *HOUNSFIELD_UNITS))
    largest = float(np.abs(image.array).max())
    if MR_UNITS[0] <= largest <= MR_UNITS[1] or not largest:
        return image
    return replace(image, array=image.array.astype(np.float32) * (MR_UNITS[1] / largest))


def labelled_exam(image: Volume, levels: Volume, bodies: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return image (float32), codes (uint8), (z, y, x) on a grid of ``SPACING``, and centroids, as `exams.exam_of`.

    Parameters
    ----------
    image : Volume
    levels : Volume
        From `as_levels`.
    bodies : bool
        Only vertebral bodies are drawn; else whole vertebrae.

    Raises
    ------
    InputError
        No whole vertebra lies on the image, or fewer than two bodies.
    """
    grey, codes = on_grid(image, levels, sitk.sitkLabelLinear)
    if not bodies:
        codes, centres = describe_whole(codes)
        if not len(centres):
            raise InputError("no vertebra is whole on the image")
        return grey, codes, centres
    drawn = np.where(codes < SACRUM, codes, 0)
    if len(np.unique(drawn)) < 3:
        raise InputError("fewer than two vertebral bodies lie on the image")
    described, centres = describe(drawn)
    return grey, np.where(codes >= SACRUM, codes, described), centres


def describe_whole(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return codes (z, y, x) and centroids (n, 4), as `exams.describe`, of whole vertebrae on a grid with LPS axes.

    Background is known between the centroids of neighbours that are both labelled, above C1 and below the sacrum.
    Elsewhere a vertebra may be that nobody has labelled. Centroids are of vertebrae that are whole: those of others
    would be wrong.
    """
    grid = Geometry(codes.shape[::-1], (SPACING,) * 3, (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    found = centroids(np.where(codes <= SACRUM, codes, 0), grid)
    values = sorted(found)
    if not values:
        return np.full_like(codes, UNKNOWN), np.zeros((0, 4))
    places = np.array([found[value] for value in values])
    directions = column_directions(places)
    directions *= np.where(directions[:, 2:] < 0, -1.0, 1.0)  # up
    z, y, x = (np.arange(n, dtype=np.float32) * SPACING for n in codes.shape)

    def height(number: int) -> np.ndarray:
        """Return by how many mm each voxel is above a centroid, along the column."""
        right, back, up = directions[number]
        all_of_it: np.ndarray = (
            z[:, None, None] * up + y[:, None] * back + x * right - places[number] @ directions[number]
        )
        return all_of_it

    unknown = np.zeros(codes.shape, bool)
    if values[0] != C1:
        unknown |= height(0) > 0
    if values[-1] != SACRUM:
        unknown |= height(len(values) - 1) < 0
    for number, (upper, lower) in enumerate(zip(values, values[1:], strict=False)):
        if lower != upper + 1 and (upper, lower) not in NEXT:
            unknown |= (height(number) < 0) & (height(number + 1) > 0)
    described = np.where((codes == 0) & unknown, UNKNOWN, codes).astype(np.uint8)
    whole = [n for n, value in enumerate(values) if value != SACRUM and _is_whole(codes, value)]
    rows = [[values[n], *(places[n][::-1] / SPACING)] for n in whole]
    return described, np.array(rows).reshape(-1, 4)


def _is_whole(codes: np.ndarray, value: int) -> bool:
    """Whether a vertebra ends before the image does, upwards, downwards, to the front and to the back.

    To the sides a sagittal series cuts off transverse processes, on both sides alike: the centroid stays.
    """
    inside = codes == value
    return not any(inside.take(end, axis).any() for axis in (0, 1) for end in (0, -1))


def proportions(levels: Volume) -> list[float]:
    """Return how many times as deep as high each vertebra is that the image does not cut off above or below."""
    image = sitk.DICOMOrient(to_image(levels.array, levels.geometry), "LPS")
    array, steps = sitk.GetArrayViewFromImage(image), np.array(image.GetSpacing()[::-1])
    found = []
    for value, box in label_boxes(array).items():
        if value >= SACRUM or box[0].start == 0 or box[0].stop == len(array):
            continue
        places = np.argwhere(array[box] == value)
        if len(places) >= FEWEST_VOXELS:
            low, high = np.percentile(places * steps, EXTENT_PERCENTILES, axis=0)
            height, depth, _ = np.maximum(high - low, steps)
            found.append(float(depth / height))
    return found


def known_levels(levels: Mapping[str, int]) -> list[int]:
    """Return the levels of labels that have a class, the uppermost first."""
    return sorted(level for level in levels.values() if level <= SACRUM)
