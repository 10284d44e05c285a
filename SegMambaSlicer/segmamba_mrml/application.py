"""A scene to work in: the one of Slicer, or a headless one on ``slicer-core``."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import slicer
import vtk

from segmamba.errors import InstallationError


def inside_slicer() -> bool:
    """Tell whether this is the Slicer application (and not its core used as a Python package)."""
    return getattr(slicer, "app", None) is not None


def start(scene: Any = None) -> None:
    """Make ``slicer.mrmlScene`` and ``slicer.modules.<name>.logic()`` available.

    Inside Slicer both are there already and nothing is done. On ``slicer-core`` an application logic is created, with
    the logics that segmentations need registered on it; calling again does nothing. What is done to nodes starts it
    by itself.

    Parameters
    ----------
    scene : vtkMRMLScene, optional
        Becomes ``slicer.mrmlScene`` where there is none; by default a new one.
    """
    if inside_slicer() or getattr(slicer, "modules", None) is not None:
        return
    scene = scene or getattr(slicer, "mrmlScene", None) or slicer.vtkMRMLScene()
    application = slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(scene)
    application.GetColorLogic().SetMRMLScene(scene)
    logics = {
        "Volumes": slicer.vtkSlicerVolumesLogic(),
        "Segmentations": slicer.vtkSlicerSegmentationsModuleLogic(),
        "SubjectHierarchy": slicer.vtkSlicerSubjectHierarchyModuleLogic(),
        "Terminologies": slicer.vtkSlicerTerminologiesModuleLogic(),
        "Markups": slicer.vtkSlicerMarkupsLogic(),
        "Sequences": slicer.vtkSlicerSequencesLogic(),
        "Tables": slicer.vtkSlicerTablesLogic(),
        "Plots": slicer.vtkSlicerPlotsLogic(),
    }
    for name, logic in logics.items():
        _register(application, scene, name, logic)
    modules = {name.lower(): _module(logic) for name, logic in logics.items()}
    modules["colors"] = _module(application.GetColorLogic())
    slicer.mrmlScene = scene
    slicer.modules = SimpleNamespace(**modules)
    # The scene and the logics do not own the application logic, so it has to be kept.
    slicer.segmambaApplicationLogic = application


def worker_python() -> str:
    """Return the Python interpreter that the worker process is started with.

    Raises
    ------
    InstallationError
        This is Slicer, and its interpreter ``PythonSlicer`` is not on the PATH.
    """
    # In Slicer sys.executable is the application itself, which would open a second window.
    if Path(sys.executable).stem.lower().startswith("python"):
        return sys.executable
    interpreter = shutil.which("PythonSlicer")
    if interpreter is None:
        raise InstallationError("PythonSlicer, which runs the networks, was not found: install 3D Slicer again.")
    return interpreter


@contextlib.contextmanager
def needed_packages() -> Iterator[None]:
    """Make an import that fails a sentence: Slicer's Python may lack a package that the engine needs.

    Raises
    ------
    InstallationError
        A package is missing.
    """
    try:
        yield
    except ImportError as error:
        raise InstallationError(
            f"The package {error.name} is missing: install it in the panel's section Dependencies, or with pip."
        ) from error


def _register(application: Any, scene: Any, name: str, logic: Any) -> None:
    logic.SetMRMLApplicationLogic(application)
    application.SetModuleLogic(name, logic)
    # The slicer-core wheel has none of Slicer's own terminology files, and its logic reports each as an error.
    warnings = vtk.vtkObject.GetGlobalWarningDisplay()
    vtk.vtkObject.SetGlobalWarningDisplay(0 if name == "Terminologies" else warnings)
    try:
        logic.SetMRMLScene(scene)
    finally:
        vtk.vtkObject.SetGlobalWarningDisplay(warnings)


def _module(logic: Any) -> SimpleNamespace:
    return SimpleNamespace(logic=lambda: logic)
