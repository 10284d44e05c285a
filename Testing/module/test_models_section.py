"""The section that brings models in, checks and removes them: real files, a real server, real child processes."""

from __future__ import annotations

import hashlib
import json
import threading
from types import SimpleNamespace

import psutil
import pytest
import qt
import slicer
from helpers import tiny
from helpers.file_server import Served, file_server
from helpers.models_section import row
from helpers.own_time import PATIENCE
from helpers.processes import behind
from helpers.trained_model import OWN, write_run

from segmamba.errors import InstallationError
from segmamba.models.resources import MANIFEST_NAME, resource_root

pytest_plugins = ("helpers.models_section",)
NAME = "SegMambaSlicer"


def test_table_says_what_is_installed_how_large_and_from_where(section, click, screenshot):
    assert row(section, 0)[0::3] == ["Tiny test model", "comes with the software"]
    assert row(section, 0)[1] == "yes" and row(section, 0)[2].endswith(" MB")
    assert row(section, 1) == ["Model to get", "no", "–", "–"]
    assert section.modelsTable.currentRow() == 0
    assert section.verifyButton.enabled
    assert not section.removeButton.enabled and not section.downloadButton.enabled
    click(section.modelsTable, 1)
    assert not section.verifyButton.enabled and not section.removeButton.enabled
    assert section.importButton.enabled and not section.downloadButton.enabled
    assert not section.modelsProgressBar.visible and not section.cancelModelsButton.visible
    screenshot("models")


@pytest.mark.slow
def test_missing_model_is_said_once_imported_run_and_removed(
    panel, a_ct, section, answer, done, click, wait_until, a_slicer_host, a_weights_file, models_folder, screenshot
):
    click(section.modelsSection)
    wait_until(lambda: section.forecastLabel.visible and "not installed" in section.forecastLabel.text)
    click(section.segmentButton)
    assert panel.job is None
    assert "import it in the section Models" in section.statusLabel.text
    assert section.statusLabel.visible and not section.forecastLabel.visible
    assert not section.modelsSection.collapsed and section.modelsTable.currentRow() == 1
    assert "not installed" in section.modelSummaryLabel.text
    screenshot("model-missing")

    answer(a_weights_file)
    click(section.importButton)
    assert section.cancelModelsButton.visible and section.modelsProgressBar.visible
    assert "Importing given.pt" in section.modelsLabel.text
    assert not section.importButton.enabled and not section.verifyButton.enabled
    said = done()
    assert said.startswith(f"Installed: {tiny.MISSING_ID}, imported from given.pt")
    assert "the weights are random" in said
    assert row(section, 1)[1::2] == ["yes", "imported from given.pt"]
    assert "imported from given.pt" in section.modelSummaryLabel.text
    assert not section.statusLabel.text
    wait_until(lambda: section.forecastLabel.visible and section.forecastLabel.text.startswith("Forecast"))
    screenshot("model-imported")
    click(section.segmentButton)
    assert panel.job is not None and not section.removeButton.enabled
    wait_until(lambda: panel.job is None)
    assert panel.sections.results.node is not None, section.statusLabel.text

    click(section.removeButton)
    assert "Remove 'Model to get' from" in a_slicer_host.take_messages()[0]
    assert section.modelsLabel.text == said
    a_slicer_host.answer = qt.QMessageBox.Ok
    click(section.removeButton)
    assert a_slicer_host.take_messages()
    assert done().startswith(f"Removed: {tiny.MISSING_ID}")
    assert row(section, 1)[1] == "no" and not section.removeButton.enabled
    assert not (models_folder / tiny.MISSING_ID).exists()
    assert "not installed" in section.modelSummaryLabel.text


