"""Render a CT of a scene: intensities of a phase, contents of the bowel, fat stranding, metal, the scanner."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from segmamba.training.colorectal.bowel import Scene
from segmamba.training.colorectal.contents import Row
from segmamba.training.colorectal.labels import (
    DIVERTICULUM,
    LUMEN,
    MESENTERY,
    NECROSIS,
    NODE,
    OTHER_LUMEN,
    OTHER_WALL,
    TUMOUR,
    VESSEL,
    WALL,
)
from segmamba.training.synthesis import ct
from segmamba.training.synthesis.context import SamplingContext
from segmamba.training.synthesis.scanner import blur
from segmamba.training.synthesis.tissue_labels import (
    AIR,
    AORTA,
    CAVA,
    FAT,
    KIDNEY,
    LAST_ORGAN,
    LIVER,
    MUSCLE,
    SPLEEN,
    organ,
)
from segmamba.training.synthesis.tissue_priors import ct_priors

PHASES = ("portal venous", "arterial", "plain", "delayed")
PHASE_SHARES = (0.58, 0.16, 0.18, 0.08)
PLAIN = PHASES.index("plain")
ARTERIES = (AORTA, *(organ(i) for i in (54, 55, 56, 57, 58, 65, 66)))
VEINS = (CAVA, *(organ(i) for i in (59, 60, 61, 62, 64, 67, 68)))
PANCREAS, BLADDER, PROSTATE = organ(7), organ(21), organ(22)
KIDNEYS = (KIDNEY, KIDNEY + 1)
# Mean and standard deviation between patients in HU, in the order of `PHASES`. Tumour: Oto et al. 2003 (42.6 without,
# 90.7 with contrast); the others are ours, from textbooks' ranges.
HOUNSFIELD = {
    ARTERIES: ((150, 20), (290, 60), (42, 5), (85, 12)),
    VEINS: ((155, 20), (100, 35), (42, 5), (90, 12)),
    (LIVER,): ((108, 15), (72, 12), (56, 10), (85, 12)),
    (SPLEEN,): ((118, 13), (125, 25), (48, 5), (88, 10)),
    KIDNEYS: ((185, 25), (160, 30), (33, 5), (120, 20)),
    (PANCREAS,): ((92, 12), (105, 15), (40, 7), (70, 10)),
    (PROSTATE,): ((75, 15), (60, 10), (40, 6), (75, 12)),
    (MUSCLE, *range(organ(80), organ(90))): ((62, 7), (58, 6), (52, 6), (62, 6)),
    (WALL,): ((88, 14), (82, 16), (40, 6), (75, 12)),
    (OTHER_WALL,): ((92, 16), (98, 20), (40, 6), (78, 14)),
    (TUMOUR,): ((90.7, 15), (85, 16), (42.6, 6), (78, 13)),
    (NODE,): ((85, 16), (72, 14), (38, 6), (75, 14)),
    (VESSEL,): ((125, 30), (120, 40), (38, 6), (85, 20)),
}
# Pools of mucus are as dark as fluid, but between them there is tissue that enhances.
NECROSIS_HU, MUCUS_HU, MUCINOUS_SHARE = (12, 38), (30, 55), 0.08
# Of the kidney's medulla against its cortex, by phase; and of its pelvis, which is urine or excreted contrast.
MEDULLA_HU = ((-45, 15), (-125, -45), (-5, 5), (-10, 15))
PELVIS_HU, EXCRETED_HU, EXCRETED_SHARES = (-5, 25), (150, 900), (0.15, 0.15, 0.15, 0.8)
BLADDER_SHARES = (0.15, 0.0, 0.0, 0.6)  # with contrast in the bladder
CORTEX_MM, PELVIS_SHARE = 6.0, 0.7
# This part of the scans has organs of unusual density: disease, and protocols that are not in the table.
ODD_SHARE, ODD_HU = 0.3, 22.0
GAS_HU = -980.0
LUMP_MM = (10.0, 26.0)
# Streaks of contrast in the bowel; arms lie beside the body in this part of the samples, this thick.
STREAK_SHARE, STREAK_EDGE_HU, STREAK_DENSE_HU, STREAK_HU = 0.5, 900.0, 400.0, (10.0, 90.0)
ARMS_SHARE, ARM_MM = 0.15, (32.0, 55.0)
# Slices: thinner ones than the grid are the grid itself.
THICK_SHARE, SLICE_MM = 0.6, (2.5, 7.5)
# On a grid of 1 to 2 mm; abdominal protocols aim at 10 to 20 HU at 5 mm.
NOISE_HU = (3.0, 40.0)
# Calibrated scanners are wrong by a few HU; tumours differ from contents by little more.
OFFSET_HU = 4.0
STRAND_MM, STRAND_HU, STRAND_SPACING_MM = 7.0, 95.0, 9.0
STREAK_WAVES, STREAK_MM, METAL_HU = 8, 45.0, 3000.0


def render_ct(scene: Scene, metal: Tensor, context: SamplingContext) -> Tensor:
    """Return a synthetic CT (z, y, x) in HU.

    Parameters
    ----------
    scene : Scene
    metal : Tensor (n, 3)
        Centres of metal implants, in voxels; none in most samples.
    context : SamplingContext
    """
    rng, tissues = context.rng, scene.tissues
    phase = int(rng.choice(len(PHASES), p=PHASE_SHARES))
    mean, texture = phase_priors(phase, rng)
    image = _with_kidneys(ct.noiseless_image(tissues, context, mean, texture), tissues, phase, context)
    wall = (tissues == WALL) | (tissues == OTHER_WALL)
    image = torch.where(wall, image + scene.table[Row.ENHANCED], image)
    image = torch.where((tissues == LUMEN) | (tissues == OTHER_LUMEN), _contents(scene, context), image)
    image = _stranded(image, scene, context)
    if rng.random() < STREAK_SHARE:
        image = _streaked(image, tissues, context)
    if rng.random() < ARMS_SHARE:
        image = _with_arms(image, tissues, context)
    for centre in metal:
        image = _with_metal(image, centre, context)
    scanner = ct.Scanner(NOISE_HU, SLICE_MM, THICK_SHARE, offset_hu=OFFSET_HU)
    return ct.simulate_scanner(image, tissues, context, scanner)


def phase_priors(phase: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and texture in HU for the 256 tissue labels, of one of `PHASES`: all tissues enhance together."""
    mean, texture = ct_priors(rng)
    strength = float(np.clip(rng.normal(1.0, 0.12), 0.7, 1.35)) if phase != PLAIN else 1.0
    for tissues, by_phase in HOUNSFIELD.items():
        (middle, spread), plain = by_phase[phase], by_phase[PLAIN][0]
        mean[list(tissues)] = plain + strength * (middle - plain) + rng.normal(0, spread)
    if rng.random() < ODD_SHARE:
        organs = slice(organ(1), organ(LAST_ORGAN) + 1)
        mean[organs] += rng.normal(0, ODD_HU, LAST_ORGAN)
    if rng.random() < MUCINOUS_SHARE:
        mean[TUMOUR] = rng.uniform(*MUCUS_HU)
    mean[NECROSIS] = min(rng.uniform(*NECROSIS_HU), mean[TUMOUR] - 8)
    mean[MESENTERY] = mean[FAT] + rng.normal(4, 5)
    filled = rng.random() < BLADDER_SHARES[phase]
    mean[BLADDER] = rng.uniform(100, 500) if filled else rng.uniform(-5, 20)
    mean[DIVERTICULUM] = rng.choice((GAS_HU, rng.uniform(0, 80), rng.uniform(100, 800)), p=(0.6, 0.2, 0.2))
    texture[[WALL, OTHER_WALL, NODE, VESSEL]] = rng.uniform(4, 14)
    texture[[TUMOUR, NECROSIS]] = rng.uniform(4, 18)
    texture[MESENTERY] = texture[FAT]
    return mean, texture


