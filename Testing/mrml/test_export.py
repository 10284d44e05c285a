"""A segmentation as files of surfaces, or as a label map with the manifest's values."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from segmamba.errors import InputError, OutputError
from segmamba.models.manifest import load_manifest
from segmamba_mrml.export import export_segmentation
from segmamba_mrml.renumber import renumber
from segmamba_mrml.segmentation import segmentation_from_labels


@pytest.fixture
def a_segmentation(a_volume_node, labels, vertebrae):
    """T12, L1 and the sacrum."""
    return segmentation_from_labels(labels, a_volume_node, vertebrae, "case 7: spine")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_label_map_has_the_values_of_the_manifest_on_the_grid_of_the_volume(
    a_segmentation, a_volume_node, labels, tmp_path
):
    folder = export_segmentation(a_segmentation, tmp_path, "nii.gz")
    assert folder == tmp_path / "case 7_ spine"
    (path,) = folder.glob("*.nii.gz")
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), labels)
    origin = np.array(a_volume_node.GetOrigin()) * (-1, -1, 1)
    np.testing.assert_allclose(image.GetOrigin(), origin, atol=1e-3)
    (table,) = folder.glob("*.csv")
    assert '20,"L1 vertebra"' in table.read_text()


def test_values_follow_a_correction_of_the_levels(a_segmentation, labels, tmp_path):
    renumber(a_segmentation, "T12", "L1")
    (path,) = export_segmentation(a_segmentation, tmp_path, "nii.gz").glob("*.nii.gz")
    exported = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    np.testing.assert_array_equal(exported == 20, labels == 19)
    np.testing.assert_array_equal(exported == 21, labels == 20)


def test_segment_of_a_person_s_own_gets_a_value_that_no_structure_has(a_segmentation, a_volume_node, tmp_path):
    own = a_segmentation.GetSegmentation().AddEmptySegment("", "implant")
    mask = np.zeros(slicer.util.arrayFromVolume(a_volume_node).shape, np.uint8)
    mask[0, 0, 0] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, a_segmentation, own, a_volume_node)
    (path,) = export_segmentation(a_segmentation, tmp_path, "nii.gz").glob("*.nii.gz")
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0, 0, 0] > 26


@pytest.mark.parametrize(("file_format", "more"), [("stl", []), ("obj", ["mtl"])])
def test_each_segment_is_a_surface_of_its_own_in_patient_millimetres(a_segmentation, tmp_path, file_format, more):
    second = a_segmentation.GetSegmentation().GetNthSegment(1)
    second.SetName("T12 vertebra")
    folder = export_segmentation(a_segmentation, tmp_path, file_format)
    expected = ["Sacrum", "T12 vertebra", "T12 vertebra (2)"]
    assert names(folder) == sorted(f"{name}.{kind}" for name in expected for kind in [file_format, *more])
    reader = getattr(vtk, f"vtk{file_format.upper()}Reader")()
    reader.SetFileName(str(folder / f"T12 vertebra.{file_format}"))
    reader.Update()
    middle = vtk_to_numpy(reader.GetOutput().GetPoints().GetData()).mean(axis=0)
    identifier = a_segmentation.GetSegmentation().GetNthSegmentID(0)
    center = np.array(a_segmentation.GetSegmentCenterRAS(identifier)) * (-1, -1, 1)
    np.testing.assert_allclose(middle, center, atol=2.5)
    if more:
        assert "mtllib T12 vertebra (2).mtl" in (folder / "T12 vertebra (2).obj").read_text()


def test_nothing_is_overwritten_and_nothing_else_is_left(a_segmentation, tmp_path, a_slicer_scene):
    nodes = a_slicer_scene.GetNumberOfNodes()
    for _repetition in range(2):
        export_segmentation(a_segmentation, tmp_path, "stl")
        export_segmentation(a_segmentation, tmp_path, "nii.gz")
    assert names(tmp_path) == ["case 7_ spine", *(f"case 7_ spine ({number})" for number in (2, 3, 4))]
    assert a_slicer_scene.GetNumberOfNodes() == nodes


def test_what_cannot_be_exported_is_a_sentence(a_segmentation, a_volume_node, labels, tmp_path, a_slicer_scene):
    with pytest.raises(InputError, match="no format 'dcm': choose from stl, obj, nii.gz"):
        export_segmentation(a_segmentation, tmp_path, "dcm")
    with pytest.raises(OutputError, match="nowhere cannot be written to .*choose another"):
        export_segmentation(a_segmentation, tmp_path / "nowhere", "stl")
    with pytest.raises(InputError, match="'empty' has no segments"):
        export_segmentation(a_slicer_scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "empty"), tmp_path, "stl")
    colorectal = load_manifest().default("colorectal").labels
    segmentation_from_labels(np.minimum(labels, 1), a_volume_node, colorectal, "", a_segmentation)
    atlas = load_manifest().default("vertebrae").labels
    segmentation_from_labels(np.minimum(labels, 1), a_volume_node, atlas, "", a_segmentation)
    with pytest.raises(InputError, match="two tasks"):
        export_segmentation(a_segmentation, tmp_path, "nii.gz")
    assert names(tmp_path) == []
