"""The cases of a folder: images, their references, and predictions made elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segmamba.errors import InputError
from segmamba.evaluation.names import IDS, NATIVE, OWN_IDS, TEST
from segmamba.evaluation.perturbations import PerturbedCase, resampled
from segmamba.evaluation.references import HIGHEST, ineligible_reasons, read_reference
from segmamba.evaluation.scores import ScoringConfig
from segmamba.evaluation.split import SPLIT, exams_of_part
from segmamba.io.labelmap import LABELMAP_EXTENSIONS
from segmamba.io.modality import CT, MR
from segmamba.io.read import read_image, read_volume
from segmamba.io.volume import Geometry, Volume
from segmamba.utils.arrays import as_labels

ENDING = ".nii.gz"
# Modality of an image by the end of its name; None where the name does not say.
MODALITIES = {"ct": CT, "mr": MR, "image": None}
# A grid that is off by less than this part of a voxel is the same one: headers round.
SAME_GRID = 0.01


@dataclass(frozen=True)
class EvaluationCase:
    """An image and its reference.

    Attributes
    ----------
    name : str
    modality : str or None
        "CT", "MR", or None where the name of the image does not say.
    image, reference : Path
    ids : str
        Numbering of the reference, one of `segmamba.evaluation.names.IDS`.
    """

    name: str
    modality: str | None
    image: Path
    reference: Path
    ids: str


def find_cases(
    folders: Sequence[Path], structure: str, ids: Sequence[str] = (OWN_IDS,), part: str = TEST
) -> list[EvaluationCase]:
    """Return the cases in folders, in the order of their names.

    A case is ``NAME_ct.nii.gz``, ``NAME_mr.nii.gz`` or ``NAME_image.nii.gz`` with ``NAME_STRUCTURE.nii.gz``; images
    without a reference are skipped.

    Parameters
    ----------
    folders : sequence of Path
    structure : str
        The task, or "bodies".
    ids : sequence of str
        Numbering of the references: one for all folders, or one per folder.
    part : str
        Where a folder has a ``split.csv``, the part of its exams: "test", or "train", on which models were trained.

    Raises
    ------
    InputError
        There is no case, or two of one name, or ``ids`` is wrong, or a ``split.csv`` is.
    """
    unknown = [one for one in ids if one not in IDS]
    if unknown or len(ids) not in (1, len(folders)):
        raise InputError(f"The reference ids are '{','.join(ids)}': give one of {', '.join(IDS)}, or one per folder.")
    cases: list[EvaluationCase] = []
    for folder, numbering in zip(folders, ids if len(ids) > 1 else list(ids) * len(folders), strict=True):
        found = _cases_in(folder, structure, numbering, part)
        if not found:
            raise InputError(
                f"{folder} holds no pair NAME_ct{ENDING} (or _mr, _image) and NAME_{structure}{ENDING}: "
                f"check the folder and the names, and the part '{part}' of a {SPLIT}."
            )
        cases += found
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"There are two cases named '{twice[0]}': rename one.")
    return cases


def read_case(case: EvaluationCase, config: ScoringConfig) -> tuple[PerturbedCase, bool]:
    """Read a case, and say whether its reference had to be brought to the image's grid (nearest neighbour).

    Raises
    ------
    InputError
        A file cannot be read, is not a label map, or the two show different places.
    """
    image, reference = read_volume(case.image), read_reference(case.reference, case.ids)
    if config.vertebrae:
        reasons = ineligible_reasons(reference.array)
    else:
        reasons = {int(value): None for value in np.unique(reference.array) if value}
    on_image, moved = on_grid(reference, image.geometry)
    if not on_image.array.any():
        raise InputError(f"No label of {case.reference} lies on {case.image}: give the reference that belongs to it.")
    return PerturbedCase(NATIVE, NATIVE, image, on_image, reasons), moved


def on_grid(labels: Volume, grid: Geometry) -> tuple[Volume, bool]:
    """Return labels on a grid, and whether they had to be brought to it (nearest neighbour)."""
    ends = np.array([[0, 0, 0, 1], [*(np.array(grid.size) - 1), 1]])
    if labels.geometry.size == grid.size:
        difference = ends @ (labels.geometry.affine - grid.affine).T
        directions = np.subtract(labels.geometry.direction, grid.direction)
        if np.abs(difference).max() <= SAME_GRID * min(grid.spacing) and np.abs(directions).max() <= 1e-3:
            return labels, False
    return resampled(labels, grid), True


def read_prediction(folder: Path, name: str) -> Volume:
    """Return the label map NAME with any of our extensions from a folder of predictions, as uint8.

    Raises
    ------
    InputError
        It is not there, cannot be read, or is not a label map.
    """
    for extension in LABELMAP_EXTENSIONS:
        path = folder / f"{name}{extension}"
        if path.is_file():
            volume = read_image(path)
            return Volume(as_labels(volume.array, HIGHEST, str(path)), volume.geometry)
    raise InputError(
        f"{folder} holds no {name}{ENDING}: give the predictions the names of the cases, or remove the case."
    )


def _cases_in(folder: Path, structure: str, ids: str, part: str) -> list[EvaluationCase]:
    cases = []
    for suffix, modality in MODALITIES.items():
        for image in folder.glob(f"*_{suffix}{ENDING}"):
            name = image.name.removesuffix(f"_{suffix}{ENDING}")
            reference = folder / f"{name}_{structure}{ENDING}"
            if reference.is_file():
                cases.append(EvaluationCase(name, modality, image, reference, ids))
    chosen = exams_of_part(folder, [case.name for case in cases], part)
    return sorted((case for case in cases if case.name in chosen), key=lambda case: case.name)
