"""An evaluation from images and references to figures, tables and pictures, and the comparison of two."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from helpers import tiny
from helpers.phantoms import OBLIQUE, STRAIGHT, phantom, spine_labels, spine_model, true_labels

from segmamba.cli.main import main
from segmamba.evaluation.cases import find_cases, on_grid
from segmamba.evaluation.metrics import confusion_matrix
from segmamba.evaluation.names import BODIES, PLAIN, WHOLE
from segmamba.evaluation.run import abstentions, dice_loss, evaluate_case, evaluation, reported_certainty
from segmamba.evaluation.scores import ScoringConfig, best_shift, score
from segmamba.evaluation.statistics import compare, grouped, mean_with_interval
from segmamba.evaluation.tables import to_markdown, worst_first
from segmamba.io.volume import Volume, to_image
from segmamba.reporting.preview import choose_planes, compose, draw

CONFIG = ScoringConfig(WHOLE, {label.value: label.name for label in spine_labels()})
ALL_ELIGIBLE = {20: None, 21: None, 22: None}
REFERENCE = Volume(true_labels(STRAIGHT), STRAIGHT)


def write(path: Path, volume: Volume) -> None:
    sitk.WriteImage(to_image(volume.array, volume.geometry), str(path))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two cases, a good and a bad label map of each, and an image without a reference."""
    folder = tmp_path_factory.mktemp("pairs")
    for name in ("one", "two"):
        write(folder / f"{name}_ct.nii.gz", phantom())
        write(folder / f"{name}_vertebrae.nii.gz", REFERENCE)
    write(folder / "three_ct.nii.gz", phantom())
    shifted = np.where(REFERENCE.array > 0, REFERENCE.array + 1, 0).astype(np.uint8)
    for kind, two in (("good", REFERENCE.array), ("bad", shifted)):
        (folder / kind).mkdir()
        write(folder / kind / "one.nii.gz", REFERENCE)
        write(folder / kind / "two.nrrd", Volume(two, STRAIGHT))
    return folder


def certainty_of(**counts: int) -> dict[str, Any]:
    """Return a 2 x 2 table with these counts."""
    keys = [f"{what}_{how}" for what in ("right", "wrong") for how in ("certain", "uncertain", "unsaid")]
    return dict.fromkeys([*keys, "runner_up_right"], 0) | {"wrong_and_certain": []} | counts


def run(pairs: Path, output: Path, *more: str) -> int:
    return main(["evaluate", str(pairs), "--task", "vertebrae", "--output", str(output), *more])


