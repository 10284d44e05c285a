"""How robust is the numbering? ``python benchmarks/numbering.py LABELS_FOLDER [LABELS_FOLDER ...]``.

No network: its answers are simulated from label maps (NAME_vertebrae.nii.gz, VerSe numbering), with noise and errors.
First the whole way, from voxels to numbers; then the chain alone, with many kinds of wrong evidence. JSON lines.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Testing" / "engine"))

from simulated_answers import SACRUM, centroids, level_evidence, load, simulate, whole_levels  # noqa: E402

from segmamba.spine.chain import Numbering, number  # noqa: E402
from segmamba.spine.decode import decode  # noqa: E402
from segmamba.spine.frames import column_scale  # noqa: E402
from segmamba.spine.levels import T1, T12  # noqa: E402

SPACING = 2.0
SMALLEST_ML = 3.0
FOUND_MM = 20.0
CROP = 5
TRIALS = 5
RIBS_WRONG = 0.05
NOISE = {"noise": {}, "much noise": {"offset_noise_mm": 4.5, "mask_noise": 0.9, "sharpness": 0.5, "blobs": 3}}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    options = parser.parse_args()
    paths = [path for folder in options.folders for path in sorted(folder.glob("*_vertebrae.nii.gz"))]
    maps = [labels for labels in (cropped(load(path, SPACING)) for path in paths) if usable(labels)]
    for name, noise in NOISE.items():
        print(json.dumps({"from voxels": name} | from_voxels(maps, noise)), flush=True)
    columns = [column(labels) for labels in maps]
    for name, trials in scenarios(columns).items():
        print(json.dumps({"chain": name} | judged(trials)), flush=True)


def cropped(labels: np.ndarray) -> np.ndarray:
    """Return a label map without most of the empty space around the spine."""
    return labels[tuple(slice(max(0, n.min() - 4), n.max() + 5) for n in np.nonzero(labels))]


def usable(labels: np.ndarray) -> bool:
    """Whether three whole vertebrae that are to scale are in view."""
    whole = whole_levels(labels, SMALLEST_ML, SPACING)
    centres = centroids(labels, SPACING)
    volumes = {level: np.count_nonzero(labels == level) * SPACING**3 / 1000 for level in whole}
    return len(whole) >= 3 and 0.7 < column_scale({level: centres[level] for level in whole}, volumes) < 1.4


def from_voxels(maps: list[np.ndarray], noise: dict[str, float]) -> dict[str, float]:
    """Return how many vertebrae get their place and number back."""
    total = found = right = wrong_but_certain = 0
    for index, labels in enumerate(maps):
        answers = simulate(labels, SPACING, np.random.default_rng(index), **noise)  # type: ignore[arg-type]
        result = decode(*answers.arrays, SPACING)
        centres = centroids(labels, SPACING)
        wrong = False
        for level in whole_levels(labels, SMALLEST_ML, SPACING):
            total += 1
            near = result.levels[np.linalg.norm(result.centres - centres[level], axis=1) < FOUND_MM / 2]
            found += len(near) == 1
            right += bool(level in near)
            wrong |= bool(near.size) and level not in near
        wrong_but_certain += int(wrong and result.numbering.certain)
    return {
        "columns": len(maps),
        "vertebrae": total,
        "found": round(found / total, 4),
        "numbered right": round(right / total, 4),
        "columns wrong but certain": wrong_but_certain,
    }


Column = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]


def column(labels: np.ndarray) -> Column:
    """Return levels, centres, volumes and sacrum of a map's whole vertebrae."""
    centres = centroids(labels, SPACING)
    levels = np.array(whole_levels(labels, SMALLEST_ML, SPACING))
    volumes = np.array([np.count_nonzero(labels == level) * SPACING**3 / 1000 for level in levels])
    return levels, np.array([centres[level] for level in levels]), volumes, centres.get(SACRUM)


def scenarios(columns: list[Column]) -> dict[str, list[tuple[np.ndarray, Numbering]]]:
    """Return true levels and numbering of all trials of each kind."""
    rng = np.random.default_rng(0)
    trials: dict[str, list[tuple[np.ndarray, Numbering]]] = {}
    for levels, claims, centres, volumes, sacrum, ribs, name in with_ribs(cases(columns, rng)):
        evidence = np.array([level_evidence(int(np.clip(claim, 1, SACRUM)), 0.6, rng) for claim in claims])
        shaken = centres + rng.normal(0, 1.5, centres.shape)
        trials.setdefault(name, []).append((levels, number(evidence, shaken, volumes, sacrum, ribs=ribs)))
    return trials


def with_ribs(plain: Iterator[tuple]) -> Iterator[tuple]:
    """Yield each trial without ribs and, where it has a thoracic vertebra, also with them, 1 of 20 of them wrong."""
    rng = np.random.default_rng(1)
    for *trial, name in plain:
        yield *trial, None, name
        bears = (trial[0] >= T1) & (trial[0] <= T12)
        if bears.any():
            yield *trial, (bears ^ (rng.random(len(bears)) < RIBS_WRONG)).astype(float), f"{name}; ribs"


def cases(columns: list[Column], rng: np.random.Generator) -> Iterator[tuple]:
    """Yield true levels, claimed ones, centres, volumes, sacrum and the name of the kind."""
    for levels, centres, volumes, sacrum in (one for one in columns for _ in range(TRIALS)):
        by = int(rng.choice([-1, 1]))
        start = int(rng.integers(1, len(levels)))
        slipped = np.where(np.arange(len(levels)) >= start, levels + by, levels)
        ends = "C1 or sacrum in view" if levels[0] == 1 or sacrum is not None else "no end in view"
        yield levels, levels, centres, volumes, sacrum, f"right evidence, {ends}"
        yield levels, slipped, centres, volumes, sacrum, f"off by one from a level down, {ends}"
        yield levels, levels + by, centres, volumes, sacrum, f"off by one everywhere, {ends}"
        random = np.where(rng.random(len(levels)) < 0.3, levels + rng.integers(-3, 4, len(levels)), levels)
        yield levels, random, centres, volumes, sacrum, f"3 of 10 at random, {ends}"
        if len(levels) > 4:
            kept = np.arange(len(levels)) != rng.integers(1, len(levels) - 1)
            yield levels[kept], levels[kept], centres[kept], volumes[kept], sacrum, "a vertebra not found"
        if len(levels) >= CROP:
            first = int(rng.integers(0, len(levels) - CROP + 1))
            part = slice(first, first + CROP)
            middle = levels[first] + CROP // 2
            region = "neck" if middle < 8 else "thorax" if middle < 18 else "around L1 or below"
            crop = (centres[part], volumes[part], None)
            yield levels[part], levels[part], *crop, f"crop of {CROP}, right evidence, {region}"
            yield levels[part], levels[part] + by, *crop, f"crop of {CROP}, off by one, {region}"


def judged(trials: list[tuple[np.ndarray, Numbering]]) -> dict[str, float]:
    """Return how often no number is wrong, and what is said of columns with wrong ones."""
    right = np.array([not ((found.levels != levels) & (found.levels > 0)).any() for levels, found in trials])
    certain = np.array([found.certain for _, found in trials])
    return {
        "trials": len(trials),
        "right": round(float(right.mean()), 3),
        "right and certain": round(float((right & certain).mean()), 3),
        "wrong but certain": round(float((~right & certain).mean()), 3),
        "vertebrae left out": round(float(np.mean([(found.levels == 0).mean() for _, found in trials])), 4),
    }


if __name__ == "__main__":
    main()
