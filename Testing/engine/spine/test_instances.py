"""Separating vertebrae by votes, on simulated answers of a network."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.simulated_answers import Answers, centroids, load, simulate

from segmamba.spine.decode import RIB_ML, Column, _is_top_of_sacrum, _volume_near, _whole_ribs, decode
from segmamba.spine.fine import decode_fine, recover_truncated_ends
from segmamba.spine.instances import Instances, assign, find_instances, votes_of

SPACING = 2.0


def near_rib(rib: np.ndarray, instances: Instances, spacing_mm: float) -> np.ndarray:
    """Return the volume (n,) in mL of probable rib near each instance, as `decode` looks for it."""
    return _volume_near(_whole_ribs(rib, spacing_mm), instances, spacing_mm)


def spine(levels: list[int], distance_mm: float = 30.0, tilt: float = 0.3) -> np.ndarray:
    """Return a label map of bodies and arches, the first level uppermost, and the sacrum if 26 is last."""
    step = int(distance_mm / SPACING)
    shape = (step * len(levels) + 24, 60, 48)
    z, y, x = np.indices(shape)
    labels = np.zeros(shape, np.uint8)
    for number, level in enumerate(levels):
        middle = shape[0] - 16 - number * step
        front = 20 + tilt * number
        half = 0.4 * step * (1.8 if level == 26 else 1)
        wide = 4 + 0.3 * step
        body = (np.abs(z - middle) < half) & (np.hypot(y - front, x - 24) < wide)
        ring = np.hypot(y - front - 1.7 * wide, x - 24)
        arch = (np.abs(z - middle) < 0.6 * half) & (ring > 0.65 * wide) & (ring < wide)
        labels[(body | arch) & (labels == 0)] = level
    return labels


def answers(labels: np.ndarray, seed: int = 0, **options):
    return simulate(labels, SPACING, np.random.default_rng(seed), **options)


def agreement(labels: np.ndarray, truth: np.ndarray) -> float:
    inside = truth > 0
    return float((labels[inside] == truth[inside]).mean())


@pytest.mark.parametrize("distance_mm", [14.0, 22.0, 34.0])
def test_vertebrae_are_separated_from_neck_to_loin_and_counted_from_the_top(distance_mm: float) -> None:
    truth = spine([5, 6, 7, 8, 9, 10], distance_mm)
    found = find_instances(*answers(truth, offset_noise_mm=0.12 * distance_mm).mask_and_offsets, SPACING)
    true_centres = centroids(truth, SPACING)
    expected = np.array([true_centres[level] for level in (5, 6, 7, 8, 9, 10)])
    assert found.centres.shape == expected.shape
    assert np.abs(found.centres - expected).max() < 0.25 * distance_mm
    assert found.labels.max() == 6


def test_an_arch_that_votes_for_another_place_is_no_vertebra_of_its_own() -> None:
    truth = spine([18, 19, 20, 21, 22])
    simulated = answers(truth)
    arch = (truth == 20) & (np.indices(truth.shape)[1] > 30)
    simulated.offsets[1][arch] += 22.0
    found = find_instances(*simulated.mask_and_offsets, SPACING)
    assert len(found.centres) == 5
    assert np.mean(found.labels[arch] == 3) > 0.8


def test_two_vertebrae_that_vote_for_the_place_between_them_are_cut_apart() -> None:
    truth = spine([17, 18, 19, 20, 21, 22, 23])
    middle = (centroids(truth, SPACING)[19] + centroids(truth, SPACING)[20]) / 2
    simulated = answers(truth)
    both = (truth == 19) | (truth == 20)
    positions = np.argwhere(both) * SPACING
    simulated.offsets[:, both] = (middle - positions).T
    found = find_instances(*simulated.mask_and_offsets, SPACING)
    assert len(found.centres) == 7
    assert np.linalg.norm(found.centres[2] - centroids(truth, SPACING)[19]) < 8
    assert np.linalg.norm(found.centres[3] - centroids(truth, SPACING)[20]) < 8


def test_specks_and_what_lies_off_the_column_are_dropped() -> None:
    truth = spine([18, 19, 20, 21, 22])
    simulated = answers(truth)
    simulated.probabilities[1][10:16, 50:56, 2:8] = 0.9
    simulated.offsets[:, 10:16, 50:56, 2:8] = 0
    found = find_instances(*simulated.mask_and_offsets, SPACING)
    assert len(found.centres) == 5
    assert not found.labels[10:16, 50:56, 2:8].any()


def test_an_empty_answer_has_no_vertebra() -> None:
    nothing = np.zeros((8, 9, 10), np.float32)
    found = find_instances(nothing, np.zeros((3, 8, 9, 10), np.float32), SPACING)
    assert len(found.centres) == 0 and found.labels.shape == nothing.shape


def test_known_centres_take_the_voxels_of_a_finer_shifted_grid() -> None:
    truth = spine([18, 19, 20, 21])
    fine = truth.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)[10:, 6:, :]
    centres = np.array([centroids(truth, SPACING)[level] for level in (18, 19, 20, 21)])
    origin = np.array([10, 6, 0]) * SPACING / 2 - SPACING / 4
    positions = np.moveaxis(np.indices(fine.shape), 0, -1) * SPACING / 2 + origin
    goal = np.vstack([np.zeros((18, 3)), centres])[np.maximum(fine.astype(int), 17) - 0]
    offsets = np.moveaxis(goal - positions, -1, 0)
    numbers = assign(fine > 0, votes_of(fine > 0, offsets, SPACING / 2)[1], origin, centres)
    assert np.array_equal(numbers, np.where(fine > 0, fine.astype(int) - 17, 0))


def test_a_column_is_decoded_with_levels_box_and_sacrum() -> None:
    truth = spine([19, 20, 21, 22, 23, 24, 26], 32.0)
    column = decode(*answers(truth).arrays, SPACING)
    assert column.levels.tolist() == [19, 20, 21, 22, 23, 24]
    assert column.numbering.certain
    assert agreement(column.labels, truth) > 0.9
    assert column.sacrum is not None and np.linalg.norm(column.sacrum - centroids(truth, SPACING)[26]) < 5
    assert column.box is not None
    inside = np.argwhere(truth > 0) * SPACING
    assert (inside.min(axis=0) > column.box[0]).all() and (inside.max(axis=0) < column.box[1]).all()


def test_a_blob_taken_for_sacrum_above_the_column_costs_no_vertebra() -> None:
    truth = spine([15, 16, 17, 18, 19, 20], 30.0)
    simulated = answers(truth)
    simulated.probabilities[:, -24:-14, :14, :14] = np.array([0.0, 0.0, 1.0])[:, None, None, None]
    column = decode(*simulated.arrays, SPACING)
    assert column.levels.tolist() == [15, 16, 17, 18, 19, 20]
    assert column.sacrum is None and not (column.labels == 26).any()


def test_the_top_of_the_sacrum_taken_for_a_vertebra_is_none() -> None:
    levels = [19, 20, 21, 22, 23, 24, 26]
    truth = spine(levels, 32.0)
    truth[: np.argwhere(truth == 26)[:, 0].mean().astype(int)] = 0  # the volume ends in the sacrum
    front = (truth == 26) & (np.indices(truth.shape)[1] < np.argwhere(truth == 26)[:, 1].mean())
    wrong = truth.copy()
    wrong[front] = 25
    simulated = simulate(wrong, SPACING, np.random.default_rng(0), claims={25: 24, **{n: n - 1 for n in levels[:-1]}})
    column = decode(*simulated.arrays, SPACING)
    assert column.levels.tolist() == [19, 20, 21, 22, 23, 24]
    assert len(column.instances.centres) == 6
    assert (column.labels[front] == 26).mean() > 0.8
    fine = decode_fine(simulated.probabilities, simulated.offsets, SPACING, np.zeros(3), column)
    assert (fine[front] == 26).mean() > 0.8
    assert (fine[truth == 26] == 24).mean() < 0.05


@pytest.mark.parametrize(
    ("volume", "distance", "sacral"), [(25.0, 15.0, True), (60.0, 15.0, False), (25.0, 40.0, False)]
)
def test_half_a_vertebra_at_the_sacrum_is_its_top(volume: float, distance: float, sacral: bool) -> None:
    centres = np.array([[200.0, 0, 0], [168.0, 0, 0], [136.0, 0, 0], [104.0, 0, 0], [78.0, 0, 0]])
    found = Instances(np.zeros((1, 1, 1), np.int16), centres, np.array([55.0, 60.0, 65.0, 65.0, volume]))
    whole = np.ones(5, bool)
    assert _is_top_of_sacrum(found, whole, centres[-1] - [distance, 0.0, 0.0]) is sacral
    # Three vertebrae say what is usual.
    assert not _is_top_of_sacrum(found, np.array([False, False, True, True, True]), centres[-1])


def rods(truth: np.ndarray, levels: range) -> np.ndarray:
    """Return the probability of ribs: one at either side of each of these levels, 2 mm away."""
    rib = np.zeros(truth.shape, np.float32)
    for level in levels:
        place = np.argwhere(truth == level)
        z, y, _ = place.mean(axis=0).astype(int)
        for x in (place[:, 2].min() - 6, place[:, 2].max() + 2):
            rib[z - 2 : z + 3, y - 2 : y + 3, max(0, x) : x + 5] = 1.0
    return rib


def test_ribs_near_a_vertebra_are_counted_for_it_alone() -> None:
    truth = spine([17, 18, 19, 20, 21, 22, 23], 32.0)
    found = find_instances(*answers(truth).mask_and_offsets, SPACING)
    near = near_rib(rods(truth, range(17, 20)), found, SPACING)
    assert (near[:3] > RIB_ML).all() and (near[3:] == 0).all()


@pytest.mark.parametrize(
    ("length", "away", "at_border", "counted"),
    [(20, 1, False, True), (6, 1, False, False), (6, 1, True, True), (20, 4, False, True), (20, 7, False, False)],
    ids=["a rib", "the tip of a process", "a truncated rib", "a rib without its head", "a rib that passes by"],
)
def test_what_is_near_a_vertebra_and_as_large_as_a_rib_is_its_rib(
    length: int, away: int, at_border: bool, counted: bool
) -> None:
    labels, rib = np.zeros((20, 20, 60), np.int16), np.zeros((20, 20, 60), np.float32)
    labels[5:15, 5:15, 20:30] = 1
    rib[8:12, 8:12, 29 + away : 29 + away + length] = 1.0
    if at_border:
        labels, rib = (array[:, :, : 29 + away + length] for array in (labels, rib))
    found = Instances(labels, np.array([[20.0, 20, 50]]), np.array([8.0]))
    assert (near_rib(rib, found, 2.0)[0] > RIB_ML) is np.bool_(counted)


def test_ribs_mend_the_numbers_of_a_column_without_another_landmark() -> None:
    levels = list(range(8, 20))
    truth = spine(levels, 30.0)
    simulated = answers(truth, claims={level: level + 1 for level in levels})
    assert decode(*simulated.arrays, SPACING).levels.tolist() == [level + 1 for level in levels]
    assert decode(*simulated.arrays, SPACING, rods(truth, range(8, 20))).levels.tolist() == levels


def test_the_fine_pass_gets_the_coarse_numbers() -> None:
    truth = spine([19, 20, 21, 22, 23, 24, 26], 32.0)
    simulated = answers(truth)
    column = decode(*simulated.arrays, SPACING)
    labels = decode_fine(
        simulated.probabilities[:, 4:], simulated.offsets[:, 4:], SPACING, np.array([4 * SPACING, 0.0, 0.0]), column
    )
    assert agreement(labels, truth[4:]) > 0.9


def cut(
    truth: np.ndarray, above: bool, hedged: float, seed: int, kept: float = 0.5
) -> tuple[np.ndarray, Answers, np.ndarray]:
    """Return a truth whose border cuts a vertebra, answers that place it nearer to its neighbour, and the z removed."""
    levels = sorted(set(np.unique(truth)) - {0})
    level, neighbour = levels[:2] if above else levels[:-3:-1]
    heights = np.flatnonzero((truth == level).any(axis=(1, 2)))
    size = int(kept * len(heights))
    part = slice(0, heights[0] + size) if above else slice(heights[-1] + 1 - size, len(truth))
    simulated = answers(truth, seed)
    places = centroids(truth, SPACING)
    simulated.offsets[:, truth == level] += (hedged * (places[neighbour] - places[level]))[:, None]
    arrays = (array[:, part] for array in simulated.arrays)
    return truth[part], Answers(*arrays), np.array([part.start * SPACING, 0.0, 0.0])


def cut_column(truth: np.ndarray, above: bool) -> tuple[Column, Column, np.ndarray, Answers, np.ndarray]:
    """Return the coarse column, the one to its ends, the cut truth, the fine answers, and the fine labels."""
    _, coarse, _ = cut(truth, above, 0.6, 0)
    visible, fine, _ = cut(truth, above, 0.3, 1)
    column = decode(*coarse.arrays, SPACING)
    arrays = (fine.probabilities, fine.offsets, SPACING, np.zeros(3))
    longer = recover_truncated_ends(column, *arrays)
    return column, longer, visible, fine, decode_fine(*arrays, longer)


@pytest.mark.parametrize("above", [True, False])
def test_a_vertebra_that_the_border_cuts_is_told_from_its_neighbour_by_the_fine_pass(above: bool) -> None:
    truth = spine([10, 11, 12, 13, 14, 15], 26.0, tilt=1.5)
    column, longer, visible, _, labels = cut_column(truth, above)
    assert column.levels.tolist() == ([11, 12, 13, 14, 15] if above else [10, 11, 12, 13, 14])
    assert longer.levels.tolist() == [10, 11, 12, 13, 14, 15]
    assert len(longer.centres) == len(longer.confidence) == 6
    assert (np.diff(longer.centres[:, 0]) < 0).all()
    assert agreement(labels, visible) > 0.85
    own = 10 if above else 15
    assert (labels[visible == own] == own).mean() > 0.7


def test_the_next_best_numbering_gets_the_vertebra_too() -> None:
    column, longer, *_ = cut_column(spine([10, 11, 12, 13, 14, 15], 26.0, tilt=1.5), True)
    rival, longer_rival = column.numbering.runner_up, longer.numbering.runner_up
    assert rival is not None and longer_rival is not None
    assert longer_rival.tolist() == [rival[rival > 0][0] - 1, *rival]


def test_a_vertebra_at_the_border_that_stands_alone_is_not_divided() -> None:
    truth = spine([10, 11, 12, 13, 14, 15], 26.0)
    for above in (True, False):
        visible, fine, _ = cut(truth, above, 0.0, 0)
        column = decode(*fine.arrays, SPACING)
        assert recover_truncated_ends(column, fine.probabilities, fine.offsets, SPACING, np.zeros(3)) is column


def test_nothing_follows_upon_the_ends_of_the_spine() -> None:
    truth = spine([19, 20, 21, 22, 23, 24], 32.0)
    visible, fine, _ = cut(truth, False, 0.0, 0, kept=0.9)
    column = decode(*fine.arrays, SPACING)
    assert column.levels[-1] == 24
    off = fine.offsets.copy()
    height = np.indices(visible.shape)[0]
    off[0][(visible == 24) & (height < np.median(height[visible == 24]))] -= 25.0
    assert recover_truncated_ends(column, fine.probabilities, off, SPACING, np.zeros(3)) is column


def test_nothing_in_view_is_decoded_as_nothing() -> None:
    empty = np.zeros((3, 8, 8, 8), np.float32)
    column = decode(empty, empty, np.zeros((26, 8, 8, 8), np.float32), SPACING)
    assert column.box is None and not column.labels.any() and not column.numbering.certain


@pytest.mark.parametrize("name", ["totalseg_s0224", "verse_gl017", "verse009", "totalseg_s0006"])
def test_real_columns_are_found_and_numbered_from_noisy_answers(shared, name: str) -> None:
    truth = load(shared / f"data/labels/open/{name}_vertebrae.nii.gz", SPACING)
    place = [slice(max(0, n.min() - 4), n.max() + 5) for n in np.nonzero(truth)]
    truth = truth[tuple(place)]
    column = decode(*answers(truth, blobs=2).arrays, SPACING)
    sizes = np.bincount(truth.ravel(), minlength=27)
    true_centres = centroids(truth, SPACING)
    for level in (level for level in true_centres if level < 26 and sizes[level] > 1000):
        assert level in column.levels
        found = column.centres[column.levels.tolist().index(level)]
        assert np.linalg.norm(found - true_centres[level]) < 8
    assert agreement(column.labels, truth) > 0.8


def test_a_slip_of_the_network_in_a_real_column_is_corrected(shared) -> None:
    truth = load(shared / "data/labels/open/totalseg_s0224_vertebrae.nii.gz", SPACING)
    claims = {level: level + 1 for level in range(12, 25)}
    column = decode(*answers(truth, claims=claims).arrays, SPACING)
    assert column.levels.tolist() == list(range(1, 25))
    assert agreement(column.labels, truth) > 0.85
