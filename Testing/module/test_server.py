"""Runs on a server, started by the panel's own clicks: a real server with a real worker, on this computer."""

from __future__ import annotations

import time

import numpy as np
import pytest
import qt
import slicer
from helpers import phantoms
from helpers.flaky_link import flaky_link
from PySide6.QtTest import QTest

pytest.importorskip("fastapi", reason="the server's packages are not installed")

from helpers.running_server import TOKEN, running_server

from segmamba.errors import WorkerError
from segmamba.remote.servers import KnownServer, keep_server, known_servers
from segmamba_mrml.segmentation import segment_ids


@pytest.fixture(scope="module")
def a_server(tmp_path_factory, a_quick_model):
    """A server with the quick model."""
    with running_server(tmp_path_factory.mktemp("server"), a_quick_model) as server:
        yield server


@pytest.fixture
def panel(panel, tmp_path, monkeypatch):
    """The panel of a user who knows no server yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(type(panel.sections.dependencies), "missing", property(lambda _section: ["torch"]))
    yield panel
    if panel.logic._remoteWorkers is not None:
        panel.logic._remoteWorkers.kill()


@pytest.fixture
def add_server(panel, click):
    """Add a server in the panel, as a user does, and agree to send images there."""

    def add_server(address):
        ui = panel.ui
        if ui.advancedSection.collapsed:
            click(ui.advancedSection)
        ui.serverComboBox.currentIndex = ui.serverComboBox.findData("another")
        for edit, text in ((ui.serverAddressEdit, address), (ui.serverTokenEdit, TOKEN)):
            write(edit, text)
        click(ui.serverConsentCheckBox)

    return add_server


def write(edit, text):
    """Write into a line, as a user does, and press Enter."""
    edit.text = ""
    QTest.keyClicks(edit, text)
    QTest.keyClick(edit, qt.Qt.Key_Return)


def voxels(node, volumeNode):
    return [
        slicer.util.arrayFromSegmentBinaryLabelmap(node, identifier, volumeNode) for identifier in segment_ids(node)
    ]


def test_result_of_a_server_is_that_of_this_computer_to_the_voxel(
    panel, a_ct, a_server, add_server, segment, logic, screenshot, wait_until
):
    """On a computer without torch, which nobody may install there."""
    own = logic.segment(a_ct, task="vertebrae", manifest=panel.sections.models.manifestPath, device="cpu")
    add_server(a_server.address)
    assert not panel.ui.deviceComboBox.enabled
    wait_until(lambda: f"on the server {a_server.address}" in panel.ui.forecastLabel.text)
    node = segment()
    screenshot("server")
    assert len(segment_ids(node)) == len(segment_ids(own)) > 0
    for theirs, ours in zip(voxels(node, a_ct), voxels(own, a_ct), strict=True):
        assert ours.any()
        assert np.array_equal(theirs, ours)
    assert panel.ui.statusLabel.text.startswith(f"{len(segment_ids(node))} structure")
    wait_until(lambda: not a_server.files())
    assert sum(a_server.jobs.count().values()) == 0


def test_images_are_sent_only_after_address_token_and_consent_and_once_is_enough(
    panel, a_ct, a_server, add_server, click
):
    ui = panel.ui
    click(ui.advancedSection)
    assert not ui.serverWidget.visible
    ui.serverComboBox.currentIndex = ui.serverComboBox.findData("another")
    assert ui.serverWidget.visible and not ui.serverConsentCheckBox.checked

    def refused():
        click(ui.segmentButton)
        assert panel.job is None
        return ui.statusLabel.text

    assert "Give the address of the server" in refused()
    write(ui.serverAddressEdit, "http://gpu.hospital.example")
    assert "unprotected" in ui.serverLabel.text
    write(ui.serverAddressEdit, a_server.address)
    assert f"Give the token of {a_server.address}" in refused()
    write(ui.serverTokenEdit, TOKEN)
    assert ui.serverTokenEdit.text == "" and TOKEN not in ui.serverTokenEdit.placeholderText
    assert "Agree that images of patients may be sent" in refused()
    click(ui.serverConsentCheckBox)
    assert panel.sections.problem() == ""
    again = slicer.modules.segmambaslicer.widgetRepresentation()
    again.reload()
    section = again.self().sections.servers
    assert (section.address, section.problem()) == (a_server.address, "")
    again.self().cleanup()


def test_a_server_can_be_forgotten_with_its_token(panel, a_server, add_server, click):
    add_server(a_server.address)
    assert [server.address for server in known_servers()] == [a_server.address]
    click(panel.ui.forgetServerButton)
    assert known_servers() == []
    assert panel.sections.servers.address is None and not panel.sections.servers.chosen
    assert panel.ui.deviceComboBox.enabled


def test_cancel_stops_the_job_on_the_server_at_once_and_changes_nothing(
    panel, a_ct, a_server, add_server, start, click, wait_until
):
    add_server(a_server.address)
    panel.ui.qualityComboBox.currentIndex = panel.ui.qualityComboBox.findData("tta")
    nodes = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
    click(panel.ui.segmentButton)
    wait_until(lambda: a_server.jobs.count()["running"] == 1)
    begun = time.monotonic()
    click(panel.ui.segmentButton)
    assert panel.job is None and time.monotonic() - begun < 2
    assert "cancelled" in panel.ui.statusLabel.text
    wait_until(lambda: sum(a_server.jobs.count().values()) == 0 and not a_server.files())
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == nodes


def test_a_connection_that_is_lost_is_taken_up_again(panel, a_ct, a_server, add_server, segment):
    with flaky_link(a_server.address) as link:
        add_server(link.address)
        link.cuts = [300, None, 50_000, None, None, 900]
        node = segment()
    assert link.broken == 3
    assert len(segment_ids(node)) > 0


def test_an_error_of_the_server_is_the_panel_s_sentence(panel, add_volume, a_server, add_server, click, wait_until):
    volume = phantoms.phantom()
    node = add_volume("flat", volume)
    slicer.util.arrayFromVolume(node)[:] = 7
    add_server(a_server.address)
    panel._parameterNode.inputVolume = node
    panel.ui.modalityComboBox.currentIndex = panel.ui.modalityComboBox.findData("CT")
    click(panel.ui.segmentButton)
    wait_until(lambda: panel.job is None)
    assert "'flat' has the value 7 everywhere" in panel.ui.statusLabel.text


def test_a_script_names_the_server(logic, a_ct, a_server, panel, tmp_path):
    keep_server(KnownServer(a_server.address, TOKEN))
    manifest = panel.sections.models.manifestPath
    node = logic.segment(a_ct, task="vertebrae", manifest=manifest, server=a_server.address)
    assert len(segment_ids(node)) > 0
    logic._remoteWorkers.kill()
    with pytest.raises(WorkerError, match="No token"):
        logic.segment(a_ct, task="vertebrae", manifest=manifest, server="https://gpu.hospital.example")