def test_label_maps_of_any_tool_are_measured(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(pairs, tmp_path / "out", "--predictions", str(pairs / "bad")) == 0
    result = json.loads((tmp_path / "out/evaluation.json").read_text(encoding="utf-8"))
    one, two = result["cases"]
    assert [row["dice"] for row in one["structures"]] == [1, 1, 1] and one["identified"] == one["of"] == 3
    assert two["dice_foreground"] == 1 and two["dice_mean"] < 0.01 and two["identified"] == 0
    assert one["structures"][0]["level_probability"] is None and result["calibration"] is None
    assert result["certainty"]["native"] | {"wrong_and_certain": []} == certainty_of(right_unsaid=1, wrong_unsaid=1)
    assert two["numbering"] == {"certain": None, "wrong": 3, "best_shift": -1, "dice_mean_shifted": 1.0}
    assert [row["name"] for row in two["extra"]] == ["L4 vertebra"] and two["missed"] == 1
    assert result["summary"]["native"]["identified"]["mean"] == 0.5
    text = (tmp_path / "out/evaluation.md").read_text(encoding="utf-8")
    assert text.index("### two") < text.index("### one")
    for name in ("one-native.png", "two-native.png"):
        assert f"(pictures/{name})" in text
        assert (tmp_path / "out/pictures" / name).read_bytes().startswith(b"\x89PNG")
    assert "2/2 two, native: mean Dice 0.000, foreground 1.000, identified 0 of 3" in capsys.readouterr().out


def test_two_evaluations_are_compared_pair_by_pair(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("bad", "good"):
        assert run(pairs, tmp_path / kind, "--predictions", str(pairs / kind)) == 0
    capsys.readouterr()
    files = [str(tmp_path / kind / "evaluation.json") for kind in ("bad", "good")]
    assert main(["evaluate", "--compare", *files]) == 0
    printed = capsys.readouterr().out
    assert "| as it is | identified | 6 | 0.500 | 1.000 | +0.500 [+0.000, +1.000] |" in printed


@pytest.mark.slow
def test_a_model_is_run_on_the_cases_and_their_versions(pairs: Path, tmp_path: Path) -> None:
    manifest = str(tiny.write_model(tmp_path))
    cases = tmp_path / "cases"
    cases.mkdir()
    for name in ("one_ct.nii.gz", "one_vertebrae.nii.gz"):
        shutil.copyfile(pairs / name, cases / name)
    options = ("--manifest", manifest, "--device", "cpu", "--perturbations", "storage,noise")
    assert run(cases, tmp_path / "out", *options) == 0
    result = json.loads((tmp_path / "out/evaluation.json").read_text(encoding="utf-8"))
    assert [case["perturbation"] for case in result["cases"]] == ["native", "storage", "noise"]
    assert result["subject"]["id"] == tiny.MODEL_ID
    assert result["losses"].keys() == {"storage", "noise"}
    assert result["losses"]["storage"]["values"] == 3
    assert all(case["seconds"] > 0 and case["device"] for case in result["cases"])


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["--perturbations", "upside-down"], 3, "choose from thick"),
        (["--perturbations", "noise", "--predictions", "."], 3, "leave out --predictions or --perturbations"),
        (["--bodies"], 3, "NAME_bodies.nii.gz"),
        (["--reference-ids", "verse"], 3, "give one of own, totalsegmentator"),
        (["--reference-ids", "own,own"], 3, "or one per folder"),
        (["--predictions", "."], 3, "holds no one.nii.gz"),
        (["--compare", "a.json", "b.json"], 3, "evaluate first"),
        (["--model", "nothing"], 4, "There is no model"),
    ],
)
def test_wrong_arguments_are_one_sentence(
    arguments: list[str], status: int, sentence: str, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(pairs, tmp_path / "out", *arguments) == status
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_an_evaluation_is_not_overwritten_unasked(pairs: Path, tmp_path: Path) -> None:
    predictions = ("--predictions", str(pairs / "good"))
    assert run(pairs, tmp_path, *predictions) == 0
    assert run(pairs, tmp_path, *predictions) == 6
    assert run(pairs, tmp_path, *predictions, "--overwrite") == 0


def test_an_older_evaluation_is_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    older = tmp_path / "a.json"
    older.write_text('{"evaluation_version": 1}')
    assert main(["evaluate", "--compare", str(older), str(older)]) == 3
    assert f"{older} is from another version of this software" in capsys.readouterr().err


def test_what_is_no_evaluation_is_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text("[]")
    assert main(["evaluate", "--compare", str(tmp_path / "a.json"), "nowhere.json"]) == 3
    assert "is not an evaluation" in capsys.readouterr().err


def test_the_same_name_in_two_folders_is_refused(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(pairs), str(pairs), "--task", "vertebrae", "--output", "x"]) == 3
    assert "two cases named 'one'" in capsys.readouterr().err


def test_people_that_were_trained_on_are_evaluated_only_when_asked_for(pairs: Path, tmp_path: Path) -> None:
    for name in ("one_ct", "one_vertebrae", "two_ct", "two_vertebrae"):
        (tmp_path / f"{name}.nii.gz").symlink_to(pairs / f"{name}.nii.gz")
    (tmp_path / "split.csv").write_text("exam,part\none,train\ntwo,test\n", encoding="utf-8")
    assert [case.name for case in find_cases([tmp_path], "vertebrae")] == ["two"]
    assert [case.name for case in find_cases([tmp_path], "vertebrae", part="train")] == ["one"]


def test_each_folder_can_have_its_own_numbering(pairs: Path, tmp_path: Path) -> None:
    write(tmp_path / "four_mr.nii.gz", phantom())
    write(tmp_path / "four_vertebrae.nii.gz", REFERENCE)
    cases = find_cases([pairs, tmp_path], "vertebrae", ["own", "totalsegmentator"])
    assert [(case.name, case.modality, case.ids) for case in cases] == [
        ("one", "CT", "own"),
        ("two", "CT", "own"),
        ("four", "MR", "totalsegmentator"),
    ]


def test_labels_on_another_grid_are_brought_to_the_images() -> None:
    moved, changed = on_grid(Volume(true_labels(OBLIQUE), OBLIQUE), STRAIGHT)
    assert changed and moved.geometry == STRAIGHT
    assert np.count_nonzero(moved.array == REFERENCE.array) > 0.98 * moved.array.size
    assert on_grid(REFERENCE, STRAIGHT) == (REFERENCE, False)


def test_a_missed_structure_scores_zero_and_has_no_distance() -> None:
    labels = np.where(REFERENCE.array == 21, 0, REFERENCE.array)
    result = score(labels, REFERENCE, CONFIG, ALL_ELIGIBLE)
    row = result["structures"][1]
    assert (row["dice"], row["assd_mm"], row["hd95_mm"], row["identified"], row["covered_by"]) == (
        0,
        None,
        None,
        False,
        0,
    )
    assert result["dice_mean"] == pytest.approx(2 / 3) and result["missed"] == 1
    assert result["assd_mean_mm"] == 0 and result["numbering"]["wrong"] == 0


