"""Volume nodes to files, ROI nodes to boxes."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk

from segmamba.errors import InputError, OutputError
from segmamba.io.read import read_volume
from segmamba_mrml.volumes import check_volume, coarse_volume, index_to_lps, roi_box, volume_of, write_volume

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def export_volume(volume_node, path):
    write_volume(volume_of(volume_node), path)


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_exported_file_has_the_voxels_and_the_oblique_left_handed_grid_of_the_node(
    a_slicer_scene, labels, oblique_left_handed, tmp_path, kind
):
    voxels = np.arange(labels.size).reshape(labels.shape).astype(kind)
    export_volume(slicer.util.addVolumeFromArray(voxels, oblique_left_handed), tmp_path / "volume.nrrd")
    volume = read_volume(tmp_path / "volume.nrrd")
    np.testing.assert_array_equal(volume.array, voxels)
    assert volume.array.dtype == kind
    np.testing.assert_allclose(volume.geometry.affine, RAS_TO_LPS @ oblique_left_handed, atol=1e-9)


def test_writing_stops_when_it_is_told_to(a_volume_node, tmp_path):
    path, asked = tmp_path / "volume.nrrd", iter([False, False, True])
    write_volume(volume_of(a_volume_node), path, lambda: next(asked))
    voxels = slicer.util.arrayFromVolume(a_volume_node)
    assert path.read_bytes().endswith(b"\n\n" + voxels[:2].tobytes())


def test_parent_transforms_are_applied_to_the_file_and_not_to_the_node(
    a_volume_node, a_linear_transform, oblique_left_handed, tmp_path
):
    a_volume_node.SetAndObserveTransformNodeID(a_linear_transform.GetID())
    export_volume(a_volume_node, tmp_path / "volume.nrrd")
    to_world = slicer.util.arrayFromTransformMatrix(a_linear_transform, toWorld=True)
    exported = read_volume(tmp_path / "volume.nrrd").geometry.affine
    np.testing.assert_allclose(exported, RAS_TO_LPS @ to_world @ oblique_left_handed, atol=1e-9)
    assert a_volume_node.GetTransformNodeID() == a_linear_transform.GetID()
    assert _ijk_to_ras(a_volume_node) == pytest.approx(oblique_left_handed)


def test_nested_parent_transforms_are_all_applied(a_volume_node, a_linear_transform, a_slicer_scene):
    outer = a_slicer_scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    slicer.util.updateTransformMatrixFromArray(outer, np.diag([2.0, 2.0, 2.0, 1.0]))
    a_linear_transform.SetAndObserveTransformNodeID(outer.GetID())
    before = index_to_lps(a_volume_node)
    a_volume_node.SetAndObserveTransformNodeID(a_linear_transform.GetID())
    after = index_to_lps(a_volume_node)
    np.testing.assert_allclose(
        np.linalg.norm(after[:3, :3], axis=0), 2 * np.linalg.norm(before[:3, :3], axis=0), atol=1e-9
    )


def test_non_linear_parent_transform_is_refused_with_a_way_out(a_volume_node, a_warp):
    a_volume_node.SetAndObserveTransformNodeID(a_warp.GetID())
    with pytest.raises(InputError, match="non-linear transform 'warp': harden"):
        check_volume(a_volume_node)


def test_sheared_transform_is_refused_with_a_way_out(a_volume_node, a_linear_transform, tmp_path):
    shear = np.eye(4)
    shear[0, 1] = 0.2
    slicer.util.updateTransformMatrixFromArray(a_linear_transform, shear)
    a_volume_node.SetAndObserveTransformNodeID(a_linear_transform.GetID())
    with pytest.raises(InputError, match="not at right angles.*Resample"):
        export_volume(a_volume_node, tmp_path / "volume.nrrd")
    assert list(tmp_path.iterdir()) == []


def test_no_volume_is_refused():
    with pytest.raises(InputError, match="No volume is chosen"):
        check_volume(None)


@pytest.mark.parametrize(
    ("class_name", "words"),
    [
        ("vtkMRMLLabelMapVolumeNode", "is a label map"),
        ("vtkMRMLSequenceNode", "is a sequence"),
        ("vtkMRMLModelNode", "is not a volume"),
        ("vtkMRMLScalarVolumeNode", "has no voxels"),
    ],
)
def test_nodes_that_are_no_image_are_refused_by_kind(a_slicer_scene, class_name, words):
    node = a_slicer_scene.AddNewNodeByClass(class_name, "thing")
    with pytest.raises(InputError, match=f"'thing' {words}"):
        check_volume(node)


def test_vector_volume_is_refused(a_slicer_scene):
    node = slicer.util.addVolumeFromArray(np.zeros((4, 5, 6, 3), np.uint8), nodeClassName="vtkMRMLVectorVolumeNode")
    with pytest.raises(InputError, match="3 values per voxel"):
        check_volume(node)


def test_single_slice_is_refused(a_slicer_scene):
    with pytest.raises(InputError, match="single slice"):
        check_volume(slicer.util.addVolumeFromArray(np.zeros((1, 5, 6), np.int16)))


def test_unwritable_folder_is_named(a_volume_node, tmp_path):
    with pytest.raises(OutputError, match="missing"):
        export_volume(a_volume_node, tmp_path / "missing" / "volume.nrrd")


def test_modality_of_the_subject_hierarchy_reaches_the_file(a_volume_node, a_slicer_scene, tmp_path):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(a_slicer_scene)
    item = hierarchy.CreateItem(hierarchy.GetSceneItemID(), a_volume_node)
    hierarchy.SetItemAttribute(item, "DICOM.Modality", "MR")
    export_volume(a_volume_node, tmp_path / "volume.nrrd")
    assert sitk.ReadImage(str(tmp_path / "volume.nrrd")).GetMetaData("0008|0060") == "MR"


def test_roi_gives_its_box_in_lps(a_slicer_scene):
    low, high = roi_box(_roi(a_slicer_scene))
    assert low == pytest.approx((-6, -12, -12))
    assert high == pytest.approx((4, 8, 18))


def test_transformed_roi_gives_the_box_around_it(a_slicer_scene, a_linear_transform):
    quarter_turn = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 100], [0, 0, 0, 1]])
    slicer.util.updateTransformMatrixFromArray(a_linear_transform, quarter_turn)
    roi = _roi(a_slicer_scene)
    roi.SetAndObserveTransformNodeID(a_linear_transform.GetID())
    low, high = roi_box(roi)
    assert low == pytest.approx((-8, -6, 88))
    assert high == pytest.approx((12, 4, 118))


def test_roi_that_was_not_placed_is_refused(a_slicer_scene):
    with pytest.raises(InputError, match="place it"):
        roi_box(a_slicer_scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "region"))


def _roi(scene):
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "region")
    roi.SetCenter(1, 2, 3)
    roi.SetSize(10, 20, 30)
    return roi


def _ijk_to_ras(node):
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def test_coarse_volume_covers_the_same_patient_with_fewer_voxels(a_volume_node, a_linear_transform):
    a_volume_node.SetAndObserveTransformNodeID(a_linear_transform.GetID())
    whole, coarse = coarse_volume(a_volume_node), coarse_volume(a_volume_node, voxels=150)
    np.testing.assert_array_equal(whole.array, slicer.util.arrayFromVolume(a_volume_node))
    np.testing.assert_allclose(whole.geometry.affine, index_to_lps(a_volume_node), atol=1e-9)
    np.testing.assert_array_equal(coarse.array, whole.array[::2, ::2, ::2])
    to_lps = index_to_lps(a_volume_node) @ np.diag([2.0, 2.0, 2.0, 1.0])
    np.testing.assert_allclose(coarse.geometry.affine, to_lps, atol=1e-9)
