"""Models from where a release has them, and from their authors, by the buttons of the panel."""

from __future__ import annotations

from types import SimpleNamespace

import qt
from helpers import tiny
from helpers.file_server import file_server
from helpers.models_section import row
from helpers.released import DOWNLOADS, release, without_models

pytest_plugins = ("helpers.models_section",)
PAGE = "https://authors.example/model"


def test_download_gets_the_model_of_the_release_and_it_runs(
    section, panel, a_ct, a_quick_model, models_folder, click, done, wait_until, tmp_path, monkeypatch
):
    monkeypatch.delenv("HTTP_PROXY", raising=False)
    with file_server() as server:
        manifest = without_models(release(a_quick_model, tmp_path / "assets", server), tmp_path / "user")
        panel.useManifest(manifest)
        assert row(section, 0)[1] == "no"
        click(section.modelsTable, 0)
        click(section.downloadButton)
        assert done().startswith(f"Installed: {tiny.MODEL_ID}, downloaded from {server.url}{DOWNLOADS}/")
    assert row(section, 0)[1] == "yes"
    assert (models_folder / tiny.MODEL_ID).is_dir()
    section.modelComboBox.currentIndex = section.modelComboBox.findData(tiny.MODEL_ID)
    click(section.segmentButton)
    wait_until(lambda: panel.job is None)
    assert panel.sections.results.node is not None, section.statusLabel.text


def test_authors_page_is_opened_and_the_file_from_there_is_imported_as_the_model_that_it_is_for(
    section, use, answer, done, click, a_weights_file, monkeypatch, screenshot
):
    opened = []
    monkeypatch.setattr(qt, "QDesktopServices", SimpleNamespace(openUrl=opened.append))
    click(section.modelsTable, 1)
    assert not section.authorsButton.visible
    use(page=PAGE)
    click(section.modelsTable, 0)
    assert not section.authorsButton.visible
    click(section.modelsTable, 1)
    screenshot("model-of-authors")

    answer("")
    click(section.authorsButton)
    assert [url.toString() for url in opened] == [PAGE]
    assert section.modelsLabel.text == "When 'missing.pt' is downloaded, press 'Import...'."
    assert section.importAsComboBox.currentData == tiny.MISSING_ID

    answer(a_weights_file)
    click(section.authorsButton)
    assert len(opened) == 2
    assert done().startswith(f"Installed: {tiny.MISSING_ID}, imported from given.pt")
    assert not section.authorsButton.visible


def test_models_of_other_authors_have_a_page(the_module, click):
    ui = the_module.ui
    click(ui.modelsSection)
    listed = the_module.widget.sections.models.manifest.listed
    theirs = [number for number, model in enumerate(listed) if model.id.endswith("official")]
    assert len(theirs) == 2
    for number in theirs:
        click(ui.modelsTable, number)
        assert ui.authorsButton.visible and listed[number].file.page.startswith("https://")
