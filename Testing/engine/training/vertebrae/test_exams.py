"""Real MR with bodies: what nobody has labelled is no background, and test people stay out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers.small_spine import block

from segmamba.errors import InputError
from segmamba.io.volume import Geometry, to_image
from segmamba.models.manifest import IntensityNormalization
from segmamba.training.losses import SACRUM_IF_BONE, UNKNOWN, VERTEBRA_IF_BONE
from segmamba.training.synthesis.tissue_labels import VERTEBRAE
from segmamba.training.vertebrae.exams import cropped, describe, load_exams, main, prepare, sampled
from segmamba.training.vertebrae.samples import RealExams, VertebraSynthesizer

CPU = torch.device("cpu")
CHANNELS = {
    "CT": (IntensityNormalization("clip", -5000.0, 5000.0, 0.0, 1.0),),
    "MR": (IntensityNormalization("relative", -1.0, 1000.0, 0.0, 1.0),),
}


def bodies(levels: tuple[int, ...] = (23, 24)) -> np.ndarray:
    """Boxes of 20 x 24 x 30 mm, the first on top, with 8 mm between them; their posterior wall is at y = 36.5."""
    labels = np.zeros((110, 70, 50), np.uint8)
    for number, level in enumerate(levels):
        top = 90 - 28 * number
        labels[top - 20 : top, 13:37, 10:40] = level
    return labels


def write_exam(folder: Path, name: str) -> None:
    labels = bodies((22, 23, 24))
    grid = Geometry(labels.shape[::-1], (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    image = (40 + 100 * (labels > 0)).astype(np.uint8)
    sitk.WriteImage(to_image(image, grid), str(folder / f"{name}_mr.nii.gz"))
    sitk.WriteImage(to_image(labels, grid), str(folder / f"{name}_bodies.nii.gz"))


def test_only_what_the_reference_says_is_known() -> None:
    codes, centres = describe(bodies())
    assert codes[80, 20, 25] == 23 and codes[50, 20, 25] == 24
    assert codes[66, 20, 25] == 0  # the disc
    assert codes[80, 5, 25] == codes[55, 20, 2] == 0  # in front, and at the side
    assert codes[80, 50, 25] == VERTEBRA_IF_BONE  # behind the wall
    assert codes[100, 20, 25] == VERTEBRA_IF_BONE  # above: another vertebra may be there, the sacrum is not
    assert codes[20, 20, 25] == codes[25, 40, 25] == SACRUM_IF_BONE
    assert codes[38, 60, 25] == UNKNOWN  # behind the top of the sacrum
    assert centres[:, 0].tolist() == [23, 24]
    assert centres[0, 2] == pytest.approx(24.5 + 0.41 * 23, abs=1)  # behind the body's centre


def test_below_a_body_that_is_not_the_last_lumbar_one_nothing_is_known() -> None:
    codes, _ = describe(bodies((21, 22)))
    assert (codes[:35, 13:37] == UNKNOWN).all()


def test_people_to_test_with_are_not_prepared(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_exam(tmp_path, name)
    (tmp_path / "split.csv").write_text("exam,part\na,train\nb,test\n", encoding="utf-8")
    assert prepare(tmp_path, tmp_path / "out") == ["a"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.npz"]
    (exam,) = load_exams([tmp_path / "out" / "a.npz"], CPU)
    assert sorted(exam.centres) == [22, 23, 24]
    assert float(exam.image.max()) == 140


def test_a_folder_without_exams_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), str(tmp_path / "out")]) == InputError.exit_code
    assert "holds no pair NAME_mr.nii.gz and NAME_bodies.nii.gz" in capsys.readouterr().err


def test_real_samples_keep_image_and_labels_together(tmp_path: Path) -> None:
    write_exam(tmp_path, "a")
    prepare(tmp_path, tmp_path / "out")
    exams = load_exams([tmp_path / "out" / "a.npz"], CPU)
    anatomy = block(np.full((9, 9, 9), 20, dtype=np.uint8), v20=(4, 4, 4))
    source = VertebraSynthesizer([anatomy], (40, 32, 24), 2.0, CHANNELS, None, 3, RealExams(exams, 1.0))
    batch = source.batch(12)
    allowed = {0, 22, 23, 24, VERTEBRA_IF_BONE, SACRUM_IF_BONE, UNKNOWN}
    assert {22, 23, 24} < set(batch.levels.unique().tolist()) <= allowed
    assert (batch.ribs == UNKNOWN).all()
    assert batch.image.isfinite().all()
    body = (batch.levels > 0) & (batch.levels <= VERTEBRAE)
    for image, inside, levels in zip(batch.image[:, 0], body, batch.levels, strict=True):
        if inside.sum() > 200 and (levels == 0).sum() > 200:
            assert image[inside].mean() > 1.2 * image[levels == 0].mean()
    # Offsets lead to one point of each vertebra.
    place = torch.stack(torch.meshgrid(*(torch.arange(n) * 2.0 for n in (40, 32, 24)), indexing="ij"))
    votes = (batch.offsets[0] + place)[:, batch.levels[0] == 23]
    if votes.shape[1]:
        assert votes.std(dim=1).max() < 0.01


def test_an_exam_that_stays_in_main_memory_gives_the_same_samples(tmp_path: Path) -> None:
    write_exam(tmp_path, "a")
    prepare(tmp_path, tmp_path / "out")
    (exam,) = load_exams([tmp_path / "out" / "a.npz"], CPU)
    places = torch.stack(torch.meshgrid(*(torch.arange(n) + 0.3 for n in (20, 16, 12)), indexing="ij"))
    for start in ((40.0, 20.0, 10.0), (-9.0, 60.0, 41.0), (100.0, -6.0, -20.0)):
        where = places + torch.tensor(start).view(3, 1, 1, 1)
        whole, part = sampled(exam, where), sampled(*cropped(exam, where))
        inside = whole[2]
        assert all(torch.equal(a[inside], b[inside]) for a, b in zip(whole[1:], part[1:], strict=True))
        torch.testing.assert_close(whole[0][inside], part[0][inside])
        assert cropped(exam, where)[0].image.numel() < exam.image.numel() / 10


def test_a_file_of_another_kind_is_one_sentence(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", image=np.zeros((2, 2, 2), np.float16), labels=np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(InputError, match="holds no centres: make it again"):
        load_exams([tmp_path / "x.npz"], CPU)
