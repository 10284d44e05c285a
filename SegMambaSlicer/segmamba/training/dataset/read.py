"""A data set from a folder, whichever layout it is in."""

from __future__ import annotations

from pathlib import Path

from segmamba.errors import InputError
from segmamba.training.dataset.layout import Case, Dataset
from segmamba.training.dataset.nnunet import DESCRIPTION, read_described
from segmamba.training.dataset.pairs import read_pairs

LAYOUTS = "nnU-Net v2, Medical Segmentation Decathlon, or a folder of pairs (NAME_image and NAME_labels, or BIDS)"


def read_dataset(folder: Path) -> Dataset:
    """Find the cases of a data set, whichever layout it is in. Of a described one no image is opened.

    Raises
    ------
    InputError
        The folder is in none of the layouts, a file that belongs to it is missing, or a case has labels twice; the
        sentence names the file.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}: give the folder of a data set ({LAYOUTS}).")
    dataset = read_described(folder) if (folder / DESCRIPTION).is_file() else read_pairs(folder)
    if not dataset.cases:
        raise InputError(f"{folder} holds no case with images and labels: give the folder of a data set ({LAYOUTS}).")
    first: dict[str, Case] = {}
    for case in dataset.cases:
        if first.setdefault(case.name, case) is not case:
            raise InputError(
                f"{case.labels} and {first[case.name].labels} label the same image: remove one of the two."
            )
    return dataset
