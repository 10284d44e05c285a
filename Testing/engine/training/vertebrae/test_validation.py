"""Cases that a training of vertebrae is evaluated on: made of a CT and its labels, or refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.phantoms import phantom, true_labels, write_pair

from segmamba.errors import InputError
from segmamba.io.volume import Volume
from segmamba.models.manifest import load_manifest
from segmamba.training.vertebrae import validation as evaluation


def test_an_evaluation_case_lies_on_the_models_grid_in_hounsfield_units(tmp_path: Path) -> None:
    write_pair(tmp_path)
    given = [str(tmp_path / name) for name in ("ct.nii.gz", "labels.nii.gz")]
    assert evaluation.main([*given, "spinemamba", str(tmp_path / "phantom.npz")]) == 0
    with np.load(tmp_path / "phantom.npz") as case:
        image, labels = case["image"], case["labels"]
    assert image.shape == labels.shape
    assert (image.dtype, labels.dtype) == (np.int16, np.uint8)
    assert np.median(image[labels > 0]) == 500
    voxels = {20: 28.0 * 21.0 * 13.0, 22: 28.0 * 21.0 * 13.0}
    for value, radii in voxels.items():
        assert (labels == value).sum() * 2.0**3 == pytest.approx(4 / 3 * math.pi * radii, rel=0.03)


def test_an_mr_image_makes_no_evaluation_case() -> None:
    volume = phantom()
    mr = Volume(volume.array - volume.array.min(), volume.geometry)
    with pytest.raises(InputError, match="choose a CT"):
        evaluation.evaluation_case(mr, Volume(true_labels(volume.geometry), volume.geometry), load_manifest().models[0])


def test_labels_that_do_not_belong_to_the_image_are_refused() -> None:
    volume = phantom()
    model = load_manifest().model("spinemamba")
    labels = true_labels(volume.geometry)
    elsewhere = Volume(labels, replace(volume.geometry, origin=(5000.0, 0.0, 0.0)))
    with pytest.raises(InputError, match="No label lies on the image"):
        evaluation.evaluation_case(volume, elsewhere, model)
    with pytest.raises(InputError, match="values from 0 to 26"):
        evaluation.evaluation_case(volume, Volume(2 * labels, volume.geometry), model)


def test_a_bad_evaluation_case_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pair(tmp_path)
    case = str(tmp_path / "never.npz")
    assert evaluation.main([str(tmp_path / "ct.nii.gz"), "nowhere.nii", "spinemamba", case]) == 3
    assert evaluation.main([str(tmp_path / "ct.nii.gz"), str(tmp_path / "labels.nii.gz"), "x", case]) == 4
    assert evaluation.main([str(tmp_path / "ct.nii.gz"), str(tmp_path / "labels.nii.gz"), "spinemamba", "a.txt"]) == 6
    assert capsys.readouterr().err.count("\n") == 3
    assert not Path(case).exists()
