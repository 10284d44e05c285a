"""Evaluations of models that take several volumes, and of regions that overlap."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from helpers import brain
from helpers.phantoms import STRAIGHT, phantom, true_labels

from segmamba.cli.main import main
from segmamba.errors import InputError, ModelError
from segmamba.evaluation.cases import find_cases
from segmamba.evaluation.names import PERTURBATIONS, PLAIN
from segmamba.evaluation.perturbations import perturb
from segmamba.evaluation.scores import ScoringConfig, score
from segmamba.io.modality import CT
from segmamba.io.volume import Volume, to_image
from segmamba.models.manifest import InputChannel, load_manifest

REGIONS = {"whole tumour": [5, 7], "tumour core": [7]}
CHANNELS = tuple(InputChannel(name, "MR") for name in brain.CHANNELS)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return brain.write_brain_model(tmp_path_factory.mktemp("brain"), regions=REGIONS)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A folder with two cases, one named as nnU-Net does and one by channels, and what the model finds in them."""
    folder = tmp_path / "pairs"
    brain.write_channels(folder, "a_", ("0000", "0001", "0002"))
    brain.write_channels(folder, "b-", ("T1c", "t1n", "t2f"))
    labels = brain.expected_labels([brain.channel(seed) for seed in range(3)])
    for name in ("a.nii.gz", f"b_{brain.TASK}.nii.gz"):
        sitk.WriteImage(to_image(labels, brain.GRID), str(folder / name))
    return folder


def evaluate(pairs: Path, manifest: Path, output: Path, *more: str) -> int:
    options = ("--model", brain.BRAIN_ID, "--manifest", str(manifest), "--device", "cpu", "--precision", "float32")
    return main(["evaluate", str(pairs), *options, "--output", str(output), *more])


def test_a_model_of_several_volumes_is_run_on_all_of_them_and_on_their_versions(
    pairs: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pairs / f"b_{brain.TASK}.nii.gz").unlink()
    assert evaluate(pairs, manifest, tmp_path / "out", "--perturbations", "storage") == 0
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert [(case["case"], case["perturbation"]) for case in result["cases"]] == [("a", "native"), ("a", "storage")]
    for case in result["cases"]:
        assert [row["name"] for row in case["structures"]] == list(REGIONS)
        assert min(row["dice"] for row in case["structures"]) > 0.99
    assert (tmp_path / "out" / "pictures" / "a-storage.png").is_file()
    assert "1/1 a, native: mean Dice 1.000, foreground 1.000\n" in capsys.readouterr().out
    text = (tmp_path / "out" / "evaluation.md").read_text(encoding="utf-8")
    assert "## Structures\n" in text and "## Levels" not in text


def test_the_files_of_a_case_are_told_by_number_or_by_name(pairs: Path) -> None:
    first, second = find_cases([pairs], brain.TASK, channels=CHANNELS)
    assert (first.name, [path.name for path in first.channels]) == ("a", [f"a_000{n}.nii.gz" for n in range(3)])
    assert [path.name for path in second.channels] == ["b-T1c.nii.gz", "b-t1n.nii.gz", "b-t2f.nii.gz"]
    assert first.image == first.channels[0] and first.modality == "MR"
    assert second.reference.name == f"b_{brain.TASK}.nii.gz"
    (pairs / "split.csv").write_text("exam,part\na,train\nb,test\n", encoding="utf-8")
    assert [case.name for case in find_cases([pairs], brain.TASK, channels=CHANNELS)] == ["b"]


def test_a_model_of_one_volume_takes_nnunets_cases_of_one(pairs: Path) -> None:
    with pytest.raises(InputError, match="holds no pair NAME_ct"):
        find_cases([pairs], "liver")
    for channel in ("0001", "0002"):
        (pairs / f"a_{channel}.nii.gz").unlink()
    (case,) = find_cases([pairs], "liver")
    assert (case.image.name, case.reference.name, case.channels) == ("a_0000.nii.gz", "a.nii.gz", ())


