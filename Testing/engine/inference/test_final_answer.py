"""The probabilities behind the labels and their uncertainty, as files on the volume's own voxels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import tiny_case

from segmamba.errors import OutputError
from segmamba.inference.final_answer import STEPS_PER_BIT, FinalAnswer
from segmamba.inference.model_grid import Box, ModelGrid
from segmamba.inference.prediction import Prediction
from segmamba.io.volume import Geometry
from segmamba.models.manifest import load_manifest
from segmamba.remote.job import segment_on_server
from segmamba.request import Request

MODEL = load_manifest().default("vertebrae")
LEVELS = ("L1 vertebra", "L2 vertebra", "L3 vertebra")
ROW = Geometry((6, 1, 1), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_case.write(tmp_path_factory.mktemp("case"))


def segment(folder: Path, name: str, *more: str) -> int:
    return tiny_case.segment(folder, f"{name}.nii.gz", *more)


def test_probabilities_are_those_of_the_labels_in_both_formats(folder: Path) -> None:
    volumes = ("--probabilities", str(folder / "p.nrrd"), "--uncertainty", str(folder / "u.nii.gz"))
    assert segment(folder, "first", *volumes, "--report", str(folder / "r.json")) == 0
    assert segment(folder, "second", "--probabilities", str(folder / "p.nii.gz")) == 0
    report = json.loads((folder / "r.json").read_text(encoding="utf-8"))
    names = report["probabilities"]["channels"]
    assert names == ["Background", *LEVELS] and report["uncertainty"]["unit"] == "0.01 bit"
    image = sitk.ReadImage(str(folder / "p.nrrd"))
    assert [image.GetMetaData(f"Channel{number}_Name") for number in range(4)] == names
    # ITK takes the axis that is none of space for the components of voxels.
    found = sitk.GetArrayFromImage(image).transpose(3, 0, 1, 2)
    labels = sitk.ReadImage(str(folder / "first.nii.gz"))
    array = sitk.GetArrayFromImage(labels)
    assert found.shape == (4, *array.shape) and found.dtype == np.uint8
    assert image.GetOrigin() == pytest.approx(labels.GetOrigin(), abs=1e-4)
    assert image.GetDirection() == pytest.approx(labels.GetDirection(), abs=1e-5)
    same = nibabel.load(folder / "p.nii.gz")
    np.testing.assert_array_equal(np.asarray(same.dataobj).transpose(3, 2, 1, 0), found)
    np.testing.assert_allclose(same.affine, nibabel.load(folder / "first.nii.gz").affine)
    # They sum to one, and the label is the most probable one.
    assert np.abs(found.sum(axis=0, dtype=int) - 255).max() <= 2
    own = np.select([array == value for value in (20, 21, 22)], [found[1], found[2], found[3]], found[0])
    assert (own.astype(int) >= found.max(axis=0).astype(int) - 1)[array > 0].all()
    for segment_, value in zip(report["segments"], (20, 21, 22), strict=True):
        mean = found[names.index(segment_["name"])][array == value].mean() / 255
        assert mean == pytest.approx(segment_["mean_confidence"], abs=0.005)
    parts = found.astype(float) / found.sum(axis=0)
    bits = -(parts * np.log2(np.maximum(parts, 1e-12))).sum(axis=0)
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "u.nii.gz")))
    assert np.abs(written - STEPS_PER_BIT * bits).max() < 6 and written.max() > 50


def test_where_they_cannot_be_written_is_found_before_the_work(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, name, text in (
        ("--probabilities", "p.mha", "use .nii.gz, .nii, .nrrd"),
        ("--uncertainty", "u.seg.nrrd", "would be a segmentation"),
        ("--probabilities", "ct.nii.gz", "is an input"),
    ):
        assert segment(folder, "third", option, str(folder / name)) == OutputError.exit_code
        assert text in capsys.readouterr().err
    # A server sends none, and is not asked.
    with pytest.raises(OutputError, match="sends no probabilities"):
        request = Request("in.nii.gz", "out.nii.gz", "vertebrae", uncertainty="u.nii.gz")
        segment_on_server(request, None, print, bool)  # type: ignore[arg-type]
    assert not (folder / "third.nii.gz").exists()


def answer(values: list[list[float]], model=MODEL, roi: Box | None = None, crop: slice = slice(0, 6)) -> FinalAnswer:
    """Return the answer of a row of six voxels, or of a part of it, on the volume's own grid."""
    probabilities = torch.tensor(values)[:, None, None]
    size = crop.stop - crop.start
    geometry = replace(ROW, size=(size, 1, 1), origin=(2.0 * crop.start, 0.0, 0.0))
    grid = ModelGrid(geometry, ROW, (slice(0, 1), slice(0, 1), crop), roi)
    levels = (0, 20, 21)[: len(values)]
    return FinalAnswer(Prediction(probabilities, levels, grid, ()), model, None)


def test_what_was_not_looked_at_is_background_and_certain() -> None:
    part = answer([[0.5, 0.0], [0.5, 0.2], [0.0, 0.8]], crop=slice(2, 4))
    background, l1, l2 = (channel[0, 0].tolist() for channel in part.channels())
    assert background == [255, 255, 128, 0, 255, 255] and l1 == [0, 0, 128, 51, 0, 0] and l2[3] == 204
    assert part.uncertainty()[0, 0].tolist() == [0, 0, 100, 72, 0, 0]


def test_outside_of_a_region_of_interest_all_is_background() -> None:
    row = [[0.0] * 6, [1.0] * 6]
    found = answer(row, roi=Box((3.0, -1.0, -1.0), (7.0, 1.0, 1.0)))
    background, l1 = (channel[0, 0].tolist() for channel in found.channels())
    assert l1 == [0, 0, 255, 255, 0, 0] and background == [255, 255, 0, 0, 255, 255]


def test_logits_become_probabilities_and_overlapping_regions_have_no_background() -> None:
    logits = answer([[0.0] * 6, [0.0] * 6], replace(MODEL, resamples_logits=True))
    assert [int(channel[0, 0, 0]) for channel in logits.channels()] == [128, 128]
    found = answer([[0.5] * 6, [0.9] * 6, [0.5] * 6], replace(MODEL, has_regions=True))
    assert found.names == ("L1 vertebra", "L2 vertebra")
    assert [int(channel[0, 0, 0]) for channel in found.channels()] == [230, 128]
    # One bit of the second one.
    assert found.uncertainty()[0, 0].tolist() == [100] * 6
