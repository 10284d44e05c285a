"""Where the panel's models are kept and come from: folders, mirror, settings file."""

from __future__ import annotations

import json

import pytest
import qt
from helpers import tiny
from helpers.models_section import row
from PySide6.QtTest import QTest

pytest_plugins = ("helpers.models_section",)


@pytest.fixture
def settings(models_folder, monkeypatch, tmp_path):
    """The settings file of this test alone, with no environment variable in its way."""
    monkeypatch.delenv("SEGMAMBA_MODELS")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "config" / "segmamba" / "settings.json"


def enter(edit, text):
    """Type into a field and press Return."""
    edit.setFocus()
    edit.selectAll()
    QTest.keyClicks(edit, text) if text else QTest.keyClick(edit, qt.Qt.Key_Delete)
    QTest.keyClick(edit, qt.Qt.Key_Return)


def test_folders_and_mirror_are_kept_in_the_settings_file_and_used(
    settings, section, use, answer, done, click, a_weights_file, tmp_path, monkeypatch, screenshot
):
    assert section.modelsFolderEdit.text == "" and section.modelsFolderEdit.placeholderText.endswith("segmamba/models")
    chosen, shared = tmp_path / "chosen", tmp_path / "shared"
    monkeypatch.setattr(qt.QFileDialog, "getExistingDirectory", staticmethod(lambda *_arguments: str(chosen)))
    click(section.chooseFolderButton)
    assert section.modelsFolderEdit.text == str(chosen)
    assert f"Saved in {settings}" in section.modelsLabel.text
    answer(a_weights_file)
    click(section.importButton)
    assert str(chosen) in done()
    enter(section.sharedFolderEdit, str(shared))
    enter(section.mirrorEdit, "http://models.hospital.example")
    assert json.loads(settings.read_text()) == {
        "models": str(chosen),
        "shared_models": str(shared),
        "mirror": "http://models.hospital.example",
    }
    click(section.modelsTable, 1)
    assert section.downloadButton.enabled
    screenshot("models-places")

    chosen.rename(shared)
    enter(section.modelsFolderEdit, "")
    assert "models" not in json.loads(settings.read_text())
    assert row(section, 1)[1] == "yes" and not section.removeButton.enabled


def test_setting_that_cannot_be_right_is_a_sentence_and_the_old_one_stays(settings, section):
    enter(section.mirrorEdit, "http://first.example")
    enter(section.mirrorEdit, "hospital")
    assert "is not the address of a server" in section.modelsLabel.text
    assert "d9480f" in section.modelsLabel.styleSheet
    assert section.mirrorEdit.text == "http://first.example"


def test_what_the_environment_sets_is_shown_and_not_changed_here(section, models_folder):
    assert section.modelsFolderEdit.text == str(models_folder)
    assert not section.modelsFolderEdit.enabled and not section.chooseFolderButton.enabled
    assert "SEGMAMBA_MODELS" in section.modelsFolderEdit.toolTip
    assert section.sharedFolderEdit.enabled and section.mirrorEdit.enabled


def test_damaged_settings_file_is_said_and_the_bundled_model_still_runs(
    settings, section, panel, a_ct, click, wait_until, screenshot
):
    settings.parent.mkdir(parents=True)
    settings.write_text("{")
    panel.enter()
    assert "correct or remove it" in section.modelsLabel.text and str(settings) in section.modelsLabel.text
    assert not section.mirrorEdit.enabled
    click(section.modelsFolderButton)
    assert "correct or remove it" in section.modelsLabel.text
    assert row(section, 0)[1] == "yes" and not section.removeButton.enabled
    section.modelComboBox.currentIndex = section.modelComboBox.findData(tiny.MODEL_ID)
    wait_until(lambda: section.forecastLabel.visible and section.forecastLabel.text.startswith("Forecast"))
    settings.unlink()
    panel.enter()
    assert section.mirrorEdit.enabled