def _with_kidneys(image: Tensor, tissues: Tensor, phase: int, context: SamplingContext) -> Tensor:
    """Return the image with medulla inside the kidneys' cortex, and in most samples a pelvis inside that."""
    rng = context.rng
    kidney = context.members(KIDNEYS)[tissues]
    within = blur(kidney.float(), CORTEX_MM / context.spacing) + 0.07 * context.smooth_noise(1, 9.0)[0]
    image = torch.where(kidney & (within > 0.72), image + rng.uniform(*MEDULLA_HU[phase]), image)
    if rng.random() < PELVIS_SHARE:
        filling = EXCRETED_HU if rng.random() < EXCRETED_SHARES[phase] else PELVIS_HU
        image = torch.where(kidney & (within > rng.uniform(0.86, 0.97)), rng.uniform(*filling), image)
    return image


def _contents(scene: Scene, context: SamplingContext) -> Tensor:
    """Return what fills the lumens: gas above a level, below it fluid, contrast or stool with bubbles."""
    table, rng = scene.table, context.rng
    coarse = context.smooth_noise(1, rng.uniform(9, 16))[0]
    fine = context.smooth_noise(1, rng.uniform(3.0, 6.0))[0]
    # Mixed contents have a rough upper surface; stool is uneven, and so is the contrast in it.
    stool = table[Row.MOTTLE] > 0.02
    filling = table[Row.FILLING] + torch.where(stool, 14 * coarse + 12 * fine, 2 * coarse)
    bubble = torch.sigmoid(8 * (0.6 * coarse + fine - 2.2 * (0.75 - table[Row.MOTTLE])))
    filling = torch.where(stool, filling + bubble * rng.uniform(-900, -250), filling)
    filling = torch.where(scene.height < table[Row.SEDIMENT], table[Row.DENSE], filling)
    level = table[Row.LEVEL] + torch.where(stool, 0.12 * coarse, 0.0)
    lumps = context.smooth_noise(1, rng.uniform(*LUMP_MM))[0] < 2.4 * table[Row.LUMPS] - 1.4
    return torch.where((scene.height > level) & ~((table[Row.LUMPS] > 0) & lumps), GAS_HU, filling)


