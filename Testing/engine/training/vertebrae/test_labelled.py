"""Vertebrae that are labelled by level: what they are called, and what their labels do not say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from segmamba.errors import InputError
from segmamba.io.modality import CT
from segmamba.io.volume import Geometry, Volume
from segmamba.models.manifest import IntensityNormalization
from segmamba.training.losses import SACRUM_IF_BONE, UNKNOWN, VERTEBRA_IF_BONE, vertebra_loss
from segmamba.training.synthesis.tissue_labels import VERTEBRAE
from segmamba.training.vertebrae.exams import load_exams, write_exam
from segmamba.training.vertebrae.labelled import (
    are_bodies,
    as_levels,
    describe_whole,
    labelled_exam,
    levels_of,
    proportions,
    storable,
)
from segmamba.training.vertebrae.samples import RealExams, VertebraSynthesizer

CPU = torch.device("cpu")
EYE = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
CHANNELS = {"CT": (IntensityNormalization("clip", -1000.0, 1000.0, 0.0, 500.0),), "MR": ()}


def column(levels: tuple[int, ...]) -> np.ndarray:
    """Blocks of 16 x 40 x 30 mm, the first on top, with 6 mm between them."""
    labels = np.zeros((22 * len(levels) + 18, 60, 50), np.uint8)
    for number, level in enumerate(reversed(levels)):
        start = 12 + 22 * number
        labels[start : start + 16, 10:50, 10:40] = level
    return labels


def exam_volumes(labels: np.ndarray) -> tuple[Volume, Volume]:
    geometry = Geometry(labels.shape[::-1], (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), EYE)
    image = np.where(labels > 0, 400, 40).astype(np.int16)
    return Volume(image, geometry), Volume(labels, geometry)


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("L1", 20),
        ("vertebrae_L5", 24),
        ("T12 vertebra", 19),
        ("c2 body", 2),
        ("Sacrum", 26),
        ("S1", 26),
        ("label 9", 9),
        ("T13", UNKNOWN),
        ("label 28", UNKNOWN),
    ],
)
def test_a_level_is_known_by_its_usual_names(name: str, level: int) -> None:
    assert levels_of({"C1": 1, name: 7})[name] == level


def test_other_structures_are_no_levels() -> None:
    found = levels_of({"L1 vertebra": 1, "disc L1-L2": 2, "cord": 3, "L1 transverse process": 4})
    assert found == {"L1 vertebra": 20}
    with pytest.raises(InputError, match="name them by level"):
        levels_of({"cube": 1})
    with pytest.raises(InputError, match="'L1' and 'vertebrae_L1' are one level"):
        levels_of({"L1": 1, "vertebrae_L1": 2})


def test_bodies_are_known_by_their_name() -> None:
    assert are_bodies({"L1 body": 1}) and are_bodies({"vertebral bodies": 1})
    assert not are_bodies({"L1 vertebra": 1})


def test_bodies_are_known_by_their_shape() -> None:
    _, whole = exam_volumes(column((20, 21)))
    assert min(proportions(whole)) > 2
    _, bodies = exam_volumes(column((20, 21))[:, 30:48])
    assert max(proportions(bodies)) < 1.3
    _, cut = exam_volumes(column((20, 21))[15:])
    assert len(proportions(cut)) == 1
    turned = Geometry(whole.geometry.size, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 0, 1.0, 0, -1.0, 0))
    assert max(proportions(Volume(whole.array, turned))) < 0.5


def test_values_become_levels() -> None:
    found = as_levels(np.array([0, 3, 4, 5, 9]), {"L1": 3, "disc": 4, "T13": 5}, {"L1": 20, "T13": UNKNOWN}, 9)
    assert found.tolist() == [0, 20, 0, UNKNOWN, UNKNOWN]


def test_beyond_the_labelled_vertebrae_nothing_is_known() -> None:
    codes, centres = describe_whole(column((20, 21, 22)))
    assert codes[30, 5, 5] == 0  # beside L2
    assert codes[-3, 5, 5] == codes[3, 5, 5] == UNKNOWN
    assert centres[:, 0].tolist() == [20, 21, 22]
    assert centres[1, 1:] == pytest.approx([41.5, 29.5, 24.5])


def test_above_the_first_and_below_the_last_there_is_no_other() -> None:
    top, _ = describe_whole(column((1, 2)))
    assert top[-3, 5, 5] == 0 and top[3, 5, 5] == UNKNOWN
    bottom, _ = describe_whole(column((24, 26)))
    assert bottom[3, 5, 5] == 0 and bottom[-3, 5, 5] == UNKNOWN


def test_where_a_level_is_left_out_nothing_is_known() -> None:
    codes, _ = describe_whole(column((20, 22)))
    assert codes[30, 5, 5] == UNKNOWN


def test_a_vertebra_that_the_image_cuts_has_no_centroid() -> None:
    _, centres = describe_whole(column((20, 21))[15:])
    assert centres[:, 0].tolist() == [20]
    _, sides = describe_whole(column((20, 21))[:, :, 15:35])
    assert len(sides) == 2


def test_bodies_leave_open_what_is_behind_them() -> None:
    image, levels = exam_volumes(column((23, 24)))
    _, codes, _ = labelled_exam(image, levels, bodies=True)
    assert codes[20, 55, 25] == VERTEBRA_IF_BONE and codes[2, 20, 25] == SACRUM_IF_BONE
    assert codes[20, 5, 25] == 0
    with pytest.raises(InputError, match="fewer than two"):
        labelled_exam(*exam_volumes(column((24,))), bodies=True)


@pytest.mark.parametrize(("modality", "scale"), [("MR", 1e6), ("MR", 1e-5), ("MR", 1.0), (CT, 1000.0)])
def test_values_fit_half_precision_and_keep_their_contrast(modality: str, scale: float) -> None:
    image, _ = exam_volumes(column((20, 21)))
    scaled = replace(image, array=image.array.astype(np.float64) * scale)
    half = storable(scaled, modality).array.astype(np.float16)
    assert np.isfinite(half).all()
    if modality == CT:
        assert half.max() <= 3072
    else:
        assert half.max() / half.min() == pytest.approx(10, rel=1e-2)


def test_samples_of_a_real_ct_need_no_label_maps(tmp_path) -> None:  # type: ignore[no-untyped-def]
    image, codes, centres = labelled_exam(*exam_volumes(column((20, 21, 22))), bodies=False)
    write_exam(tmp_path / "a.npz", image, codes, centres[:1], CT)
    exams = load_exams([tmp_path / "a.npz"], CPU)
    batch = VertebraSynthesizer([], (40, 32, 24), 2.0, CHANNELS, seed=3, real=RealExams(exams, 1.0)).batch(6)
    assert {20, 21, UNKNOWN} < set(batch.levels.unique().tolist()) <= {0, 20, 21, 22, UNKNOWN}
    bone = (batch.levels > 0) & (batch.levels <= VERTEBRAE)
    assert batch.image[:, 0][bone].median() > 0.5
    # Only L1's centroid is known: the others' offsets are left out of the loss.
    known = batch.offsets.isfinite().all(dim=1)
    assert known[batch.levels == 20].all() and not known[batch.levels == 21].any()
    answer = torch.randn(6, 33, 40, 32, 24, requires_grad=True)
    loss = vertebra_loss(answer, batch.levels, batch.offsets, batch.ribs)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite() and answer.grad is not None and answer.grad.isfinite().all()
