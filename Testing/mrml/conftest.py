"""One headless MRML scene for all tests of this floor, emptied between them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import slicer
import vtk

from segmamba.models.manifest import load_manifest
from segmamba.models.resources import MANIFEST_NAME, resource_root
from segmamba_mrml import application as host


@pytest.fixture(scope="session")
def a_slicer_application():
    host.start()
    return slicer


@pytest.fixture
def a_slicer_scene(a_slicer_application):
    scene = a_slicer_application.mrmlScene
    scene.Clear(0)
    # Slicer has one in every scene; on slicer-core it is made when first asked for.
    assert slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    yield scene
    scene.Clear(0)


@pytest.fixture(scope="session")
def vertebrae():
    """The labels C1 to sacrum."""
    return load_manifest().default("vertebrae").labels


@pytest.fixture(scope="session")
def labels():
    """A label map of shape (z, y, x) = (12, 10, 9) with T12 (19), L1 (20) and the sacrum (26)."""
    array = np.zeros((12, 10, 9), np.uint8)
    array[8:11, 3:7, 2:6] = 19
    array[4:8, 3:7, 3:6] = 20
    array[1:4, 2:8, 3:5] = 26
    return array


@pytest.fixture(scope="session")
def oblique_left_handed():
    """An IJK to RAS matrix with 0.8 x 1.1 x 2.5 mm voxels, rotated about two axes, and mirrored."""
    turn, tilt = np.deg2rad(25), np.deg2rad(-15)
    about_z = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    matrix = np.eye(4)
    matrix[:3, :3] = about_z @ about_x @ np.diag([-0.8, 1.1, 2.5])
    matrix[:3, 3] = [31.0, -120.5, 64.25]
    assert np.linalg.det(matrix) < 0
    return matrix


@pytest.fixture
def a_volume_node(a_slicer_scene, labels, oblique_left_handed):
    voxels = (np.arange(labels.size) % 2000 - 1000).astype(np.int16).reshape(labels.shape)
    return slicer.util.addVolumeFromArray(voxels, oblique_left_handed, "case 7")


@pytest.fixture
def a_linear_transform(a_slicer_scene):
    """A transform node: 30 degrees about the body's axis, then a shift."""
    node = a_slicer_scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "registration")
    turn = np.deg2rad(30)
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    matrix[:3, 3] = [5.0, -7.0, 11.0]
    slicer.util.updateTransformMatrixFromArray(node, matrix)
    return node


@pytest.fixture
def a_warp(a_slicer_scene):
    """A non-linear transform node."""
    grid = vtk.vtkImageData()
    grid.SetDimensions(3, 3, 3)
    grid.AllocateScalars(vtk.VTK_DOUBLE, 3)
    grid.GetPointData().GetScalars().Fill(1.0)
    transform = slicer.vtkOrientedGridTransform()
    transform.SetDisplacementGridData(grid)
    node = a_slicer_scene.AddNewNodeByClass("vtkMRMLGridTransformNode", "warp")
    node.SetAndObserveTransformFromParent(transform)
    return node


@pytest.fixture
def put_on_uneven_slices(a_slicer_scene):
    """Put a volume under the transform that Slicer's DICOM reader makes where slices are off an even grid.

    Takes the volume node and by how much each slice is to move, shape (slices, 3), in RAS millimetres.
    """

    def put(volume_node, moves):
        columns, rows, slices = volume_node.GetImageData().GetDimensions()
        spacing, directions = volume_node.GetSpacing(), vtk.vtkMatrix4x4()
        volume_node.GetIJKToRASDirectionMatrix(directions)
        grid = vtk.vtkImageData()
        grid.SetOrigin(volume_node.GetOrigin())
        grid.SetDimensions(2, 2, slices)
        grid.SetSpacing(spacing[0] * columns, spacing[1] * rows, spacing[2])
        grid.AllocateScalars(vtk.VTK_DOUBLE, 3)
        transform = slicer.vtkOrientedGridTransform()
        transform.SetGridDirectionMatrix(directions)
        transform.SetDisplacementGridData(grid)
        node = a_slicer_scene.AddNewNodeByClass("vtkMRMLGridTransformNode", "2: Abdomen acquisition transform")
        node.SetAndObserveTransformToParent(transform)
        slicer.util.arrayFromGridTransform(node)[:] = np.asarray(moves)[:, None, None]
        volume_node.SetAndObserveTransformNodeID(node.GetID())
        return node

    return put


@pytest.fixture(scope="session")
def a_tiny_model(tmp_path_factory):
    """A manifest whose only model is a tiny SpineMamba with random weights for T12, L1 and the sacrum."""
    import torch
    from safetensors.torch import save_file

    from segmamba.networks import build_network

    folder = tmp_path_factory.mktemp("tiny")
    arguments = {"in_channels": 1, "out_channels": 4, "features": [2, 2, 4, 4, 4], "depths": [1, 1], "grid": [2, 2, 2]}
    torch.manual_seed(0)
    weights = build_network("spine_mamba", **arguments).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "tiny.safetensors")
    content = json.loads((resource_root() / MANIFEST_NAME).read_text(encoding="utf-8"))
    entry = content["models"][0]
    entry |= {"id": "tiny", "arguments": arguments, "channel_values": [0, 19, 20, 26], "patch": [16, 16, 16]}
    entry["architecture"] = "spine_mamba"
    del entry["fine"], entry["preprocessing_mr"]
    entry["preprocessing"]["normalization"] = entry["preprocessing"]["normalization"][:1]
    entry["file"] = {"name": "tiny.safetensors", "size": None, "sha256": None, "bundled": "tiny.safetensors"}
    path = folder / "manifest.json"
    path.write_text(json.dumps({**content, "models": [entry]}), encoding="utf-8")
    return path
