"""What contradicts a labelling, however probable it is: reasons not to call it certain. Our own rules."""

from __future__ import annotations

import numpy as np

from segmamba.spine.levels import C1, C2, L1, L4, L5, L6, ORDER, T11, T12, T13, level_name, steps_between

# The network's own levels say otherwise if, over the column, another shift is more probable than the result by this
# factor for each vertebra.
AGAINST = 3.0
SHIFTS = (-2, -1, 1, 2)
# An instance between two vertebrae was left out although there is room for it: their distance is more than this
# multiple of what is usual next to them.
ROOM = 1.45
# Two neighbours are one step apart if their distance is below this multiple of that.
ONE_STEP = 1.35
# An instance that was left out is no fragment if it has this part of the volume of those next to it, and no second half
# of one of them if it lies at least this multiple of the usual distance away from both.
NO_FRAGMENT, APART = 0.6, 0.75
# A volume is questionable below and above these parts of its neighbours'.
HALF, TWICE = 0.45, 2.1
# The network is sure of the level of a vertebra that it gives this probability.
SURE = 0.75


def doubts(
    levels: np.ndarray,
    evidence: np.ndarray,
    centres: np.ndarray,
    volumes: np.ndarray,
    sacrum: bool,
    cut: np.ndarray,
    ribs: np.ndarray,
) -> list[str]:
    """Return what contradicts the levels of a column, as clauses of a sentence, the gravest first.

    Parameters
    ----------
    levels : ndarray of int
        Shape (n,): those of `segmamba.spine.levels.ORDER`, 0 for a spurious instance.
    evidence, centres, volumes, cut, ribs
        As for `segmamba.spine.hmm.label_levels`, of the same instances.
    sacrum : bool
        Whether the sacrum is in view.
    """
    kept = np.flatnonzero(levels)
    if not len(kept):
        return []
    found = [*distance_doubts(levels, centres), *_sacrum_doubts(levels, sacrum)]
    found.extend(_left_out_doubts(levels, centres, volumes, cut))
    last, ribs_tell = int(levels[kept[-1]]), _last_rib_is_known(levels, ribs)
    if not ribs_tell and (last == L6 or (sacrum and last == L4)):
        count = {L4: "four", L6: "six"}[last]
        found.append(f"whether there are {count} or five lumbar vertebrae is not clear from the ribs")
    elif not ribs_tell and sacrum:
        found.extend(_count_seen_otherwise(levels, evidence, kept))
    if not ribs_tell and T13 in levels:
        found.append("whether there are thirteen or twelve thoracic vertebrae is not clear from the ribs")
    if not ribs_tell and _without_t12(levels, kept):
        found.append("whether there are eleven or twelve thoracic vertebrae is not clear from the ribs")
    with_rib = levels[(levels > 0) & (ribs == 1)]
    if len(with_rib):
        lowest = max(map(int, with_rib), key=ORDER.index)
        if lowest < T12 and _rib(levels, ribs, lowest + 1) == 0:
            found.append(f"no rib was found at {level_name(lowest + 1)}")
        if T12 < lowest < T13:
            found.append(f"a rib was found at {level_name(lowest)}")
    # Two landmarks that agree outweigh the network.
    landmarks = sum((bool(levels[kept[0]] <= C2), sacrum, ribs_tell))
    if landmarks < 2 and _network_says_otherwise(levels, evidence, kept):
        found.append("the vertebrae look like those of other levels")
    return list(dict.fromkeys([*found, *volume_doubts(levels, volumes, cut)]))


def doubts_in_spite_of_a_person(
    levels: np.ndarray, centres: np.ndarray, volumes: np.ndarray, sacrum: bool, cut: np.ndarray
) -> list[str]:
    """Return what contradicts the levels of a column that a person has set one of; parameters as for `doubts`.

    A person's word outweighs network and ribs, but not what tells of a vertebra that was not found, or found twice.
    """
    found = [*distance_doubts(levels, centres), *_sacrum_doubts(levels, sacrum), *volume_doubts(levels, volumes, cut)]
    return list(dict.fromkeys(found))


def distance_doubts(levels: np.ndarray, centres: np.ndarray) -> list[str]:
    """Return which neighbours are too close or too far apart for their levels; parameters as for `doubts`."""
    kept = np.flatnonzero(levels)
    names = [level_name(int(level)) for level in levels[kept]]
    found: list[str] = []
    gaps = np.linalg.norm(np.diff(centres[kept], axis=0), axis=1)
    pairs = zip(levels[kept], levels[kept[1:]], strict=False)
    steps = np.array([steps_between(int(above), int(below)) for above, below in pairs], int)
    for index, (gap, step) in enumerate(zip(gaps, steps, strict=True)):
        near = [gaps[n] / steps[n] for n in range(max(0, index - 2), min(len(gaps), index + 3)) if n != index]
        usual = float(np.median(near)) if near else np.inf
        pair = f"{names[index]} and {names[index + 1]}"
        if step > 1 and gap < ONE_STEP * usual and (levels[kept[index]], step) != (T11, 2):
            found.append(f"{pair} are as close as neighbours")
        if kept[index + 1] - kept[index] > 1 and step == 1 and gap > ROOM * usual:
            found.append(f"there is room for a vertebra between {pair}")
    return found