def test_what_does_not_count_is_listed_and_left_out_of_the_means() -> None:
    labels = np.where(REFERENCE.array == 21, 0, REFERENCE.array)
    result = score(labels, REFERENCE, CONFIG, ALL_ELIGIBLE | {21: "at the volume's border"})
    assert result["dice_mean"] == 1 and result["of"] == 2
    assert [row["dice"] for row in result["structures"]] == [1, 0, 1]


def test_a_sacrum_that_the_reference_leaves_out_is_not_held_against_us() -> None:
    sacrum = np.roll(np.where(REFERENCE.array == 22, 26, 0), -20, axis=1).astype(np.uint8)
    labels = np.where(REFERENCE.array > 0, REFERENCE.array, sacrum)
    assert score(labels, REFERENCE, CONFIG, ALL_ELIGIBLE)["dice_foreground"] == 1
    assert score(labels, REFERENCE, ScoringConfig(PLAIN, {}), ALL_ELIGIBLE)["dice_foreground"] < 0.9
    labelled = Volume(np.where(labels == 26, 26, REFERENCE.array), STRAIGHT)
    missed = score(REFERENCE.array, labelled, CONFIG, ALL_ELIGIBLE | {26: "no"})
    assert missed["dice_foreground"] < 0.9
    assert missed["dice_vertebrae"] == 1


def test_structures_that_are_no_vertebrae_are_not_identified() -> None:
    result = score(REFERENCE.array, REFERENCE, ScoringConfig(PLAIN, {20: "Tumour"}), ALL_ELIGIBLE)
    assert "numbering" not in result and result["structures"][0]["identified"] is None
    assert result["dice_vertebrae"] is None


def test_bodies_are_scored_without_the_arch_behind_them() -> None:
    labels = REFERENCE.array.copy()
    behind = np.roll(labels, 25, axis=1)
    behind[:, :45] = 0
    labels = np.where(labels > 0, labels, behind)
    whole, bodies = (score(labels, REFERENCE, ScoringConfig(kind, {}), ALL_ELIGIBLE) for kind in (WHOLE, BODIES))
    assert whole["dice_mean"] < 0.85 < 0.95 < bodies["dice_mean"]


def test_a_level_that_the_shift_leaves_nothing_for_scores_nothing() -> None:
    reference = np.zeros(STRAIGHT.size[::-1], np.uint8)
    for level in (1, 2, 3):
        reference[4 * level : 4 * level + 3, 5:15, 5:15] = level
    # C1 is missed, and C2 and C3 are called C1 and C2.
    labels = np.where(reference > 1, reference - 1, 0).astype(np.uint8)
    rows = score(labels, Volume(reference, STRAIGHT), ScoringConfig(WHOLE, {}), dict.fromkeys((1, 2, 3)))["structures"]
    assert [row["dice_shifted"] for row in rows] == [0, 1, 1]


def test_the_best_consistent_shift_is_found_and_ties_go_to_none() -> None:
    reference = np.repeat(np.arange(8, 14), 50).astype(np.uint8)
    assert best_shift(confusion_matrix(reference + 2, reference), [8, 9, 10]) == (-2, 1.0)
    assert best_shift(confusion_matrix(reference, reference), [8, 9, 10]) == (0, 1.0)
    assert best_shift(confusion_matrix(0 * reference, reference), [8, 9, 10]) == (0, 0.0)
    assert best_shift(confusion_matrix(reference, reference), []) == (0, None)


def test_the_bootstrap_draws_groups_and_repeats() -> None:
    groups = [[0.0] * 9, [1.0]]
    entry = mean_with_interval(groups)
    assert entry == mean_with_interval(groups)
    assert entry["mean"] == 0.1 and entry["interval"] == [0, 1]
    one_by_one = mean_with_interval(grouped({"a": groups[0], "b": groups[1]}, "structures"))
    assert one_by_one["mean"] == 0.1 and one_by_one["interval"][1] == pytest.approx(0.3)
    assert mean_with_interval([[0.5, 0.7], []])["interval"] is None
    assert mean_with_interval([])["mean"] is None


def test_the_interval_of_a_mean_is_that_of_the_normal_law_for_many_cases() -> None:
    values = np.random.default_rng(5).normal(0.8, 0.1, 400)
    low, high = mean_with_interval([[value] for value in values])["interval"]
    half = 1.96 * values.std() / 20
    assert (values.mean() - low, high - values.mean()) == pytest.approx((half, half), rel=0.15)


