"""From a volume node to a segmentation node, through files and a worker."""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk
from helpers import brain
from vtk.util.numpy_support import vtk_to_numpy

from segmamba.errors import Cancelled, InputError, ModelError, OutputError
from segmamba.evaluation.perturbations import resampled
from segmamba.inference.file_to_file import segment_file
from segmamba.inference.model_grid import cropped_geometry, isotropic_geometry
from segmamba.inference.outputs import isotropic_path
from segmamba.io.labelmap import write_labelmap
from segmamba.io.read import read_volume
from segmamba.io.volume import Volume
from segmamba.models.manifest import load_manifest
from segmamba.request import Request
from segmamba_mrml import segment
from segmamba_mrml.reports import parts, read_report
from segmamba_mrml.segment import REPORT_ATTRIBUTE, SegmentationCase, segment_volume_node
from segmamba_mrml.segmentation import BINARY_LABELMAP, GEOMETRY, segment_ids
from segmamba_mrml.volumes import RAS_TO_LPS, index_to_lps, volume_of, world_matrix, write_volume

BRIGHT = 0


class FakeWorker:
    """Does in this process, by a threshold, what the worker does: bright voxels become L1."""

    requests: list[Request] = []

    def __init__(self, python):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def run(self, request, on_progress, cancelled):
        self.requests.append(request)
        volume = read_volume(request.input)
        if on_progress:
            on_progress("predict", 0.5)
        if cancelled and cancelled():
            raise Cancelled()
        labels = np.where(volume.array > BRIGHT, 20, 0).astype(np.uint8)
        write_labelmap(request.output, labels, volume.geometry, load_manifest().default("vertebrae").labels)
        return {"model": {"id": request.model}, "input": request.input, "output": request.output, "say": 'ü ":;<%3A>'}


@pytest.fixture
def a_fake_worker(monkeypatch):
    FakeWorker.requests = []
    monkeypatch.setattr(segment, "WorkerProcess", FakeWorker)
    return FakeWorker


def test_bright_voxels_come_back_in_place_under_a_transform(a_volume_node, a_linear_transform, a_fake_worker):
    a_volume_node.SetAndObserveTransformNodeID(a_linear_transform.GetID())
    node = segment_volume_node(a_volume_node, "vertebrae")
    assert node.GetName() == "case 7 vertebrae"
    assert node.GetTransformNodeID() == a_linear_transform.GetID()
    found = slicer.util.arrayFromSegmentBinaryLabelmap(node, "L1_vertebra", a_volume_node)
    np.testing.assert_array_equal(found > 0, slicer.util.arrayFromVolume(a_volume_node) > BRIGHT)


def test_temporary_files_are_gone_afterwards(a_volume_node, a_fake_worker):
    segment_volume_node(a_volume_node, "vertebrae")
    (request,) = a_fake_worker.requests
    assert not Path(request.input).parent.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_temporary_files_are_the_users_own(a_volume_node, a_tiny_model):
    case = SegmentationCase(a_volume_node, Request("", "", "vertebrae", manifest=str(a_tiny_model)))
    try:
        assert Path(case.request.input).parent.stat().st_mode & 0o777 == 0o700
    finally:
        case.close()


