"""Overlap with reference labels: ``python benchmarks/accuracy.py FOLDER [--task vertebrae] [--device cpu]``.

FOLDER holds pairs ``NAME_ct.nii.gz`` and ``NAME_vertebrae.nii.gz`` (VerSe numbering, same grid). Prints one JSON line
a case: Dice of all vertebrae together, mean over the reference's vertebrae of at least 1 mL, and each of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from segmamba.manifest import load_manifest
from segmamba.pipeline import segment
from segmamba.request import Options
from segmamba.training.evaluate import dice_by_label, dice_of_all
from segmamba.volume import read_volume

SMALLEST_ML = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", default="vertebrae")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    model = load_manifest().default(options.task)
    for path in sorted(options.folder.glob("*_ct.nii.gz")):
        name = path.name.removesuffix("_ct.nii.gz")
        volume = read_volume(path)
        image = sitk.ReadImage(str(options.folder / f"{name}_{options.task}.nii.gz"))
        reference = sitk.GetArrayFromImage(image).astype(np.uint8)
        result = segment(volume, model, Options(device=options.device))
        voxel_ml = volume.geometry.voxel_volume / 1000
        dice = {
            value: dice
            for value, dice in dice_by_label(result.labels, reference).items()
            if (reference == value).sum() * voxel_ml >= SMALLEST_ML
        }
        scores = {"all": dice_of_all(result.labels, reference), "mean": float(np.mean(list(dice.values())))}
        row = {"case": name} | scores | {str(value): score for value, score in dice.items()}
        print(json.dumps({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()}), flush=True)


if __name__ == "__main__":
    main()
