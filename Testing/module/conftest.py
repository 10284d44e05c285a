"""The module in the stand-in Slicer application, and what a user's hands and eyes do with its panel."""

from __future__ import annotations

import functools
import os
import sys
import time
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import qt
import slicer
from helpers import phantoms, tiny
from helpers.own_time import PATIENCE
from helpers.repository import PACKAGES
from launcher import make_launcher
from PySide6.QtTest import QTest
from shiboken6 import Shiboken
from slicer_host import SlicerHost, themes

from segmamba.worker.client import WorkerProcess

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture(scope="session", autouse=True)
def versions_are_read_once():
    """Each panel looks for its packages; what is there stays there, and what is not is looked for again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metadata, "version", functools.cache(metadata.version))
        yield


@pytest.fixture
def a_slicer_host(tmp_path):
    """Slicer with an empty scene; the test fails of errors in slots and of message boxes that it did not expect."""
    host = SlicerHost(tmp_path / "slicer")
    host.start()
    yield host
    host.stop()
    assert not host.errors
    assert not host.unknown_signals
    assert not host.take_messages()


@pytest.fixture
def module(a_slicer_host):
    """The imported ``SegMambaSlicer.py``, its panel not made yet."""
    a_slicer_host.load(PACKAGES / "SegMambaSlicer.py")
    return sys.modules["SegMambaSlicer"]


@pytest.fixture
def the_module(a_slicer_host):
    """The loaded module with its panel shown: ``python`` module, ``widget``, its ``ui``, the ``panel`` it lives in.

    As in Slicer, the panel is as high as it needs to be, and scrolled.
    """
    module = a_slicer_host.load(PACKAGES / "SegMambaSlicer.py")
    panel = module.widgetRepresentation()
    area = qt.QScrollArea()
    area.widgetResizable = True
    area.horizontalScrollBarPolicy = qt.Qt.ScrollBarAlwaysOff
    area.setWidget(panel)
    area.resize(480, 900)
    area.show()
    slicer.util.selectModule("SegMambaSlicer")
    a_slicer_host.process_events()
    python, widget = sys.modules["SegMambaSlicer"], panel.self()
    yield SimpleNamespace(python=python, panel=panel, widget=widget, ui=widget.ui, module=module, area=area)
    if Shiboken.isValid(panel):
        area.takeWidget()
    area.close()


@pytest.fixture
def click(a_slicer_host, the_module):
    """Click a button as a user can, who scrolls to it: it has to be in sight and enabled.

    A table's cell takes its row and column too.
    """

    def click(widget, row=None, column=0):
        a_slicer_host.process_events()
        # Twice: a panel that has just grown is laid out by the first.
        for _repetition in range(2):
            the_module.area.ensureWidgetVisible(widget)
            a_slicer_host.process_events()
        assert widget.isVisible() and not widget.visibleRegion().isEmpty(), f"'{widget.name}' is not in sight"
        assert widget.isEnabled(), f"'{widget.name}' is disabled"
        if row is None:
            widget.click()
        else:
            place = widget.visualRect(widget.model().index(row, column)).center()
            QTest.mouseClick(widget.viewport(), qt.Qt.LeftButton, qt.Qt.NoModifier, place)
        a_slicer_host.process_events()

    return click


@pytest.fixture
def wait_until(a_slicer_host):
    """Let the application run until a condition holds; fails if that takes minutes, or of an error in a slot."""

    def wait_until(condition, timeout=PATIENCE):
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, f"waited {timeout} s in vain"
            a_slicer_host.process_events()
            assert not a_slicer_host.errors
            time.sleep(0.005)

    return wait_until


@pytest.fixture
def screenshot(a_slicer_host, the_module):
    """Save pictures ``<name>-light.png`` and ``<name>-dark.png`` of the panel.

    They go to the folder that the environment variable SEGMAMBA_SCREENSHOTS names. Without it nothing is saved, which
    takes longer than most tests.
    """

    def screenshot(name):
        folder = os.environ.get("SEGMAMBA_SCREENSHOTS")
        if folder:
            save_pictures(name, Path(folder))

    def save_pictures(name, folder):
        folder.mkdir(parents=True, exist_ok=True)
        for theme in ("dark", "light"):
            themes.use(theme)
            a_slicer_host.process_events()
            assert the_module.panel.grab().save(str(folder / f"{name}-{theme}.png"))

    screenshot.save_pictures = save_pictures
    return screenshot


@pytest.fixture(scope="session")
def a_quick_model(tmp_path_factory):
    """A manifest with a tiny network that is done within a second."""
    return tiny.write_model(tmp_path_factory.mktemp("quick"))


@pytest.fixture(scope="session")
def a_slow_model(tmp_path_factory):
    """The same network in thousands of windows."""
    return tiny.write_model(tmp_path_factory.mktemp("slow"), patch=[16, 16, 16], overlap=0.9)


@pytest.fixture(scope="session")
def the_models_folder(tmp_path_factory):
    """The folder for the user's models that the warm worker knows."""
    return tmp_path_factory.mktemp("user") / "my models"


