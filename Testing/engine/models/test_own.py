"""A model that the user trained: from the folder of a run into the list of models, and to another computer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from helpers.trained_model import OWN, write_run

from segmamba.cli.main import main
from segmamba.errors import ModelError
from segmamba.models import store
from segmamba.models.bundle import import_bundle, write_bundle
from segmamba.models.library import load_models
from segmamba.models.manifest import load_manifest
from segmamba.models.own import find_description, import_own

pytestmark = pytest.mark.usefixtures("models")


@pytest.mark.parametrize("place", ["", "fold-0", "fold-0/model", "fold-0/model/model.json"])
def test_a_run_is_imported_by_whichever_of_its_folders_is_named(tmp_path: Path, place: str) -> None:
    write_run(tmp_path / "run")
    assert main(["models", "import", str(tmp_path / "run" / place)]) == 0
    model = load_models().model(OWN)
    assert (model.task, model.labels[0].name) == (OWN, "L1 vertebra")
    assert store.verify(store.installed(model)) == model.file.sha256
    assert load_models().tasks == (*load_manifest().tasks, OWN)


def test_an_imported_model_is_listed_segments_and_is_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "run")
    assert main(["models", "import", str(tmp_path / "run"), "--as", "mine"]) == 0
    assert main(["models", "list"]) == 0
    assert "trained on cubes" in capsys.readouterr().out
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(0, 300, (20, 20, 20)).astype(np.float32))
    image.SetSpacing((4.0, 4.0, 4.0))
    sitk.WriteImage(image, str(tmp_path / "image.nii.gz"))
    output = tmp_path / "labels.nii.gz"
    command = ["segment", str(tmp_path / "image.nii.gz"), "--task", "mine", "-o", str(output), "--device", "cpu"]
    assert main([*command, "--in-process"]) == 0
    assert output.is_file()
    assert main(["models", "remove", "mine"]) == 0
    assert "mine" not in {model.id for model in load_models().listed}


def test_a_bundle_carries_an_own_model_with_its_description(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = import_own(write_run(tmp_path / "run") / "model.json", load_models())
    write_bundle(tmp_path / "b.zip", [found])
    monkeypatch.setenv("SEGMAMBA_MODELS", str(tmp_path / "elsewhere"))
    assert OWN not in {model.id for model in load_models().listed}
    (there,) = import_bundle(tmp_path / "b.zip", load_models())
    assert store.installed(load_models().model(OWN)).path == there.path
    assert there.path.read_bytes() == found.path.read_bytes()


def test_a_model_worse_than_its_base_is_taken_only_on_request(tmp_path: Path) -> None:
    worse = {"compared": {"model": "spinemamba", "before": 0.9, "after": 0.8}}
    write_run(tmp_path / "run", **worse)
    with pytest.raises(ModelError, match=r"worse on its validation cases than 'spinemamba'.*0\.800, before 0\.900"):
        import_own(tmp_path / "run/fold-0/model/model.json", load_models())
    assert main(["models", "import", str(tmp_path / "run"), "--even-if-worse"]) == 0


def test_no_model_takes_the_place_of_another(tmp_path: Path) -> None:
    description = write_run(tmp_path / "run") / "model.json"
    with pytest.raises(ModelError, match="two models 'spinemamba'"):
        import_own(description, load_models(), "spinemamba")
    first = import_own(description, load_models())
    assert import_own(description, load_models()).path == first.path
    other = write_run(tmp_path / "other", seed=2) / "model.json"
    with pytest.raises(ModelError, match="already there with other weights"):
        import_own(other, load_models())
    assert store.verify(store.installed(load_models().model(OWN)))


def test_several_folds_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    second = tmp_path / "run" / "fold-1" / "model"
    second.mkdir(parents=True)
    (second / "model.json").write_text((folder / "model.json").read_text())
    with pytest.raises(ModelError, match=r"fold-0, .*fold-1"):
        find_description(tmp_path / "run")


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda folder: (folder / "weights.safetensors").unlink(), "are missing: copy them beside"),
        (lambda folder: (folder / "weights.safetensors").write_bytes(b"x"), "SHA-256 differs"),
        (lambda folder: (folder / "model.json").write_text("[]"), "is damaged"),
        (lambda folder: (folder / "model.json").write_bytes(b"\xff\xfe\x00"), "cannot be read"),
    ],
)
def test_a_damaged_run_is_refused_and_leaves_nothing(tmp_path: Path, break_it: Any, expected: str) -> None:
    folder = write_run(tmp_path / "run")
    break_it(folder)
    with pytest.raises(ModelError, match=expected):
        import_own(folder / "model.json", load_models())
    assert not list((tmp_path / "store").glob("*/*"))


def test_a_damaged_description_keeps_no_other_model_from_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import_own(write_run(tmp_path / "run") / "model.json", load_models())
    (tmp_path / "store" / OWN / "model.json").write_text("{")
    assert load_models().default("vertebrae").id == "spinemamba"
    assert main(["models", "list"]) == 0
    assert f"{OWN}/model.json is damaged" in capsys.readouterr().out
