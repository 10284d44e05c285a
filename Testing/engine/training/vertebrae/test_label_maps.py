"""Tissue label maps: the vertebrae are those of the labels, and all the rest is invented around them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import small_spine
from helpers.small_spine import BODY, CANAL, LOWEST, slices_of
from scipy import ndimage

from segmamba.errors import InputError
from segmamba.training.synthesis.tissue_labels import (
    AIR,
    BRAIN,
    CORD,
    DISC,
    FAT,
    LIVER,
    OUTSIDE,
    RIBS,
    SKULL,
    SOFT,
    SPACING,
    VERTEBRAE,
    organ,
)
from segmamba.training.vertebrae import label_maps as anatomy
from segmamba.training.vertebrae.label_maps import JOINT_MM, add_rib_heads


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_spine.write_subjects(tmp_path_factory.mktemp("labels"))


@pytest.fixture(scope="module")
def with_organs(folder: Path) -> np.ndarray:
    return codes_of(folder / "whole_vertebrae.nii.gz", folder / "whole_organs.nii.gz")


@pytest.fixture(scope="module")
def bare(folder: Path) -> np.ndarray:
    return codes_of(folder / "bare_vertebrae.nii.gz", None)


def codes_of(vertebrae: Path, organs: Path | None, seed: int = 0) -> np.ndarray:
    return anatomy.tissue_label_map(vertebrae, organs, np.random.default_rng(seed))


def counts(labels: np.ndarray) -> dict[int, int]:
    values, numbers = np.unique(labels[(labels > 0) & (labels <= VERTEBRAE)], return_counts=True)
    return dict(zip(values.tolist(), numbers.tolist(), strict=True))


def test_vertebrae_keep_their_voxels(with_organs: np.ndarray) -> None:
    labels = small_spine.vertebrae()
    assert np.array_equal(np.where(with_organs <= VERTEBRAE, with_organs, 0), labels)


def test_a_bare_spine_keeps_its_vertebrae_in_a_body_of_its_own(bare: np.ndarray) -> None:
    assert counts(bare) == counts(small_spine.vertebrae())
    assert {AIR, FAT, SOFT} <= set(np.unique(bare).tolist())


def test_organs_keep_their_classes_and_the_data_sets_own_vertebrae_are_left_out(with_organs: np.ndarray) -> None:
    classes = small_spine.organs()
    top = slices_of(2).stop
    assert (with_organs[:top][classes[:top] == small_spine.LIVER] == LIVER).all()
    assert organ(small_spine.RIB) in with_organs
    assert organ(small_spine.L1) not in with_organs


@pytest.mark.parametrize("subject", ["with_organs", "bare"])
def test_discs_and_a_canal_appear_between_the_vertebrae(subject: str, request: pytest.FixtureRequest) -> None:
    tissues = request.getfixturevalue(subject)
    gap = slice(slices_of(0).stop, slices_of(1).start)
    if subject == "bare":  # its canvas starts at the lowest vertebra and is placed around the column
        z, y, x = np.nonzero((tissues > 0) & (tissues <= VERTEBRAE))
        shift = np.array((y.min() - (BODY[0] - 8), x.min() - (CANAL[1] - 9)))
        gap = slice(gap.start - LOWEST, gap.stop - LOWEST)
    else:
        shift = np.array((0, 0))
    body, canal = BODY + shift, CANAL + shift
    assert (tissues[gap, body[0], body[1]] == DISC).all()
    assert (tissues[gap, canal[0], canal[1]] == CORD).all()


def test_nothing_is_invented_above_the_top_vertebra(with_organs: np.ndarray, bare: np.ndarray) -> None:
    assert (with_organs[slices_of(2).stop :] == OUTSIDE).all()
    assert OUTSIDE not in with_organs[: slices_of(2).stop]
    assert len(bare) == slices_of(2).stop - LOWEST
    assert SKULL not in bare


def test_a_head_is_drawn_above_c1(tmp_path: Path) -> None:
    path = small_spine.write(tmp_path / "neck_vertebrae.nii.gz", small_spine.vertebrae(top=1))
    tissues = codes_of(path, None)
    above = tissues[slices_of(2).stop - LOWEST :]
    assert SKULL in above
    assert BRAIN in above
    assert counts(tissues) == counts(small_spine.vertebrae(top=1))
    organs = small_spine.write(tmp_path / "neck_organs.nii.gz", small_spine.organs())
    assert OUTSIDE not in codes_of(path, organs)


def test_the_seed_decides_what_is_invented(folder: Path, bare: np.ndarray) -> None:
    path = folder / "bare_vertebrae.nii.gz"
    assert np.array_equal(codes_of(path, None), bare)
    assert not np.array_equal(codes_of(path, None, seed=1), bare)


def test_the_command_writes_three_surroundings_for_a_bare_spine(folder: Path, tmp_path: Path) -> None:
    assert anatomy.main([str(folder), str(tmp_path / "maps")]) == 0
    names = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert names == ["bare_0.npz", "bare_1.npz", "bare_2.npz", "whole_0.npz"]
    first, second = (np.load(tmp_path / "maps" / name)["tissues"] for name in names[:2])
    assert counts(first) == counts(second)
    assert not np.array_equal(first, second)


def test_a_folder_without_label_maps_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert anatomy.main([str(tmp_path), str(tmp_path / "out")]) == InputError.exit_code
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_numbers_than_verses_are_refused(tmp_path: Path) -> None:
    path = small_spine.write(tmp_path / "x_vertebrae.nii.gz", small_spine.vertebrae(top=30))
    with pytest.raises(InputError, match="values from 0 to 26"):
        codes_of(path, None)


def test_organs_on_another_grid_are_refused(folder: Path, tmp_path: Path) -> None:
    organs = small_spine.write(tmp_path / "x_organs.nii.gz", small_spine.organs()[:-3])
    with pytest.raises(InputError, match="another grid"):
        codes_of(folder / "whole_vertebrae.nii.gz", organs)


def test_ribs_reach_the_vertebral_body_but_for_the_joint() -> None:
    tissues = np.full((40, 60, 80), SOFT, dtype=np.uint8)
    tissues[10:26, 20:40, 30:50] = 12  # T5
    fifth = RIBS[4]
    tissues[12:15, 42:45, 58:78] = fifth
    free = tissues == SOFT
    before = tissues.copy()
    add_rib_heads(tissues, free)
    assert np.array_equal(tissues[~free], before[~free])
    gap = ndimage.distance_transform_edt(tissues != 12, sampling=SPACING)[tissues == fifth]
    assert ndimage.distance_transform_edt(tissues != 12, sampling=SPACING)[before == fifth].min() > 10
    assert JOINT_MM < gap.min() < 2 * JOINT_MM + SPACING
    _, pieces = ndimage.label(tissues == fifth)
    assert pieces == 1


def test_far_ribs_those_of_other_vertebrae_and_columns_without_a_thorax_stay_as_they_are() -> None:
    for level, x, rib in ((12, 58 + 12, RIBS[4]), (22, 58, RIBS[4]), (12, 58, RIBS[5])):
        tissues = np.full((40, 60, 90), SOFT, dtype=np.uint8)
        tissues[10:26, 20:40, 30:50] = level
        tissues[12:15, 22:25, x:88] = rib
        before = tissues.copy()
        add_rib_heads(tissues, tissues == SOFT)
        assert np.array_equal(tissues, before)
