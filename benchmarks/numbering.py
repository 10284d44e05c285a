"""How robust is the numbering? ``python benchmarks/numbering.py LABELS_FOLDER [LABELS_FOLDER ...]``.

No network: its answers are simulated from label maps (NAME_vertebrae.nii.gz, VerSe numbering), with noise and errors.
First the whole way, from voxels to levels, and with a vertebra that the upper or lower border truncates; then the
hidden Markov model alone, with many kinds of wrong evidence. JSON lines.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Testing"))

from helpers.simulated_answers import SACRUM, Answers, centroids, level_evidence, load, simulate, whole_levels  # noqa: E402

from segmamba.spine.decode import decode  # noqa: E402
from segmamba.spine.fine import decode_fine, recover_truncated_ends  # noqa: E402
from segmamba.spine.frames import column_scale  # noqa: E402
from segmamba.spine.hmm import Numbering, label_levels  # noqa: E402
from segmamba.spine.levels import T1, T12  # noqa: E402

SPACING = 2.0
SMALLEST_ML = 3.0
FOUND_MM = 20.0
CROP = 5
TRIALS = 5
RIBS_WRONG = 0.05
NOISE = {"noise": {}, "much noise": {"offset_noise_mm": 4.5, "mask_noise": 0.9, "sharpness": 0.5, "blobs": 3}}
# Of a vertebra that the border cuts this part of the height is in view; a network that is not sure places it nearer to
# its neighbour, by a part of their distance in the coarse pass and by one in the fine pass.
IN_VIEW, CUTS, BIT_ML = (0.1, 0.6), 4, (1.0, 2.0, 4.0, 8.0)
HEDGED = {"sure": (0.0, 0.0), "not sure": (0.5, 0.3)}


def main() -> None:
    """Print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    options = parser.parse_args()
    paths = [path for folder in options.folders for path in sorted(folder.glob("*_vertebrae.nii.gz"))]
    maps = [labels for labels in (cropped(load(path, SPACING)) for path in paths) if usable(labels)]
    for name, noise in NOISE.items():
        print(json.dumps({"from voxels": name} | from_voxels(maps, noise)), flush=True)
    for name, noise in NOISE.items():
        for how, hedged in HEDGED.items():
            print(json.dumps({"cut by the border": f"{name}, {how}"} | cut_by_border(maps, noise, hedged)), flush=True)
    columns = [vertebrae_of(labels) for labels in maps]
    for name, trials in scenarios(columns).items():
        print(json.dumps({"levels": name} | judged(trials)), flush=True)


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


def cut_by_border(
    maps: list[np.ndarray], noise: dict[str, float], hedged: tuple[float, float]
) -> dict[str, dict[str, float]]:
    """Return how often a cut vertebra is told from its neighbour, by the volume (mL) that is in view of it.

    ``coarse`` by the coarse pass's centres, ``fine`` with those that the fine pass adds; ``invented``: columns with
    more vertebrae than there are.
    """
    found: dict[str, list[tuple[bool, bool, bool]]] = {}
    for index, labels in enumerate(maps):
        rng = np.random.default_rng(index)
        passes = [simulate(labels, SPACING, rng, **noise) for _ in hedged]  # type: ignore[arg-type]
        centres = centroids(labels, SPACING)
        for part, level, neighbour in cuts(labels, rng):
            way = centres[neighbour] - centres[level]
            coarse, fine = (
                cut(each, labels == level, share * way, part) for each, share in zip(passes, hedged, strict=True)
            )
            truth = labels[part]
            column = decode(*coarse.arrays, SPACING)
            arrays = (fine.probabilities, fine.offsets, SPACING, np.zeros(3))
            longer = recover_truncated_ends(column, *arrays)
            drawn = [decode_fine(*arrays, each) for each in (column, longer)]
            apart = [mostly(each, truth == level) not in (0, mostly(each, truth == neighbour)) for each in drawn]
            volume = np.count_nonzero(truth == level) * SPACING**3 / 1000
            there = np.count_nonzero(np.bincount(truth.ravel(), minlength=SACRUM)[1:SACRUM])
            size = next((f"less than {most:g} mL" for most in BIT_ML if volume < most), f"{BIT_ML[-1]:g} mL or more")
            found.setdefault(size, []).append((apart[0], apart[1], len(longer.levels) > there))
    results = {}
    for size, rows in sorted(found.items()):
        coarse_alone, with_fine, invented = np.array(rows, float).T
        results[size] = {"cut": len(rows), "coarse": round(coarse_alone.mean(), 3), "fine": round(with_fine.mean(), 3)}
        results[size]["invented"] = int(invented.sum())
    return results


