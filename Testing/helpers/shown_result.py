"""Vertebrae that a scene shows as a run's result."""

from __future__ import annotations

import json

import numpy as np
import slicer

from segmamba.models.manifest import load_manifest
from segmamba_mrml.segment import REPORT_ATTRIBUTE
from segmamba_mrml.segmentation import segmentation_from_labels


def show_result(panel, labels, matrix, levels, volume_ml, **findings):
    """Return the node of a label map (z, y, x); ``levels`` are (value, name), ``findings`` go to its report."""
    volume_node = slicer.util.addVolumeFromArray(labels.astype(np.int16), matrix, "case 7")
    node = segmentation_from_labels(
        labels, volume_node, load_manifest().default("vertebrae").labels, "case 7 vertebrae"
    )
    rows = [
        {"value": value, "name": f"{level} vertebra", "segment_id": f"{level}_vertebra", "volume_ml": volume_ml}
        | {"mean_confidence": 0.9, "at_border": False}
        for value, level in levels
    ]
    node.SetAttribute(REPORT_ATTRIBUTE, json.dumps({"segments": rows, **findings}))
    panel._parameterNode.resultSegmentation = node
    panel.sections.results.show(node)
    return node