def test_without_a_place_for_temporary_files_the_run_ends_in_a_sentence(a_volume_node, a_tiny_model, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere at all")
    with pytest.raises(OutputError, match="No temporary folder can be created .*: free some space"):
        SegmentationCase(a_volume_node, Request("", "", "vertebrae", manifest=str(a_tiny_model)))


def test_voxels_are_held_only_until_the_end(a_volume_node, a_tiny_model):
    scalars = a_volume_node.GetImageData().GetPointData().GetScalars()
    before = sys.getrefcount(scalars)
    case = SegmentationCase(a_volume_node, Request("", "", "vertebrae", manifest=str(a_tiny_model)))
    assert sys.getrefcount(scalars) > before
    case.close()
    gc.collect()
    assert sys.getrefcount(scalars) == before


def test_segment_that_a_person_adds_meanwhile_is_not_taken_for_one_of_the_report(a_volume_node, labels, vertebrae):
    case = SegmentationCase(a_volume_node, Request("", "", "vertebrae"))
    write_labelmap(case.request.output, labels, volume_of(a_volume_node).geometry, vertebrae)
    case.read()
    rows = [{"value": 19}, {"value": 20}, {"value": 26}]
    for node in case.finish_in_steps({"segments": rows}):
        if segment_ids(node) == ["T12_vertebra"]:
            node.GetSegmentation().AddEmptySegment("mine")
    case.close()
    assert segment_ids(node) == ["T12_vertebra", "mine", "L1_vertebra", "Sacrum"]
    found = json.loads(node.GetAttribute(REPORT_ATTRIBUTE))["segments"]
    assert [row["segment_id"] for row in found] == ["T12_vertebra", "L1_vertebra", "Sacrum"]


def test_report_names_the_nodes_and_survives_saving_the_scene(a_volume_node, a_fake_worker, a_slicer_scene):
    node = segment_volume_node(a_volume_node, "vertebrae")
    report = json.loads(node.GetAttribute(REPORT_ATTRIBUTE))
    assert (report["input"], report["output"]) == ("case 7", "case 7 vertebrae")
    a_slicer_scene.SetSaveToXMLString(1)
    a_slicer_scene.Commit()
    text = a_slicer_scene.GetSceneXMLString()
    a_slicer_scene.Clear(0)
    a_slicer_scene.SetLoadFromXMLString(1)
    a_slicer_scene.SetSceneXMLString(text)
    a_slicer_scene.Import()
    again = a_slicer_scene.GetFirstNodeByName("case 7 vertebrae")
    assert json.loads(again.GetAttribute(REPORT_ATTRIBUTE)) == report


def test_roi_and_choices_reach_the_worker(a_volume_node, a_slicer_scene, a_fake_worker):
    roi = a_slicer_scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "region")
    roi.SetCenter(1, 2, 3)
    roi.SetSize(10, 20, 30)
    segment_volume_node(a_volume_node, "vertebrae", model="spinemamba", roi_node=roi, device="cpu")
    (request,) = a_fake_worker.requests
    assert (request.task, request.model, request.options.device) == ("vertebrae", "spinemamba", "cpu")
    assert np.ravel(request.options.roi) == pytest.approx([-6, -12, -12, 4, 8, 18])


def test_progress_is_passed_on(a_volume_node, a_fake_worker):
    heard = []
    segment_volume_node(a_volume_node, "vertebrae", progress=lambda *news: heard.append(news))
    assert heard == [("predict", 0.5)]


def test_cancelled_job_leaves_the_scene_as_it_was(a_volume_node, a_fake_worker, a_slicer_scene):
    before = a_slicer_scene.GetNumberOfNodes()
    with pytest.raises(Cancelled):
        segment_volume_node(a_volume_node, "vertebrae", cancelled=lambda: True)
    assert a_slicer_scene.GetNumberOfNodes() == before


def test_volume_removed_meanwhile_ends_in_a_sentence(a_volume_node, a_fake_worker, a_slicer_scene):
    def close_scene(stage, fraction):
        a_slicer_scene.Clear(0)

    with pytest.raises(InputError, match="removed from the scene"):
        segment_volume_node(a_volume_node, "vertebrae", progress=close_scene)
    assert a_slicer_scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


@pytest.mark.parametrize(
    ("task", "model"), [("teeth", None), ("vertebrae", "no-such-model"), ("colorectal", "spinemamba")]
)
def test_unknown_or_unfitting_model_is_refused_before_any_work(a_volume_node, a_fake_worker, task, model):
    with pytest.raises(ModelError):
        segment_volume_node(a_volume_node, task, model=model)
    assert a_fake_worker.requests == []


