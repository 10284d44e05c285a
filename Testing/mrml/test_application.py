"""The headless scene."""

from __future__ import annotations

import subprocess
import sys

import pytest
import slicer
from helpers.repository import PACKAGES

from segmamba.errors import InstallationError
from segmamba_mrml import application as host


def test_starting_twice_keeps_the_scene(a_slicer_scene):
    node = a_slicer_scene.AddNewNodeByClass("vtkMRMLTextNode")
    host.start()
    assert slicer.mrmlScene is a_slicer_scene
    assert node.GetScene() is a_slicer_scene


OWN_SCENE = """
import numpy as np, slicer, vtk
from segmamba.models.manifest import load_manifest
from segmamba.request import Request
from segmamba_mrml.segment import SegmentationCase
from segmamba_mrml.terminology import load_terminology
scene = slicer.vtkMRMLScene()
volume = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
image = vtk.vtkImageData()
image.SetDimensions(9, 10, 12)
image.AllocateScalars(vtk.VTK_SHORT, 1)
volume.SetAndObserveImageData(image)
case = SegmentationCase(volume, Request.of(task="vertebrae"))
from segmamba.io.labelmap import write_labelmap
from segmamba_mrml.volumes import volume_of
labels = np.zeros((12, 10, 9), np.uint8)
labels[4:8, 3:7, 3:6] = 20
write_labelmap(case.request.output, labels, volume_of(volume).geometry, load_manifest().default("vertebrae").labels)
node = case.finish({"segments": [{"name": "L1 vertebra"}]})
assert node.GetScene() is scene is slicer.mrmlScene
print(node.GetSegmentation().GetNthSegment(0).GetName())
load_terminology()
"""


def test_scene_of_ones_own_on_slicer_core_is_worked_on_without_further_calls():
    command = [sys.executable, "-c", OWN_SCENE]
    done = subprocess.run(command, cwd=PACKAGES, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "L1 vertebra"), done.stderr
    assert "ERR|" not in done.stderr


def test_module_logics_work_on_the_scene(a_slicer_scene):
    for name in ("segmentations", "volumes", "terminologies", "subjecthierarchy", "markups", "colors"):
        assert getattr(slicer.modules, name).logic().GetMRMLScene() is a_slicer_scene


def test_nothing_is_started_inside_slicer(monkeypatch):
    monkeypatch.setattr(slicer, "app", object(), raising=False)
    monkeypatch.setattr(slicer, "mrmlScene", None)
    host.start()
    assert slicer.mrmlScene is None


def test_worker_runs_on_this_interpreter_outside_slicer():
    assert host.worker_python() == sys.executable


def test_worker_runs_on_pythonslicer_inside_slicer(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/opt/Slicer-5.12/bin/SlicerApp-real")
    monkeypatch.setattr(host.shutil, "which", lambda name: f"/opt/Slicer-5.12/bin/{name}")
    assert host.worker_python() == "/opt/Slicer-5.12/bin/PythonSlicer"
    monkeypatch.setattr(host.shutil, "which", lambda name: None)
    with pytest.raises(InstallationError, match="PythonSlicer"):
        host.worker_python()


def test_this_floor_imports_neither_torch_nor_qt():
    code = (
        "import sys, segmamba_mrml.segment, segmamba_mrml.terminology\n"
        "assert not {'torch', 'qt', 'PySide6', 'monai', 'matplotlib'} & set(sys.modules), 'heavy import'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGES, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
