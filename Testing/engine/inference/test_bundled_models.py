"""The bundled checkpoints on real CTs that they were never trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from segmamba.evaluation.metrics import dice_foreground
from segmamba.inference.pipeline import segment
from segmamba.io.read import read_volume
from segmamba.models.manifest import load_manifest
from segmamba.request import Options

MODEL = load_manifest().default("vertebrae")
TOTALSEGMENTATOR_COLON = 20
OPTIONS = Options(device="cpu")


@pytest.fixture(scope="module")
def neck_ct(shared: Path) -> Path:
    return shared / "data/val/ct/totalseg_s0003_ct.nii.gz"


@pytest.fixture(scope="module")
def labels(neck_ct: Path) -> np.ndarray:
    return segment(read_volume(neck_ct), MODEL, OPTIONS).labels


@pytest.mark.slow
def test_vertebrae_of_a_real_ct_are_found(neck_ct: Path, labels: np.ndarray) -> None:
    reference = sitk.GetArrayFromImage(sitk.ReadImage(str(neck_ct).replace("_ct.", "_vertebrae.")))
    # The bundled checkpoint reaches 0.84 here: less than 0.8 means that something broke.
    assert dice_foreground(labels, reference) > 0.8
    assert len(np.unique(labels)) > 8


@pytest.mark.slow
def test_a_permuted_and_flipped_copy_in_another_format_gets_the_same_labels(
    neck_ct: Path, labels: np.ndarray, tmp_path: Path
) -> None:
    image = sitk.ReadImage(str(neck_ct))
    copy = sitk.Flip(sitk.PermuteAxes(image, [2, 0, 1]), [True, False, True])
    sitk.WriteImage(copy, str(tmp_path / "copy.nrrd"))
    array = segment(read_volume(tmp_path / "copy.nrrd"), MODEL, OPTIONS).labels
    result = sitk.GetImageFromArray(array)
    result.CopyInformation(copy)
    back = sitk.GetArrayFromImage(sitk.Resample(result, image, sitk.Transform(), sitk.sitkNearestNeighbor))
    assert (back != labels).sum() <= 0.005 * (labels > 0).sum()


@pytest.mark.slow
def test_bowel_of_a_real_ct_is_found_and_hardly_a_tumour(shared: Path) -> None:
    ct = shared / "data/val/ct/totalseg_example_ct.nii.gz"
    model = load_manifest().default("colorectal")
    # Windows that do not overlap take a third of the time, and cost 0.03.
    labels = segment(read_volume(ct), model, Options(device="cpu", overlap=0.0)).labels
    reference = sitk.GetArrayFromImage(sitk.ReadImage(str(ct).replace("_ct.", "_organs."))) == TOTALSEGMENTATOR_COLON
    assert dice_foreground(labels, reference.astype(np.uint8)) > 0.7
    assert set(np.unique(labels)) >= {0, 2, 3}
    # No tumour is known in this patient: one piece of 15 mL, not the 54 mL of what the network is less sure of.
    assert (labels == 1).sum() < 0.02 * (labels > 0).sum()