@pytest.mark.slow
def test_real_worker_gives_the_node_what_it_gives_a_file(a_slicer_scene, oblique_left_handed, a_tiny_model, tmp_path):
    """Random weights give random labels, but the same ones by both ways."""
    noise = np.random.default_rng(0).normal(0, 300, (18, 20, 22)).astype(np.int16)
    volume_node = slicer.util.addVolumeFromArray(noise, oblique_left_handed, "noise")
    write_volume(volume_of(volume_node), tmp_path / "noise.nrrd")
    request = Request(
        str(tmp_path / "noise.nrrd"), str(tmp_path / "labels.nrrd"), "vertebrae", manifest=str(a_tiny_model)
    )
    segment_file(request)
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "labels.nrrd")))
    stages = []
    node = segment_volume_node(
        volume_node, "vertebrae", device="cpu", manifest=a_tiny_model, progress=lambda stage, part: stages.append(stage)
    )
    segmentation = node.GetSegmentation()
    values = [segmentation.GetNthSegment(index).GetLabelValue() for index in range(segmentation.GetNumberOfSegments())]
    assert values and values == sorted(set(np.unique(expected).tolist()) - {0})
    for index, value in enumerate(values):
        identifier = segmentation.GetNthSegmentID(index)
        found = slicer.util.arrayFromSegmentBinaryLabelmap(node, identifier, volume_node)
        np.testing.assert_array_equal(found > 0, expected == value)
    assert {"read", "predict", "write"} <= set(stages)
    report = json.loads(node.GetAttribute(REPORT_ATTRIBUTE))
    centers = {row["value"]: row["centroid_ras_mm"] for row in report["segments"]}
    middle = np.argwhere(expected == values[0]).mean(axis=0)[::-1]
    lps = (index_to_lps(volume_node) @ [*middle, 1.0])[:3]
    assert centers[values[0]] == pytest.approx(lps * [-1, -1, 1], abs=0.2)


def test_segments_of_an_output_are_replaced_only_if_that_was_chosen(a_volume_node, a_fake_worker):
    first = segment_volume_node(a_volume_node, "vertebrae")
    for chosen, count in ((False, 2), (True, 1)):
        case = SegmentationCase(a_volume_node, Request.of(task="vertebrae", overwrite=chosen), first)
        case.export()
        report = FakeWorker(None).run(case.request, None, None)
        case.finish({**report, "segments": [{"value": 20, "name": "L1 vertebra"}]})
        case.close()
        assert first.GetSegmentation().GetNumberOfSegments() == count
        (row,) = json.loads(first.GetAttribute(REPORT_ATTRIBUTE))["segments"]
        assert first.GetSegmentation().GetSegment(row["segment_id"]) is not None


def test_run_that_fails_leaves_no_files(a_volume_node, a_fake_worker, monkeypatch, tmp_path):
    def fail(*_arguments):
        raise OutputError("The disk is full.")

    monkeypatch.setattr(segment, "write_volume", fail)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(OutputError):
        segment_volume_node(a_volume_node, "vertebrae")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("into_existing", [False, True])
def test_import_that_is_broken_off_leaves_the_scene_as_it_was(
    a_volume_node, a_fake_worker, a_slicer_scene, into_existing
):
    existing = segment_volume_node(a_volume_node, "vertebrae")
    nodes, segments = a_slicer_scene.GetNumberOfNodes(), segment_ids(existing)
    case = SegmentationCase(
        a_volume_node, Request.of(task="vertebrae", overwrite=True), existing if into_existing else None
    )
    case.export()
    report = FakeWorker(None).run(case.request, None, None)
    case.read()
    steps = case.finish_in_steps(report)
    node = [next(steps), next(steps)][-1]
    assert len(segment_ids(node)) == (2 if into_existing else 1)
    steps.close()
    case.close()
    assert a_slicer_scene.GetNumberOfNodes() == nodes
    assert segment_ids(existing) == segments


def settings_of(node):
    """What of a node's own is not its segments."""
    segmentation = node.GetSegmentation()
    converter = slicer.vtkSegmentationConverter
    return (
        node.GetTransformNodeID(),
        segmentation.GetSourceRepresentationName(),
        segmentation.GetConversionParameter(converter.GetReferenceImageGeometryParameterName()),
        node.GetNodeReferenceID(node.GetReferenceImageGeometryReferenceRole()),
        node.GetNumberOfDisplayNodes(),
    )