@pytest.mark.slow
def test_a_model_that_the_user_trained_is_imported_chosen_and_run(
    panel, a_ct, section, answer, done, click, wait_until, tmp_path, screenshot
):
    panel.useManifest(None)
    answer(write_run(tmp_path / "run", title="Lumbar: L1, L2, L3 (trained here)") / "model.json")
    click(section.importButton)
    assert done().startswith(f"Installed: {OWN}, trained on cubes")
    tasks = section.taskComboBox
    assert [tasks.itemData(index) for index in range(tasks.count)] == ["vertebrae", "colorectal", "brain-tumour", OWN]
    tasks.currentIndex = tasks.findData(OWN)
    assert tasks.currentText == section.modelComboBox.currentText == "Lumbar: L1, L2, L3 (trained here)"
    assert "trained on cubes" in section.modelSummaryLabel.text
    screenshot("model-own")
    section.deviceComboBox.currentIndex = section.deviceComboBox.findData("cpu")
    click(section.segmentButton)
    assert panel.job is not None, section.statusLabel.text
    wait_until(lambda: panel.job is None)
    assert panel.sections.results.node is not None, section.statusLabel.text


def test_file_that_fits_no_model_is_one_sentence_and_nothing_changes(
    section, answer, done, click, tmp_path, models_folder, screenshot
):
    path = tmp_path / "other.pt"
    path.write_bytes(b"no weights")
    answer(path)
    click(section.importButton)
    said = done()
    assert str(path) in said and said.count("\n") == 0 and "segmamba: error" not in said
    assert "d9480f" in section.modelsLabel.styleSheet
    assert said in section.logText.plainText
    assert row(section, 1)[1] == "no"
    screenshot("import-failed")
    answer("")
    click(section.importButton)
    assert section.modelsLabel.text == said


