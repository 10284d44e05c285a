"""The part of the panel that says before a run what it will take, and what stands in its way."""

from __future__ import annotations

from typing import Any

import numpy as np
import qt
import slicer
from slicer.i18n import tr as _

from segmamba.errors import SegMambaError
from segmamba.inference.channels import check_channel
from segmamba.inference.forecast import Forecast, forecast
from segmamba.io.modality import check_modality
from segmamba.io.volume import Volume
from segmamba.models.manifest import Model
from segmamba.option_types import ISO
from segmamba.request import Options
from segmamba.utils.memory import system_memory
from segmamba_mrml.slices import coarse_volume
from segmamba_mrml.volumes import roi_box
from SegMambaSlicerLib.messages import WARNING_STYLE, forecastText, gpuProblem, inPanel, memoryProblem, secondsPerWindow
from SegMambaSlicerLib.sections.device import DeviceSection
from SegMambaSlicerLib.sections.model import ModelSection
from SegMambaSlicerLib.sections.server import ServerSection

# Many changes in a row, as of a scene that is loaded, are answered once.
DELAY_MS = 150
SETTING = "SegMambaSlicer/SecondsPerWindow"


class ForecastSection:
    """Forecasts the run that the panel would start.

    Parameters
    ----------
    ui : object
        The panel's widgets by name.
    devices : DeviceSection
    models : ModelSection
    servers : ServerSection

    Attributes
    ----------
    parameters : ParameterNode or None
    """

    def __init__(self, ui: Any, devices: DeviceSection, models: ModelSection, servers: ServerSection) -> None:
        self._ui, self._devices, self._models, self._servers = ui, devices, models, servers
        self.parameters: Any = None
        self._stopped = False
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.setInterval(DELAY_MS)
        self._timer.connect("timeout()", self.ask)
        devices.refreshed.connect(self.askLater)
        models.changed.connect(self.askLater)
        servers.changed.connect(self.askLater)
        ui.deviceComboBox.connect("currentIndexChanged(int)", lambda _index: self.askLater())

    def follow(self, parameters: Any) -> None:
        """Forecast for what this parameter node holds."""
        self.parameters = parameters
        self.askLater()

    def askLater(self) -> None:
        """Forecast soon."""
        if not self._stopped:
            self._timer.start()

    def stop(self) -> None:
        """Forecast no more."""
        self._stopped = True
        self._timer.stop()

    def ask(self) -> None:
        """Forecast now and show it; a new ROI is laid around the volume first."""
        parameters = self.parameters
        if parameters is not None and parameters.inputVolume and parameters.roi:
            _surround(parameters.roi, parameters.inputVolume)
        text, warning = self._say()
        self._ui.forecastLabel.text = inPanel(text)
        self._ui.forecastLabel.styleSheet = WARNING_STYLE if warning else ""
        self.show()

    def show(self) -> None:
        """Show the forecast, unless the line below the button says the same."""
        text, said = self._ui.forecastLabel.text, self._ui.statusLabel.text
        self._ui.forecastLabel.visible = bool(text) and not (said and said in text)

    def refusal(self) -> str:
        """Return in one sentence why a run cannot work, or an empty text."""
        try:
            told = self._forecast()
        except SegMambaError as error:
            return str(error)
        if self._servers.chosen:
            # Its memory is not known here.
            return ""
        text, hopeless = memoryProblem(self._mainMemory(told), *system_memory())
        return text if hopeless else ""

    def learn(self, report: dict[str, Any], device: str) -> None:
        """Remember how long a window took, for the next forecast on this computer."""
        if "server" in report["run"]:
            return
        slicer.app.userSettings().setValue(_key(report["model"]["id"], device), secondsPerWindow(report))
        self.askLater()

    def _say(self) -> tuple[str, bool]:
        """Return what to show, and whether it is a warning."""
        if self.parameters is None or self._models.model is None:
            return "", False
        volumeNode = self.parameters.inputVolume
        if volumeNode is None:
            return _("Load a volume to begin, for example from the module Sample Data."), False
        problem = self._servers.problem() if self._servers.chosen else self._models.problem()
        if problem:
            return problem, True
        try:
            _check_modality(coarse_volume(volumeNode), self._models.model, self.parameters.modality)
            told = self._forecast()
        except SegMambaError as error:
            return str(error), True
        if self._servers.chosen:
            return forecastText(told, 0, 0, None, self._servers.address), False
        need, (total, free) = self._mainMemory(told), system_memory()
        shortage, _hopeless = memoryProblem(need, total, free)
        gpu = self._devices.gpuMemory
        if gpu is not None:
            need, free = told.device_memory, gpu
            shortage = gpuProblem(told.window_memory, need, free) or shortage
        known = slicer.util.settingsValue(_key(self._models.model.id, self._devices.device), None, float)
        return f"{forecastText(told, need, free, known)} {shortage}".strip(), bool(shortage)

    def _mainMemory(self, told: Forecast) -> int:
        """Return the bytes of main memory that a run takes where it will run: of a GPU without room, not there."""
        gpu = self._devices.gpuMemory
        on_gpu = gpu is not None and (gpu >= told.window_memory or self._devices.device != "auto")
        return told.memory_beside_gpu if on_gpu else told.memory

    def _forecast(self) -> Forecast:
        volumeNode, roiNode = self.parameters.inputVolume, self.parameters.roi
        volume = coarse_volume(volumeNode)
        roi = roi_box(roiNode) if roiNode is not None else None
        options = Options(
            roi=roi,
            modality=self.parameters.modality,
            output_spacing=ISO if self.parameters.isotropic else None,
            device="cpu" if self._devices.gpuMemory is None else "auto",
            **self._models.qualityOptions(),
        )
        voxels = int(np.prod(volumeNode.GetImageData().GetDimensions()))
        return forecast(volume, self._models.model, options, voxels)


def _check_modality(volume: Volume, model: Model, chosen: str) -> None:
    """Refuse a volume that the model was not made for; of several the input is the first."""
    if model.input_channels:
        check_channel(volume, model.input_channels[0], model, chosen)
    else:
        check_modality(volume, model, chosen)


def _surround(roiNode: Any, volumeNode: Any) -> None:
    """Lay a ROI that has not been placed around a volume."""
    if roiNode.GetNumberOfDefinedControlPoints() > 0:
        return
    bounds = [0.0] * 6
    volumeNode.GetRASBounds(bounds)
    low, high = np.array(bounds[0::2]), np.array(bounds[1::2])
    roiNode.SetCenter(*((low + high) / 2).tolist())
    roiNode.SetSize(*(high - low).tolist())


def _key(model: str, device: str) -> str:
    return f"{SETTING}/{model}/{device}"
