"""Generate rough surroundings for a bare spine: skin, fat, muscle, lungs, ribs, vessels, organs, neck and skull.

All positions are relative to the column's own centre line and all sizes are drawn at random around adult proportions
(our own, by eye). They need not be right, only various: the network must not learn that a vertebra floats in nothing.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from segmamba.training.synthesis.tissue_labels import (
    AORTA,
    BRAIN,
    CAVA,
    CLAVICLE,
    COLON,
    CORD,
    FAT,
    FIRST_THORACIC,
    HEART,
    KIDNEY,
    LAST_THORACIC,
    LEFT_RIBS,
    LIVER,
    LUNG,
    MUSCLE,
    RIGHT_RIBS,
    SCAPULA,
    SKULL,
    SMALL_BOWEL,
    SOFT,
    SPACING,
    SPLEEN,
    STOMACH,
    TRACHEA,
)


class _Body:
    """The generated tissues, and for each slice the positions of the column and of the body's outline.

    Attributes
    ----------
    tissues, spine : ndarray of uint8 (z, y, x)
        Tissue labels so far, and the vertebrae, which are put over them at the end.
    head : int
        Slices above C1; 0 where C1 is not in the labels.
    x, y, level : ndarray (z,)
        The column's centre in voxels, and its level: C1 = 1 to L5 = 24.
    cy, rx, ry : ndarray (z,)
        Centre and radii of the body's ellipse in voxels; its x is the column's.
    fat : ndarray (z,)
        Thickness of the subcutaneous fat in voxels.
    """

    def __init__(self, vertebrae: np.ndarray, rng: np.random.Generator) -> None:
        self.rng = rng
        present = np.flatnonzero((vertebrae > 0).any(axis=(1, 2)))
        spine = vertebrae[present[0] : present[-1] + 1]
        head = round(rng.uniform(40, 110) / SPACING) if 1 in np.unique(spine) else 0
        half_width, front, back = (round(mm / SPACING) for mm in (200, 230, 90))
        centre = self._centre_line(spine)
        y0, x0 = round(centre[:, 1].mean()) - front, round(centre[:, 0].mean()) - half_width
        self.spine = np.zeros((len(spine) + head, front + back, 2 * half_width), np.uint8)
        z, y, x = np.nonzero(spine)
        inside = (y >= y0) & (y < y0 + front + back) & (x >= x0) & (x < x0 + 2 * half_width)
        z, y, x = z[inside], y[inside], x[inside]
        self.spine[z, y - y0, x - x0] = spine[z, y, x]
        centre = np.vstack([centre, np.repeat(centre[-1:], head, axis=0)])
        self.x = centre[:, 0] - x0
        self.y = centre[:, 1] - y0
        self.level = centre[:, 2]
        self.head = head
        self.tissues = np.zeros_like(self.spine)
        level, scale = self.level, rng.uniform(0.85, 1.15)
        self.rx = np.interp(level, [1, 6, 8, 10, 19, 24], [65, 68, 140, 170, 160, 168]) * scale / SPACING
        self.ry = np.interp(level, [1, 6, 8, 10, 19, 24], [72, 70, 90, 110, 112, 115]) * scale / SPACING
        behind = np.interp(level, [1, 6, 9, 16, 24], [52, 58, 58, 52, 62]) * rng.uniform(0.9, 1.2) / SPACING
        self.fat = rng.uniform(4, 30) * np.interp(level, [1, 8, 20], [0.4, 0.7, 1.0]) / SPACING
        self.cy = self.y + behind - self.ry

    @staticmethod
    def _centre_line(spine: np.ndarray) -> np.ndarray:
        """Return (slices, 3): x, y of the column and its level, smooth along z."""
        rows: list[tuple[float, float, float]] = []
        for plane in spine:
            y, x = np.nonzero(plane)
            rows.append((x.mean(), y.mean(), plane[y, x].mean()) if len(x) else rows[-1])
        return ndimage.gaussian_filter1d(np.array(rows), 15 / SPACING, axis=0, mode="nearest")

    def plane(self, z: int) -> tuple[np.ndarray, np.ndarray]:
        """Return x and y of a slice's voxels relative to the column, in mm (left and posterior positive)."""
        y, x = np.ogrid[: self.tissues.shape[1], : self.tissues.shape[2]]
        return (x - self.x[z]) * SPACING, (y - self.y[z]) * SPACING

    def ellipse(self, z: int, inset: float) -> np.ndarray:
        """Return the slice's body outline, ``inset`` voxels inside the skin."""
        y, x = np.ogrid[: self.tissues.shape[1], : self.tissues.shape[2]]
        rx, ry = max(self.rx[z] - inset, 1.0), max(self.ry[z] - inset, 1.0)
        return np.abs((x - self.x[z]) / rx) ** 2.4 + np.abs((y - self.cy[z]) / ry) ** 2.4 <= 1

    def height_of(self, level: float) -> int:
        """Return the slice nearest to a level."""
        return int(np.abs(self.level[: len(self.level) - self.head] - level).argmin())

    def tube(self, points: np.ndarray, radius_mm: float, label: int) -> None:
        """Draw a chain of balls at (n, 3) points in voxels (z, y, x)."""
        r = int(np.ceil(radius_mm / SPACING))
        ball = np.argwhere(np.linalg.norm(np.mgrid[-r : r + 1, -r : r + 1, -r : r + 1], axis=0) <= radius_mm / SPACING)
        voxels = (np.round(points).astype(int)[:, None] + (ball - r)[None]).reshape(-1, 3)
        inside = ((voxels >= 0) & (voxels < self.tissues.shape)).all(axis=1)
        self.tissues[tuple(voxels[inside].T)] = label

    def ellipsoid(self, centre: tuple[float, float, float], radii_mm: tuple[float, float, float], label: int) -> None:
        """Draw an ellipsoid; centre (z, y, x) in voxels; only over soft tissue."""
        lo = [max(0, int(c - r / SPACING)) for c, r in zip(centre, radii_mm, strict=True)]
        hi = [int(c + r / SPACING) + 1 for c, r in zip(centre, radii_mm, strict=True)]
        box = tuple(slice(a, max(a, b)) for a, b in zip(lo, hi, strict=True))
        grid = np.ogrid[tuple(slice(s.start, min(s.stop, n)) for s, n in zip(box, self.tissues.shape, strict=True))]
        distance = sum(((g - c) * SPACING / r) ** 2 for g, c, r in zip(grid, centre, radii_mm, strict=True))
        view = self.tissues[box]
        view[(distance <= 1) & (view == SOFT)] = label


