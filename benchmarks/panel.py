"""Seconds that a run spends outside the engine: ``python benchmarks/panel.py``.

From a volume node of 512 x 512 x 400 voxels to the file that the engine reads, and from its label map with 25
structures to the segmentation node, with the display node that the views follow. Needs slicer-core.
"""

from __future__ import annotations

import json
import time

import numpy as np
import slicer

from segmamba.files import requested_model
from segmamba.labelmap import write_labelmap
from segmamba.request import Request
from segmamba.volume import read_volume
from segmamba_mrml import host
from segmamba_mrml.segment import Case
from segmamba_mrml.volumes import coarse_volume

SIZE = (400, 512, 512)
STRUCTURES = 25


def main() -> None:
    """Measure once and print the seconds as JSON."""
    host.start()
    noise = np.random.default_rng(0).integers(-1000, 1000, SIZE, np.int16)
    volume_node = slicer.util.addVolumeFromArray(noise, np.diag([-0.8, -0.8, 1.0, 1.0]), "large")
    seconds = {}
    begin = time.perf_counter()
    coarse_volume(volume_node)
    seconds["look at the volume for the forecast"] = time.perf_counter() - begin
    begin = time.perf_counter()
    case = Case(volume_node, Request("", "", task="vertebrae"))
    seconds["volume node to file"] = time.perf_counter() - begin
    labels = np.zeros(SIZE, np.uint8)
    for index in range(STRUCTURES):
        labels[15 * index : 15 * index + 14, 200:300, 200:300] = index + 1
    write_labelmap(
        case.request.output, labels, read_volume(case.request.input).geometry, requested_model(case.request).labels
    )
    begin = time.perf_counter()
    node = case.finish({"segments": []})
    seconds["file to segmentation node"] = time.perf_counter() - begin
    case.close()
    assert node.GetSegmentation().GetNumberOfSegments() == STRUCTURES
    seconds["all"] = sum(seconds.values())
    print(json.dumps({name: round(value, 2) for name, value in seconds.items()}, indent=1))


if __name__ == "__main__":
    main()
