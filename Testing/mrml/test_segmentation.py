"""Label maps to segmentation nodes, and segmentation nodes to files and back."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import vtk

from segmamba.errors import InputError, OutputError
from segmamba.io.labelmap import write_labelmap
from segmamba.io.volume import Geometry
from segmamba_mrml.segmentation import save_segmentation, segmentation_from_labels
from segmamba_mrml.volumes import index_to_lps

PRESENT = ["T12 vertebra", "L1 vertebra", "Sacrum"]


@pytest.fixture
def a_segmentation_node(labels, a_volume_node, vertebrae):
    return segmentation_from_labels(labels, a_volume_node, vertebrae, "case 7 vertebrae")


def test_each_structure_present_is_one_segment_in_the_order_of_the_labels(a_segmentation_node, vertebrae):
    assert [row["name"] for row in describe(a_segmentation_node)] == PRESENT
    reverse = segmentation_from_labels(
        slicer_labels(a_segmentation_node), reference(a_segmentation_node), vertebrae[::-1], "reverse"
    )
    assert [row["name"] for row in describe(reverse)] == PRESENT[::-1]


def test_segments_have_the_manifest_s_names_colours_codes_and_stable_ids(a_segmentation_node, vertebrae):
    by_name = {label.name: label for label in vertebrae}
    rows = describe(a_segmentation_node)
    assert [row["id"] for row in rows] == ["T12_vertebra", "L1_vertebra", "Sacrum"]
    for row in rows:
        label = by_name[row["name"]]
        assert (row["color"], row["tag"]) == (label.color, label.terminology_tag)


def test_voxels_of_each_segment_are_those_of_its_label(a_segmentation_node, a_volume_node, labels):
    for identifier, value in (("T12_vertebra", 19), ("L1_vertebra", 20), ("Sacrum", 26)):
        voxels = slicer.util.arrayFromSegmentBinaryLabelmap(a_segmentation_node, identifier, a_volume_node)
        np.testing.assert_array_equal(voxels > 0, labels == value)


def test_segments_share_one_layer(a_segmentation_node):
    assert a_segmentation_node.GetSegmentation().GetNumberOfLayers() == 1


def test_label_map_file_gives_the_same_segments_as_the_array(
    labels, a_volume_node, vertebrae, a_segmentation_node, tmp_path
):
    path = tmp_path / "labels.nrrd"
    write_labelmap(path, labels, geometry_of(a_volume_node), vertebrae)
    from_file = segmentation_from_labels(path, a_volume_node, vertebrae, "from file")
    assert describe(from_file) == describe(a_segmentation_node)
    np.testing.assert_array_equal(slicer_labels(from_file), labels)


def test_reference_geometry_is_the_volume(a_segmentation_node, a_volume_node):
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    assert a_segmentation_node.GetNodeReference(role) is a_volume_node
    np.testing.assert_allclose(reference_matrix(a_segmentation_node), ijk_to_ras(a_volume_node), atol=1e-9)


def test_segmentation_follows_the_transform_of_its_volume(labels, a_volume_node, a_linear_transform, vertebrae):
    a_volume_node.SetAndObserveTransformNodeID(a_linear_transform.GetID())
    node = segmentation_from_labels(labels, a_volume_node, vertebrae, "moved")
    assert node.GetTransformNodeID() == a_linear_transform.GetID()
    np.testing.assert_allclose(reference_matrix(node), ijk_to_ras(a_volume_node), atol=1e-9)
    center = [0.0, 0.0, 0.0]
    node.GetSegmentCenterRAS("L1_vertebra", center)
    middle = np.array([*(np.argwhere(labels == 20).mean(axis=0)[::-1]), 1.0])
    expected = np.diag([-1.0, -1, 1, 1]) @ index_to_lps(a_volume_node) @ middle
    assert np.linalg.norm(center - expected[:3]) < 2.5  # Slicer gives the nearest voxel, and slices are 2.5 mm apart.


def test_empty_result_is_a_node_without_segments(labels, a_volume_node, vertebrae, tmp_path):
    node = segmentation_from_labels(np.zeros_like(labels), a_volume_node, vertebrae, "nothing found")
    assert node.GetSegmentation().GetNumberOfSegments() == 0
    assert node.GetScene() is not None
    np.testing.assert_allclose(reference_matrix(node), ijk_to_ras(a_volume_node), atol=1e-9)
    save_segmentation(node, tmp_path / "nothing.seg.nrrd")
    assert load(tmp_path / "nothing.seg.nrrd").GetSegmentation().GetNumberOfSegments() == 0


def test_values_that_are_no_structure_are_left_out(labels, a_volume_node, vertebrae):
    node = segmentation_from_labels(labels + (labels == 26) * np.uint8(100), a_volume_node, vertebrae, "partly known")
    assert [row["name"] for row in describe(node)] == PRESENT[:2]


def test_display_shows_slices_and_makes_no_surfaces(a_segmentation_node):
    display = a_segmentation_node.GetDisplayNode()
    assert display.GetVisibility() and display.GetVisibility2DFill() and display.GetVisibility2DOutline()
    surface = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    assert not a_segmentation_node.GetSegmentation().ContainsRepresentation(surface)
    assert a_segmentation_node.CreateClosedSurfaceRepresentation()


def test_segmentation_lies_beside_its_volume_in_the_subject_hierarchy(labels, a_volume_node, vertebrae, a_slicer_scene):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(a_slicer_scene)
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "patient")
    study = hierarchy.CreateStudyItem(patient, "study")
    hierarchy.CreateItem(study, a_volume_node)
    node = segmentation_from_labels(labels, a_volume_node, vertebrae, "case 7 vertebrae")
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == study


def test_item_that_slicer_s_plugins_made_is_moved_beside_the_volume(labels, a_volume_node, vertebrae, a_slicer_scene):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(a_slicer_scene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "study")
    hierarchy.CreateItem(study, a_volume_node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def as_plugins_do(scene, event, node):
        hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)

    tag = a_slicer_scene.AddObserver(slicer.vtkMRMLScene.NodeAddedEvent, as_plugins_do)
    node = segmentation_from_labels(labels, a_volume_node, vertebrae, "case 7 vertebrae")
    a_slicer_scene.RemoveObserver(tag)
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == study
    assert hierarchy.GetNumberOfItemChildren(study) == 2


def test_output_node_stays_where_its_owner_put_it(a_segmentation_node, labels, a_volume_node, vertebrae):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(a_segmentation_node.GetScene())
    folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "my results")
    item = hierarchy.GetItemByDataNode(a_segmentation_node)
    hierarchy.SetItemParent(item, folder)
    segmentation_from_labels(labels, a_volume_node, vertebrae, "unused", output_node=a_segmentation_node)
    assert hierarchy.GetItemParent(item) == folder


def test_segments_that_an_output_node_holds_are_kept(a_segmentation_node, labels, a_volume_node, vertebrae):
    edited = a_segmentation_node.GetSegmentation().GetSegment("L1_vertebra")
    edited.SetName("my own L1")
    before = slicer.util.arrayFromSegmentBinaryLabelmap(a_segmentation_node, "L1_vertebra", a_volume_node).copy()
    again = segmentation_from_labels(
        np.roll(labels, 1, axis=2), a_volume_node, vertebrae, "unused", output_node=a_segmentation_node
    )
    assert again is a_segmentation_node
    segmentation = again.GetSegmentation()
    assert segmentation.GetNumberOfSegments() == 6
    assert segmentation.GetSegment("L1_vertebra").GetName() == "my own L1"
    after = slicer.util.arrayFromSegmentBinaryLabelmap(again, "L1_vertebra", a_volume_node)
    np.testing.assert_array_equal(after, before)


def test_output_node_under_another_transform_is_refused(
    a_segmentation_node, labels, a_volume_node, vertebrae, a_linear_transform
):
    a_segmentation_node.SetAndObserveTransformNodeID(a_linear_transform.GetID())
    with pytest.raises(InputError, match="different transforms"):
        segmentation_from_labels(labels, a_volume_node, vertebrae, "x", output_node=a_segmentation_node)


def test_label_map_of_another_grid_is_refused(labels, a_volume_node, vertebrae, a_slicer_scene):
    with pytest.raises(InputError, match="choose the volume that was segmented"):
        segmentation_from_labels(labels[1:], a_volume_node, vertebrae, "x")
    assert a_slicer_scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_saved_file_opens_with_names_colours_codes_and_voxels(a_segmentation_node, a_volume_node, labels, tmp_path):
    path = tmp_path / "Größe 7.seg.nrrd"
    save_segmentation(a_segmentation_node, path)
    loaded = load(path)
    assert describe(loaded) == describe(a_segmentation_node)
    np.testing.assert_array_equal(slicer_labels(loaded, a_volume_node), labels)
    np.testing.assert_allclose(reference_matrix(loaded), ijk_to_ras(a_volume_node), atol=1e-6)
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_file_of_the_engine_opens_as_the_node_of_this_floor(
    a_segmentation_node, a_volume_node, labels, vertebrae, tmp_path
):
    write_labelmap(tmp_path / "engine.seg.nrrd", labels, geometry_of(a_volume_node), vertebrae)
    loaded = load(tmp_path / "engine.seg.nrrd")
    assert describe(loaded) == describe(a_segmentation_node)
    np.testing.assert_array_equal(slicer_labels(loaded, a_volume_node), labels)
    np.testing.assert_allclose(reference_matrix(loaded), ijk_to_ras(a_volume_node), atol=1e-6)


@pytest.mark.parametrize("name", ["result.nrrd", "result.nii.gz", "missing/result.seg.nrrd"])
def test_file_that_cannot_be_written_is_refused_and_leaves_nothing(a_segmentation_node, tmp_path, name):
    with pytest.raises(OutputError):
        save_segmentation(a_segmentation_node, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def describe(node):
    """Return what a person sees of each segment: ID, name, colour, terminology tag, status and auto-naming."""
    segmentation, logic = node.GetSegmentation(), slicer.vtkSlicerSegmentationsModuleLogic
    rows = []
    for index in range(segmentation.GetNumberOfSegments()):
        segment, tag = segmentation.GetNthSegment(index), vtk.reference("")
        assert segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), tag)
        row = {
            "id": segmentation.GetNthSegmentID(index),
            "name": segment.GetName(),
            "color": tuple(round(255 * part) for part in segment.GetColor()),
            "tag": str(tag),
            "status": logic.GetSegmentStatus(segment),
            "automatic": (segment.GetNameAutoGenerated(), segment.GetColorAutoGenerated()),
        }
        rows.append(row)
    return rows


def slicer_labels(node, volume_node=None):
    """Return the label map (z, y, x) that the segments make on the grid of the volume."""
    volume_node = volume_node or reference(node)
    segmentation, merged = node.GetSegmentation(), None
    for index in range(segmentation.GetNumberOfSegments()):
        identifier = segmentation.GetNthSegmentID(index)
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, identifier, volume_node) > 0
        merged = np.zeros(mask.shape, np.uint8) if merged is None else merged
        merged[mask] = segmentation.GetNthSegment(index).GetLabelValue()
    return merged


def load(path):
    return slicer.modules.segmentations.logic().LoadSegmentationFromFile(str(path), False)


def reference(node):
    return node.GetNodeReference(slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole())


def reference_matrix(node):
    """Return the IJK to RAS matrix of the reference geometry, in the node's own space."""
    name = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
    text = node.GetSegmentation().GetConversionParameter(name)
    return np.array([float(part) for part in text.split(";")[:16]]).reshape(4, 4)


def ijk_to_ras(volume_node):
    matrix = vtk.vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def geometry_of(volume_node):
    matrix = index_to_lps(volume_node)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    return Geometry(
        size=volume_node.GetImageData().GetDimensions(),
        spacing=tuple(spacing),
        origin=tuple(matrix[:3, 3]),
        direction=tuple((matrix[:3, :3] / spacing).flatten()),
    )


def test_segmentation_of_a_volume_on_uneven_slices_lies_under_its_transform_and_can_be_measured(
    a_volume_node, put_on_uneven_slices, labels, vertebrae
):
    from segmamba_mrml.volumes import world_matrix

    step = slicer.util.arrayFromVolume(a_volume_node).shape[0]
    transform = put_on_uneven_slices(a_volume_node, np.full((step, 3), 0.05))
    node = segmentation_from_labels(labels, a_volume_node, vertebrae, "spine")
    assert node.GetTransformNodeID() == transform.GetID()
    np.testing.assert_array_equal(world_matrix(node), np.eye(4))
    slicer.util.arrayFromGridTransform(transform)[:] = 2.0
    with pytest.raises(InputError, match="tilted or at uneven distances"):
        world_matrix(node)