def procedural_body(vertebrae: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return tissue labels (z, y, x), uint8, around a bare spine, without its discs and canal.

    The result has its own size: from the lowest slice with a vertebra to the highest, or to the head above C1.

    Parameters
    ----------
    vertebrae : ndarray of uint8 (z, y, x)
        VerSe labels at 1.5 mm, LPS axes.
    rng : numpy.random.Generator
        Decides all proportions.
    """
    body = _Body(vertebrae, rng)
    for z in range(len(body.tissues)):
        _soft_tissue(body, z)
    _trunk(body)
    _neck(body)
    _ribs(body)
    _scapulae(body)
    if body.head:
        _skull(body)
    tissues = body.tissues
    tissues[body.spine > 0] = body.spine[body.spine > 0]
    return tissues


def _soft_tissue(body: _Body, z: int) -> None:
    plane, level = body.tissues[z], body.level[z]
    x, y = body.plane(z)
    plane[body.ellipse(z, 0)] = FAT
    plane[body.ellipse(z, body.fat[z])] = SOFT
    if z >= len(body.tissues) - body.head:
        return
    width = np.interp(level, [1, 8, 20], [18, 22, 28])
    plane[((np.abs(x) - width) / width) ** 2 + ((y - 20) / 19) ** 2 <= 1] = MUSCLE
    if level > 20:
        plane[((np.abs(x) - 40) / 19) ** 2 + ((y + 16) / 22) ** 2 <= 1] = MUSCLE
    if 8.5 < level < 19.5:
        inset = body.fat[z] + np.interp(level, [8.5, 10.5, 17, 19.5], [45, 14, 14, 24]) / SPACING
        lung = body.ellipse(z, inset) & (np.abs(x) > np.where(y > -20, 24, 42))
        if level > 17:
            lung &= y > -30  # only the recess behind the diaphragm
        plane[lung] = LUNG


def _trunk(body: _Body) -> None:
    rng, level = body.rng, body.level[: len(body.level) - body.head]
    for label, highest_level, left, radius in ((AORTA, 11.5, 14, 11), (CAVA, 19, -20, 11)):
        z = np.flatnonzero(level > highest_level)
        if len(z):
            points = np.stack([z, body.y[z] - 40 / SPACING, body.x[z] + left / SPACING], axis=1)
            body.tube(points, radius * rng.uniform(0.8, 1.2), label)
    if level.min() < 15 < level.max():
        at = body.height_of(15)
        lung = body.tissues == LUNG
        body.tissues[lung] = SOFT
        body.ellipsoid((at, body.y[at] - 95 / SPACING, body.x[at] + 20 / SPACING), (60, 50, 62), HEART)
        body.tissues[lung & (body.tissues == SOFT)] = LUNG
    # Code, level, and in mm: left and posterior of the column, size.
    organs = ((LIVER, 19, -75, -80, 75), (SPLEEN, 19, 95, -30, 42), (STOMACH, 20, 60, -100, 50))
    kidneys = ((KIDNEY, 20.5, -62, -12, 42), (KIDNEY, 20.2, 62, -12, 42))
    bowel = tuple(
        (int(rng.choice([SMALL_BOWEL, COLON])), rng.uniform(20, 25), rng.uniform(-120, 120), rng.uniform(-150, -60), 28)
        for _ in range(14)
    )
    for label, at_level, x, y, size in organs + kidneys + bowel:
        if level.min() - 1 < at_level < level.max() + 1:
            at = body.height_of(at_level)
            centre = (at + rng.normal(0, 8), body.y[at] + y / SPACING, body.x[at] + x / SPACING)
            radii = tuple(size * rng.uniform(0.7, 1.2, 3) * (1.0, 0.75, 0.7))
            body.ellipsoid(centre, radii, label)


def _neck(body: _Body) -> None:
    level = body.level[: len(body.level) - body.head]
    z = np.flatnonzero((level > 3) & (level < 12))
    if not len(z):
        return
    points = np.stack([z, body.y[z] - np.interp(level[z], [3, 8, 12], [38, 42, 48]) / SPACING, body.x[z]], axis=1)
    body.tube(points, body.rng.uniform(6, 9), TRACHEA)
    if level.min() < 9 < level.max():
        at = body.height_of(9)
        t = np.linspace(0, 1, 120)
        for side in (-1, 1):
            x = body.x[at] + side * (15 + 95 * t) / SPACING
            y = body.y[at] - (75 - 55 * t + 12 * np.sin(2 * np.pi * t)) / SPACING
            body.tube(np.stack([at + 25 * t / SPACING, y, x], axis=1), 5.5, CLAVICLE)


def _ribs(body: _Body) -> None:
    """Twelve pairs at most, from each thoracic vertebra's side forwards along the chest wall."""
    rng = body.rng
    drop = rng.uniform(45, 90) / SPACING
    for label in range(FIRST_THORACIC, LAST_THORACIC + 1):
        z, y, x = np.nonzero(body.spine == label)
        if not len(z):
            continue
        top = z.mean() + 4
        length = np.interp(label, [8, 10, 17, 18, 19], [0.6, 0.8, 0.8, 0.5, 0.3]) * rng.uniform(0.9, 1.1)
        angle = np.linspace(0.28, np.pi * length, 260)
        at = int(np.clip(top, 0, len(body.level) - 1))
        inset = body.fat[at] + np.interp(label, [8, 11], [55, 10]) / SPACING
        rx, ry = body.rx[at] - inset, body.ry[at] - inset
        for side, ribs in ((-1, RIGHT_RIBS), (1, LEFT_RIBS)):
            wall_x = body.x[at] + side * rx * np.sin(angle)
            wall_y = body.cy[at] + ry * np.cos(angle)
            start = np.clip((angle - 0.28) / 0.45, 0, 1)  # from the transverse process out to the wall
            px = (1 - start) * (x.mean() + side * 30 / SPACING) + start * wall_x
            py = (1 - start) * (y.mean() + 2) + start * wall_y
            points = np.stack([top - drop * (angle / np.pi) ** 1.2, py, px], axis=1)
            body.tube(points, rng.uniform(3.6, 5.2), ribs[label - FIRST_THORACIC])


def _scapulae(body: _Body) -> None:
    """Two plates between the ribs and the skin of the back, down to T7."""
    for z in map(int, np.flatnonzero((body.level > 8.5) & (body.level < 14))):
        x, y = body.plane(z)
        shell = body.ellipse(z, body.fat[z] + 2) & ~body.ellipse(z, body.fat[z] + 5)
        body.tissues[z][shell & (np.abs(x) > 62) & (np.abs(x) < 62 + (14 - body.level[z]) * 14) & (y > -25)] = SCAPULA


def _skull(body: _Body) -> None:
    """A skull above C1 and a mandible before C1 to C3."""
    rng = body.rng
    z, y, x = np.nonzero(body.spine == 1)
    top, cy, cx = z.max(), y.mean() - 22 / SPACING, x.mean()
    radii = np.array((72, 88, 70)) * rng.uniform(0.9, 1.1)
    centre = np.array((top + (radii[0] - rng.uniform(2, 8)) / SPACING, cy, cx))
    grid = np.ogrid[tuple(slice(0, n) for n in body.tissues.shape)]
    distance = np.sqrt(sum(((g - c) * SPACING / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)))
    body.tissues[(distance <= 1.08) & (body.tissues == 0)] = FAT
    body.tissues[distance <= 1] = SKULL
    body.tissues[distance <= 1 - 6 / radii.mean()] = BRAIN
    foramen = ((grid[1] - y.mean()) ** 2 + (grid[2] - cx) ** 2) * SPACING**2 < 14**2
    body.tissues[foramen & (grid[0] >= top) & (grid[0] < centre[0]) & (body.tissues == SKULL)] = CORD
    _skull_base(body, np.stack([z, y, x], axis=1))
    t = np.linspace(-1, 1, 240)
    jaw = np.stack([top - (10 + 40 * (1 - np.abs(t) ** 3)) / SPACING, cy - (62 * (1 - t**2) - 5) / SPACING,
                    cx + 45 * t / SPACING], axis=1)  # fmt: skip
    body.tube(jaw, rng.uniform(5, 7), SKULL)


def _skull_base(body: _Body, atlas: np.ndarray) -> None:
    """Bone next to C1 (voxels (n, 3)) of no vertebra: condyles on its facets, clivus, petrous bones, mastoids."""
    rng, middle = body.rng, atlas.mean(axis=0)
    for side in (-1, 1):
        across = side * (atlas[:, 2] - middle[2]) * SPACING
        mass = atlas[(across > 8) & (across < 26)]
        if not len(mass):
            continue
        facet = mass[mass[:, 0] >= np.quantile(mass[:, 0], 0.85)].mean(axis=0)
        condyle = np.linspace(
            facet + np.array((3, 4, 0)) / SPACING, facet + np.array((12, -7, -4 * side)) / SPACING, 20
        )
        body.tube(condyle, rng.uniform(5, 8), SKULL)
        ear = facet + np.array((rng.uniform(8, 16), rng.uniform(-12, 4), side * rng.uniform(26, 36))) / SPACING
        body.tube(np.linspace(condyle[-1], ear, 40), rng.uniform(5, 9), SKULL)
        tip = ear + np.array((-rng.uniform(12, 30), rng.uniform(2, 10), side * rng.uniform(0, 8))) / SPACING
        body.tube(np.linspace(ear, tip, 30), rng.uniform(5, 9), SKULL)
    basion = np.array(
        (atlas[:, 0].max() + rng.uniform(2, 6) / SPACING, middle[1] - rng.uniform(10, 16) / SPACING, middle[2])
    )
    clivus = np.linspace(basion, basion + np.array((rng.uniform(25, 40), -rng.uniform(12, 25), 0)) / SPACING, 40)
    body.tube(clivus, rng.uniform(5, 9), SKULL)
    near = np.zeros(body.tissues.shape, bool)
    near[tuple(atlas.T)] = True
    low, high = np.maximum(atlas.min(axis=0) - 3, 0), atlas.max(axis=0) + 4
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    joint = ndimage.binary_dilation(near[box], iterations=1) & (body.tissues[box] == SKULL)
    body.tissues[box][joint] = SOFT
