"""The section of the panel that brings models in, opened, for its tests."""

from __future__ import annotations

import json
import shutil

import pytest
import qt

from helpers import tiny

# Unlike the bundled model's, so that the weights say which model they are for.
ARGUMENTS = {**tiny.ARGUMENTS, "out_channels": 3}


@pytest.fixture(scope="session")
def a_weights_file(tmp_path_factory):
    """Random weights of the model that is not bundled."""
    import torch

    from segmamba.networks import build_network

    path = tmp_path_factory.mktemp("weights") / "given.pt"
    torch.save(build_network("spine_mamba", **ARGUMENTS).state_dict(), path)
    return path


@pytest.fixture
def models_folder(the_models_folder, monkeypatch):
    """A folder for the user's models that is not there yet."""
    monkeypatch.setenv("SEGMAMBA_MODELS", str(the_models_folder))
    monkeypatch.delenv("SEGMAMBA_MIRROR", raising=False)
    monkeypatch.delenv("SEGMAMBA_SHARED_MODELS", raising=False)
    yield the_models_folder
    if the_models_folder.is_dir():
        shutil.rmtree(the_models_folder)
    else:
        the_models_folder.unlink(missing_ok=True)


@pytest.fixture
def use(panel, models_folder, tmp_path):
    """Give the panel a bundled model and one that has to be got; takes changes of the latter's file."""
    path = tiny.write_model(tmp_path)

    def use(**file):
        content = json.loads(path.read_text(encoding="utf-8"))
        missing = content["models"][1]
        missing["arguments"], missing["channel_values"], missing["title"] = ARGUMENTS, [0, 20, 21], "Model to get"
        missing["file"] |= file
        path.write_text(json.dumps(content), encoding="utf-8")
        panel.useManifest(path)
        panel.ui.modelComboBox.currentIndex = panel.ui.modelComboBox.findData(tiny.MISSING_ID)

    use()
    return use


@pytest.fixture
def section(panel, use, click):
    """The widgets of the panel, with the section open."""
    click(panel.ui.modelsSection)
    return panel.ui


@pytest.fixture
def answer(monkeypatch):
    """Choose a file in the next file dialogs; an empty name cancels them."""

    def answer(path):
        monkeypatch.setattr(qt.QFileDialog, "getOpenFileName", staticmethod(lambda *_arguments: str(path)))

    return answer


@pytest.fixture
def done(section, wait_until):
    """Wait until the command has ended and return what the section says."""

    def done():
        wait_until(lambda: not section.cancelModelsButton.visible)
        return section.modelsLabel.text

    return done


def row(section, index):
    table = section.modelsTable
    return [table.item(index, column).text() for column in range(table.columnCount)]