def cuts(labels: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[slice, int, int]]:
    """Yield parts of a map along z that cut a vertebra at the top or at the bottom, its level and its neighbour's."""
    whole = whole_levels(labels, SMALLEST_ML, SPACING)
    for trial in range(CUTS):
        level = int(rng.choice(whole))
        heights = np.flatnonzero((labels == level).any(axis=(1, 2)))
        size = max(2, round(rng.uniform(*IN_VIEW) * len(heights)))
        above = trial % 2 == 0
        part = slice(0, int(heights[0]) + size) if above else slice(int(heights[-1]) + 1 - size, len(labels))
        neighbour = level + 1 if above else level - 1
        if neighbour in whole and sum((labels[part] == other).any() for other in whole) > 3:
            yield part, level, neighbour


def cut(answers: Answers, own: np.ndarray, way: np.ndarray, part: slice) -> Answers:
    """Return a part of answers along z; a vertebra's mask and 4 mm around it vote elsewhere by ``way`` (mm)."""
    offsets = answers.offsets.copy()
    offsets[:, ndimage.binary_dilation(own, iterations=2)] += way[:, None].astype(np.float32)
    return Answers(answers.probabilities[:, part], offsets[:, part], answers.evidence[:, part])


def mostly(labels: np.ndarray, mask: np.ndarray) -> int:
    """Return the label that a mask mostly has."""
    return int(np.bincount(labels[mask]).argmax())


Vertebrae = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]


def vertebrae_of(labels: np.ndarray) -> Vertebrae:
    """Return levels, centres, volumes and sacrum of a map's whole vertebrae."""
    centres = centroids(labels, SPACING)
    levels = np.array(whole_levels(labels, SMALLEST_ML, SPACING))
    volumes = np.array([np.count_nonzero(labels == level) * SPACING**3 / 1000 for level in levels])
    return levels, np.array([centres[level] for level in levels]), volumes, centres.get(SACRUM)


def scenarios(columns: list[Vertebrae]) -> dict[str, list[tuple[np.ndarray, Numbering]]]:
    """Return true levels and numbering of all trials of each kind."""
    rng = np.random.default_rng(0)
    trials: dict[str, list[tuple[np.ndarray, Numbering]]] = {}
    for levels, claims, centres, volumes, sacrum, ribs, name in with_ribs(cases(columns, rng)):
        evidence = np.array([level_evidence(int(np.clip(claim, 1, SACRUM)), 0.6, rng) for claim in claims])
        shaken = centres + rng.normal(0, 1.5, centres.shape)
        trials.setdefault(name, []).append((levels, label_levels(evidence, shaken, volumes, sacrum, ribs=ribs)))
    return trials


def with_ribs(plain: Iterator[tuple]) -> Iterator[tuple]:
    """Yield each trial without ribs and, where it has a thoracic vertebra, also with them, 1 of 20 of them wrong."""
    rng = np.random.default_rng(1)
    for *trial, name in plain:
        yield *trial, None, name
        bears = (trial[0] >= T1) & (trial[0] <= T12)
        if bears.any():
            yield *trial, (bears ^ (rng.random(len(bears)) < RIBS_WRONG)).astype(float), f"{name}; ribs"


def cases(columns: list[Vertebrae], rng: np.random.Generator) -> Iterator[tuple]:
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
