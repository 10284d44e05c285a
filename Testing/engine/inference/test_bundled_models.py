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
# Windows that do not overlap take half the time.
OPTIONS = Options(device="cpu", overlap=0.0)


# Lower neck, where it is smallest: z, y, x of the neck CT.
PART = np.s_[26:83, 43:115, 20:92]


@pytest.fixture(scope="module")
def neck(shared: Path) -> tuple[sitk.Image, np.ndarray]:
    """A part of a real CT, and its reference."""
    ct = shared / "data/val/ct/totalseg_s0003_ct.nii.gz"
    z, y, x = PART
    images = (sitk.ReadImage(str(path)) for path in (ct, str(ct).replace("_ct.", "_vertebrae.")))
    image, reference = (image[x, y, z] for image in images)
    return image, sitk.GetArrayFromImage(reference)


def found_in(image: sitk.Image, path: Path) -> np.ndarray:
    """Return the labels of an image that is written to a file first."""
    sitk.WriteImage(image, str(path))
    return segment(read_volume(path), MODEL, OPTIONS).labels


@pytest.fixture(scope="module")
def labels(neck: tuple[sitk.Image, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    return found_in(neck[0], tmp_path_factory.mktemp("neck") / "neck.nii.gz")


@pytest.mark.slow
def test_vertebrae_of_a_real_ct_are_found(neck: tuple[sitk.Image, np.ndarray], labels: np.ndarray) -> None:
    # The bundled checkpoint reaches 0.94 here: less than 0.8 means that something broke.
    assert dice_foreground(labels, neck[1]) > 0.8
    assert len(np.unique(labels)) >= 8


@pytest.mark.slow
def test_a_permuted_and_flipped_copy_in_another_format_gets_the_same_labels(
    neck: tuple[sitk.Image, np.ndarray], labels: np.ndarray, tmp_path: Path
) -> None:
    image = neck[0]
    copy = sitk.Flip(sitk.PermuteAxes(image, [2, 0, 1]), [True, False, True])
    result = sitk.GetImageFromArray(found_in(copy, tmp_path / "copy.nrrd"))
    result.CopyInformation(copy)
    back = sitk.GetArrayFromImage(sitk.Resample(result, image, sitk.Transform(), sitk.sitkNearestNeighbor))
    assert (back != labels).sum() <= 0.005 * (labels > 0).sum()


@pytest.mark.slow
def test_bowel_of_a_real_ct_is_found_and_hardly_a_tumour(shared: Path, tmp_path: Path) -> None:
    ct = shared / "data/val/ct/totalseg_example_ct.nii.gz"
    model = load_manifest().default("colorectal")
    lower, organs = (sitk.ReadImage(str(path))[:, :, :56] for path in (ct, str(ct).replace("_ct.", "_organs.")))
    sitk.WriteImage(lower, str(tmp_path / "lower.nii.gz"))
    # Windows that do not overlap take a third of the time, and cost 0.03.
    labels = segment(read_volume(tmp_path / "lower.nii.gz"), model, Options(device="cpu", overlap=0.0)).labels
    reference = sitk.GetArrayFromImage(organs) == TOTALSEGMENTATOR_COLON
    assert dice_foreground(labels, reference.astype(np.uint8)) > 0.7
    assert set(np.unique(labels)) >= {0, 2, 3}
    # No tumour is known in this patient: one component of 8 mL.
    assert (labels == 1).sum() < 0.02 * (labels > 0).sum()
