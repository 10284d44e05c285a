"""Volume nodes to files, ROI nodes to boxes."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk

from segmamba.errors import InputError, OutputError
from segmamba.io.read import read_volume
from segmamba.io.volume import corners
from segmamba_mrml.slices import coarse_volume
from segmamba_mrml.volumes import check_volume, index_to_lps, roi_box, volume_of, write_volume

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


def uneven(volume_node, part):
    """Return how slices move: every other one, along their normal, by a part of a voxel."""
    step = _ijk_to_ras(volume_node)[:3, 2]
    return np.outer(np.arange(volume_node.GetImageData().GetDimensions()[2]) % 2, part * step)


def test_volume_whose_slices_are_off_by_a_part_of_a_voxel_is_taken_as_it_lies(
    a_volume_node, a_linear_transform, put_on_uneven_slices
):
    a_volume_node.SetAndObserveTransformNodeID(a_linear_transform.GetID())
    before = index_to_lps(a_volume_node)
    outer = put_on_uneven_slices(a_volume_node, uneven(a_volume_node, 0.19))
    outer.SetAndObserveTransformNodeID(a_linear_transform.GetID())
    np.testing.assert_allclose(index_to_lps(a_volume_node), before, atol=1e-9)


def test_voxels_are_measured_where_a_transform_in_between_has_put_them(
    a_volume_node, a_linear_transform, put_on_uneven_slices
):
    grid = put_on_uneven_slices(a_volume_node, uneven(a_volume_node, 0.3))
    slicer.util.updateTransformMatrixFromArray(a_linear_transform, np.diag([2.0, 2.0, 2.0, 1.0]))
    a_volume_node.SetAndObserveTransformNodeID(a_linear_transform.GetID())
    a_linear_transform.SetAndObserveTransformNodeID(grid.GetID())
    check_volume(a_volume_node)


@pytest.mark.parametrize("part", [0.21, 3.0, np.nan])
def test_tilted_or_uneven_slices_are_refused_with_how_far_they_are_off(a_volume_node, put_on_uneven_slices, part):
    put_on_uneven_slices(a_volume_node, uneven(a_volume_node, part))
    with pytest.raises(InputError, match=r"'case 7' are tilted or at uneven distances.* mm, so harden .* on a copy"):
        check_volume(a_volume_node)


def test_small_displacements_of_several_transforms_add_up(a_volume_node, put_on_uneven_slices):
    inner = put_on_uneven_slices(a_volume_node, uneven(a_volume_node, 0.15))
    outer = put_on_uneven_slices(a_volume_node, uneven(a_volume_node, 0.15))
    check_volume(a_volume_node)
    a_volume_node.SetAndObserveTransformNodeID(inner.GetID())
    inner.SetAndObserveTransformNodeID(outer.GetID())
    with pytest.raises(InputError, match="uneven distances"):
        check_volume(a_volume_node)


def test_axes_that_are_at_right_angles_but_for_rounding_are_made_so(a_volume_node, a_linear_transform):
    shear = np.eye(4)
    shear[0, 1], shear[2, 0] = 0.004, -0.003
    slicer.util.updateTransformMatrixFromArray(a_linear_transform, shear)
    a_volume_node.SetAndObserveTransformNodeID(a_linear_transform.GetID())
    matrix = index_to_lps(a_volume_node)
    directions = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-9)
    sheared = RAS_TO_LPS @ shear @ _ijk_to_ras(a_volume_node)
    last = np.array(a_volume_node.GetImageData().GetDimensions()) - 1
    off = np.linalg.inv(sheared) @ matrix @ corners((0, 0, 0), last).T - corners((0, 0, 0), last).T
    assert 0.001 < np.abs(off).max() < 0.05


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
