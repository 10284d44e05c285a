"""What does the refinement do to imperfect masks? ``python benchmarks/refinement.py LABELS_FOLDER [--most 8]``.

``--fits`` prints only how near the model comes to whole vertebrae as they are.

No network: label maps (NAME_vertebrae.nii.gz, VerSe numbering) are spoiled in the ways that networks spoil masks, and
refined, one step at a time and all together. LABELS_FOLDER should be none that the shape model was learned from.
Also prints how well the model fits whole vertebrae as they are. JSON lines.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Testing"))

from helpers.phantoms import dice  # noqa: E402
from helpers.simulated_answers import SACRUM, load, smooth_noise, whole_levels  # noqa: E402

from segmamba.evaluation.metrics import surface_distances  # noqa: E402
from segmamba.models.resources import SHAPES, resource_root  # noqa: E402
from segmamba.spine.frames import column_frames  # noqa: E402
from segmamba.spine.levels import C1, L6, T1, T12, level_name  # noqa: E402
from segmamba.spine.refine import ON, STEPS, refine  # noqa: E402
from segmamba.spine.shape_model import REGIONS, Fit, ShapeModel, fit, load_shapes  # noqa: E402

SPACING = 1.5
SMALLEST_ML = 5.0
# Of the holes that are made in a column, each as deep as the network's probability is lowered there.
HOLES, HOLE_MM, DOUBT = 20, 6.0, 0.45
# Of the places in a column that get a neighbour's number.
MISTAKEN, MISTAKEN_MM = 20, 5.0
# Rods in place of ribs at the transverse processes of T1 to T12: radius and range of the length.
RIBBED, ROD_MM, ROD_LENGTHS_MM = range(T1, T12 + 1), 6.0, (10.0, 30.0)
# Ellipsoids in place of the condyles: voxels above the atlas, and how far to the side its lateral masses are.
CONDYLE_ROOM, CONDYLE_MM = 14, (10.0, 24.0)
# Noise of the surface, in parts of the probability's step there.
WAVE = 0.5


@dataclass(frozen=True)
class Faults:
    """What is wrong with a simulated segmentation, beside its wavy surface."""

    holes: int = 0
    mistaken: int = 0
    merge: bool = False
    stubs: bool = False
    condyles: bool = False


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--most", type=int, default=8, help="number of maps")
    parser.add_argument("--fits", action="store_true", help="only how well the model fits whole vertebrae")
    parser.add_argument("--fault", help="only this one, such as 'condyles taken for the atlas'")
    parser.add_argument("--steps", nargs="+", help="only these together, not each alone")
    parser.add_argument("--levels", type=int, nargs="*", help="measure only these (1 is C1)")
    options = parser.parse_args()
    model = load_shapes(resource_root() / SHAPES)
    paths = sorted(options.folder.glob("*_vertebrae.nii.gz"))
    maps = [cropped(load(path, SPACING)) for path in paths[:: max(1, len(paths) // options.most)][: options.most]]
    for name, figures in fits(maps, model).items():
        print(json.dumps({"fit of whole vertebrae": name} | figures), flush=True)
    if options.fits:
        return
    for name, faults in (
        ("wavy surface", Faults()),
        ("wavy surface, doubtful places", Faults(holes=HOLES)),
        ("wavy surface, places with a neighbour's number", Faults(mistaken=MISTAKEN)),
        ("wavy surface, two vertebrae with one number", Faults(merge=True)),
        ("wavy surface, stubs of ribs", Faults(stubs=True)),
        ("wavy surface, condyles taken for the atlas", Faults(condyles=True)),
    ):
        if options.fault and options.fault not in (name, name.split(", ")[-1]):
            continue
        spoiled = [spoil(labels, faults, np.random.default_rng(index)) for index, labels in enumerate(maps)]
        for steps in (tuple(options.steps),) if options.steps else (*((step,) for step in STEPS), ON):
            gains, seconds = measure(maps, spoiled, steps, model, options.levels)
            print(json.dumps({"spoiled by": name, "steps": steps} | summary(gains) | {"seconds": seconds}), flush=True)


def cropped(labels: np.ndarray) -> np.ndarray:
    """Return a label map without most of the empty space around the spine, with room for stubs and condyles."""
    labels = np.pad(labels, ((0, CONDYLE_ROOM), (0, 0), (0, 0))) if (labels == C1).any() else labels
    around = (16, 8, 24)
    places = zip(np.nonzero(labels), around, strict=True)
    return labels[tuple(slice(max(0, n.min() - more), n.max() + more + 1) for n, more in places)]


def fits(maps: list[np.ndarray], model: ShapeModel) -> dict[str, dict[str, float]]:
    """Return how whole vertebrae overlap with their fitted shapes, and how far outside of them their voxels lie.

    ``outside_mm`` is the distance within which 99.5% of the voxels lie, ``surface_mm`` the mean surface distance: the
    least error of a mask that is the model's shape; by regions of the spine, and for all.
    """
    found: dict[int, list[Fit]] = {}
    distances: dict[int, list[np.ndarray]] = {}
    apart: dict[int, list[float]] = {}
    for labels in maps:
        frames = column_frames(labels, SPACING)
        for level in whole_levels(labels, SMALLEST_ML, SPACING):
            own = labels == level
            one = fit(own, level, model, frames[level], SPACING)
            found.setdefault(level, []).append(one)
            distances.setdefault(level, []).append(one.distance[own[one.box]])
            average, _ = surface_distances(one.distance < 0, own[one.box], (SPACING,) * 3)
            apart.setdefault(level, []).append(average)
    figures = {}
    for first, last in (*REGIONS, (1, L6)):
        levels = [level for level in found if first <= level <= last]
        if levels:
            overlaps = [one.dice for level in levels for one in found[level]]
            far = np.concatenate([part for level in levels for part in distances[level]])
            figures[f"{level_name(first)} to {level_name(last)}"] = {
                "vertebrae": len(overlaps),
                "lowest": round(float(np.min(overlaps)), 3),
                "median": round(float(np.median(overlaps)), 3),
                "outside_mm": round(float(np.quantile(far, 0.995)), 1),
                "surface_mm": round(float(np.mean([one for level in levels for one in apart[level]])), 2),
            }
    return figures


def spoil(labels: np.ndarray, faults: Faults, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return labels with wavy surfaces and other faults, and the probability behind them."""
    bone = (labels > 0) & (labels < SACRUM)
    soft = ndimage.gaussian_filter(bone.astype(np.float32), 1.0 / SPACING)
    wave = WAVE * smooth_noise(labels.shape, 4.0 / SPACING, rng)
    probability = np.clip(soft + wave * np.sqrt(soft * np.clip(1 - soft, 0, 1)), 0, 1)
    places = np.argwhere(bone)
    for centre in places[rng.integers(len(places), size=faults.holes)]:
        box, inside = ball(centre, HOLE_MM, labels.shape)
        probability[box][inside] *= DOUBT
    nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    spoiled = np.where(probability > 0.5, labels[tuple(nearest)], 0).astype(np.uint8)
    for centre in places[rng.integers(len(places), size=faults.mistaken)]:
        box, inside = ball(centre, MISTAKEN_MM, labels.shape)
        own = labels[tuple(centre)]
        spoiled[box][inside & (spoiled[box] == own)] = own + 1 if (labels == own + 1).any() else own - 1
    if faults.stubs:
        add_stubs(spoiled, probability, rng)
    if faults.condyles:
        add_condyles(spoiled, probability, rng)
    if faults.merge:
        levels = whole_levels(labels, SMALLEST_ML, SPACING)
        upper = levels[len(levels) // 2 - 1]
        spoiled[spoiled == upper + 1] = upper
    return spoiled, probability


def ball(centre: np.ndarray, radius_mm: float, shape: tuple[int, ...]) -> tuple[tuple[slice, ...], np.ndarray]:
    """Return a box around a voxel, and which of the box's voxels are less than a radius away from it."""
    around = int(np.ceil(radius_mm / SPACING))
    low = np.maximum(0, centre - around)
    box = tuple(slice(start, min(n + around + 1, size)) for start, n, size in zip(low, centre, shape, strict=True))
    size = [part.stop - part.start for part in box]
    grid = np.moveaxis(np.indices(size), 0, -1) + low - centre
    return box, np.linalg.norm(grid * SPACING, axis=-1) < radius_mm


def add_stubs(labels: np.ndarray, probability: np.ndarray, rng: np.random.Generator) -> None:
    """Add rods that start at the tips of the transverse processes of the thorax and run outwards, in place."""
    for level in np.intersect1d(labels, RIBBED):
        own = np.argwhere(labels == level) * SPACING
        sideways = own[:, 2] - own[:, 2].mean()
        for side in (-1.0, 1.0):
            reach = side * sideways
            tip = own[reach > reach.max() - 3.0].mean(axis=0)
            course = np.array([rng.normal(-0.3, 0.2), rng.normal(0.0, 0.3), side])
            course /= np.linalg.norm(course)
            length = rng.uniform(*ROD_LENGTHS_MM)
            ends = np.stack([tip, tip + length * course]) / SPACING
            low = np.maximum(0, ends.min(axis=0) - ROD_MM / SPACING).astype(int)
            high = (ends.max(axis=0) + ROD_MM / SPACING).astype(int) + 1
            box = tuple(slice(start, stop) for start, stop in zip(low, high, strict=True))
            places = (np.moveaxis(np.indices(labels[box].shape), 0, -1) + low) * SPACING - tip
            along = np.clip(places @ course, 0.0, length)
            rod = (np.linalg.norm(places - along[..., None] * course, axis=-1) < ROD_MM) & (labels[box] == 0)
            labels[box][rod] = level
            probability[box][rod] = 0.9


def add_condyles(labels: np.ndarray, probability: np.ndarray, rng: np.random.Generator) -> None:
    """Add ellipsoids in the place of the occipital condyles, on the lateral masses of the atlas, in place."""
    z, y, x = np.nonzero(labels == C1)
    for side in (-1.0, 1.0) if len(z) else ():
        sideways = side * (x - x.mean()) * SPACING
        mass = (sideways > CONDYLE_MM[0]) & (sideways < CONDYLE_MM[1])
        height = np.quantile(z[mass], 0.97)
        top = mass & (z >= height - 2)
        centre = np.array([height + rng.uniform(3, 6) / SPACING, y[top].mean(), x[top].mean() - side])
        radii = np.array([rng.uniform(5, 9), rng.uniform(7, 11), rng.uniform(4, 7)]) / SPACING
        grid = np.moveaxis(np.indices(labels.shape), 0, -1)
        condyle = ((((grid - centre) / radii) ** 2).sum(axis=-1) < 1) & (labels == 0)
        labels[condyle] = C1
        probability[condyle] = 0.9


def measure(
    maps: list[np.ndarray],
    spoiled: list[tuple[np.ndarray, np.ndarray]],
    steps: tuple[str, ...],
    model: ShapeModel,
    only: list[int] | None = None,
) -> tuple[np.ndarray, float]:
    """Return the gain in Dice of each whole vertebra (of some levels), and the seconds a column."""
    gains, seconds = [], 0.0
    for truth, (labels, probability) in zip(maps, spoiled, strict=True):
        start = time.perf_counter()
        refined, _, _ = refine(labels, probability, SPACING, model, steps)
        seconds += time.perf_counter() - start
        for level in whole_levels(truth, SMALLEST_ML, SPACING):
            if only and level not in only:
                continue
            own = truth == level
            gains.append(dice(refined == level, own) - dice(labels == level, own))
    return np.array(gains), round(seconds / len(maps), 1)


def summary(gains: np.ndarray) -> dict[str, float]:
    """Return the mean gain with its 95% bootstrap interval over vertebrae, and the worst and the best."""
    rng = np.random.default_rng(0)
    means = rng.choice(gains, (2000, len(gains))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    figures = {"gain": gains.mean(), "low": low, "high": high, "worst": gains.min(), "best": gains.max()}
    return {name: round(float(value), 4) for name, value in figures.items()}


if __name__ == "__main__":
    main()