def test_a_case_without_a_channel_or_with_one_twice_ends_in_a_sentence(
    pairs: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pairs / "a_0001.nii.gz").rename(pairs / "a-t2f.nii.gz")
    assert evaluate(pairs, manifest, tmp_path / "out") == InputError.exit_code
    assert "a-t2f.nii.gz both are 't2f' of a: remove one of them." in capsys.readouterr().err
    (pairs / "a-t2f.nii.gz").unlink()
    assert evaluate(pairs, manifest, tmp_path / "out") == InputError.exit_code
    error = capsys.readouterr().err
    assert "has no file of a's channel 't1n' (a_0001 or a-t1n): add it, or move a.nii.gz." in error
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()
    (pairs / "a_0001.nii.gz").write_bytes((pairs / "a_0000.nii.gz").read_bytes())
    assert evaluate(pairs, manifest, tmp_path / "out") == InputError.exit_code
    assert "error: a: Channels t1c and t1n hold the same image: give each its own." in capsys.readouterr().err
    # An image without a reference is no case, and may lack what it likes.
    (pairs / "a.nii.gz").unlink()
    assert [case.name for case in find_cases([pairs], brain.TASK, channels=CHANNELS)] == ["b"]


def test_one_volume_is_too_few_for_the_model_but_not_for_label_maps(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tmp_path / "pairs"
    for name in (pairs, tmp_path / "found"):
        name.mkdir()
    labels = np.where(true_labels(STRAIGHT) > 20, 7, 5 * (true_labels(STRAIGHT) > 0)).astype(np.uint8)
    sitk.WriteImage(to_image(phantom().array, STRAIGHT), str(pairs / "x_mr.nii.gz"))
    for path in (pairs / f"x_{brain.TASK}.nii.gz", tmp_path / "found" / "x.nii.gz"):
        sitk.WriteImage(to_image(labels, STRAIGHT), str(path))
    assert evaluate(pairs, manifest, tmp_path / "out") == InputError.exit_code
    error = capsys.readouterr().err
    assert "x_mr.nii.gz is one volume, and the model 'tiny-brain' takes 3 (t1c, t1n, t2f): give x_0000.nii.gz" in error
    assert evaluate(pairs, manifest, tmp_path / "out", "--predictions", str(tmp_path / "found")) == 0
    assert evaluate(tmp_path / "found", manifest, tmp_path / "out2") == InputError.exit_code
    assert "holds no case NAME_0000.nii.gz to NAME_0002.nii.gz with" in capsys.readouterr().err


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_each_channel_is_perturbed_like_a_volume_of_its_own(kind: str) -> None:
    image, labels = phantom(), Volume(true_labels(STRAIGHT), STRAIGHT)
    labels = replace(labels, array=np.where(labels.array > 0, labels.array, 0))
    second = replace(image, array=(2 * image.array.astype(np.float32) + 7))
    both = replace(image, modality=CT, channels=(second.array, image.array))
    reasons = dict.fromkeys((20, 21, 22))
    for ours, alone in zip(perturb(kind, both, labels, reasons), perturb(kind, second, labels, reasons), strict=True):
        assert ours.image.geometry == alone.image.geometry
        np.testing.assert_array_equal(ours.image.channels[0], alone.image.array)
        assert ours.image.channels[1] is ours.image.array and ours.image.array.dtype == image.array.dtype
        assert ours.image.array.shape == ours.image.channels[0].shape == ours.reference.array.shape


def test_regions_are_compared_as_a_whole_and_not_as_what_lies_over_them_leaves() -> None:
    reference, found = np.zeros((2, 12, 10, 10), np.uint8)
    reference[2:8, 2:8, 2:8], reference[2:4, 2:8, 2:8] = 5, 7
    found[2:8, 2:8, 2:8] = 5
    parts = {value: (name, tuple(values)) for value, (name, values) in zip((5, 7), REGIONS.items(), strict=True)}
    names = {5: "whole tumour without tumour core", 7: "tumour core"}
    volume = Volume(reference, replace(STRAIGHT, size=(10, 10, 12)))
    whole, core = score(found, volume, ScoringConfig(PLAIN, names, parts), {5: None, 7: None})["structures"]
    assert (whole["name"], whole["dice"], whole["hd95_mm"], whole["covered_by"]) == ("whole tumour", 1.0, 0.0, 5)
    assert (core["dice"], core["assd_mm"], core["covered_by"]) == (0.0, None, 0)
    rest = score(found, volume, ScoringConfig(PLAIN, names), {5: None, 7: None})["structures"][0]
    assert rest["name"] == names[5] and rest["dice"] < 0.9


@pytest.mark.parametrize("regions", [{"whole tumour": [5, 7]}, {"whole tumour": [5, 7], "tumour core": [5]}])
def test_regions_that_are_not_the_outputs_of_the_network_are_refused(
    regions: dict[str, list[int]], manifest: Path, tmp_path: Path
) -> None:
    content = json.loads(manifest.read_text(encoding="utf-8"))
    content["models"][0]["regions"] = regions
    (tmp_path / "brain.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"'tiny-brain' has 'regions' that are not those of its channels: give each"):
        load_manifest(tmp_path / "brain.json")
