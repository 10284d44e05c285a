"""Data sets in the field's layouts: what is read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.labelled_images import DECATHLON, NNUNET, image_of, write, write_described

from segmamba.errors import InputError
from segmamba.training.dataset.checks import notes
from segmamba.training.dataset.read import read_dataset


def test_nnunet_channels_and_ignore_label_are_read(tmp_path: Path) -> None:
    names = {"channel_names": {"0": "T2", "1": "T1"}, "labels": {"background": 0, "body": 1, "ignore": 2}}
    write_described(tmp_path, ["sub-1_ses-a", "sub-1_ses-b", "other"], names)
    for name in ("sub-1_ses-a", "sub-1_ses-b", "other"):
        write(image_of(0)[0], tmp_path / "imagesTr" / f"{name}_0001.nii")
    dataset = read_dataset(tmp_path)
    assert dataset.channels == ("T2", "T1")
    assert dict(dataset.labels) == {"body": 1}
    assert dataset.ignore == 2
    assert [case.name for case in dataset.cases] == ["other", "sub-1_ses-a", "sub-1_ses-b"]
    assert [image.name for image in dataset.cases[0].images] == ["other_0000.nii", "other_0001.nii"]
    assert [case.person for case in dataset.cases] == ["other", "sub-1", "sub-1"]


def test_decathlon_images_have_the_names_of_their_labels(tmp_path: Path) -> None:
    dataset = read_dataset(write_described(tmp_path, ["colon_001", "colon_005"], DECATHLON, ending=""))
    assert dataset.channels == ("CT",) and dataset.is_ct
    assert dict(dataset.labels) == {"colon cancer primaries": 1}
    assert dataset.cases[0].images == (tmp_path / "imagesTr" / "colon_001.nii",)


def test_names_of_decathlon_that_end_in_four_digits_are_no_channels(tmp_path: Path) -> None:
    dataset = read_dataset(write_described(tmp_path, ["colon_0001", "colon_0002"], DECATHLON, ending=""))
    assert [case.images[0].name for case in dataset.cases] == ["colon_0001.nii", "colon_0002.nii"]
    described = read_dataset(write_described(tmp_path / "nnunet", ["colon_0001"], NNUNET))
    assert described.cases[0].images[0].name == "colon_0001_0000.nii"


def test_images_without_labels_are_left_out_and_told_of(tmp_path: Path) -> None:
    write_described(tmp_path / "described", ["a", "b"], NNUNET)
    (tmp_path / "described" / "labelsTr" / "b.nii").unlink()
    image, labels = image_of(0)
    for name, array in (("a_image", image), ("a_labels", labels), ("b_image", image + 1)):
        write(array, tmp_path / "pairs" / f"{name}.nii")
    for folder, left_out in (("described", "b_0000.nii"), ("pairs", "b_image.nii")):
        dataset = read_dataset(tmp_path / folder)
        assert [case.name for case in dataset.cases] == ["a"]
        said = notes(dataset, [(1, 1, 1)], dict.fromkeys(dataset.labels, 9), dict.fromkeys(dataset.labels, 1))
        assert said == [f"Without labels and left out: 1 image, first {left_out}."]


@pytest.mark.parametrize(
    ("names", "ct", "expected"),
    [
        (("a_image", "b"), (True, True), "CT"),
        (("a_image", "b"), (True, False), "MR"),
        (("a_ct", "b_img"), (False, True), "CT"),
        (("a_image", "b_T2w"), (True, True), "MR"),
        (("a_ct", "b-CT"), (False, False), "CT"),
        (("subject", "b"), (False, True), "MR"),
    ],
)
def test_pairs_are_ct_by_their_names_or_where_these_do_not_say_it_by_their_values(
    tmp_path: Path, names: tuple[str, str], ct: tuple[bool, bool], expected: str
) -> None:
    for name, hounsfield in zip(names, ct, strict=True):
        image, labels = image_of(0)
        write(10 * image - 2000 if hounsfield else image, tmp_path / f"{name}.nii")
        write(labels, tmp_path / f"{name}_labels.nii")
    assert read_dataset(tmp_path).channels == (expected,)


def test_hidden_files_of_macos_are_no_cases(tmp_path: Path) -> None:
    write_described(tmp_path, ["colon_001"], DECATHLON, ending="")
    (tmp_path / "labelsTr" / "._colon_001.nii").write_bytes(b"x")
    assert len(read_dataset(tmp_path).cases) == 1


def test_pairs_are_found_in_a_flat_folder_and_in_bids(tmp_path: Path) -> None:
    image, labels = image_of(0)
    write(image, tmp_path / "a_image.nii")
    write(labels, tmp_path / "a_labels.nii")
    write(image, tmp_path / "sub-2" / "anat" / "sub-2_T2w.nii")
    write(3 * labels, tmp_path / "sub-2" / "anat" / "sub-2_T2w_dseg.nii")
    dataset = read_dataset(tmp_path)
    assert [(case.name, case.person) for case in dataset.cases] == [("a", "a"), ("sub-2_T2w", "sub-2")]
    assert dict(dataset.labels) == {"label 1": 1, "label 3": 3}


def test_pairs_are_found_under_the_names_of_verse(tmp_path: Path) -> None:
    image, labels = image_of(0)
    write(image, tmp_path / "rawdata" / "sub-verse500" / "sub-verse500_dir-ax_ct.nii")
    write(20 * labels, tmp_path / "derivatives" / "sub-verse500" / "sub-verse500_dir-ax_seg-vert_msk.nii")
    dataset = read_dataset(tmp_path)
    assert dataset.channels == ("CT",) and dict(dataset.labels) == {"label 20": 20}
    assert [(case.name, case.person) for case in dataset.cases] == [("sub-verse500_dir-ax", "sub-verse500")]


def test_two_images_of_one_name_are_refused_for_labels_could_go_to_either(tmp_path: Path) -> None:
    image, labels = image_of(0)
    for folder in ("one", "two"):
        write(image, tmp_path / folder / "scan.nii")
        write(labels, tmp_path / folder / "scan_seg.nii")
    with pytest.raises(InputError, match=r"two.scan\.nii and .*one.scan\.nii have the same name"):
        read_dataset(tmp_path)


def test_two_label_maps_of_one_image_are_refused(tmp_path: Path) -> None:
    image, labels = image_of(0)
    write(image, tmp_path / "scan.nii")
    for ending in ("bodies", "vertebrae"):
        write(labels, tmp_path / f"scan_{ending}.nii")
    with pytest.raises(InputError, match=r"scan_vertebrae\.nii and .*scan_bodies\.nii label the same image"):
        read_dataset(tmp_path)


def test_labels_without_image_are_named(tmp_path: Path) -> None:
    write_described(tmp_path, ["a", "b"], NNUNET)
    (tmp_path / "imagesTr" / "b_0000.nii").unlink()
    with pytest.raises(InputError, match=r"b\.nii has no image of channel 0000"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"labels": {"background": 0}}, "no label besides the background"),
        ({"labels": {"background": 0, "whole": [1, 2]}}, "regions need regions_class_order, a list of 1 value"),
        ({"labels": {"background": 0, "whole": [1, "2"]}}, "not a whole number from 0 to 254, or a list of them"),
        ({"labels": {"background": 0, "whole": [0, 1]}, "regions_class_order": [1]}, "holds the background's value"),
        (
            {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 3]},
            "gives 'core' the value 3, which is none of its own",
        ),
        ({"labels": {"whole": [1, 2], "core": 2}, "regions_class_order": [2, 2]}, "gives two regions one value"),
        ({"labels": {"background": 0, "body": 300}}, "not a whole number from 0 to 254"),
        ({"channel_names": {"1": "MR"}}, "not numbered from 0"),
    ],
)
def test_descriptions_that_cannot_be_trained_with_name_their_file(
    tmp_path: Path, change: dict[str, object], expected: str
) -> None:
    write_described(tmp_path, ["a"], NNUNET)
    (tmp_path / "dataset.json").write_text(json.dumps(NNUNET | change))
    with pytest.raises(InputError, match=rf"dataset\.json does not describe.*{expected}"):
        read_dataset(tmp_path)


def test_regions_keep_the_order_in_which_nnunet_writes_them(tmp_path: Path) -> None:
    labels = {"background": 0, "whole tumour": [3, 1, 2], "core": [2, 3], "enhancing": [3], "ignore": 4}
    write_described(tmp_path, ["a"], NNUNET | {"labels": labels, "regions_class_order": [1, 2, 3]})
    dataset = read_dataset(tmp_path)
    assert list(dataset.labels.items()) == [("whole tumour", 1), ("core", 2), ("enhancing", 3)]
    assert dataset.regions == {"whole tumour": (3, 1, 2), "core": (2, 3), "enhancing": (3,)}
    assert dataset.values == (1, 2, 3) and dataset.ignore == 4


def test_lists_of_one_value_are_no_regions(tmp_path: Path) -> None:
    write_described(tmp_path, ["a"], NNUNET | {"labels": {"background": [0], "b": [2], "a": 1}})
    dataset = read_dataset(tmp_path)
    assert list(dataset.labels.items()) == [("a", 1), ("b", 2)] and not dataset.regions


def test_a_folder_without_cases_names_the_layouts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no case with images and labels: give the folder of a data set .nnU-Net v2"):
        read_dataset(tmp_path)
    with pytest.raises(InputError, match="There is no folder"):
        read_dataset(tmp_path / "missing")
