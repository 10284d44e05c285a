"""What the module's self-test checks in Slicer, without torch."""

import numpy as np
import slicer
import vtk

from segmamba.models.manifest import load_manifest
from segmamba_mrml.segmentation import segmentation_from_labels
from segmamba_mrml.terminology import load_terminology


def checkSegments(test):
    """Check that labels become segments with the names, colours and codes of the manifest; `test` is a unittest's."""
    load_terminology()
    structures = load_manifest().default("vertebrae").labels
    labels = np.zeros((8, 9, 10), np.uint8)
    labels[1:3, 2:5, 3:6], labels[4:6, 2:5, 3:6] = structures[19].value, structures[20].value
    volumeNode = slicer.util.addVolumeFromArray(labels.astype(np.int16), name="phantom")
    node = segmentation_from_labels(labels, volumeNode, structures, "phantom vertebrae")
    segmentation = node.GetSegmentation()
    test.assertEqual(segmentation.GetNumberOfSegments(), 2)
    for index, label in enumerate(structures[19:21]):
        segment = segmentation.GetNthSegment(index)
        test.assertEqual(segment.GetName(), label.name)
        test.assertEqual([round(255 * part) for part in segment.GetColor()], list(label.color))
        tag = vtk.reference("")
        test.assertTrue(segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), tag))
        entry = slicer.vtkSlicerTerminologyEntry()
        test.assertTrue(slicer.modules.terminologies.logic().DeserializeTerminologyEntry(str(tag), entry))
        test.assertEqual(entry.GetTypeObject().GetCodeMeaning(), label.type.meaning)