def _streaked(image: Tensor, tissues: Tensor, context: SamplingContext) -> Tensor:
    """Return the image with streaks from dense contrast along the rows of each slice, strongest at levels under gas.

    A simple model: rays that pass along a sharp edge, or through much contrast, are not measured as they should be.
    """
    lumen = (tissues == LUMEN) | (tissues == OTHER_LUMEN)
    edge = torch.where(lumen, image, 0.0).clamp(-1000, 1500).diff(dim=1, prepend=image[:, :1] * 0).abs()
    strength = (edge - STREAK_EDGE_HU).clamp(min=0).mean(dim=2)  # (z, y)
    dense = torch.where(lumen, (image - STREAK_DENSE_HU).clamp(min=0), 0.0).mean(dim=2)
    source = strength + dense
    rough = source * torch.randn(source.shape, generator=context.generator, device=context.device)
    waves = (rough / (source.amax() + 1e-3)).unsqueeze(2)
    uneven = 1 + 0.6 * context.smooth_noise(1, 40.0)[0]
    return image + context.rng.uniform(*STREAK_HU) * waves * uneven


def _with_arms(image: Tensor, tissues: Tensor, context: SamplingContext) -> Tensor:
    """Put arms into the air to either side of the body: fat, muscle and a bone."""
    rng = context.rng
    depth, rows, columns = context.patch
    air = (tissues == AIR).all(dim=0)
    occupied = (~air).any(dim=0)
    x = torch.arange(columns, device=context.device)
    y = torch.arange(rows, device=context.device)[:, None]
    edges = x.masked_fill(~occupied, -columns).max(), x.masked_fill(~occupied, 2 * columns).min()
    for side, edge in zip((1, -1), edges, strict=True):
        radius = rng.uniform(*ARM_MM) / context.spacing
        centre = edge + side * (radius + rng.uniform(2, 20) / context.spacing)
        slope = rng.normal(0, 0.12) * (torch.arange(depth, device=context.device) - depth / 2)
        from_bone = ((y - rng.uniform(0.3, 0.7) * rows - slope[:, None, None]) ** 2 + (x - centre) ** 2).sqrt() / radius
        free = (tissues == AIR) & occupied.any()
        for part, hounsfield in ((1.0, -100.0), (0.8, 55.0), (0.27, 900.0), (0.16, 60.0)):
            image = torch.where(free & (from_bone < part), hounsfield + 12 * context.noise(), image)
    return image


def _stranded(image: Tensor, scene: Scene, context: SamplingContext) -> Tensor:
    """Return the image with strands of soft tissue in the fat around the bowel."""
    fat = context.members((FAT, MESENTERY))[scene.tissues]
    noise = context.smooth_noise(1, STRAND_SPACING_MM)[0]
    strand = torch.exp(-((noise / 0.35) ** 2)) * 0.8 + 0.2
    amount = scene.table[Row.STRANDS] * torch.exp(scene.depth.clamp(max=0) / STRAND_MM)
    return image + torch.where(fat, STRAND_HU * amount * strand, 0.0)


def _with_metal(image: Tensor, centre: Tensor, context: SamplingContext) -> Tensor:
    """Return the image with a piece of metal, and streaks in its slices: waves around it that fade with the distance.

    A simple model: real streaks run along the directions in which rays are starved.
    """
    rng = context.rng
    radius, length = rng.uniform(2, 11), rng.uniform(6, 50)
    z, y, x = (
        (torch.arange(n, device=context.device) - centre[axis]) * context.spacing
        for axis, n in enumerate(context.patch)
    )
    distance = (y[:, None] ** 2 + x**2).sqrt()
    angle = torch.atan2(y[:, None], x.expand(len(y), -1))
    waves = torch.zeros_like(distance)
    for _ in range(STREAK_WAVES):
        waves = waves + rng.normal() * torch.cos(int(rng.integers(5, 40)) * angle + rng.uniform(0, 2 * math.pi))
    streaks = rng.uniform(10, 60) * waves * torch.exp(-distance / STREAK_MM) * (distance > radius)
    in_slices = torch.sigmoid((length / 2 - z.abs()) / 1.5)[:, None, None]
    metal = (distance < radius) & (z.abs() < length / 2)[:, None, None]
    return torch.where(metal, METAL_HU, image + in_slices * streaks)
