"""What belongs to the scene: saved with it and restored from it. What belongs to the user is in the settings."""

from __future__ import annotations

import slicer
from slicer.parameterNodeWrapper import parameterNodeWrapper


@parameterNodeWrapper
class ParameterNode:
    """The choices of a run.

    Attributes
    ----------
    inputVolume : vtkMRMLScalarVolumeNode
    outputSegmentation : vtkMRMLSegmentationNode
        None for a new one.
    resultSegmentation : vtkMRMLSegmentationNode
        What the result section shows.
    roi : vtkMRMLMarkupsROINode
        None for the whole volume.
    task, model : str
        Empty for the first one.
    quality : str
        A key of `SegMambaSlicerLib.sections.model.QUALITIES`.
    structures : str
        Values of the labels to keep, separated by commas; empty for all.
    refine, postprocess : bool
        Where the model has such a step.
    allItems : bool
        Of the volume's sequence; by default the current one.
    """

    inputVolume: slicer.vtkMRMLScalarVolumeNode
    outputSegmentation: slicer.vtkMRMLSegmentationNode
    resultSegmentation: slicer.vtkMRMLSegmentationNode
    roi: slicer.vtkMRMLMarkupsROINode
    task: str = ""
    model: str = ""
    quality: str = "standard"
    structures: str = ""
    refine: bool = True
    postprocess: bool = True
    allItems: bool = False
