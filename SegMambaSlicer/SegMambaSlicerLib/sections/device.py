"""The part of the panel that chooses the device, with the memory that is free there. Never asks torch."""

from __future__ import annotations

import platform
import shutil
import sys
from dataclasses import dataclass
from typing import Any

import slicer
from slicer.i18n import tr as _

from segmamba.utils.memory import gibibytes, system_memory
from SegMambaSlicerLib.cli_process import Program
from SegMambaSlicerLib.signal import Signal

SETTING = "SegMambaSlicer/Device"
QUERY = ("--query-gpu=index,name,memory.free", "--format=csv,noheader,nounits")
MIB = 2**20


@dataclass(frozen=True)
class Gpu:
    """A GPU: the engine's name for it, the maker's, and its free memory in bytes."""

    name: str
    title: str
    freeMemory: int


class DeviceSection:
    """Fills the list of devices and keeps the user's choice in the settings.

    Parameters
    ----------
    ui : object
        The panel's widgets by name.

    Attributes
    ----------
    refreshed : Signal
        Emitted when the GPUs are known.
    """

    def __init__(self, ui: Any) -> None:
        self._combo = ui.deviceComboBox
        self.refreshed = Signal()
        self._program: Program | None = None
        self._gpus: list[Gpu] = []
        self._chosen = slicer.util.settingsValue(SETTING, "auto")
        self._show([])
        self._combo.connect("currentIndexChanged(int)", self._onDevice)

    @property
    def device(self) -> str:
        """The device that is chosen: "auto", "cpu", "cuda:N" or "mps"."""
        return self._combo.currentData or "auto"

    @property
    def gpuMemory(self) -> int | None:
        """Free bytes of the GPU that a run would use; None where it would not use one, or none is known."""
        usable = [gpu for gpu in self._gpus if self.device in ("auto", gpu.name)]
        return usable[0].freeMemory if usable else None

    def refresh(self) -> None:
        """Ask for the GPUs and their free memory, without waiting for the answer."""
        program = shutil.which("nvidia-smi")
        if program is None:
            self._show([])
            return
        self.stop()
        lines: list[str] = []

        def end(status: int) -> None:
            self._show(gpus(lines) if status == 0 else [])
            self.refreshed.emit()

        try:
            self._program = Program([program, *QUERY], lines.append, end)
        except OSError:
            self._show([])

    def stop(self) -> None:
        """Ask no more."""
        if self._program is not None:
            self._program.end()

    def _show(self, found: list[Gpu]) -> None:
        self._gpus = found
        blocked = self._combo.blockSignals(True)
        self._combo.clear()
        free = system_memory()[1]
        memory = _(", {memory} free").format(memory=gibibytes(free)) if free else ""
        self._combo.addItem(_("Automatic"), "auto")
        for gpu in found:
            self._combo.addItem(gpu.title + _(", {memory} free").format(memory=gibibytes(gpu.freeMemory)), gpu.name)
        if sys.platform == "darwin" and platform.machine() == "arm64":
            self._combo.addItem(_("Apple GPU") + memory, "mps")
        self._combo.addItem(_("CPU") + memory, "cpu")
        # A GPU that is not found now may be back later, so the setting stays as it is.
        self._combo.currentIndex = max(0, self._combo.findData(self._chosen))
        self._combo.blockSignals(blocked)

    def _onDevice(self, _index: int) -> None:
        self._chosen = self.device
        slicer.app.userSettings().setValue(SETTING, self._chosen)


def gpus(lines: list[str]) -> list[Gpu]:
    """Return the GPUs of which nvidia-smi wrote a line each."""
    found = []
    for line in lines:
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 3 and parts[0].isdecimal() and parts[2].isdecimal():
            found.append(Gpu(f"cuda:{parts[0]}", parts[1], int(parts[2]) * MIB))
    return found
