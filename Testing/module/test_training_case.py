"""Corrections that teach: from two corrected results, by clicks and one command, to a fine-tuned model in the list."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import qt
import slicer
from helpers import phantoms
from helpers.trained_model import OWN, TWO_STAGE, write_run, write_two_stage_run

from segmamba.cli.main import main
from segmamba.models.library import load_models
from segmamba.models.own import import_own


@pytest.fixture(params=[write_run, write_two_stage_run])
def own_model(request, tmp_path, monkeypatch, the_models_folder):
    """A model of the user's own in the list, beside the software's: of one stage, or of vertebrae with two."""
    monkeypatch.setenv("SEGMAMBA_MODELS", str(the_models_folder))
    monkeypatch.delenv("SEGMAMBA_SHARED_MODELS", raising=False)
    import_own(request.param(tmp_path / "given") / "model.json", load_models())
    yield OWN if request.param is write_run else TWO_STAGE
    shutil.rmtree(the_models_folder)


@pytest.fixture
def save(panel, click, monkeypatch, tmp_path):
    """Save the result that is shown as a training case, and return what the panel says."""

    def save(folder="cases"):
        choose(monkeypatch, "getExistingDirectory", tmp_path / folder)
        click(panel.ui.trainingCaseButton)
        return panel.ui.statusLabel.text

    return save


def choose(monkeypatch, dialog, path):
    """Choose a path in the next dialogs of a kind."""
    monkeypatch.setattr(qt.QFileDialog, dialog, staticmethod(lambda *_arguments: str(path)))


def corrected(node, volume_node):
    """Draw the vertebrae as they are, as edits by hand do: in the segments that are there, and in new ones."""
    truth = phantoms.true_labels(phantoms.STRAIGHT)
    segmentation = node.GetSegmentation()
    for number, value in enumerate(phantoms.VERTEBRAE, start=1):
        name = f"L{number} vertebra"
        identifier = segmentation.GetSegmentIdBySegmentName(name) or segmentation.AddEmptySegment("", name)
        mask = (truth == value).astype(np.uint8)
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, identifier, volume_node)


@pytest.mark.slow
def test_two_corrected_cases_become_a_fine_tuned_model_that_the_panel_offers(
    panel, own_model, add_volume, segment, save, click, wait_until, tmp_path, monkeypatch, screenshot
):
    panel.useManifest(None)
    ui = panel.ui
    task = load_models().model(own_model).task
    ui.taskComboBox.currentIndex = ui.taskComboBox.findData(task)
    ui.modelComboBox.currentIndex = ui.modelComboBox.findData(own_model)
    assert not ui.trainingCaseButton.enabled
    for number in range(2):
        volume_node = add_volume(f"case {number}", phantoms.phantom())
        slicer.util.arrayFromVolume(volume_node)[:] += number
        ui.inputSelector.setCurrentNode(volume_node)
        corrected(segment(), volume_node)
        assert save().startswith("Saved as sub-")
    screenshot("training-case")
    cases = tmp_path / "cases"
    assert json.loads((cases / "dataset.json").read_text())["numTraining"] == 2

    command = ["train", str(cases), "--output", str(tmp_path / "run"), "--device", "cpu"]
    assert main([*command, "--from", own_model, "--plan-only"]) == 0
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    # One step that changes next to nothing: the model does as well as before.
    for recipe in plan.get("stages", {"all": plan.get("recipe")}).values():
        recipe |= {"iterations": 1, "batch": 1, "learning_rate": 1e-9, "log_every": 1}
    (tmp_path / "run" / "plan.json").write_text(json.dumps(plan))
    assert main(command) == 0
    for stage in plan.get("stages", [""]):
        assert (tmp_path / "run/fold-0" / stage / "log.jsonl").read_text().count('"loss"') == 1

    click(ui.modelsSection)
    choose(monkeypatch, "getOpenFileName", tmp_path / "run/fold-0/model/model.json")
    click(ui.importButton)
    wait_until(lambda: ui.importButton.enabled)
    assert ui.modelsLabel.text.startswith("Installed: own-cases-fold-0"), ui.modelsLabel.text
    ui.taskComboBox.currentIndex = ui.taskComboBox.findData("vertebrae" if task == "vertebrae" else "own-cases-fold-0")
    models = [ui.modelComboBox.itemData(index) for index in range(ui.modelComboBox.count)]
    assert models[-1 if task != "vertebrae" else 1] == "own-cases-fold-0", models


def test_the_same_image_takes_its_place_again_only_when_the_user_agrees(
    panel, a_ct, a_slicer_host, segment, save, tmp_path
):
    segment()
    first = save()
    name = first.removeprefix("Saved as ").split(" in ")[0]
    path = tmp_path / "cases" / "provenance" / f"{name}.json"
    before = path.stat().st_mtime_ns
    assert save() == first
    assert f"as {name}. Replace its labels" in a_slicer_host.take_messages()[0]
    assert path.stat().st_mtime_ns == before
    a_slicer_host.answer = qt.QMessageBox.Ok
    assert save() == first
    assert a_slicer_host.take_messages()
    assert path.stat().st_mtime_ns > before
