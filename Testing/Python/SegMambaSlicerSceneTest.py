"""Runs inside Slicer (registered in CMake) and, the same, on slicer-core: labels to a scene, to a file and back."""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path

import numpy as np
import slicer

from segmamba.models.manifest import load_manifest
from segmamba_mrml import application as host
from segmamba_mrml.segmentation import save_segmentation, segmentation_from_labels
from segmamba_mrml.terminology import load_terminology


class SegMambaSlicerSceneTest(unittest.TestCase):
    def setUp(self):
        host.start()
        slicer.mrmlScene.Clear(0)

    def test_saved_segmentation_comes_back_with_names_and_voxels(self):
        load_terminology()
        structures = load_manifest().default("vertebrae").labels[19:22]
        labels = np.zeros((9, 10, 11), np.uint8)
        for index, label in enumerate(structures):
            labels[1 + 2 * index : 3 + 2 * index, 2:5, 3:7] = label.value
        volumeNode = slicer.util.addVolumeFromArray(labels.astype(np.int16), name="phantom")
        node = segmentation_from_labels(labels, volumeNode, structures, "phantom vertebrae")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "phantom.seg.nrrd"
            save_segmentation(node, path)
            loaded = slicer.modules.segmentations.logic().LoadSegmentationFromFile(str(path), False)
        segmentation = loaded.GetSegmentation()
        self.assertEqual(segmentation.GetNumberOfSegments(), len(structures))
        for index, label in enumerate(structures):
            self.assertEqual(segmentation.GetNthSegment(index).GetName(), label.name)
            identifier = segmentation.GetNthSegmentID(index)
            voxels = slicer.util.arrayFromSegmentBinaryLabelmap(loaded, identifier, volumeNode)
            np.testing.assert_array_equal(voxels > 0, labels == label.value)


if __name__ == "__main__":
    unittest.main()
