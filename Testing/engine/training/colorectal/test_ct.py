"""How a rendered CT looks: streaks, arms, and how tissues enhance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segmamba.training.colorectal import labels as c
from segmamba.training.colorectal.bowel import Scene
from segmamba.training.colorectal.contents import Row
from segmamba.training.colorectal.ct import (
    HOUNSFIELD,
    PHASE_SHARES,
    PHASES,
    _streaked,
    _with_arms,
    phase_priors,
    render_ct,
)
from segmamba.training.synthesis.context import SamplingContext
from segmamba.training.synthesis.tissue_labels import AIR, AORTA, FAT, KIDNEY, SOFT

PATCH = (48, 56, 56)


def context(shape: tuple[int, int, int], seed: int) -> SamplingContext:
    cpu, generator = torch.device("cpu"), torch.Generator().manual_seed(seed)
    return SamplingContext(shape, 3.0, cpu, np.random.default_rng(seed), generator)


def test_streaks_run_along_the_rows_of_slices_with_contrast_and_nowhere_else() -> None:
    image, tissues = torch.zeros(PATCH), torch.full(PATCH, SOFT)
    tissues[10:20, 20:30, 5:50] = c.LUMEN
    image[10:20, 20:25, 5:50], image[10:20, 25:30, 5:50] = -980.0, 900.0
    change = _streaked(image, tissues, context(PATCH, 0)) - image
    assert not change[:10].any() and not change[20:].any()
    assert change[10:20, 25].std() > 0.5 and not change[10:20, 40].any()


def test_arms_take_air_only_and_have_a_bone() -> None:
    shape = (8, 80, 120)
    tissues = torch.full(shape, AIR)
    tissues[:, 20:60, 40:80] = SOFT
    image = torch.where(tissues == AIR, -1000.0, 50.0)
    armed = _with_arms(image, tissues, context(shape, 0))
    changed = armed != image
    assert not changed[tissues != AIR].any()
    for side in (slice(0, 40), slice(80, 120)):
        assert armed[:, :, side].max() > 500 and 50 < int(changed[4, :, side].sum()) < 1200


def test_tissues_enhance_together() -> None:
    phases = [phase for phase, share in enumerate(PHASE_SHARES) for _ in range(round(150 * share))]
    drawn = [phase_priors(phase, np.random.default_rng(seed))[0] for seed, phase in enumerate(phases)]
    aorta, tumour, wall, kidney = (np.array([m[label] for m in drawn]) for label in (AORTA, c.TUMOUR, c.WALL, KIDNEY))
    plain, arterial, delayed = aorta < 65, aorta > 210, (aorta > 65) & (aorta < 110)
    assert 0.1 < plain.mean() < 0.3 and 0.08 < arterial.mean() < 0.3 and 0.03 < delayed.mean() < 0.2
    assert np.median(tumour[plain]) == pytest.approx(42.6, abs=4)  # Oto et al. 2003, without contrast
    assert np.median(tumour[~plain & ~arterial & ~delayed]) == pytest.approx(90.7, abs=8)  # and with it
    assert np.median(tumour[delayed]) < np.median(tumour[~plain & ~arterial & ~delayed])  # it washes out
    assert np.median(kidney[~plain]) > 120 and np.median(kidney[plain]) < 45
    assert abs(np.median(wall - tumour)) < 15  # a tumour is no brighter than a wall: shape tells
    assert all(len(by_phase) == len(PHASES) for by_phase in HOUNSFIELD.values())


def test_a_kidney_has_a_medulla_within_its_cortex() -> None:
    shape = (24, 24, 24)
    z, y, x = np.indices(shape) - 11.5
    tissues = torch.from_numpy(np.where(z**2 + y**2 + x**2 < 8**2, KIDNEY, FAT)).long()
    differences = []
    for seed in range(40):
        nothing = torch.zeros(shape)
        scene = Scene(tissues, tissues * 0, torch.zeros((len(Row), *shape)), nothing, nothing)
        image = render_ct(scene, torch.zeros((0, 3)), context(shape, seed))
        cortex, medulla = image[12, 12, 5:7].mean(), image[9:15, 9:15, 8].mean()
        differences.append(float(cortex - medulla))
    assert np.quantile(differences, 0.9) > 60  # arterial
    assert 0.1 < np.mean(np.abs(differences) < 20) < 0.6  # plain
    assert np.min(differences) < -100  # contrast in its pelvis