@pytest.mark.parametrize(
    ("report", "certain"),
    [
        (None, None),
        ({"segments": [{"value": 20}]}, None),
        ({"numbering": {"certain": False}, "segments": []}, False),
        ({"numbering": None, "segments": [{"level_certain": True}, {"level_certain": False}]}, False),
        ({"segments": [{"level_certain": True}]}, True),
    ],
)
def test_a_run_may_say_that_it_does_not_know_the_numbers(
    report: Mapping[str, Any] | None, certain: bool | None
) -> None:
    assert reported_certainty(report) is certain


def crop(wrong: int, certain: bool | None, landmark: bool = False) -> dict[str, Any]:
    return {"landmark": landmark, "numbering": {"wrong": wrong, "certain": certain}}


def test_crops_are_counted_by_what_was_right_and_what_was_left_open() -> None:
    crops = [crop(0, True), crop(3, None), crop(3, True), crop(5, False), crop(0, False), crop(0, None, True)]
    counts = abstentions(crops)
    assert counts["no_landmark"] == {
        "crops": 5,
        "right": 1,
        "wrong": 2,
        "abstained_right": 1,
        "abstained_wrong": 1,
        "abstention_rate": 0.5,
    }
    assert counts["landmark"]["right"] == counts["landmark"]["crops"] == 1
    assert counts["landmark"]["abstention_rate"] is None


@pytest.fixture(scope="module")
def column() -> tuple[Volume, Volume]:
    """An image of seven vertebrae, T5 to T11, and their labels."""
    labels = np.zeros((100, 30, 30), dtype=np.uint8)
    for number in range(7):
        labels[88 - 13 * number : 98 - 13 * number, 9:21, 9:21] = 12 + number
    geometry = STRAIGHT.__class__((30, 30, 100), (1.5, 1.5, 1.5), (0.0, 0.0, 0.0), STRAIGHT.direction)
    return Volume(np.where(labels > 0, 500, -900).astype(np.int16), geometry), Volume(labels, geometry)


def results(column: tuple[Volume, Volume], folder: Path, certain: bool) -> list[dict[str, Any]]:
    """Return what a tool gets that knows the whole column, and in crops is one level off and says so or not."""
    for name, volume in zip(("x_ct.nii.gz", "x_vertebrae.nii.gz"), column, strict=True):
        write(folder / name, volume)

    def predict(name: str, image: Volume) -> tuple[Volume, Mapping[str, Any] | None]:
        labels, _ = on_grid(column[1], image.geometry)
        if len(image.array) == len(column[0].array):
            return labels, None
        report = {"numbering": {"certain": certain}, "model": {}, "run": {"device_title": "none"}}
        return Volume(np.where(labels.array > 0, labels.array + 1, 0).astype(np.uint8), image.geometry), report

    (case,) = find_cases([folder], "vertebrae")
    return list(evaluate_case(case, ["crop"], predict, spine_model(), CONFIG))


def test_a_crop_whose_numbers_are_left_open_is_scored_after_the_best_shift(
    column: tuple[Volume, Volume], tmp_path: Path
) -> None:
    open_, sure = (results(column, tmp_path, certain) for certain in (False, True))
    assert [case["perturbation"] for case in open_] == ["native", "crop 12-16", "crop 13-17", "crop 14-18"]
    assert dice_loss(open_, "cases")["mean"] == 0 and dice_loss(open_, "cases")["abstained"] == 3
    assert dice_loss(sure, "cases")["mean"] == 1 and dice_loss(sure, "cases")["abstained"] == 0
    whole = evaluation(sure, CONFIG, {"id": "x"})
    assert whole["crops"]["crop"]["no_landmark"]["wrong"] == 3
    assert whole["certainty"]["crop"]["wrong_certain"] == 3
    assert whole["certainty"]["crop"]["wrong_and_certain"][0] == "x, crop 12-16"
    assert whole["summary"]["crop"]["dice"]["values"] == 15
    assert "cropped to 5 vertebrae | 15 | 1.000 | 0.000 | +1.000" in to_markdown(whole, "pictures")
    assert worst_first(sure)[-1]["perturbation"] == "native"
    difference = compare(evaluation(sure, CONFIG, {}), evaluation(open_, CONFIG, {}), "cases")
    assert difference["crop"]["dice"]["values"] == 15 and difference["crop"]["dice"]["mean"] == 0


def test_pictures_show_the_reference_also_where_nothing_was_found() -> None:
    planes = choose_planes(phantom(), 0 * REFERENCE.array, REFERENCE.array)
    assert all(plane.sections == {} for plane in planes)
    assert [len(plane.references) for plane in planes] == [1, 3, 3]
    without, with_reference = (
        draw(compose(phantom(), REFERENCE.array, spine_model(), "x", r)) for r in (None, REFERENCE.array)
    )
    assert without != with_reference
