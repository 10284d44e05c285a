"""The scripted module: its entry in Slicer, its panel, its logic and its self-test. All work is done elsewhere."""

from __future__ import annotations

import logging
import time
from collections import deque
from pathlib import Path

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
from slicer.util import VTKObservationMixin

# The engine, SimpleITK and the rest of the module are imported where they are used, not when Slicer starts.


class SegMambaSlicer(ScriptedLoadableModule):
    """What Slicer shows of the module before it is opened."""

    def __init__(self, parent):
        from SegMambaSlicerLib.about import acknowledgementText, helpText

        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("SegMambaSlicer")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        needed = "Markups Plots Segmentations Sequences SubjectHierarchy Tables Terminologies Volumes"
        self.parent.dependencies = needed.split()
        self.parent.contributors = ["SegMambaSlicer contributors"]
        self.parent.helpText, self.parent.acknowledgementText = helpText(), acknowledgementText()
        # By then the module Sample Data is there, whatever the order in which Slicer loads modules.
        slicer.app.connect("startupCompleted()", registerSamples)


def registerSamples():
    """Offer volumes to try the module with in the module Sample Data."""
    from SegMambaSlicerLib.sample_data import registerSamples

    registerSamples()


class SegMambaSlicerWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel. Its sections are in ``SegMambaSlicerLib``; here a run starts, is followed, and ends."""

    def __init__(self, parent=None):
        VTKObservationMixin.__init__(self)
        self.logic = None
        self.job = None
        self.sections = None
        self._parameterNode = None
        self._guiTag = None
        self._stage, self._stageBegin, self._refused = "", 0.0, False
        # Last: without a parent it builds the panel at once.
        ScriptedLoadableModuleWidget.__init__(self, parent)

    def setup(self):
        """Build the panel; called once, when the module is opened for the first time."""
        ScriptedLoadableModuleWidget.setup(self)
        from SegMambaSlicerLib.controller import buildSections

        panel = slicer.util.loadUI(self.resourcePath("UI/SegMambaSlicer.ui"))
        self.layout.addWidget(panel)
        self.ui = slicer.util.childWidgetVariables(panel)
        panel.setMRMLScene(slicer.mrmlScene)
        self.logic = SegMambaSlicerLogic()
        requirements = Path(self.resourcePath("requirements.txt"))
        self.sections = buildSections(self.ui, requirements, self.logic.stop, self.showStatus)
        for widget in (self.ui.progressBar, self.ui.statusLabel, self.ui.forecastLabel):
            widget.visible = False
        self.ui.segmentButton.connect("clicked(bool)", self.onSegmentButton)
        self.sections.checkpoints.changed.connect(self.onParametersChanged)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.initializeParameterNode)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.initializeParameterNode)
        self.useManifest(None)
        self.initializeParameterNode()

    def cleanup(self):
        """Stop a running job, the worker and all else; called when the module is reloaded or Slicer closes."""
        if self.sections is None:
            return
        self.logic.stop()
        self.setParameterNode(None)
        self.removeObservers()
        self.sections.results.show(None)
        self.sections.stop()

    def enter(self):
        """Look again at what may have changed while another module was open."""
        self.initializeParameterNode()
        self.sections.devices.refresh()
        self.sections.checkpoints.refresh()
        self.sections.dependencies.refresh()

    def useManifest(self, path):
        """Offer the models of a manifest; with None, those that come with the module."""
        from segmamba.errors import SegMambaError

        try:
            self.sections.models.load(path)
            self.sections.checkpoints.refresh()
        except SegMambaError as error:
            self.showStatus(str(error), problem=True)

    def initializeParameterNode(self, _caller=None, _event=None):
        """Show what the scene (perhaps a new one) holds, and choose the first volume where none is chosen."""
        self.setParameterNode(self.logic.getParameterNode())
        if not self._parameterNode.inputVolume:
            node = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode")
            if node:
                self._parameterNode.inputVolume = node

    def setParameterNode(self, parameterNode):
        """Follow a parameter node; None stops following."""
        if self._parameterNode:
            self._parameterNode.disconnectGui(self._guiTag)
            self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParametersChanged)
        self._parameterNode = parameterNode
        if parameterNode:
            self._guiTag = parameterNode.connectGui(self.ui)
            self.addObserver(parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParametersChanged)
            self.sections.show(parameterNode)
            self.onParametersChanged()

    def onParametersChanged(self, _caller=None, _event=None):
        """Follow the scene and the installed models: what can be started, and what it will take."""
        if self._parameterNode is None:
            return
        if self._refused:
            # What stood in the way has perhaps gone.
            self.showStatus("")
        self.sections.refresh()
        self.ui.segmentButton.enabled = self.job is not None or bool(self._parameterNode.inputVolume)

    def onSceneStartClose(self, _caller, _event):
        """Stop what runs: its volume is about to go."""
        wasRunning = self.job is not None
        self.logic.stop()
        self.setParameterNode(None)
        self.sections.forecast.follow(None)
        self.sections.results.show(None)
        self.ui.segmentButton.enabled = False
        self.showStatus(_("The scene was closed, so the job was stopped.") if wasRunning else "")

    def onSegmentButton(self, _checked=False):
        """Start a job, or cancel the one that is running."""
        from segmamba.errors import SegMambaError

        if self.job is not None:
            self.job.cancel()
            return
        problem = self.sections.problem()
        if problem:
            self.showStatus(problem, problem=True)
            self._refused = True
            return
        self.sections.log.clear()
        try:
            self.job = self.logic.segmentAsync(
                self._parameterNode.inputVolume,
                onProgress=self.onProgress,
                onDone=self.onDone,
                onLog=self.sections.log.add,
                **self.sections.choices(),
            )
        except SegMambaError as error:
            self.showStatus(str(error), problem=True)
            return
        self._setRunning(True)

    def onProgress(self, stage, fraction):
        """Show how far the job is."""
        from SegMambaSlicerLib.messages import overallFraction, progressText, remainingSeconds

        if stage != self._stage:
            self._stage, self._stageBegin = stage, time.monotonic()
            self.sections.log.add(progressText(stage, None))
        remaining = remainingSeconds(stage, fraction, time.monotonic() - self._stageBegin)
        done = (self.job.item + overallFraction(stage, fraction)) / self.job.items
        text = progressText(stage, remaining)
        if self.job.items > 1:
            text = _("Item {number} of {all}: {text}").format(number=self.job.item + 1, all=self.job.items, text=text)
        self.ui.progressBar.value = round(100 * done)
        self.ui.progressBar.format = f"{text} (%p%)"

    def onDone(self, job):
        """Show the result, or in one sentence why there is none."""
        from segmamba.errors import SegMambaError
        from SegMambaSlicerLib.messages import outcomeText

        self.job = None
        self._setRunning(False)
        if job.error is None:
            self.sections.forecast.learn(job.report, self.sections.devices.device)
            self._parameterNode.resultSegmentation = job.node
            self.sections.results.show(job.node)
            self.showStatus(outcomeText(job.report))
        elif isinstance(job.error, SegMambaError):
            self.showStatus(str(job.error), problem=True)
        else:
            logging.error("SegMambaSlicer", exc_info=job.error)
            self.showStatus(_("The job failed unexpectedly: see the Python console."), problem=True)

    def showStatus(self, text, problem=False):
        """Show a sentence below the button, and keep it in the log."""
        from SegMambaSlicerLib.widgets import showSentence

        showSentence(self.ui.statusLabel, text, problem)
        self._refused = False
        self.sections.forecast.show()
        if text:
            self.sections.log.add(text)

    def _setRunning(self, running):
        self._stage, self._stageBegin = "", time.monotonic()
        if running:
            self.showStatus("")
            self.ui.progressBar.value, self.ui.progressBar.format = 0, _("Starting")
        self.ui.progressBar.visible = running
        self.ui.segmentButton.text = _("Cancel") if running else _("Segment")
        self.sections.setRunning(running)
        if self._parameterNode:
            self.onParametersChanged()


class SegMambaSlicerLogic(ScriptedLoadableModuleLogic):
    """The Python console's way in; opens no dialog. The names of the choices are those of the command line."""

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)
        self._worker = self._remoteWorkers = self._job = None
        self._log = deque(maxlen=1000)

    def getParameterNode(self):
        """Return the scene's parameter node, with typed values."""
        from SegMambaSlicerLib.parameters import ParameterNode

        return ParameterNode(super().getParameterNode())

    def segment(self, volumeNode, task=None, onProgress=None, allItems=False, output=None, **options):
        """Segment a volume and return the segmentation node; waits, while Slicer stays usable. May raise SegMambaError.

        Parameters
        ----------
        volumeNode : vtkMRMLScalarVolumeNode
            With ``allItems`` all items of its sequence, into a sequence of segmentations; otherwise the current one.
        task : str, optional
            "vertebrae", "colorectal" or "brain-tumour"; not needed with ``model``.
        onProgress : callable(stage, fraction), optional
        output : vtkMRMLSegmentationNode, optional
            Node to add the segments to, which keeps its own unless ``overwrite=True``; by default a new one.
        **options
            The command line's options in camelCase, for example ``model``, ``scanBackend="torch"``, ``tta=True``,
            ``refine=False`` (its ``--no-refine``), ``anchor=[("L5", r, a, s)]`` in world coordinates; ``roi`` is an
            ROI node, ``channels`` volume nodes by names, ``levelsFrom`` a node or a file, ``server`` an address.
            ``uncertainty=True`` and ``probabilities=True`` add volumes with these to the scene.
        """
        return self.segmentAsync(volumeNode, task, onProgress, allItems=allItems, output=output, **options).wait()

    def segmentAsync(
        self, volumeNode, task=None, onProgress=None, onDone=None, onLog=None, allItems=False, output=None, **options
    ):
        """Start segmenting a volume, and return the job at once: it has ``cancel()`` and ``wait()``.

        As `segment`; ``onDone`` gets the job at its end (``node`` or ``error``), ``onLog`` each line of its log.
        """
        from segmamba.errors import InputError
        from segmamba_mrml.segment import SegmentationCase
        from SegMambaSlicerLib.parameters import nodeOf, requestOf
        from SegMambaSlicerLib.segmentation_job import SegmentationJob
        from SegMambaSlicerLib.sequence_job import SequenceJob

        worker = self._freeWorker(options.pop("server", None))
        channels, request = options.pop("channels", None), requestOf(task=task, **options)
        levels = nodeOf(options.get("levelsFrom"))
        if allItems and output is not None:
            raise InputError("All items of a sequence go into a new sequence: choose no output segmentation.")
        if allItems and (request.uncertainty or request.probabilities):
            raise InputError("Items of a sequence get no volumes of uncertainty: segment the current item alone.")
        if allItems and channels:
            raise InputError("Items of a sequence are segmented one by one: choose a model that takes one volume.")

        def start(node):
            return SegmentationJob(worker, SegmentationCase(node, request, output, channels, levels), self._log)

        self._job = SequenceJob(start, volumeNode) if allItems else start(volumeNode)
        self._job.progressed.connect(onProgress)
        self._job.logged.connect(onLog)
        self._job.ended.connect(onDone)
        return self._job

    def segmentFolder(self, inputFolder, outputFolder, task=None, **more):
        """Segment a folder's volumes as ``segmamba batch`` does; wait, and return a row (a dict) for each.

        More: ``pattern`` ("**/*.nii.gz"), ``skipExisting``, ``format``, ``onProgress`` and the options of `segment`.
        """
        return self.segmentFolderAsync(inputFolder, outputFolder, task=task, **more).wait()

    def segmentFolderAsync(self, inputFolder, outputFolder, onProgress=None, onDone=None, **more):
        """Start that, and return the job at once: see ``SegMambaSlicerLib.folder_job.FolderJob``."""
        from SegMambaSlicerLib.folder_job import FolderJob

        self._freeWorker()
        self._job = FolderJob(inputFolder, outputFolder, **more)
        self._job.progressed.connect(onProgress)
        self._job.ended.connect(onDone)
        return self._job

    def renumber(self, segmentationNode, vertebra, level, below=False):
        """Give a vertebra ("T12", a segment's name or ID) its level ("L1"), and all others too, or those below."""
        from segmamba_mrml.anchors import renumber_with_points

        renumber_with_points(segmentationNode, vertebra, level, below)

    def setLevel(self, segmentationNode, level, point):
        """Say that the vertebra at a point (world, RAS, mm) has a level; all others follow, also in later runs."""
        from segmamba_mrml.anchors import set_level

        set_level(segmentationNode, level, point)

    def refine(self, segmentationNode, vertebra):
        """Clean a vertebra's mask after an edit: loose components, holes, gaps; return the changes, a list of dicts."""
        from segmamba_mrml.refinement import refine

        return refine(segmentationNode, vertebra)

    def measure(self, segmentationNode, volumeNode=None):
        """Measure the vertebrae of a segmentation as they are now; return its table node, which later calls refill."""
        from segmamba_mrml.measurements import measurements_table

        return measurements_table(segmentationNode, volumeNode)

    def report(self, segmentationNode, path, volumeNode=None):
        """Write the report page (.html) of a segmentation's vertebrae as they are now; return the report, a dict."""
        from segmamba_mrml.spine_page import write_spine_page

        return write_spine_page(segmentationNode, path, volumeNode)

    def compare(self, earlierNode, laterNode, path):
        """Write the page (.html) of what changed between two segmentations of a spine; return it as a dict."""
        from segmamba_mrml.spine_page import write_comparison_page

        return write_comparison_page(earlierNode, laterNode, path)

    def plot(self, segmentationNode, volumeNode=None):
        """Return the chart nodes of heights and, on CT, density along the column, which later calls refill."""
        from segmamba_mrml.plots import column_charts

        return column_charts(segmentationNode, volumeNode)

    def export(self, segmentationNode, folder, format="nii.gz"):
        """Write surfaces ("stl", "obj") or a label map with the manifest's values to a new folder; return its path."""
        from segmamba_mrml.export import export_segmentation

        return export_segmentation(segmentationNode, folder, format)

    def stop(self):
        """Cancel what runs and end the worker; the next run starts another one."""
        if self._job is not None:
            self._job.cancel()
        for worker in filter(None, (self._worker, self._remoteWorkers)):
            worker.kill()

    def _freeWorker(self, server=None):
        """Return the worker, which stays up between runs so that weights load once, or that of a server's address."""
        from SegMambaSlicerLib.workers import RemoteWorkers, localWorker, refuseIfBusy

        refuseIfBusy(self._job)
        if server is not None:
            self._remoteWorkers = self._remoteWorkers or RemoteWorkers(self._log.append)
            return self._remoteWorkers.get(server)
        self._worker = self._worker or localWorker(self._log.append)
        return self._worker


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
        from SegMambaSlicerLib.self_test import checkSegments

        checkSegments(self)
