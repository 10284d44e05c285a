"""Data sets without a description: pairs of images and labels, as in BIDS derivatives or in a plain folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from segmamba.errors import InputError
from segmamba.io.modality import CT, MR, infer_modality
from segmamba.io.read import read_image, read_volume
from segmamba.training.dataset.layout import Case, Dataset, images_in, stem
from segmamba.training.dataset.nnunet import PERSON

# What the name of a label map ends in; what comes before is its image's. BIDS: sub-1_T2w_dseg beside sub-1_T2w; VerSe:
# sub-1_seg-vert_msk beside sub-1_ct.
LABEL_ENDINGS = re.compile(r"^(?P<case>.+?)[_-](?:dseg|seg|seg-vert_msk|mask|labels?|bodies|vertebrae)$", re.IGNORECASE)
IMAGE_ENDINGS = ("", "_image", "_img", "_ct", "_mr", "_T1w", "_T2w", "_FLAIR")
MODALITY_ENDINGS = re.compile(r"(?:^|[^A-Za-z0-9])(?P<modality>ct|mr|T1w|T2w|FLAIR)$", re.IGNORECASE)
# So many images whose names do not say what they are are read to find out.
LOOKED_AT = 3


def read_pairs(folder: Path) -> Dataset:
    """Read all pairs in a folder and its folders: an image and labels of one name and one ending each.

    The structures are the values that the label maps hold. One channel: CT or MR, by the images' names, or where these
    do not say it, by the values of the first. A BIDS subject is a person.

    Raises
    ------
    InputError
        Labels have no image, two images have one name, or labels are something else than whole numbers from 0 to 254.
    """
    images: dict[str, Path] = {}
    labels: dict[Path, str] = {}
    for path in _all_images(folder):
        match = LABEL_ENDINGS.match(stem(path))
        if match:
            labels[path] = match["case"]
        else:
            if stem(path) in images:
                raise InputError(f"{path} and {images[stem(path)]} have the same name: rename one, and its labels.")
            images[stem(path)] = path
    cases = [_pair(path, name, images) for path, name in labels.items()]
    values = sorted(_values(case.labels for case in cases))
    structures = {f"label {value}": value for value in values}
    used = {case.images[0] for case in cases}
    return Dataset(
        folder,
        (_modality([case.images[0] for case in cases]),),
        structures,
        None,
        tuple(sorted(cases, key=lambda case: case.name)),
        unlabelled=tuple(path for path in images.values() if path not in used),
    )


def _all_images(folder: Path) -> Iterator[Path]:
    yield from images_in(folder)
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        yield from _all_images(inner)


def _pair(labels: Path, name: str, images: dict[str, Path]) -> Case:
    image = next((images[name + ending] for ending in IMAGE_ENDINGS if name + ending in images), None)
    if image is None:
        raise InputError(f"{labels} has no image named {name} or {name}_image in the data set: add it, or rename one.")
    person = PERSON.match(name)
    return Case(name, (image,), labels, person[0] if person else name)


def _modality(images: Sequence[Path]) -> str:
    """Return what all images are by their names, or where these do not say it, some of them by their values."""
    said = {path: MODALITY_ENDINGS.search(stem(path)) for path in images}
    if any(match and match["modality"].lower() != "ct" for match in said.values()):
        return MR
    unsaid = [path for path, match in said.items() if match is None][:LOOKED_AT]
    return CT if all(infer_modality(read_volume(path).array) == CT for path in unsaid) else MR


def _values(files: Iterable[Path]) -> set[int]:
    found: set[int] = set()
    for path in files:
        values = np.unique(read_image(path).array)
        if (values != np.floor(values)).any() or values[0] < 0 or values[-1] > 254:
            raise InputError(f"{path} is not a label map with whole values from 0 to 254: convert it first.")
        found.update(int(value) for value in values if value)
    return found
