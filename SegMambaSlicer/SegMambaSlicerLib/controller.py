"""The sections of the panel, put together, and what they say as one: the choices, and what stands in a run's way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from segmamba.option_types import ISO
from segmamba_mrml.anchors import level_points
from segmamba_mrml.sequences import number_of_items
from SegMambaSlicerLib.sections.anchor import AnchorSection
from SegMambaSlicerLib.sections.channel import ChannelSection
from SegMambaSlicerLib.sections.checkpoint import CheckpointSection
from SegMambaSlicerLib.sections.correction import CorrectionSection
from SegMambaSlicerLib.sections.dependency import DependencySection
from SegMambaSlicerLib.sections.device import DeviceSection
from SegMambaSlicerLib.sections.export import ExportSection
from SegMambaSlicerLib.sections.forecast import ForecastSection
from SegMambaSlicerLib.sections.log import LogSection
from SegMambaSlicerLib.sections.measurement import MeasurementSection
from SegMambaSlicerLib.sections.model import ModelSection
from SegMambaSlicerLib.sections.report import ReportSection
from SegMambaSlicerLib.sections.result import ResultSection
from SegMambaSlicerLib.sections.server import ServerSection
from SegMambaSlicerLib.sections.training_case import TrainingCaseSection

OVERWRITE_SETTING = "SegMambaSlicer/Overwrite"
# What must stay as it is while a job runs.
LOCKED = (
    *("inputSelector", "channelsWidget", "taskComboBox", "modelComboBox", "outputSelector"),
    *("correctionWidget", "anchorWidget", "advancedSection", "dependenciesSection"),
)


@dataclass
class Sections:
    """All sections of the panel."""

    ui: Any
    models: ModelSection
    channels: ChannelSection
    devices: DeviceSection
    servers: ServerSection
    forecast: ForecastSection
    results: ResultSection
    correction: CorrectionSection
    anchors: AnchorSection
    checkpoints: CheckpointSection
    dependencies: DependencySection
    log: LogSection

    def show(self, parameters: Any) -> None:
        """Show what a parameter node holds."""
        self.models.show(parameters)
        self.channels.show(parameters)
        self.forecast.follow(parameters)
        self.results.show(parameters.resultSegmentation)

    def refresh(self) -> None:
        """Follow a change of the parameter node."""
        self.models.refresh()
        self.channels.refresh()
        self.results.refresh()
        self.ui.levelsSelector.enabled = self.models.model is not None and self.models.model.fine is not None
        self.ui.allItemsCheckBox.enabled = number_of_items(self.forecast.parameters.inputVolume) > 1
        self.forecast.askLater()

    def choices(self) -> dict[str, Any]:
        """Return what the user chose, under the names that the logic's ``segmentAsync`` has."""
        parameters = self.forecast.parameters
        counts = self.models.model.fine is not None
        return {
            "model": self.models.model.id,
            "manifest": self.models.manifestPath,
            "channels": self.channels.nodes(),
            "output": parameters.outputSegmentation,
            "overwrite": self.ui.overwriteComboBox.currentData == "replace",
            "structures": self.models.structures(),
            "roi": parameters.roi,
            "anchor": level_points(parameters.inputVolume) if counts else None,
            "levelsFrom": parameters.levelsFrom if counts else None,
            "refine": parameters.refine,
            "postprocess": parameters.postprocess,
            "outputSpacing": ISO if parameters.isotropic else None,
            "uncertainty": parameters.uncertainty,
            "modality": parameters.modality,
            **self.models.qualityOptions(),
            "device": self.devices.device,
            "server": self.servers.address,
            "allItems": self.ui.allItemsCheckBox.enabled and parameters.allItems,
        }

    def problem(self) -> str:
        """Return in one sentence why a run cannot start, or an empty text."""
        if self.models.model is None:
            return self.models.problem()
        if self.servers.chosen:
            # Packages and models are there, not here.
            problem = self.servers.problem()
            if problem:
                self.ui.advancedSection.collapsed = False
            return problem or self.channels.problem() or self.forecast.refusal()
        missing = self.dependencies.missing
        if missing:
            self.dependencies.refresh()
            return _("Packages are missing ({names}): install them in the section Dependencies below.").format(
                names=", ".join(missing)
            )
        problem = self.models.problem()
        if problem:
            self.checkpoints.reveal()
        return problem or self.channels.problem() or self.forecast.refusal()

    def setRunning(self, running: bool) -> None:
        """Lock what a running job depends on."""
        for name in LOCKED:
            getattr(self.ui, name).enabled = not running
        self.checkpoints.lock(running)

    def stop(self) -> None:
        """End all that goes on: the widgets are about to go."""
        for section in (
            self.forecast,
            self.devices,
            self.checkpoints,
            self.dependencies,
            self.correction,
            self.anchors,
        ):
            section.stop()


def buildSections(
    ui: Any, requirements: Path, stopWorker: Callable[[], None], say: Callable[[str, bool], None]
) -> Sections:
    """Make the sections of a panel from its widgets by name.

    ``stopWorker`` ends the process that has torch loaded; ``say`` shows a sentence, and whether it is about a problem.
    """
    ui.overwriteComboBox.addItem(_("Keep them and add the new ones"), "keep")
    ui.overwriteComboBox.addItem(_("Replace them"), "replace")
    chosen = slicer.util.settingsValue(OVERWRITE_SETTING, "keep")
    ui.overwriteComboBox.currentIndex = max(0, ui.overwriteComboBox.findData(chosen))
    ui.overwriteComboBox.connect(
        "currentIndexChanged(int)",
        lambda index: slicer.app.userSettings().setValue(OVERWRITE_SETTING, ui.overwriteComboBox.itemData(index)),
    )
    devices, models, results = DeviceSection(ui), ModelSection(ui), ResultSection(ui)
    servers = ServerSection(ui)
    forecast = ForecastSection(ui, devices, models, servers)
    log = LogSection(ui)
    checkpoints = CheckpointSection(ui, models, stopWorker, log.add)
    dependencies = DependencySection(ui, requirements, stopWorker)
    correction, measurement = CorrectionSection(ui, results), MeasurementSection(ui, results)
    anchors = AnchorSection(ui, results)
    cases = TrainingCaseSection(ui, results, models)
    for section in (correction, anchors, measurement, ReportSection(ui, results), ExportSection(ui, results), cases):
        section.said.connect(say)
    channels = ChannelSection(ui, models)
    shown = (results, correction, anchors)
    return Sections(ui, models, channels, devices, servers, forecast, *shown, checkpoints, dependencies, log)
