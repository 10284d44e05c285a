"""A corrected segmentation saved as a case to train on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
import slicer

from segmamba.errors import InputError, OutputError
from segmamba.io.read import read_volume
from segmamba.training.dataset.read import read_dataset
from segmamba_mrml.reports import write_report
from segmamba_mrml.segmentation import segment_ids, segmentation_from_labels
from segmamba_mrml.training_case import image_digest, person_code, save_training_case, saved_case
from segmamba_mrml.volumes import volume_of


@pytest.fixture
def a_result(labels, a_volume_node, vertebrae):
    return segmentation_from_labels(labels, a_volume_node, vertebrae, "result")


def file_of(folder, part, name, ending=""):
    return sitk.ReadImage(str(folder / part / f"{name}{ending}.nii.gz"))


def test_a_case_is_read_as_a_data_set_with_image_labels_and_names(a_result, a_volume_node, vertebrae, labels, tmp_path):
    name = save_training_case(a_result, a_volume_node, tmp_path / "cases", vertebrae)
    dataset = read_dataset(tmp_path / "cases")
    assert dataset.channels == ("CT",)
    assert dict(dataset.labels) == {"T12 vertebra": 19, "L1 vertebra": 20, "Sacrum": 26}
    assert [(case.name, case.person) for case in dataset.cases] == [(name, name[:-3])]
    case = dataset.cases[0]
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(case.labels))), labels)
    image, expected = read_volume(case.images[0]), volume_of(a_volume_node)
    np.testing.assert_array_equal(image.array, expected.array)
    np.testing.assert_allclose(image.geometry.affine, expected.geometry.affine, atol=1e-4)


def test_corrections_by_hand_and_own_segments_are_saved(a_result, a_volume_node, vertebrae, labels, tmp_path):
    mask = np.zeros_like(labels)
    mask[0, 0, 0] = 1
    own = a_result.GetSegmentation().AddEmptySegment("screw", "screw")
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, a_result, own, a_volume_node)
    a_result.RemoveSegment(segment_ids(a_result)[0])
    name = save_training_case(a_result, a_volume_node, tmp_path, vertebrae)
    assert json.loads((tmp_path / "dataset.json").read_text())["labels"]["screw"] == 100
    found = sitk.GetArrayFromImage(file_of(tmp_path, "labelsTr", name))
    assert set(np.unique(found)) == {0, 20, 26, 100}
    assert found[0, 0, 0] == 100


def test_what_a_run_was_not_to_find_counts_as_unknown(a_result, a_volume_node, vertebrae, tmp_path):
    """L1 and the sacrum were asked for; T12 was drawn by hand, and a screw in a later case."""

    def drawn():
        return [case.drawn for case in read_dataset(tmp_path).cases]

    options = {"structures": ["L1", "26"]}
    write_report(a_result, {"model": {"id": "x"}, "run": {"options": options}}, [])
    save_training_case(a_result, a_volume_node, tmp_path, vertebrae)
    assert drawn() == [None]  # all that the data set knows
    later = slicer.util.addVolumeFromArray(slicer.util.arrayFromVolume(a_volume_node) + 1)
    later.CopyOrientation(a_volume_node)
    a_result.GetSegmentation().AddEmptySegment("screw", "screw")
    a_result.RemoveSegment(segment_ids(a_result)[0])
    save_training_case(a_result, later, tmp_path, vertebrae)
    assert set(drawn()) == {("L1 vertebra", "Sacrum", "screw"), ("T12 vertebra", "L1 vertebra", "Sacrum")}


def test_nothing_says_whose_the_image_is(a_result, a_volume_node, vertebrae, tmp_path):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(a_volume_node.GetScene())
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "Doe^Jane")
    constants = slicer.vtkMRMLSubjectHierarchyConstants
    hierarchy.SetItemAttribute(patient, constants.GetDICOMPatientIDAttributeName(), "12345")
    other = slicer.util.addVolumeFromArray(np.zeros((3, 3, 3), np.int16))
    for node in (a_volume_node, other):
        hierarchy.CreateItem(patient, node)
    name = save_training_case(a_result, a_volume_node, tmp_path, vertebrae)
    assert name[:-3] == person_code(a_volume_node, "x") == person_code(other, "y")
    for path in tmp_path.rglob("*.*"):
        content = path.read_bytes()
        assert b"Doe" not in content and b"12345" not in content and b"case 7" not in content
        assert "12345" not in str(path)


def test_the_same_image_is_saved_again_only_on_request(a_result, a_volume_node, vertebrae, tmp_path):
    name = save_training_case(a_result, a_volume_node, tmp_path, vertebrae)
    assert saved_case(tmp_path, image_digest(volume_of(a_volume_node))) == name
    with pytest.raises(InputError, match=f"already, as {name}"):
        save_training_case(a_result, a_volume_node, tmp_path, vertebrae)
    a_result.RemoveSegment(segment_ids(a_result)[0])
    assert save_training_case(a_result, a_volume_node, tmp_path, vertebrae, replace=True) == name
    assert set(np.unique(sitk.GetArrayFromImage(file_of(tmp_path, "labelsTr", name)))) == {0, 20, 26}
    assert json.loads((tmp_path / "dataset.json").read_text())["numTraining"] == 1


def test_a_folder_of_other_images_or_one_that_cannot_be_written_is_refused(
    a_result, a_volume_node, vertebrae, tmp_path
):
    (tmp_path / "mr").mkdir()
    (tmp_path / "mr" / "dataset.json").write_text('{"channel_names": {"0": "T2"}, "labels": {"background": 0}}')
    with pytest.raises(InputError, match=r"other images \(T2\)"):
        save_training_case(a_result, a_volume_node, tmp_path / "mr", vertebrae)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        save_training_case(a_result, a_volume_node, tmp_path / "file", vertebrae)
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "empty")
    with pytest.raises(InputError, match="labels no voxel"):
        save_training_case(empty, a_volume_node, tmp_path / "new", vertebrae)
    assert not (tmp_path / "new").exists()
