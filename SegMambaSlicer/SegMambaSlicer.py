"""The scripted module: its entry in Slicer, its panel, its logic and its self-test. All work is done elsewhere."""

from __future__ import annotations

import slicer
import vtk
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)


class SegMambaSlicer(ScriptedLoadableModule):
    """What Slicer shows of the module before it is opened."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("SegMambaSlicer")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = ["Segmentations", "SubjectHierarchy", "Terminologies", "Volumes"]
        self.parent.contributors = ["SegMambaSlicer contributors"]
        self.parent.helpText = _(
            "Segments vertebrae and colorectal cancer in CT with the networks SegMamba-V2 and SpineMamba: choose a "
            "volume and a task, then press Segment. Research software, not a medical device. See the "
            '<a href="https://github.com/SegMambaSlicer/SegMambaSlicer">project page</a>.'
        )
        self.parent.acknowledgementText = _(
            "The networks were described in: Z. Xing et al., SegMamba-V2, IEEE Transactions on Medical Imaging 2025, "
            '<a href="https://doi.org/10.1109/TMI.2025.3589797">doi:10.1109/TMI.2025.3589797</a>; and SpineMamba, '
            "Computerized Medical Imaging and Graphics 2025, 102531, "
            '<a href="https://arxiv.org/abs/2408.15887">arXiv:2408.15887</a>.'
        )


class SegMambaSlicerWidget(ScriptedLoadableModuleWidget):
    """The panel: input volume, task, one button that starts and cancels, and what is going on."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        self.logic = None
        self._running = False
        self._cancelled = False

    def setup(self):
        """Build the panel; called once, when the module is opened for the first time."""
        ScriptedLoadableModuleWidget.setup(self)
        panel = slicer.util.loadUI(self.resourcePath("UI/SegMambaSlicer.ui"))
        self.layout.addWidget(panel)
        self.ui = slicer.util.childWidgetVariables(panel)
        panel.setMRMLScene(slicer.mrmlScene)
        self.logic = SegMambaSlicerLogic()
        self.ui.taskComboBox.addItem(_("Vertebrae"), "vertebrae")
        self.ui.taskComboBox.addItem(_("Colorectal cancer"), "colorectal")
        self.ui.inputSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.onInputChanged)
        self.ui.segmentButton.connect("clicked(bool)", self.onSegmentButton)
        self.onInputChanged()

    def cleanup(self):
        """Stop a running job; called when the module is reloaded or Slicer closes."""
        self._cancelled = True

    def onInputChanged(self, _node=None):
        """Allow a start only with a volume, and a cancel always."""
        self.ui.segmentButton.enabled = self._running or self.ui.inputSelector.currentNode() is not None

    def onSegmentButton(self, _checked=False):
        """Start a job, or cancel the one that is running."""
        if self._running:
            self._cancelled = True
            self.ui.statusLabel.text = _("Cancelling...")
            return
        # Here and not above, so that the engine is not imported when Slicer starts.
        from segmamba.errors import SegMambaError

        self._setRunning(True)
        try:
            node = self.logic.segment(
                self.ui.inputSelector.currentNode(),
                task=self.ui.taskComboBox.currentData,
                progress=self.onProgress,
                cancelled=self._isCancelled,
            )
            count = node.GetSegmentation().GetNumberOfSegments()
            self.ui.statusLabel.text = _("{count} structures found: '{name}'.").format(count=count, name=node.GetName())
        except SegMambaError as error:
            self.ui.statusLabel.text = str(error)
        except Exception:
            self.ui.statusLabel.text = _("The job failed unexpectedly: the Python console shows where.")
            raise
        finally:
            self._setRunning(False)

    def onProgress(self, stage, fraction):
        """Show how far the job is."""
        self.ui.statusLabel.text = f"{stage}: {100 * fraction:.0f} %"

    def _isCancelled(self):
        # The worker asks several times a second, so this keeps the window alive too.
        slicer.app.processEvents()
        return self._cancelled

    def _setRunning(self, running):
        self._running = running
        if running:
            self._cancelled = False
            self.ui.statusLabel.text = _("Starting...")
        self.ui.segmentButton.text = _("Cancel") if running else _("Segment")
        self.ui.inputSelector.enabled = not running
        self.ui.taskComboBox.enabled = not running
        self.onInputChanged()


class SegMambaSlicerLogic(ScriptedLoadableModuleLogic):
    """The Python console's way in; opens no dialog."""

    def segment(self, volumeNode, task, model=None, outputNode=None, roiNode=None, device="auto", **callbacks):
        """Segment a volume and return the segmentation node.

        Parameters
        ----------
        volumeNode : vtkMRMLScalarVolumeNode
        task : str
            "vertebrae" or "colorectal".
        model : str, optional
            ID of a model; by default the task's first one.
        outputNode : vtkMRMLSegmentationNode, optional
            Node to add the segments to; by default a new one.
        roiNode : vtkMRMLMarkupsROINode, optional
            Region to segment; by default the whole volume.
        device : str
            "auto", "cpu", "cuda" or "mps".
        **callbacks
            ``progress(stage, fraction)`` and ``cancelled() -> bool``.

        Raises
        ------
        segmamba.errors.SegMambaError
            With a sentence that says what to do.
        """
        from segmamba_mrml.segment import segment_volume_node

        return segment_volume_node(volumeNode, task, model, outputNode, roiNode, device, **callbacks)


class SegMambaSlicerTest(ScriptedLoadableModuleTest):
    """What can be tested in Slicer without torch: labels become a segmentation node as they should."""

    def setUp(self):
        """Start from an empty scene."""
        slicer.mrmlScene.Clear()

    def runTest(self):
        """Run all tests; called by the Reload and Test button and by CTest."""
        self.setUp()
        self.test_labels_become_named_coloured_coded_segments()

    def test_labels_become_named_coloured_coded_segments(self):
        """Two vertebrae in a small volume give two segments with the manifest's names, colours and codes."""
        import numpy as np

        from segmamba.manifest import load_manifest
        from segmamba_mrml.segmentation import segmentation_from_labels
        from segmamba_mrml.terminology import load_terminology

        load_terminology()
        structures = load_manifest().default("vertebrae").labels
        labels = np.zeros((8, 9, 10), np.uint8)
        labels[1:3, 2:5, 3:6], labels[4:6, 2:5, 3:6] = structures[19].value, structures[20].value
        volumeNode = slicer.util.addVolumeFromArray(labels.astype(np.int16), name="phantom")
        node = segmentation_from_labels(labels, volumeNode, structures, "phantom vertebrae")
        segmentation = node.GetSegmentation()
        self.assertEqual(segmentation.GetNumberOfSegments(), 2)
        for index, label in enumerate(structures[19:21]):
            segment = segmentation.GetNthSegment(index)
            self.assertEqual(segment.GetName(), label.name)
            self.assertEqual([round(255 * part) for part in segment.GetColor()], list(label.color))
            tag = vtk.reference("")
            self.assertTrue(segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), tag))
            entry = slicer.vtkSlicerTerminologyEntry()
            terminologies = slicer.modules.terminologies.logic()
            self.assertTrue(terminologies.DeserializeTerminologyEntry(str(tag), entry))
            self.assertEqual(entry.GetTypeObject().GetCodeMeaning(), label.type.meaning)
