"""Random intensities of tissues on CT and MR."""

from __future__ import annotations

import numpy as np

from segmamba.training.synthesis.tissue_labels import (
    AIR,
    BONES,
    CARTILAGE,
    CORD,
    DISC,
    FAT,
    LIMB_BONES,
    LIVER,
    LUNG,
    MUSCLE,
    OUTSIDE,
    RIBS_AND_STERNUM,
    SKULL,
    SPLEEN,
    TRACHEA,
    VERTEBRAE,
    organ,
)

OUTSIDE_HU = -1024.0
# Signals of fat, marrow, discs, canal, muscle and organs on MR. Of water images (Dixon) and of those whose fat is
# saturated or inverted (STIR, TIRM) fat has hardly any.
WEIGHTINGS = {
    "T1": (0.95, 0.6, 0.4, 0.35, 0.4, 0.42),
    "T2": (0.7, 0.42, 0.45, 0.8, 0.25, 0.4),
    "fat-saturated": (0.1, 0.2, 0.45, 0.95, 0.25, 0.45),
    "water": (0.12, 0.33, 0.7, 0.75, 0.4, 0.45),
}
WEIGHTING_SHARES = (0.2, 0.25, 0.12, 0.18, 0.25)


def ct_priors(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and texture (standard deviation) in HU for the 256 tissue labels, drawn around adult values.

    The values are ours, from textbooks' ranges, made wider; a quarter of the samples has bone of any density.
    """
    mean = rng.normal(45, 12, 256)
    texture = np.full(256, 10.0)
    trabecular = rng.uniform(20, 330) if rng.random() < 0.25 else rng.normal(170, 50)
    mean[1 : VERTEBRAE + 1] = trabecular + rng.normal(0, 18, VERTEBRAE)
    texture[1 : VERTEBRAE + 1] = rng.uniform(15, 60)
    bones = [*LIMB_BONES, *RIBS_AND_STERNUM]
    mean[bones] = trabecular * rng.uniform(0.7, 1.6) + rng.normal(0, 30, len(bones))
    texture[bones] = rng.uniform(15, 60)
    mean[SKULL], mean[CARTILAGE] = rng.uniform(400, 1000), rng.normal(110, 45)
    arterial = rng.uniform(60, 360) if rng.random() < 0.6 else 0.0
    venous = arterial * rng.uniform(0.2, 0.9)
    mean[[organ(i) for i in (52, 54, 55, 56, 57, 58, 65, 66)]] = 40 + arterial
    mean[[organ(i) for i in (51, 53, 59, 60, 61, 62, 63, 64, 67, 68)]] = 40 + venous
    mean[LIVER] = rng.normal(58, 10) + 0.3 * venous
    mean[SPLEEN] = rng.normal(50, 8) + 0.4 * venous
    mean[[organ(2), organ(3)]] = rng.normal(33, 6) + rng.uniform(0.3, 1.0) * arterial  # kidneys
    mean[[organ(4), organ(21)]] = rng.normal(8, 8) if rng.random() < 0.85 else rng.uniform(100, 600)  # bile, urine
    mean[LUNG : LUNG + 5], texture[LUNG : LUNG + 5] = rng.uniform(-920, -680), rng.uniform(30, 130)
    mean[TRACHEA] = -980
    mean[FAT], texture[FAT] = rng.normal(-100, 12), 12
    mean[MUSCLE] = rng.normal(55, 10)
    mean[organ(80) : organ(90)] = mean[MUSCLE]
    mean[DISC], mean[CORD] = rng.normal(85, 20), rng.normal(35, 14)
    mean[AIR], texture[AIR] = -1000, rng.uniform(0, 12)
    mean[OUTSIDE], texture[OUTSIDE] = OUTSIDE_HU, 0
    return mean, texture


def mr_priors(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and texture (standard deviation) for the 256 tissue labels: `WEIGHTINGS` or any contrast at all.

    Without unit, fat on T1 being about 1; our own values.
    """
    mean = rng.uniform(0, 1, 256)
    texture = np.full(256, rng.uniform(0.02, 0.08))
    weighting = str(rng.choice((*WEIGHTINGS, "any"), p=WEIGHTING_SHARES))
    if weighting != "any":
        fat, marrow, disc, canal, muscle, organs = WEIGHTINGS[weighting]
        mean = organs + rng.normal(0, 0.12, 256)
        mean[FAT], mean[MUSCLE] = fat * rng.uniform(0.7, 1.2), muscle + rng.normal(0, 0.07)
        mean[DISC], mean[CORD] = disc + rng.normal(0, 0.15), canal + rng.normal(0, 0.15)
        mean[[*BONES]] = marrow * np.exp(rng.normal(0, 0.25))
        mean[organ(80) : organ(90)] = mean[MUSCLE]
        mean[[organ(i) for i in range(51, 69)]] = rng.uniform(0, 0.6)  # vessels: flow takes the signal, or not
    # One marrow for the whole column, with small differences.
    mean[1 : VERTEBRAE + 1] = mean[VERTEBRAE] + rng.normal(0, 0.03, VERTEBRAE)
    mean[LUNG : LUNG + 5], mean[TRACHEA] = rng.uniform(0, 0.12), 0.0
    mean[AIR], texture[AIR], mean[OUTSIDE], texture[OUTSIDE] = rng.uniform(0, 0.03), 0.0, 0.0, 0.0
    return np.clip(mean, 0, 1.3), texture
