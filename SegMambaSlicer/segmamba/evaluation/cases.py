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
from segmamba.inference.channels import check_files, joined
from segmamba.io.channel_names import channel_of_name, missing_channels
from segmamba.io.labelmap import LABELMAP_EXTENSIONS
from segmamba.io.modality import AUTO, CT, MR
from segmamba.io.read import read_image, read_volume
from segmamba.io.volume import Geometry, Volume
from segmamba.models.manifest import InputChannel, Model
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
    channels : tuple of Path
        For a model that takes several co-registered volumes, all of them in its order, of which ``image`` is the first.
    """

    name: str
    modality: str | None
    image: Path
    reference: Path
    ids: str
    channels: tuple[Path, ...] = ()


def find_cases(
    folders: Sequence[Path],
    structure: str,
    ids: Sequence[str] = (OWN_IDS,),
    part: str = TEST,
    channels: Sequence[InputChannel] = (),
) -> list[EvaluationCase]:
    """Return the cases in folders, in the order of their names.

    A case is ``NAME_ct.nii.gz``, ``NAME_mr.nii.gz`` or ``NAME_image.nii.gz`` with ``NAME_STRUCTURE.nii.gz``; images
    without a reference are skipped. As nnU-Net has it, ``NAME.nii.gz`` may be the reference of ``NAME_0000.nii.gz``,
    and for a model that takes several volumes also of ``NAME_0001.nii.gz``, ...; or these are ``NAME-t1c.nii.gz``, ...

    Parameters
    ----------
    folders : sequence of Path
    structure : str
        The task, or "bodies".
    ids : sequence of str
        Numbering of the references: one for all folders, or one per folder.
    part : str
        Where a folder has a ``split.csv``, the part of its exams: "test", or "train", on which models were trained.
    channels : sequence of InputChannel
        Of a model that takes several volumes.

    Raises
    ------
    InputError
        There is no case, or two of one name, or one without all channels, or ``ids`` is wrong, or a ``split.csv`` is.
    """
    unknown = [one for one in ids if one not in IDS]
    if unknown or len(ids) not in (1, len(folders)):
        raise InputError(f"The reference ids are '{','.join(ids)}': give one of {', '.join(IDS)}, or one per folder.")
    cases: list[EvaluationCase] = []
    for folder, numbering in zip(folders, ids if len(ids) > 1 else list(ids) * len(folders), strict=True):
        found = _cases_in(folder, structure, numbering, part, channels)
        if not found:
            what = f"pair NAME_ct{ENDING} (or _mr, _image) and NAME_{structure}{ENDING}"
            if channels:
                what = f"case NAME_0000{ENDING} to NAME_{len(channels) - 1:04}{ENDING} with NAME_{structure}{ENDING}"
            raise InputError(
                f"{folder} holds no {what}: check the folder and the names, and the part '{part}' of a {SPLIT}."
            )
        cases += found
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"There are two cases named '{twice[0]}': rename one.")
    return cases


def check_volumes(cases: Sequence[EvaluationCase], model: Model) -> None:
    """Refuse to run a model that takes several volumes on a case that has one.

    Raises
    ------
    InputError
    """
    names = [channel.name for channel in model.input_channels]
    single = next((case for case in cases if names and not case.channels), None)
    if single is not None:
        raise InputError(
            f"{single.image} is one volume, and the model '{model.id}' takes {len(names)} ({', '.join(names)}): give "
            f"{single.name}_0000{ENDING} to {single.name}_{len(names) - 1:04}{ENDING}, in that order."
        )


def read_case(
    case: EvaluationCase, config: ScoringConfig, model: Model, modality: str = AUTO
) -> tuple[PerturbedCase, bool]:
    """Read a case, and say whether its reference had to be brought to the image's grid (nearest neighbour).

    Parameters
    ----------
    case : EvaluationCase
    config : ScoringConfig
    model : Model
        Where the case has several volumes, the one that takes them.
    modality : str
        As for `segmamba.inference.channels.joined`.

    Raises
    ------
    InputError
        A file cannot be read, is not a label map, or they show different places.
    """
    reference = read_reference(case.reference, case.ids)
    if case.channels:
        check_files([str(path) for path in case.channels], model)
        volumes = [read_volume(path) for path in case.channels]
        try:
            image = joined(volumes, 0, model, modality)
        except InputError as error:
            raise InputError(f"{case.name}: {error}") from error
    else:
        image = read_volume(case.image)
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


def _cases_in(
    folder: Path, structure: str, ids: str, part: str, channels: Sequence[InputChannel]
) -> list[EvaluationCase]:
    cases = _cases_of_channels(folder, structure, ids, channels) if channels else []
    known = {case.name for case in cases}
    if not channels:
        for image in folder.glob(f"*_0000{ENDING}"):
            name = image.name.removesuffix(f"_0000{ENDING}")
            own = _reference(folder, name, structure)
            if own is not None and not (folder / f"{name}_0001{ENDING}").exists():
                cases.append(EvaluationCase(name, None, image, own, ids))
    for suffix, modality in MODALITIES.items():
        for image in folder.glob(f"*_{suffix}{ENDING}"):
            name = image.name.removesuffix(f"_{suffix}{ENDING}")
            reference = folder / f"{name}_{structure}{ENDING}"
            if reference.is_file() and name not in known:
                cases.append(EvaluationCase(name, modality, image, reference, ids))
    chosen = exams_of_part(folder, [case.name for case in cases], part)
    return sorted((case for case in cases if case.name in chosen), key=lambda case: case.name)


def _cases_of_channels(
    folder: Path, structure: str, ids: str, channels: Sequence[InputChannel]
) -> list[EvaluationCase]:
    """Return the cases of several volumes in a folder. Raises InputError where one lacks a volume or has it twice."""
    names = [channel.name for channel in channels]
    files: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.glob(f"*{ENDING}")):
        name, channel = channel_of_name(path.name.removesuffix(ENDING), names) or ("", "")
        if not name:
            continue
        if channel in files.setdefault(name, {}):
            raise InputError(f"{path} and {files[name][channel]} both are '{channel}' of {name}: remove one of them.")
        files[name][channel] = path
    modalities = {channel.modality for channel in channels}
    modality = modalities.pop() if len(modalities) == 1 else None
    cases = []
    for name, found in files.items():
        reference = _reference(folder, name, structure)
        if reference is None:
            continue
        missing = missing_channels(name, list(found), names)
        if missing:
            raise InputError(f"{folder} has no file of {name}'s channel {missing}: add it, or move {reference.name}.")
        paths = tuple(found[channel] for channel in names)
        cases.append(EvaluationCase(name, modality, paths[0], reference, ids, paths))
    return cases


def _reference(folder: Path, name: str, structure: str) -> Path | None:
    """Return the reference of images that are named as nnU-Net does: with the name of the structure, or without."""
    places = (folder / f"{name}_{structure}{ENDING}", folder / f"{name}{ENDING}")
    return next((path for path in places if path.is_file()), None)
