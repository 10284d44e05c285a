"""A volume of 512 x 512 x 400 voxels with 25 vertebrae, a worker that has its labels ready, and a clock in Qt's events.

With them a test and a benchmark see what a run costs outside the engine.
"""

from __future__ import annotations

import queue
import shutil
import time

import numpy as np
import qt
import slicer

from helpers.own_time import own_time
from segmamba.io.labelmap import write_labelmap
from segmamba.models.manifest import load_manifest
from segmamba_mrml.volumes import volume_of

SHAPE = (400, 512, 512)
STRUCTURES = 25
TICK_MS = 2


def add_volume():
    """Return a volume node of a body with noise."""
    noise = np.random.default_rng(0).integers(-100, 100, SHAPE, np.int16)
    noise[:, :60] = noise[:, -60:] = -1000
    return slicer.util.addVolumeFromArray(noise, np.diag([-0.8, -0.8, 1.0, 1.0]), "large")


class ReadyWorker:
    """Has a label map of 25 vertebrae on the grid of a volume node, and answers each job with it at once.

    Parameters
    ----------
    volume_node : vtkMRMLScalarVolumeNode
    folder : Path
        For the label map.
    """

    pid = None

    def __init__(self, volume_node, folder):
        model, geometry = load_manifest().default("vertebrae"), volume_of(volume_node).geometry
        labels, rows = np.zeros(SHAPE, np.uint8), []
        for index, label in enumerate(model.labels[:STRUCTURES]):
            labels[16 * index : 16 * index + 15, 100:400, 100:400] = label.value
            millilitres = 15 * 300**2 * geometry.voxel_volume / 1000
            rows.append({"value": label.value, "name": label.name, "volume_ml": millilitres, "mean_confidence": 1.0})
        self._labels = folder / "ready.nrrd"
        write_labelmap(self._labels, labels, geometry, model.labels)
        self._report = {"model": {"id": model.id}, "summary": "Ready.", "segments": rows}
        self._report |= {
            "timings_s": {"predict": 1.0},
            "run": {"warnings": [], "notes": [], "windows": 1, "tta_axes": []},
        }
        self._messages = queue.Queue()

    def start(self):
        """Nothing has to start."""

    def submit(self, request):
        shutil.copyfile(self._labels, request.output)
        self._messages.put({"type": "result", "id": "1", "report": self._report})
        return "1"

    def poll(self, timeout=0.0):
        try:
            return self._messages.get(timeout=timeout)
        except queue.Empty:
            return None

    def kill(self):
        """Nothing runs."""


class Clock:
    """A timer that notes when Qt's events let it: the gaps between its ticks are how long they were held up."""

    def __init__(self):
        self._ticks = []
        self._timer = qt.QTimer()
        self._timer.setInterval(TICK_MS)
        self._timer.connect("timeout()", self._tick)

    def start(self):
        self._tick()
        self._timer.start()

    def stop(self):
        """Return the gaps in seconds: in this thread's own time (see `own_time`), and in what it computed."""
        self._timer.stop()
        self._tick()
        return np.diff(self._ticks, axis=0).T

    def _tick(self):
        self._ticks.append((own_time(), time.thread_time()))
