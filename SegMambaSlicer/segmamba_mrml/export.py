"""A segmentation as files for other programs, written by Slicer's own exporters: surfaces, or one label map."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import slicer
import vtk

from segmamba.errors import InputError, OutputError
from segmamba.models.manifest import load_manifest
from segmamba_mrml.application import start
from segmamba_mrml.segmentation import segment_ids, type_code, volume_node_of

STL, OBJ, NIFTI = FORMATS = ("stl", "obj", "nii.gz")
# What a file system somewhere does not take.
UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f]')


def export_segmentation(node: Any, folder: Path | str, file_format: str) -> Path:
    """Write a segmentation into a new folder, and return that; nothing that is there already is changed.

    Parameters
    ----------
    node : vtkMRMLSegmentationNode
    folder : Path or str
        Gets a folder with the name of the segmentation, with a number where there is one of that name.
    file_format : str
        "stl" or "obj": a surface for each segment, in LPS millimetres. "nii.gz": one label map on the grid of the
        volume, with the values of the manifest (L1 is 20) and a ``.csv`` that names them.

    Raises
    ------
    InputError
        There is nothing to export, or two structures have the same value.
    OutputError
        The folder cannot be written to.
    """
    if file_format not in FORMATS:
        raise InputError(f"There is no format '{file_format}': choose from {', '.join(FORMATS)}.")
    if not segment_ids(node):
        raise InputError(f"'{node.GetName()}' has no segments: segment a volume first.")
    start(node.GetScene())
    export: Callable[[Any, Path], None] = {STL: _export_stl, OBJ: _export_obj, NIFTI: _export_labels}[file_format]
    name = UNSAFE.sub("_", node.GetName()).strip(" .") or "segmentation"
    try:
        with tempfile.TemporaryDirectory(prefix=".segmamba-", dir=folder) as draft:
            export(node, Path(draft))
            target = next(path for path in _numbered(Path(folder) / name) if not path.exists())
            shutil.copytree(draft, target)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"The folder {folder} cannot be written to ({reason}): choose another one.") from error
    return target


def _export_stl(node: Any, folder: Path) -> None:
    for name, found in _surfaces(node, folder, STL):
        found.rename(folder / f"{name}.{STL}")


def _export_obj(node: Any, folder: Path) -> None:
    for name, found in _surfaces(node, folder, OBJ):
        lines = found.read_text("utf-8").splitlines()
        # One of them names the file with the colour.
        lines = [f"mtllib {name}.mtl" if line.startswith("mtllib ") else line for line in lines]
        (folder / f"{name}.{OBJ}").write_text("\n".join(lines) + "\n", "utf-8")
        found.with_suffix(".mtl").rename(folder / f"{name}.mtl")


def _surfaces(node: Any, folder: Path, file_format: str) -> Iterator[tuple[str, Path]]:
    """Have each segment exported on its own, and give a name that no other has, and its file."""
    logic, taken = slicer.vtkSlicerSegmentationsModuleLogic, set()
    for identifier in segment_ids(node):
        segment = vtk.vtkStringArray()
        segment.InsertNextValue(identifier)
        with tempfile.TemporaryDirectory(dir=folder) as own:
            written = logic.ExportSegmentsClosedSurfaceRepresentationToFiles(
                own, node, segment, file_format.upper(), True, 1.0, False
            )
            files = sorted(Path(own).glob(f"*.{file_format}"))
            if not written or not files:
                raise OSError("Slicer could not write the surfaces")
            title = node.GetSegmentation().GetSegment(identifier).GetName()
            base = Path(UNSAFE.sub("_", title).strip(" .") or "segment")
            name = next(path.name for path in _numbered(base) if path.name.casefold() not in taken)
            taken.add(name.casefold())
            yield name, files[0]


def _export_labels(node: Any, folder: Path) -> None:
    values = _manifest_values(node)
    # Slicer finds the value of a segment by its name.
    table = slicer.vtkMRMLColorTableNode()
    table.SetTypeToUser()
    table.SetNumberOfColors(max(values.values(), default=0) + 1)
    for name, value in values.items():
        table.SetColor(value, name, 1.0, 1.0, 1.0)
    volume_node = volume_node_of(node)
    geometry = slicer.vtkSegmentation.EXTENT_REFERENCE_GEOMETRY
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    if not logic.ExportSegmentsBinaryLabelmapRepresentationToFiles(
        str(folder), node, None, NIFTI, True, volume_node, geometry, table
    ) or not list(folder.glob(f"*.{NIFTI}")):
        raise OSError("Slicer could not write the label map")


def _manifest_values(node: Any) -> dict[str, int]:
    """Return the manifest's value of each segment that is one of its structures, by the segment's name.

    Raises
    ------
    InputError
        Two structures have the same value.
    """
    known = {
        (label.type.scheme, label.type.value): label.value
        for model in load_manifest().listed
        for label in getattr(model, "labels", ())
    }
    values: dict[str, int] = {}
    structures: dict[int, tuple[str, str]] = {}
    for identifier in segment_ids(node):
        segment = node.GetSegmentation().GetSegment(identifier)
        code = type_code(segment)
        if code not in known:
            continue
        values[segment.GetName()] = known[code]
        if structures.setdefault(known[code], code) != code:
            raise InputError(
                f"'{node.GetName()}' holds results of two tasks, whose structures have the same values: put them into "
                "two segmentations, or export surfaces."
            )
    return values


def _numbered(path: Path) -> Iterator[Path]:
    """Give a path, and then the same with numbers."""
    yield path
    number = 2
    while True:
        yield path.with_name(f"{path.name} ({number})")
        number += 1