def volume_doubts(levels: np.ndarray, volumes: np.ndarray, cut: np.ndarray) -> list[str]:
    """Return which vertebrae are much smaller or larger than their neighbours; parameters as for `doubts`."""
    kept = np.flatnonzero(levels)
    found = []
    for index in range(1, len(kept) - 1):
        ratio = volumes[kept[index]] / np.median(volumes[kept[[index - 1, index + 1]]])
        if not cut[kept[[index - 1, index, index + 1]]].any() and levels[kept[index]] > C2 and not HALF < ratio < TWICE:
            found.append(f"the size of {level_name(int(levels[kept[index]]))} is unlike its neighbours'")
    return found


def _left_out_doubts(levels: np.ndarray, centres: np.ndarray, volumes: np.ndarray, cut: np.ndarray) -> list[str]:
    """Return where something like a vertebra was left out beside the others; parameters as for `doubts`."""
    kept = np.flatnonzero(levels)
    gaps = np.linalg.norm(np.diff(centres[kept], axis=0), axis=1)
    found = []
    for index in np.flatnonzero((levels == 0) & ~cut).tolist():
        place = int(np.searchsorted(kept, index))
        if not 0 < place < len(kept):
            continue
        pair = kept[[place - 1, place]]
        usual = np.median(gaps[max(0, place - 3) : place + 2])
        away = np.linalg.norm(centres[pair] - centres[index], axis=1).min()
        if volumes[index] >= NO_FRAGMENT * volumes[pair].min() and away >= APART * usual:
            names = " and ".join(level_name(int(level)) for level in levels[pair])
            found.append(f"something as large as a vertebra lies between {names}")
    return found


def _sacrum_doubts(levels: np.ndarray, sacrum: bool) -> list[str]:
    last = int(levels[np.flatnonzero(levels)[-1]])
    above_l4 = ORDER.index(last) < ORDER.index(L4)
    return [f"nothing was found between {level_name(last)} and the sacrum"] if sacrum and above_l4 else []


def _count_seen_otherwise(levels: np.ndarray, evidence: np.ndarray, kept: np.ndarray) -> list[str]:
    """Return a doubt if the network is sure of vertebrae of both ends, but there are more or fewer between them."""
    seen = evidence.argmax(axis=1) + 1
    sure = [index for index in kept if np.exp(evidence[index].max()) >= SURE]
    if len(sure) < 2 or not T11 <= seen[sure[0]] <= L1 or not L4 <= seen[sure[-1]] <= L5:
        return []
    fewer = int(seen[sure[-1]] - seen[sure[0]]) - steps_between(int(levels[sure[0]]), int(levels[sure[-1]]))
    counts = {1: "four", -1: "six"}
    return [f"there may be {counts[fewer]} lumbar vertebrae"] if fewer in counts else []


def _without_t12(levels: np.ndarray, kept: np.ndarray) -> bool:
    return any((levels[a], levels[b]) == (T11, L1) for a, b in zip(kept, kept[1:], strict=False))


def _rib(levels: np.ndarray, ribs: np.ndarray, level: int) -> float:
    """Return whether a level has a rib, 0 or 1; NaN where it is unknown or not there."""
    where = np.flatnonzero(levels == level)
    return float(ribs[where[0]]) if len(where) else np.nan


def _last_rib_is_known(levels: np.ndarray, ribs: np.ndarray) -> bool:
    """Say whether the last rib lies above L1, and none at it."""
    last = next((level for level in (T13, T12) if level in levels), T11)
    above = _rib(levels, ribs, last)
    return above == 1 and _rib(levels, ribs, L1) == 0


def _network_says_otherwise(levels: np.ndarray, evidence: np.ndarray, kept: np.ndarray) -> bool:
    # No network has a class for T13.
    kept = kept[levels[kept] <= L6]
    found = levels[kept]
    own = evidence[kept, found - 1].mean()
    for shift in SHIFTS:
        other = found + shift
        inside = (other >= C1) & (other <= L5)
        if inside.sum() * 2 > len(kept):
            gain = evidence[kept[inside], other[inside] - 1].mean() - evidence[kept[inside], found[inside] - 1].mean()
            if gain > np.log(AGAINST):
                return True
    return bool(own < np.log(1e-4))