def test_empty_output_is_as_it_was_after_an_import_that_is_broken_off(
    a_volume_node, a_fake_worker, a_slicer_scene, a_linear_transform
):
    a_volume_node.SetAndObserveTransformNodeID(a_linear_transform.GetID())
    empty = a_slicer_scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    before, nodes = settings_of(empty), a_slicer_scene.GetNumberOfNodes()
    case = SegmentationCase(a_volume_node, Request("", "", task="vertebrae"), empty)
    case.export()
    report = FakeWorker(None).run(case.request, None, None)
    case.read()
    steps = case.finish_in_steps(report)
    next(steps), next(steps)
    assert settings_of(empty) != before and segment_ids(empty) == ["L1_vertebra"]
    steps.close()
    case.close()
    assert settings_of(empty) == before and segment_ids(empty) == []
    assert a_slicer_scene.GetNumberOfNodes() == nodes


def test_report_of_a_run_whose_segments_are_kept_is_kept(a_volume_node, a_fake_worker):
    node = None
    for number, (kept, expected) in enumerate([(True, [0]), (True, [1, 0]), (True, [2, 1, 0]), (False, [3])]):
        case = SegmentationCase(a_volume_node, Request.of(task="vertebrae", overwrite=not kept), node)
        case.export()
        FakeWorker(None).run(case.request, None, None)
        node = case.finish({"run": number, "segments": [{"value": 20, "name": "L1 vertebra"}]})
        case.close()
        last = json.loads(node.GetAttribute(REPORT_ATTRIBUTE))
        assert [part["run"] for part in parts(last)] == expected
        rows = [row["segment_id"] for part in parts(last) for row in part["segments"]]
        assert sorted(rows) == sorted(segment_ids(node))
    assert "earlier" not in last


def test_report_of_a_run_that_found_nothing_is_the_last_one_and_stays(a_volume_node, a_fake_worker, monkeypatch):
    node = segment_volume_node(a_volume_node, "vertebrae")
    found = segment_ids(node)
    monkeypatch.setitem(globals(), "BRIGHT", 10**6)
    for replaced in (False, True):
        case = SegmentationCase(a_volume_node, Request.of(task="vertebrae", overwrite=replaced), node)
        case.export()
        FakeWorker(None).run(case.request, None, None)
        case.finish({"run": replaced, "segments": []})
        case.close()
        assert read_report(node)["run"] is replaced
        assert segment_ids(node) == ([] if replaced else found)


def test_volume_removed_between_two_segments_ends_in_a_sentence(a_volume_node, a_fake_worker, a_slicer_scene):
    case = SegmentationCase(a_volume_node, Request("", "", task="vertebrae"))
    case.export()
    report = FakeWorker(None).run(case.request, None, None)
    case.read()
    steps = case.finish_in_steps(report)
    next(steps)
    a_slicer_scene.RemoveNode(a_volume_node)
    with pytest.raises(InputError, match="removed from the scene"):
        next(steps)
    case.close()
    assert a_slicer_scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_channels_are_written_where_they_lie_in_the_world(a_slicer_scene, a_linear_transform, tmp_path):
    geometry = brain.GRID
    volumes = [brain.channel(seed) for seed in range(3)]
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ geometry.affine
    nodes = [slicer.util.addVolumeFromArray(v.array, affine, f"v{n}") for n, v in enumerate(volumes)]
    for node in nodes:
        node.SetAndObserveTransformNodeID(a_linear_transform.GetID())
    request = Request.of(model=brain.BRAIN_ID, manifest=brain.write_brain_model(tmp_path), device="cpu")
    case = SegmentationCase(nodes[1], request, channels={"t1c": nodes[0], "t2f": nodes[2]})
    case.export()
    assert case.request.channels.keys() == {"t1c", "t2f"}
    for name, node in (("t1c", nodes[0]), ("t2f", nodes[2])):
        written = read_volume(case.request.channels[name])
        np.testing.assert_array_equal(written.array, slicer.util.arrayFromVolume(node))
        np.testing.assert_allclose(written.geometry.affine, index_to_lps(node), atol=1e-4)
    result = case.finish(segment_file(case.request))
    report = read_report(result)
    assert report["channels"] == {"t1c": "v0", "t1n": "v1", "t2f": "v2"} and report["input"] == "v1"
    assert result.GetTransformNodeID() == a_linear_transform.GetID()
    case.close()