@pytest.fixture(scope="session")
def a_warm_worker(tmp_path_factory, the_models_folder):
    """One worker for all tests, behind a launcher: starting it takes seconds. A test that kills it gets a new one."""
    launcher = make_launcher(tmp_path_factory.mktemp("bin"))
    with WorkerProcess(python=str(launcher), environment={"SEGMAMBA_MODELS": str(the_models_folder)}) as worker:
        yield worker


@pytest.fixture
def add_volume(a_slicer_host):
    """Add a volume of `phantoms` to the scene and return its node."""

    def add_volume(name, volume):
        return slicer.util.addVolumeFromArray(volume.array, LPS_TO_RAS @ volume.geometry.affine, name)

    return add_volume


@pytest.fixture
def a_ct(add_volume):
    """A volume node with a drawn spine."""
    return add_volume("case 7", phantoms.phantom())


@pytest.fixture
def a_beating_ct(add_volume):
    """The volume node that shows the current one of two items: the drawn spine, and the same a bit brighter."""
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "beats")
    node = add_volume("beat", phantoms.phantom())
    for index in range(2):
        slicer.util.arrayFromVolume(node)[:] += 10 * index
        sequence.SetDataNodeAtValue(node, str(index))
    slicer.mrmlScene.RemoveNode(node)
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "browser")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    browser.SetSelectedItemNumber(1)
    return browser.GetProxyNode(sequence)


@pytest.fixture
def panel(the_module, a_quick_model, a_warm_worker):
    """The panel's widget with the quick model and the warm worker."""
    widget = the_module.widget
    widget.useManifest(a_quick_model)
    widget.ui.deviceComboBox.currentIndex = widget.ui.deviceComboBox.findData("cpu")
    widget.logic._worker = a_warm_worker
    yield widget
    if widget.job is not None:
        widget.job.cancel()
    # The worker outlives the panel.
    widget.logic._worker = None


@pytest.fixture
def logic(the_module, a_warm_worker):
    """The logic that a script gets, with the warm worker."""
    logic = the_module.python.SegMambaSlicerLogic()
    logic._worker = a_warm_worker
    yield logic
    if logic._job is not None:
        logic._job.cancel()
    logic._worker = None


@pytest.fixture
def start(panel, click, wait_until):
    """Click Segment and wait until the network runs."""

    def start():
        click(panel.ui.segmentButton)
        wait_until(lambda: panel.job is None or "Segmenting" in panel.ui.progressBar.format)
        assert panel.job is not None, panel.ui.statusLabel.text

    return start


@pytest.fixture
def segment(panel, click, wait_until):
    """Click Segment, wait for the end, and return the result's node."""

    def segment():
        click(panel.ui.segmentButton)
        assert panel.job is not None, panel.ui.statusLabel.text
        wait_until(lambda: panel.job is None)
        return panel.sections.results.node

    return segment
