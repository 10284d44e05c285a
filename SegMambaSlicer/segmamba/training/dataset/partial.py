"""Cases in which only some structures were drawn: what is not drawn there may be background or any other structure.

``dataset.json`` names the drawn ones: ``"labelled": {"CASE": ["liver", "spleen"]}``; in cases that it does not name all
are drawn. Voxels without a label get a code in such a case, one for each set of drawn structures. A network is asked
there only for the sum of what the voxel may be, the marginal loss of Shi et al. (Medical Image Analysis, 2021).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segmamba.errors import InputError
from segmamba.training.dataset.layout import Case
from segmamba.training.losses import SMOOTHING

KEY = "labelled"
# Codes of voxels that may be several classes: from the last one down. Below the first one are classes.
LAST_OPEN, FIRST_OPEN = 254, 200

# For each code, which of the structures are drawn.
DrawnSets = tuple[tuple[str, ...], ...]


def read_drawn(description: Mapping[str, Any], names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the drawn structures of each case that a ``dataset.json`` names; none where all are drawn.

    Raises
    ------
    ValueError
        A structure is not one of the data set, or the key holds something else.
    """
    labelled, known = description.get(KEY, {}), tuple(names)
    if not isinstance(labelled, dict) or not all(isinstance(drawn, list) for drawn in labelled.values()):
        raise ValueError(f"'{KEY}' must map cases to lists of structures")
    for case, drawn in labelled.items():
        for name in drawn:
            if name not in known:
                raise ValueError(f"'{KEY}' of {case} names '{name}', which is not among the labels")
    found = {case: tuple(name for name in known if name in drawn) for case, drawn in labelled.items()}
    return {case: drawn for case, drawn in found.items() if drawn != known}


def drawn_sets(cases: Iterable[Case], classes: int) -> DrawnSets:
    """Return the sets of drawn structures that cases have, in the order of their codes; empty where all are drawn.

    Raises
    ------
    InputError
        There are more sets, or more classes, than a label map has codes for.
    """
    sets = tuple(sorted({case.drawn for case in cases if case.drawn is not None}))
    most = 1 + LAST_OPEN - FIRST_OPEN
    if len(sets) > most or (sets and classes > FIRST_OPEN):
        raise InputError(f"'{KEY}' in dataset.json has more than {most} different lists: use fewer.")
    return sets


def with_codes(classes: np.ndarray, case: Case, sets: DrawnSets) -> np.ndarray:
    """Return a case's classes with the code of its set in place of the background. uint8."""
    if case.drawn is None:
        return classes
    return np.where(classes == 0, LAST_OPEN - sets.index(case.drawn), classes).astype(np.uint8)


def possible_classes(sets: DrawnSets, names: Sequence[str]) -> Tensor:
    """Return for each code the classes that its voxels may be: bool, (sets, classes)."""
    rows = [[True, *(name not in drawn for name in names)] for drawn in sets]
    return torch.tensor(rows, dtype=torch.bool).view(len(sets), 1 + len(names))


def partial_loss(logits: Tensor, labels: Tensor, possible: Tensor, ignore: int) -> Tensor:
    """Return cross-entropy plus one minus mean soft Dice, as `segmamba.training.losses.dice_cross_entropy`.

    The cross-entropy of a voxel with a code is that of the sum of the classes that it may be. It does not count for
    their Dice, and is background for that of the drawn structures.

    Parameters
    ----------
    logits : Tensor (batch, classes, z, y, x)
    labels : Tensor (batch, z, y, x), int64
        Classes, codes, or ``ignore``.
    possible : Tensor (sets, classes), bool
        From `possible_classes`, on the device of the logits.
    ignore : int
        Voxels of this value count in neither part.
    """
    voxels = (0, 2, 3, 4)
    classes = torch.arange(logits.shape[1], device=logits.device)[:, None, None, None]
    mask = labels[:, None] == classes
    log_probabilities = logits.float().log_softmax(dim=1)
    uncounted = (labels == ignore)[:, None]
    surprise = -torch.where(mask, log_probabilities, 0.0).sum(dim=1)
    for number, row in enumerate(possible):
        here, may_be = labels == LAST_OPEN - number, row[:, None, None, None]
        together = log_probabilities.masked_fill(~may_be, -torch.inf).logsumexp(dim=1)
        surprise = torch.where(here, -together, surprise)
        uncounted = uncounted | (here[:, None] & may_be)
    probabilities = log_probabilities.exp().masked_fill(uncounted, 0.0)
    overlap = torch.where(mask, probabilities, 0.0).sum(voxels)
    reference = mask.sum(voxels).float()
    dice = (2 * overlap + SMOOTHING) / (reference + probabilities.sum(voxels) + SMOOTHING)
    present = (reference[1:] > 0).float()
    mean_dice = (dice[1:] * present).sum() / present.sum().clamp(min=1.0)
    return 1.0 - mean_dice + surprise.sum() / (labels != ignore).sum().clamp(min=1)
