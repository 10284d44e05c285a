"""How exact are the measurements of vertebrae, and how long do they take? JSON lines.

``python benchmarks/measurements.py``: on known vertebrae in random poses, for several voxel sizes; then the time for
24 vertebrae in 512 x 512 x 400 voxels.
``python benchmarks/measurements.py PAIRS... --predictions FOLDER [--reference-ids own,...]``: predicted masks against
references (folders of pairs as for ``segmamba evaluate``). Vertebrae are matched by position, not by level: wrong
levels are not measured here.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Testing"))

from helpers.measured_spine import TRABECULAR_HU, Vertebra, painted, turned  # noqa: E402

from segmamba.evaluation.cases import find_cases, on_grid, read_prediction  # noqa: E402
from segmamba.evaluation.names import OWN_IDS  # noqa: E402
from segmamba.evaluation.references import read_reference  # noqa: E402
from segmamba.io.read import read_volume
from segmamba.io.volume import Geometry
from segmamba.measurements.vertebrae import measure_labels  # noqa: E402
from segmamba.models.manifest import load_manifest  # noqa: E402
from segmamba.tasks import VERTEBRAE_TASK  # noqa: E402

SPACINGS = ((0.7, 0.7, 0.7), (0.7, 0.7, 1.25), (0.8, 0.8, 2.5), (1.5, 1.5, 1.5), (3.0, 3.0, 3.0), (0.8, 0.8, 5.0))
POSES, LEAN_DEG = 20, 15.0
HEIGHTS = ("anterior_height_mm", "middle_height_mm", "posterior_height_mm")
MEASUREMENTS = (*HEIGHTS, "trabecular_hu", "sagittal_angle_deg", "coronal_angle_deg")
# A prediction whose centroid is further away is of another vertebra.
MATCH_MM = 8.0
STRAIGHT = (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, nargs="*", metavar="PAIRS")
    parser.add_argument("--predictions", type=Path)
    parser.add_argument("--reference-ids", default=OWN_IDS)
    options = parser.parse_args()
    if options.pairs:
        compare(options.pairs, options.predictions, options.reference_ids.split(","))
        return
    for spacing in SPACINGS:
        print(json.dumps({"spacing_mm": spacing, **summary(phantom_errors(spacing))}), flush=True)
    print(json.dumps(duration()))


def phantom_errors(spacing: tuple[float, float, float]) -> dict[str, list[float]]:
    """Return the errors on pairs of vertebrae in random poses."""
    rng, errors = np.random.default_rng(0), defaultdict(list)
    structures = load_manifest().default(VERTEBRAE_TASK).labels
    size = np.ceil(np.divide((110, 120, 130), spacing)).astype(int).tolist()
    for _ in range(POSES):
        leans = rng.uniform(-LEAN_DEG, LEAN_DEG, 2), rng.uniform(-5, 5, 2)
        measures = {"anterior": rng.uniform(16, 28), "posterior": rng.uniform(22, 28)}
        upper, lower = turned(*(leans[0] + leans[1])), turned(*leans[0])
        place = rng.uniform(-0.5, 0.5, 3) * spacing
        spine = {
            20: Vertebra(tuple((place + 17 * lower[0]).tolist()), upper, **measures),
            21: Vertebra(tuple((place - 17 * lower[0]).tolist()), lower),
        }
        geometry = Geometry(tuple(size), spacing, (-55.0, -35.0, -65.0), STRAIGHT)
        row = measure_labels(*painted(spine, geometry), structures)[0]
        truth = [spine[20].height(part) for part in (0, 0.5, 1)]
        truth += [TRABECULAR_HU, -leans[1][0], leans[1][1]]
        for name, true in zip(MEASUREMENTS, truth, strict=True):
            errors[name].append(np.nan if row[name] is None else row[name] - true)
        first, last = (row[name] or np.nan for name in (HEIGHTS[0], HEIGHTS[-1]))
        errors["anterior_by_posterior"].append(first / last - truth[0] / truth[2])
    return errors


def compare(folders: list[Path], predictions: Path, ids: list[str]) -> None:
    """Print the differences of each vertebra, prediction minus reference, and their summary."""
    structures = load_manifest().default(VERTEBRAE_TASK).labels
    errors: dict[str, list[float]] = defaultdict(list)
    for case in find_cases(folders, VERTEBRAE_TASK, ids):
        volume = read_volume(case.image)
        reference, _ = on_grid(read_reference(case.reference, case.ids), volume.geometry)
        predicted, _ = on_grid(read_prediction(predictions, case.name), volume.geometry)
        found = measure_labels(predicted.array, volume, structures)
        for row in measure_labels(reference.array, volume, structures):
            near = [other for other in found if distance(row, other) <= MATCH_MM]
            if row["note"] or not near:
                continue
            other = min(near, key=lambda other: distance(row, other))
            both = [name for name in MEASUREMENTS if row[name] is not None and other[name] is not None]
            difference = {name: round(other[name] - row[name], 2) for name in both}
            print(json.dumps({"case": case.name, "vertebra": row["name"], **difference}), flush=True)
            for name, value in difference.items():
                errors[name].append(value)
    print(json.dumps(summary(errors)))


def distance(first: dict[str, Any], second: dict[str, Any]) -> float:
    return float(np.linalg.norm(np.subtract(first["centroid_ras_mm"], second["centroid_ras_mm"])))


def summary(errors: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return the number of measurements, their mean error, and the mean and the largest absolute error."""
    result = {}
    for name, values in errors.items():
        known = np.array([value for value in values if np.isfinite(value)])
        statistics = {"bias": known.mean(), "mean_absolute": np.abs(known).mean(), "largest": np.abs(known).max()}
        result[name] = {"n": len(known), **{key: round(float(value), 3) for key, value in statistics.items()}}
    return result


def duration() -> dict[str, Any]:
    """Return the processor's seconds for a column of 24 in a large CT."""
    geometry = Geometry((512, 512, 400), (0.7, 0.7, 1.7), (-180.0, -150.0, -340.0), STRAIGHT)
    small = {"anterior": 20.0, "posterior": 20.0}
    spine = {level: Vertebra((0, 0, 327.0 - 26 * level), turned(), **small) for level in range(1, 25)}
    labels, ct = painted(spine, geometry)
    structures = load_manifest().default(VERTEBRAE_TASK).labels
    started = time.process_time()
    rows = measure_labels(labels, ct, structures)
    measured = sum(row["note"] is None for row in rows)
    return {
        "voxels": list(geometry.size),
        "measured": measured,
        "processor_seconds": round(time.process_time() - started, 2),
    }


if __name__ == "__main__":
    main()