class FineWorker(FakeWorker):
    """Writes besides the labels those on an isotropic grid, as the worker does."""

    def run(self, request, on_progress, cancelled):
        report = super().run(request, on_progress, cancelled)
        volume = read_volume(request.input)
        fine = resampled_labels(Volume(read_volume(request.output).array, volume.geometry))
        path = isotropic_path(request.output)
        write_labelmap(path, fine.array, fine.geometry, load_manifest().default("vertebrae").labels)
        return report | {"isotropic": {"spacing_mm": [0.8] * 3, "output": str(path)}}


def resampled_labels(labels):
    grid = isotropic_geometry(labels.geometry, "iso")
    box = cropped_geometry(grid, (slice(3, grid.size[2]), slice(2, grid.size[1]), slice(0, grid.size[0] - 1)))
    return resampled(labels, box)


def test_isotropic_segments_lie_in_place_on_a_finer_grid_of_their_own(
    a_volume_node, a_linear_transform, a_slicer_scene, monkeypatch
):
    monkeypatch.setattr(segment, "WorkerProcess", FineWorker)
    FineWorker.requests = []
    a_volume_node.SetAndObserveTransformNodeID(a_linear_transform.GetID())
    node = segment_volume_node(a_volume_node, "vertebrae", output_spacing="iso")
    text = node.GetSegmentation().GetConversionParameter(GEOMETRY)
    reference = slicer.vtkOrientedImageData()
    slicer.vtkSegmentationConverter.DeserializeImageGeometry(text, reference, False)
    volume = volume_of(a_volume_node)
    fine = resampled_labels(Volume((volume.array > BRIGHT).astype(np.uint8), volume.geometry))
    np.testing.assert_allclose(reference.GetSpacing(), 0.8)
    assert reference.GetDimensions() == fine.geometry.size
    assert node.GetTransformNodeID() == a_linear_transform.GetID()
    assert node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()) is a_volume_node
    # Where the segments lie in the world: as the engine wrote them.
    image = node.GetSegmentation().GetSegment("L1_vertebra").GetRepresentation(BINARY_LABELMAP)
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    to_lps = RAS_TO_LPS @ world_matrix(node) @ slicer.util.arrayFromVTKMatrix(matrix)
    np.testing.assert_allclose(to_lps, fine.geometry.affine, atol=1e-6)
    first = image.GetExtent()[::2]
    array = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])
    x, y, z = (slice(start, start + size) for start, size in zip(first, image.GetDimensions(), strict=True))
    np.testing.assert_array_equal(array > 0, fine.array[z, y, x] > 0)
    assert int((fine.array > 0).sum()) == int((array > 0).sum())
    # On the volume's voxels they are what was segmented there, but for half a voxel at the border.
    own = slicer.util.arrayFromSegmentBinaryLabelmap(node, "L1_vertebra", a_volume_node) > 0
    assert (own == (volume.array > BRIGHT)).mean() > 0.8
    assert read_report(node)["isotropic"]["output"] == node.GetName()


def test_volume_that_was_resampled_keeps_its_own_voxels_and_says_so(a_volume_node, a_slicer_scene, a_fake_worker):
    matrix = vtk.vtkMatrix4x4()
    a_volume_node.GetIJKToRASMatrix(matrix)
    shear = np.eye(4)
    shear[2, 1] = 0.2
    sheared = a_slicer_scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "tilt")
    slicer.util.updateTransformMatrixFromArray(sheared, shear)
    a_volume_node.SetAndObserveTransformNodeID(sheared.GetID())
    case = SegmentationCase(a_volume_node, Request.of(task="vertebrae", output_spacing="iso"))
    try:
        assert case.request.options.output_spacing is None
        warnings = case.noted({"run": {"warnings": []}})["run"]["warnings"]
        assert any("no finer voxels" in warning for warning in warnings)
    finally:
        case.close()
