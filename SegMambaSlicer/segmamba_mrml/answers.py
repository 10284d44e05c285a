"""What the labels of a run were chosen from, as volumes of the scene: probabilities, and their uncertainty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer

from segmamba.io.volume import image_geometry
from segmamba_mrml.segmentation import place_beside
from segmamba_mrml.volumes import RAS_TO_LPS

# Fields of a request and of its report.
ANSWERS = ("uncertainty", "probabilities")
BACKGROUND = "Background"
DESCRIPTION = "Research use only. "
UNCERTAINTY = "Entropy of the network's answer in hundredths of a bit: 100 where two structures are equally probable."
PROBABILITY = "Probability of the structure, 0 to 255, before postprocessing."


def add_answers(images: Mapping[str, Any], report: Mapping[str, Any], volume_node: Any) -> list[Any]:
    """Add the volumes of a run to the scene, beside its volume; return the nodes.

    Parameters
    ----------
    images : mapping of str to SimpleITK.Image
        By the names in `ANSWERS`: probabilities have a component for each structure.
    report : mapping
        Says what the channels are of.
    volume_node : vtkMRMLScalarVolumeNode
        What was segmented.
    """
    made = []
    for name, image in images.items():
        matrix = image_geometry(image).affine
        array = sitk.GetArrayViewFromImage(image)
        if name == "uncertainty":
            made.append(_volume(array, matrix, f"{volume_node.GetName()} uncertainty", UNCERTAINTY, volume_node))
            continue
        # ITK takes the axis of an NRRD file that is none of space for the components of its voxels.
        for channel, structure in zip(np.moveaxis(array, -1, 0), report["probabilities"]["channels"], strict=True):
            if structure != BACKGROUND and channel.any():
                title = f"{volume_node.GetName()} probability of {structure}"
                made.append(_volume(channel, matrix, title, PROBABILITY, volume_node))
    return made


def _volume(array: np.ndarray, to_lps: np.ndarray, name: str, description: str, volume_node: Any) -> Any:
    node = volume_node.GetScene().AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    slicer.util.updateVolumeFromArray(node, np.array(array))
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(RAS_TO_LPS @ to_lps))
    node.SetDescription(DESCRIPTION + description)
    node.CreateDefaultDisplayNodes()
    place_beside(node, volume_node)
    return node
