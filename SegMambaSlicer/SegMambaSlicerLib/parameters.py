"""The parameters of a run: those that the scene keeps, and those that a console call gives."""

from __future__ import annotations

import re
from typing import Any

import slicer
from slicer.parameterNodeWrapper import parameterNodeWrapper

from segmamba.request import SETTINGS, Request
from segmamba_mrml.volumes import roi_box

# What the command line writes to files, and Slicer adds to the scene.
ANSWERS = ("uncertainty", "probabilities")


@parameterNodeWrapper
class ParameterNode:
    """What belongs to the scene: saved with it and restored from it. What belongs to the user is in the settings.

    Attributes
    ----------
    inputVolume : vtkMRMLScalarVolumeNode
    outputSegmentation : vtkMRMLSegmentationNode
        None for a new one.
    resultSegmentation : vtkMRMLSegmentationNode
        What the result section shows.
    roi : vtkMRMLMarkupsROINode
        None for the whole volume.
    levelsFrom : vtkMRMLSegmentationNode
        Another segmentation of the patient whose levels count; None for none.
    task, model : str
        Empty for the first one.
    quality : str
        A key of `SegMambaSlicerLib.sections.model.QUALITIES`.
    modality : str
        "auto", "CT" or "MR".
    structures : str
        Values of the labels to keep, separated by commas; empty for all.
    refine, postprocess : bool
        Where the model has such a step.
    isotropic : bool
        Segments on a fine isotropic grid instead of the volume's voxels.
    uncertainty : bool
        Also a volume with the uncertainty of each voxel.
    allItems : bool
        Of the volume's sequence; by default the current one.
    """

    inputVolume: slicer.vtkMRMLScalarVolumeNode
    outputSegmentation: slicer.vtkMRMLSegmentationNode
    resultSegmentation: slicer.vtkMRMLSegmentationNode
    roi: slicer.vtkMRMLMarkupsROINode
    levelsFrom: slicer.vtkMRMLSegmentationNode
    task: str = ""
    model: str = ""
    quality: str = "standard"
    modality: str = "auto"
    structures: str = ""
    refine: bool = True
    postprocess: bool = True
    isotropic: bool = False
    uncertainty: bool = False
    allItems: bool = False


def channelVolume(parameters: Any, name: str) -> Any:
    """Return the volume node that is chosen for a model's channel besides the input, or None.

    Models differ in their channels, so these are no attributes: the parameter node refers to them by name.
    """
    return parameters.parameterNode.GetNodeReference(_channelRole(name))


def setChannelVolume(parameters: Any, name: str, node: Any) -> None:
    """Choose the volume node of a channel; None for none."""
    parameters.parameterNode.SetNodeReferenceID(_channelRole(name), node.GetID() if node is not None else None)


def _channelRole(name: str) -> str:
    # A scene file separates roles by other characters.
    return "channel." + re.sub(r"[^a-z0-9]", "_", name.casefold())


def requestOf(**parameters: Any) -> Request:
    """Return the request of a console call, with no input and output yet.

    Parameters
    ----------
    **parameters
        The options of `segmamba.request`, in camelCase: ``scanBackend="torch"``, ``refine=False``. ``roi`` is a
        vtkMRMLMarkupsROINode. Where ``levelsFrom`` is a node and not a file, it is left out: see `nodeOf`.
        ``uncertainty=True`` and ``probabilities=True`` ask for volumes in the scene.

    Raises
    ------
    TypeError
        There is no such parameter.
    SegMambaError
        A value is not one of its option, or ``roi`` is not an ROI node.
    """
    known = {camelCase(name): name for name in (*SETTINGS, *ANSWERS)}
    for name in parameters:
        if name not in known:
            raise TypeError(f"There is no parameter '{name}': choose from {', '.join(known)}.")
    values = {known[name]: value for name, value in parameters.items()}
    if values.get("roi") is not None:
        values["roi"] = roi_box(values["roi"])
    for name in ANSWERS:
        # The file is made, and read, by the case.
        values[name] = f"{name}.nrrd" if values.get(name) else None
    if nodeOf(values.get("levels_from")) is not None:
        del values["levels_from"]
    return Request.of(**values)


def nodeOf(value: Any) -> Any:
    """Return a value that is a node, else None."""
    return value if isinstance(value, slicer.vtkMRMLNode) else None


def camelCase(name: str) -> str:
    """Return an option's name as Slicer's Python calls have it: ``scanBackend`` for ``scan_backend``."""
    first, *others = name.split("_")
    return first + "".join(part.capitalize() for part in others)
