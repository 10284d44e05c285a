"""``segmamba train FOLDER --from`` a model of vertebrae: from labelled cases to a model in the list."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from helpers import small_spine
from helpers.trained_model import TWO_STAGE, write_two_stage_run

from segmamba.cli.main import main
from segmamba.errors import InputError
from segmamba.evaluation.run import Predictor
from segmamba.io.volume import Volume
from segmamba.models.library import load_models
from segmamba.models.manifest import Model
from segmamba.models.own import import_own
from segmamba.request import Options
from segmamba.training.dataset.read import read_dataset
from segmamba.training.dataset.splits import Split
from segmamba.training.dataset.start import find_start
from segmamba.training.dataset.train import Order
from segmamba.training.vertebrae import tuned
from segmamba.training.vertebrae.tuned import MERGED, write_tuned
from segmamba.training.vertebrae.tuning import is_tuning, plan_tuning

LABELS = {"background": 0, "L1 vertebra": 20, "L2 vertebra": 21, "L3 vertebra": 22}


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny model with two stages in the user's list."""
    monkeypatch.setenv("SEGMAMBA_MODELS", str(tmp_path / "models"))
    monkeypatch.delenv("SEGMAMBA_SHARED_MODELS", raising=False)
    import_own(write_two_stage_run(tmp_path / "given") / "model.json", load_models())
    return TWO_STAGE


def write_cases(folder: Path, channel: str = "CT", labels: dict[str, int] = LABELS, count: int = 2) -> Path:
    """Write spines in nnU-Net's layout, each a little different."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    column = small_spine.vertebrae()
    for number in range(count):
        image = np.where(column > 0, 300 + 20 * number, 30).astype(np.int16)
        small_spine.write(folder / "imagesTr" / f"sub-{number}_0000.nii.gz", image)
        small_spine.write(folder / "labelsTr" / f"sub-{number}.nii.gz", column)
    description = {"channel_names": {"0": channel}, "labels": labels, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def test_the_plan_says_what_the_labels_are_taken_for(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_cases(tmp_path / "data", "MR", LABELS | {"disc": 5, "T13": 6})
    order = Order(data, tmp_path / "run", base_model=base, device="cpu")
    assert is_tuning(order)
    plan = plan_tuning(order)
    assert (plan.modality, plan.bodies, plan.stages["fine"]["patch"]) == ("MR", False, [32, 32, 32])
    assert plan.levels == {"T13": 253, "L1 vertebra": 20, "L2 vertebra": 21, "L3 vertebra": 22}
    said = capsys.readouterr().err
    assert "'disc' is no vertebra: it counts as background." in said
    assert "give --bodies if only their bodies are drawn" in said
    path = tmp_path / "run" / "plan.json"
    path.write_text(path.read_text().replace('"iterations": 1500', '"iterations": 7'))
    assert plan_tuning(order).stages["coarse"]["iterations"] == 7
    with pytest.raises(InputError, match="keeps its networks"):
        plan_tuning(Order(data, tmp_path / "run", "spinemamba", base_model=base))


def test_bodies_are_told_by_their_shape(base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_cases(tmp_path / "data")
    for path in (data / "labelsTr").iterdir():
        image = sitk.ReadImage(str(path))
        labels = sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS"))
        labels[:, 32:] = 0  # the rings behind
        small_spine.write(path, labels)
    assert plan_tuning(Order(data, tmp_path / "run", base_model=base, device="cpu")).bodies
    assert "are taken for vertebral bodies" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "expected"), [("{}", "is not valid"), ('{"stages": {}', "is not valid"), ("[]", "is not valid")]
)
def test_a_broken_plan_is_one_sentence(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(InputError, match=expected):
        plan_tuning(Order(tmp_path, tmp_path))


def test_bodies_are_for_models_of_vertebrae(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_cases(tmp_path / "data")
    assert main(["train", str(data), "-o", str(tmp_path / "run"), "--bodies"]) == InputError.exit_code
    assert "leave it out" in capsys.readouterr().err


def test_each_labelled_vertebra_is_measured_and_a_worse_model_is_not_imported(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The old model finds all but what is ignored, the new one takes L2 for L3 and misses L3."""
    data, run = write_cases(tmp_path / "data", labels=LABELS | {"ignore": 30}), tmp_path / "run"
    column = small_spine.vertebrae()
    column[column.nonzero()[0].max() - 2 :] = 30
    small_spine.write(data / "labelsTr" / "sub-1.nii.gz", column)
    order = Order(data, run, base_model=base, device="cpu")
    plan = plan_tuning(order)
    start = find_start(base)
    fold = run / "fold-0"
    fold.mkdir()
    shutil.copyfile(start.weights, fold / MERGED)

    def run_model(_model: Model, _options: Options, weights: Path) -> Predictor:
        def predict(_name: str, image: Volume) -> tuple[Volume, None]:
            truth = sitk.GetImageFromArray(small_spine.vertebrae())
            truth.SetSpacing([small_spine.SPACING] * 3)
            found = sitk.GetArrayFromImage(sitk.DICOMOrient(truth, "RAS"))
            if weights != start.weights:
                found = np.array([0, *range(1, 21), 22, 0, 0], np.uint8)[found]
            return Volume(found, image.geometry), None

        return predict

    monkeypatch.setattr(tuned, "run_model", run_model)
    cases = read_dataset(data).cases
    write_tuned(plan, start, fold, Split(cases[:1], cases[1:]), order)
    before, results = (json.loads((fold / name).read_text()) for name in ("before.json", "results.json"))
    assert before["scores"] == {"sub-1": {"L1 vertebra": 1.0, "L2 vertebra": 1.0, "L3 vertebra": 1.0}}
    assert results["scores"] == {"sub-1": {"L1 vertebra": 1.0, "L2 vertebra": 0.0, "L3 vertebra": 0.0}}
    assert before["levels"] == {"sub-1": {"identified": 3, "of": 3}}
    assert results["levels"]["sub-1"]["identified"] < 3
    assert (fold / "model" / "worst.png").is_file()
    assert main(["models", "import", str(run)]) > 0
    assert f"does worse on its validation cases than '{base}'" in capsys.readouterr().err
    card = (fold / "model" / "card.md").read_text()
    assert f"Mean Dice on these cases: 0.333; '{base}' before: 1.000." in card and "It is for CT only" in card
    assert main(["models", "import", str(run), "--as", "our-spine", "--even-if-worse"]) == 0
    ours = load_models().model("our-spine")
    assert ours.task == "vertebrae" and ours.fine is not None and ours.modalities == ("CT",)
    assert load_models().default("vertebrae").id == "spinemamba"
