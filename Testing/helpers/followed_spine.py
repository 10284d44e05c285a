"""Two exams of one painted spine: each vertebra has a shape of its own, in any pose, on any grid."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from helpers.measured_spine import Vertebra, painted, turned
from segmamba.io.labelmap import write_labelmap
from segmamba.io.volume import Geometry, Volume, to_image
from segmamba.measurements.comparison import Exam
from segmamba.measurements.vertebrae import masks_of, measure_spine
from segmamba.measurements.vertebral_body import Mask
from segmamba.models.manifest import load_manifest
from segmamba.spine.levels import L1

STRUCTURES = load_manifest().default("vertebrae").labels
NAMES = {label.value: label.name for label in STRUCTURES}
LEVELS = tuple(range(L1, L1 + 4))
STEP_MM = 36.0
GRID = Geometry((50, 58, 100), (1.8, 1.8, 1.8), (-45.0, -30.0, -98.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))


def spine(lean_deg: float = 0.0, changed: Mapping[int, float] | None = None) -> dict[int, Vertebra]:
    """Return L1 to L4, each larger than the one above; ``changed`` are anterior heights by level, mm."""
    axes = turned(lean_deg, lean_deg / 2)
    found = {}
    for number, level in enumerate(LEVELS):
        size = 1 + 0.05 * number
        height = 25.0 + 1.2 * number
        centre = (54 - STEP_MM * number) * axes[0] + (0, 8, 0)
        found[level] = Vertebra(
            tuple(centre.tolist()),
            axes,
            anterior=(changed or {}).get(level, height),
            posterior=height,
            depth=29.0 * size,
            width=38.0 * size**2,
        )
    return found


def exam(vertebrae: Mapping[int, Vertebra], grid: Geometry = GRID) -> tuple[Exam, np.ndarray, Volume]:
    """Return a measured exam with its labels and CT."""
    labels, ct = painted(vertebrae, grid)
    masks = masks_of(labels, grid, STRUCTURES)
    found = measure_spine(masks, ct, NAMES)
    return Exam(found["measurements"], found["bone"], masks), labels, ct


def renumbered(made: Exam, levels: Mapping[int, int]) -> Exam:
    """Return an exam whose vertebrae have other levels; those without one are left out."""
    rows = [
        {**row, "value": levels[row["value"]], "name": NAMES[levels[row["value"]]]}
        for row in made.rows
        if row["value"] in levels
    ]
    return Exam(rows, made.bone, {new: made.masks[old] for old, new in levels.items()})


def with_rows(made: Exam, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Exam:
    """Return an exam whose rows are changed: ``change`` gives the new values of a row."""
    return replace(made, rows=[{**row, **change(dict(row))} for row in made.rows])


def with_phase(made: Exam, phase: str) -> Exam:
    """Return an exam with another phase of contrast medium."""
    assert made.bone is not None
    return replace(made, bone={**made.bone, "phase": phase})


def scaled(made: Exam, factors: tuple[float, float, float]) -> Exam:
    """Return an exam whose masks are larger along x, y and z, in patient coordinates."""
    matrix = np.diag([*factors, 1.0])
    return replace(made, masks={level: Mask(mask.array, matrix @ mask.to_lps) for level, mask in made.masks.items()})


def write_exams(folder: Path, broken: int = L1 + 1) -> None:
    """Write image, segmentation and report of two exams, the second in a folder as batches make it.

    In the second, the vertebra ``broken`` is lower in front.
    """
    (folder / "second").mkdir(parents=True)
    reports = folder / "first.json", folder / "second" / "report.json"
    masks = folder / "first.nii.gz", folder / "second" / "segmentation.seg.nrrd"
    images = folder / "first_ct.nii.gz", folder / "second_ct.nii.gz"
    vertebrae = spine(), spine(3.0, {broken: 15.0})
    for each, mask, image, report in zip(vertebrae, masks, images, reports, strict=True):
        measured, labels, ct = exam(each)
        write_labelmap(mask, labels, GRID, STRUCTURES)
        sitk.WriteImage(to_image(ct.array, GRID), str(image))
        model = {"id": "spinemamba", "version": "0.4.0"}
        # Where the run wrote it; the folder has moved since.
        content: dict[str, Any] = {"output": f"/elsewhere/{mask.name}", "model": model}
        report.write_text(json.dumps({**content, "measurements": measured.rows, "bone": measured.bone}))
