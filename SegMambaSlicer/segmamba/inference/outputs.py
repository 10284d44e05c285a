"""The files that a run writes: their names beside the output, and what can be told of them before any work."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from segmamba.errors import InstallationError, OutputError
from segmamba.io import dicom_choice
from segmamba.io.channels_file import CHANNELS_EXTENSIONS
from segmamba.io.dicom_headers import is_dicom
from segmamba.io.dicom_results import DICOM_EXTENSIONS, check_sources, kind_of
from segmamba.io.labelmap import LABELMAP_EXTENSIONS, SEGMENTATION_EXTENSION
from segmamba.request import Request
from segmamba.utils.atomic import check_output
from segmamba.utils.paths import check_input


def isotropic_path(output: str) -> Path:
    """Return the file of the isotropic masks beside an output: ``NAME_iso`` with the same extension.

    Beside a DICOM result, which lies on the voxels of the series, it is a ``.seg.nrrd``.
    """
    name, extension = _split(output)
    return Path(output).with_name(f"{name}_iso{SEGMENTATION_EXTENSION if extension in DICOM_EXTENSIONS else extension}")


def also_paths(request: Request) -> list[Path]:
    """Return the files of further DICOM results, beside the output.

    Raises
    ------
    OutputError
        There is no such kind, or the output is of this kind.
    """
    output = Path(request.output)
    paths = []
    for ending in request.also or ():
        extension = f".{ending.lower().lstrip('.')}"
        path = output.with_name(_split(request.output)[0] + extension)
        if extension not in DICOM_EXTENSIONS or path == output or path in paths:
            known = ", ".join(each.lstrip(".") for each in DICOM_EXTENSIONS)
            raise OutputError(f"'{ending}' is no further DICOM result: choose from {known}, each once.")
        paths.append(path)
    return paths


def _split(output: str) -> tuple[str, str]:
    """Return an output's name without its extension, and the extension in small letters."""
    extensions = sorted((*LABELMAP_EXTENSIONS, *DICOM_EXTENSIONS), key=len, reverse=True)
    extension = next(ending for ending in extensions if output.lower().endswith(ending))
    return Path(output).name[: -len(extension)], extension


def check_outputs(request: Request) -> None:
    """Find out before any work whether the input can be opened and the results can be written.

    Raises
    ------
    SegMambaError
        They cannot.
    """
    check_output(request.output, (*LABELMAP_EXTENSIONS, *DICOM_EXTENSIONS))
    source = Path(request.input)
    for file in (request.input, *(request.channels or {}).values()):
        check_input(Path(file))
    further = also_paths(request)
    for dicom in (Path(request.output), *further):
        if kind_of(dicom) is not None:
            if not source.is_dir() and not is_dicom(source):
                raise OutputError(f"{dicom} needs a DICOM series as input: choose another output format.")
            check_sources(dicom_choice.find_files(source), str(dicom))
    for name in filter(None, (request.probabilities, request.uncertainty)):
        if name.lower().endswith(SEGMENTATION_EXTENSION):
            raise OutputError(f"{name} would be a segmentation: give a name without .seg, such as .nrrd or .nii.gz.")
    isotropic = str(isotropic_path(request.output)) if request.options.output_spacing is not None else None
    outputs = [Path(request.output), *further]
    for path, extensions in (
        (request.report, (".json",)),
        (request.preview, (".png",)),
        (request.measurements, (".csv",)),
        (request.page, (".html",)),
        (request.probabilities, CHANNELS_EXTENSIONS),
        (request.uncertainty, LABELMAP_EXTENSIONS[1:]),
        (isotropic, LABELMAP_EXTENSIONS),
    ):
        if path is not None:
            check_output(path, extensions)
            outputs.append(Path(path))
    if request.preview and find_spec("matplotlib") is None:
        raise InstallationError(
            "A preview needs matplotlib: install it with 'pip install matplotlib', or leave out --preview."
        )
    others = (request.manifest, request.checkpoint, request.options.levels_from)
    given = (request.input, *(request.channels or {}).values(), *others)
    inputs = [Path(path).resolve() for path in given if path]
    for output in outputs:
        if output.resolve() in inputs:
            raise OutputError(f"{output} is an input: choose another name for the result.")
        if output.exists() and not request.overwrite:
            raise OutputError(f"{output} already exists: choose another name, or give --overwrite.")