def test_download_can_be_cancelled_and_goes_on(section, use, done, click, wait_until, models_folder, screenshot):
    content = bytes(range(256)) * 1024
    file = {"name": "got.safetensors", "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    with file_server() as server:
        server.files["/slow"] = Served(content, piece=1024, stop=65536)
        use(**file, urls=[f"{server.url}/slow"])
        click(section.modelsTable, 1)
        click(section.downloadButton)
        part = lambda: sum(path.stat().st_size for path in models_folder.rglob("*.part"))  # noqa: E731
        wait_until(lambda: part() > 4096)
        screenshot("downloading")
        click(section.cancelModelsButton)
        assert "Cancelled" in section.modelsLabel.text
        assert section.downloadButton.enabled and not section.cancelModelsButton.visible
        assert row(section, 1)[1] == "no"
        server.files["/slow"].go_on.set()
        click(section.downloadButton)
        assert f"downloaded from {server.url}/slow" in done()
        assert server.requests[-1][1] is not None
    assert row(section, 1)[1] == "yes"
    click(section.verifyButton)
    assert done() == "Model to get: size and SHA-256 match."


def test_damaged_file_is_found_by_verify(section, use, done, click, models_folder, panel):
    folder = models_folder / tiny.MISSING_ID
    folder.mkdir(parents=True)
    (folder / "missing.pt").write_bytes(b"something else")
    use(size=14, sha256="0" * 64)
    click(section.modelsTable, 1)
    assert row(section, 1)[1::2] == ["yes", "added by hand"]
    click(section.verifyButton)
    said = done()
    assert "its SHA-256 differs" in said and not said.startswith("FAIL")
    (folder / "installed.json").write_text("{")
    panel.enter()
    assert row(section, 1)[1] == "damaged"
    assert "damaged" in section.modelSummaryLabel.text
    assert section.removeButton.enabled and section.verifyButton.enabled


def test_mirror_makes_a_model_with_a_known_hash_downloadable(section, use, done, click, monkeypatch):
    content = b"weights" * 1000
    with file_server() as server:
        server.files[f"/{tiny.MISSING_ID}/missing.pt"] = Served(content)
        use(size=len(content), sha256=hashlib.sha256(content).hexdigest())
        click(section.modelsTable, 1)
        assert not section.downloadButton.enabled
        monkeypatch.setenv("SEGMAMBA_MIRROR", server.url)
        use()
        click(section.downloadButton)
        assert server.url in done()
    assert row(section, 1)[1] == "yes"
    click(section.modelsTable, 0)
    assert not section.downloadButton.enabled


def test_cancel_ends_the_python_behind_the_launcher(section, use, panel, click, wait_until):
    with file_server() as server:
        server.files["/slow"] = Served(bytes(1 << 20), piece=1024, stop=4096)
        use(name="got.safetensors", size=1 << 20, sha256="0" * 64, urls=[f"{server.url}/slow"])
        click(section.modelsTable, 1)
        click(section.downloadButton)
        wait_until(lambda: server.requests)
        python = behind(panel.sections.checkpoints._program.child)
        click(section.cancelModelsButton)
        assert psutil.wait_procs([python], PATIENCE)[0]
        server.files["/slow"].go_on.set()


@pytest.mark.parametrize("leave", [lambda module: module.unload(), lambda _: slicer.util.reloadScriptedModule(NAME)])
def test_leaving_the_module_ends_the_command_and_nothing_is_told_to_what_is_gone(
    leave, the_module, section, panel, click, a_slicer_host, wait_until
):
    click(section.verifyButton)
    python = behind(panel.sections.checkpoints._program.child)
    leave(the_module.module)
    assert psutil.wait_procs([python], PATIENCE)[0]
    a_slicer_host.process_events()


def test_thread_that_reads_from_a_command_does_not_hold_its_timer(section, panel, click):
    """A timer that a thread is the last to hold is destroyed there: Qt waits for Python, and Python for Qt."""
    click(section.verifyButton)
    program = panel.sections.checkpoints._program
    (reader,) = [each for each in threading.enumerate() if program.child in getattr(each, "_args", ())]
    assert reader.name == "program"
    assert program not in (getattr(reader._target, "__self__", None), *reader._args)


def test_killed_command_is_told_as_killed(section, panel, click, done, wait_until):
    click(section.verifyButton)
    behind(panel.sections.checkpoints._program.child).kill()
    assert "The command was killed, most likely because memory ran out" in done()


def test_folder_is_made_and_opened_or_the_reason_is_said(section, click, models_folder, monkeypatch):
    opened = []
    monkeypatch.setattr(qt, "QDesktopServices", SimpleNamespace(openUrl=opened.append))
    click(section.modelsFolderButton)
    assert [url.toLocalFile() for url in opened] == [str(models_folder)]
    assert models_folder.is_dir()
    models_folder.rmdir()
    models_folder.write_text("in the way")
    click(section.modelsFolderButton)
    assert "cannot be created" in section.modelsLabel.text and len(opened) == 1


def test_child_that_cannot_start_or_breaks_is_a_sentence(section, click, done, monkeypatch, tmp_path):

    def fail():
        raise InstallationError("PythonSlicer was not found.")

    monkeypatch.setattr("SegMambaSlicerLib.cli_process.worker_python", fail)
    click(section.verifyButton)
    assert section.modelsLabel.text == "PythonSlicer was not found."
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho ModuleNotFoundError: no numpy\nexit 9\n")
    broken.chmod(0o755)
    monkeypatch.setattr("SegMambaSlicerLib.cli_process.worker_python", lambda: str(broken))
    click(section.verifyButton)
    assert "status 9 (ModuleNotFoundError: no numpy)" in done()
    assert section.verifyButton.enabled


def test_models_that_come_with_the_software_have_no_remove(the_module, click, screenshot):
    ui = the_module.ui
    click(ui.modelsSection)
    assert ui.modelsTable.item(0, 3).text() == "comes with the software"
    click(ui.modelsTable, 0)
    assert not ui.removeButton.enabled
    screenshot("models-of-the-software")


def test_estimate_is_offered_and_marked_and_own_figures_take_its_place(
    section, answer, done, click, a_weights_file, models_folder, screenshot
):
    assert section.importAsComboBox.visible and not section.normalizationBox.visible
    section.importAsComboBox.currentIndex = section.importAsComboBox.findData(tiny.MISSING_ID)
    boxes = (section.clipLowSpinBox, section.clipHighSpinBox, section.meanSpinBox, section.stdSpinBox)
    assert section.normalizationBox.visible and [box.value for box in boxes] == [-1000.0, 1000.0, 0.0, 500.0]
    assert not any(box.enabled for box in boxes)
    assert section.normalizationLabel.text.startswith("Note: the weights are random")
    assert "d9480f" in section.normalizationLabel.styleSheet
    screenshot("import-estimate")
    answer(a_weights_file)
    click(section.importButton)
    assert "Note: the weights are random; if you know them" in done()
    assert "the weights are random" in section.modelSummaryLabel.text

    click(section.ownNormalizationCheckBox)
    assert all(box.enabled for box in boxes) and not section.normalizationLabel.styleSheet
    for box, value in zip(boxes, (-57.5, 175.0, 65.175, 32.651), strict=True):
        box.value = value
    screenshot("import-own-figures")
    click(section.importButton)
    assert "Note" not in done()
    assert "the weights are random" not in section.modelSummaryLabel.text
    record = json.loads((models_folder / tiny.MISSING_ID / "installed.json").read_text())
    assert record["normalization"] == [{"scheme": "clip", "low": -57.5, "high": 175.0, "mean": 65.175, "std": 32.651}]

    section.clipHighSpinBox.value = -100.0
    click(section.importButton)
    assert "are not valid" in done()
    section.importAsComboBox.currentIndex = 0
    assert not section.normalizationBox.visible


def test_file_is_imported_as_the_model_that_was_chosen(section, answer, done, click, a_weights_file):
    section.importAsComboBox.currentIndex = section.importAsComboBox.findData(tiny.MODEL_ID)
    answer(a_weights_file)
    click(section.importButton)
    assert f"does not fit the model '{tiny.MODEL_ID}'" in done()


def test_bundle_says_itself_what_it_has(section, answer, done, click, a_weights_file, models_folder, tmp_path, panel):
    import shutil

    answer(a_weights_file)
    click(section.importButton)
    done()
    bundle = shutil.make_archive(str(tmp_path / "models"), "zip", models_folder)
    shutil.rmtree(models_folder)
    panel.enter()
    assert row(section, 1)[1] == "no"
    section.importAsComboBox.currentIndex = section.importAsComboBox.findData(tiny.MODEL_ID)
    answer(bundle)
    click(section.importButton)
    assert done().startswith(f"Installed: {tiny.MISSING_ID}")


def test_model_that_cannot_run_is_listed_and_not_offered_for_a_run(the_module, click, tmp_path):
    ui = the_module.ui
    content = json.loads((resource_root() / MANIFEST_NAME).read_text(encoding="utf-8"))
    content["models"][-1]["unsupported"] = "it needs a newer version."
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    the_module.widget.useManifest(tmp_path / "manifest.json")
    click(ui.modelsSection)
    titles = [ui.modelsTable.item(index, 0) for index in range(ui.modelsTable.rowCount)]
    (brats,) = (item for item in titles if "BraTS" in item.text())
    assert "Cannot be used: it needs a newer version." in brats.toolTip()
    assert ui.importAsComboBox.findData("segmamba-v2-brats2023-official") > 0
    assert ui.taskComboBox.findData("brain-tumour") == -1


def test_released_colorectal_checkpoint_is_offered_the_documented_estimate(the_module, click, screenshot):
    ui = the_module.ui
    click(ui.modelsSection)
    ui.importAsComboBox.currentIndex = ui.importAsComboBox.findData("segmamba-v2-colorectal-official")
    boxes = (ui.clipLowSpinBox, ui.clipHighSpinBox, ui.meanSpinBox, ui.stdSpinBox)
    assert [box.value for box in boxes] == [-57.0, 175.0, 65.175, 32.651]
    assert "the authors have not published theirs" in ui.normalizationLabel.text
    screenshot("import-official")
