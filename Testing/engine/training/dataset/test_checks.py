"""Broken data sets: each ends in one sentence that names the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.labelled_images import NNUNET, image_of, write, write_described

from segmamba.errors import InputError
from segmamba.training.dataset.checks import notes
from segmamba.training.dataset.fingerprint import take_fingerprint
from segmamba.training.dataset.read import read_dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_described(tmp_path, ["a", "b"], NNUNET)


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        take_fingerprint(read_dataset(folder))
    sentence = str(caught.value)
    assert sentence.count(". ") == 0 and sentence.endswith(".")
    return sentence


def test_labels_on_another_grid_are_refused(folder: Path) -> None:
    write(image_of(1)[1], folder / "labelsTr" / "b.nii", spacing=(1.0, 1.0, 1.1))
    assert f"{folder / 'labelsTr' / 'b.nii'} is not on the grid of b_0000.nii" in refusal(folder)
    write(image_of(1, 14)[1], folder / "labelsTr" / "b.nii")
    assert "is not on the grid" in refusal(folder)


def test_a_header_that_is_rounded_is_one_grid(folder: Path) -> None:
    write(image_of(1)[1], folder / "labelsTr" / "b.nii", spacing=(1.0, 1.0, 1.001))
    take_fingerprint(read_dataset(folder))


def test_values_without_a_name_are_refused(folder: Path) -> None:
    write(5 * image_of(1)[1], folder / "labelsTr" / "b.nii")
    assert "b.nii holds values that the data set does not name (5)" in refusal(folder)


def test_labels_that_are_no_whole_numbers_are_refused(folder: Path) -> None:
    write(0.5 * image_of(1)[1].astype(np.float32), folder / "labelsTr" / "b.nii")
    assert "b.nii is not a label map" in refusal(folder)


def test_a_file_that_is_cut_off_is_named(folder: Path) -> None:
    path = folder / "imagesTr" / "b_0000.nii"
    path.write_bytes(path.read_bytes()[:2000])
    assert "b_0000.nii" in refusal(folder)


def test_one_image_under_two_names_is_refused(folder: Path) -> None:
    write(image_of(0)[0], folder / "imagesTr" / "b_0000.nii")
    assert "b_0000.nii holds the same image as a_0000.nii" in refusal(folder)


def test_absent_structures_and_unusual_voxels_are_told_of(tmp_path: Path) -> None:
    labels = {"labels": {"background": 0, "cube": 1, "ball": 2}}
    write_described(tmp_path, ["a", "b", "c"], NNUNET | labels)
    for name, part in (("imagesTr/c_0000.nii", 0), ("labelsTr/c.nii", 1)):
        write(image_of(2)[part] * (1 - part), tmp_path / name, spacing=(1.0, 1.0, 5.0))
    dataset = read_dataset(tmp_path)
    found = take_fingerprint(dataset)
    sentences = notes(dataset, found.spacings, found.voxels, found.cases_with)
    assert sentences[0] == "No case has a voxel of 'ball': it cannot be learnt."
    assert sentences[1] == "'cube' is in 2 of 3 cases."
    assert sentences[2].startswith("c.nii has voxels of 1 x 1 x 5 mm")
