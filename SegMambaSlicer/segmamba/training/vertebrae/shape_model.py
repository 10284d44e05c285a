"""Learn the shape model of vertebrae.

``python -m segmamba.training.vertebrae.shape_model LABELS_FOLDER OUT.safetensors --licence ...``

See `segmamba.spine.shape_model` for the model. Our own construction.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from safetensors.numpy import save_file

from segmamba.errors import InputError, SegMambaError
from segmamba.io.read import read_volume
from segmamba.io.volume import to_image
from segmamba.spine.frames import Frame, column_frames
from segmamba.spine.levels import L5, L6, SACRUM
from segmamba.spine.shape_model import (
    FURTHEST,
    GRID,
    REGIONS,
    ShapeModel,
    fit,
    grid_points,
    interpolate,
    region_of,
    signed_distance,
)
from segmamba.training.vertebrae.label_maps import VERTEBRAE_SUFFIX
from segmamba.utils.arrays import as_labels, label_boxes
from segmamba.utils.atomic import atomic_write
from segmamba.utils.words import counted

# In the file's metadata: content, and version of the format.
CONTENT, VERSION = "shapes of vertebrae (segmamba.spine.shape_model)", "1"
SPACING = 1.5
MODES = 6
# Vertebrae of less than this part of their neighbours' volume are truncated.
WHOLE = 0.6
# Free space around the largest vertebra in its grid, in local mm.
MARGIN = 5.0
ROUNDS = 2


def learn(maps: Sequence[np.ndarray], spacing_mm: float, modes: int = MODES) -> ShapeModel:
    """Learn a model from label maps.

    Parameters
    ----------
    maps : sequence of ndarray of uint8
        (z, y, x), levels; axes up, to posterior and to the left.
    spacing_mm : float
        Of their isotropic grids.
    modes : int
        Largest number for a region.

    Raises
    ------
    InputError
        No label map has a whole vertebra of a level from C1 to L5.
    """
    found = [(level, labels == level, frame) for labels in maps for level, frame in _whole(labels, spacing_mm)]
    missing = set(range(1, L5 + 1)) - {level for level, _, _ in found}
    if missing:
        raise InputError(f"No label map holds the whole vertebrae {sorted(missing)}: add one that does.")
    half_extents = _half_extents(found, spacing_mm)
    nothing = tuple(np.zeros((0, *GRID), np.float32) for _ in REGIONS)
    frames = [frame for _, _, frame in found]
    for number in range(ROUNDS + 1):
        shapes = [
            _local(mask, frame, half_extents[region_of(level)], spacing_mm)
            for (level, mask, _), frame in zip(found, frames, strict=True)
        ]
        means = _means([level for level, _, _ in found], shapes)
        model = ShapeModel(means, nothing, half_extents)
        if number < ROUNDS:
            frames = [
                fit(mask, level, model, frame, spacing_mm).frame
                for (level, mask, _), frame in zip(found, frames, strict=True)
            ]
    return ShapeModel(means, _modes([level for level, _, _ in found], shapes, means, modes), half_extents)


def save_shapes(model: ShapeModel, path: Path, subjects: Sequence[str], licence: str) -> None:
    """Write a model with 8 bits a value, as `segmamba.spine.shape_model.load_shapes` reads it.

    Parameters
    ----------
    model : ShapeModel
    path : Path
    subjects : sequence of str
        Whose label maps it was learned from, for the file's metadata.
    licence : str
        Of the file, for its metadata.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    arrays: dict[str, np.ndarray] = {
        "means": np.round(model.means * (127 / FURTHEST)).astype(np.int8),
        "halves": model.half_extents.astype(np.float32),
    }
    for index, modes in enumerate(model.modes):
        steps = np.abs(modes).max(axis=(1, 2, 3), initial=1e-6) / 127
        arrays[f"modes{index}"] = np.round(modes / steps[:, None, None, None]).astype(np.int8)
        arrays[f"steps{index}"] = steps.astype(np.float32)
    metadata = {"content": CONTENT, "version": VERSION, "subjects": ", ".join(subjects), "licence": licence}
    with atomic_write(path, (".safetensors",)) as file:
        save_file(arrays, file, metadata)


def read_map(path: Path) -> np.ndarray:
    """Return a label map (z, y, x) on a grid of ``SPACING`` whose axes run up, to posterior and to the left.

    Raises
    ------
    InputError
        It cannot be read, or has other values than 0 to 26.
    """
    volume = read_volume(path)
    image = sitk.DICOMOrient(to_image(as_labels(volume.array, SACRUM, str(path)), volume.geometry), "LPS")
    size = [max(1, round(n * s / SPACING)) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    on_grid = sitk.Resample(
        image, size, sitk.Transform(), sitk.sitkNearestNeighbor, image.GetOrigin(), [SPACING] * 3, image.GetDirection()
    )
    return sitk.GetArrayFromImage(on_grid)


def _whole(labels: np.ndarray, spacing_mm: float) -> list[tuple[int, Frame]]:
    """Return level and frame of the vertebrae that are in view as a whole, by the map's border and their neighbours."""
    boxes = label_boxes(labels)
    sizes = np.bincount(labels.ravel(), minlength=SACRUM + 1)
    whole = []
    for level, frame in column_frames(labels, spacing_mm).items():
        neighbours = [sizes[other] for other in (level - 1, level + 1) if other in boxes and 0 < other < SACRUM]
        box = boxes[level]
        cut = any(part.start == 0 or part.stop == size for part, size in zip(box, labels.shape, strict=True))
        if neighbours and not cut and sizes[level] > WHOLE * min(neighbours):
            whole.append((level, frame))
    return whole


def _half_extents(found: Sequence[tuple[int, np.ndarray, Frame]], spacing_mm: float) -> np.ndarray:
    """Return half the extents (regions, 3) in local mm that hold all vertebrae of a region."""
    half_extents = np.zeros((len(REGIONS), 3))
    for level, mask, frame in found:
        local = frame.to_local(np.argwhere(mask) * spacing_mm)
        region = region_of(level)
        half_extents[region] = np.maximum(half_extents[region], np.abs(local).max(axis=0) + MARGIN)
    return half_extents


def _local(mask: np.ndarray, frame: Frame, half: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Return the signed distance of a mask in local mm on its region's grid."""
    around = int(np.ceil(2 * FURTHEST * frame.scale / spacing_mm))
    place = label_boxes(mask.astype(np.uint8))[1]
    start = np.array([part.start for part in place])
    signed = signed_distance(np.pad(mask[place], around), spacing_mm)
    points = frame.to_world(grid_points(half)) / spacing_mm - start + around
    return np.clip(interpolate(signed, points) / frame.scale, -FURTHEST, FURTHEST)


def _means(levels: Sequence[int], shapes: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean shape of each level and its mirror image; L6 gets L5's where there is none."""
    means = np.zeros((L6, *GRID), np.float32)
    for level in sorted(set(levels)):
        own = np.mean([shape for other, shape in zip(levels, shapes, strict=True) if other == level], axis=0)
        means[level - 1] = (own + own[:, :, ::-1]) / 2
    if L6 not in levels:
        means[L6 - 1] = means[L5 - 1]
    return means


def _modes(
    levels: Sequence[int], shapes: Sequence[np.ndarray], means: np.ndarray, count: int
) -> tuple[np.ndarray, ...]:
    """Return the principal modes of each region, for one standard deviation; mirror images count as samples."""
    result = []
    for first, last in REGIONS:
        differences = np.array(
            [
                part
                for level, shape in zip(levels, shapes, strict=True)
                if first <= level <= last
                for part in (shape - means[level - 1], shape[:, :, ::-1] - means[level - 1])
            ]
        ).reshape(-1, int(np.prod(GRID)))
        _, values, vectors = np.linalg.svd(differences, full_matrices=False)
        kept = min(count, max(0, len(differences) // 2 - 1))
        scaled = vectors[:kept] * (values[:kept, None] / np.sqrt(len(differences)))
        result.append(scaled.reshape(kept, *GRID).astype(np.float32))
    return tuple(result)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m segmamba.training.vertebrae.shape_model",
        description="Learn a shape model of vertebrae from label maps.",
    )
    parser.add_argument("labels", metavar="LABELS_FOLDER", type=Path, help=f"holds NAME{VERTEBRAE_SUFFIX}")
    parser.add_argument("output", metavar="OUT.safetensors", type=Path)
    parser.add_argument("--licence", required=True, help="of the file, by those of the label maps")
    parser.add_argument("--without", nargs="*", default=[], metavar="NAME", help="subjects to leave out")
    options = parser.parse_args(arguments)
    try:
        found = {path.name.removesuffix(VERTEBRAE_SUFFIX): path for path in options.labels.glob(f"*{VERTEBRAE_SUFFIX}")}
        subjects = sorted(set(found) - set(options.without))
        if not subjects:
            raise InputError(f"{options.labels} holds no file named *{VERTEBRAE_SUFFIX}: give the right folder.")
        model = learn([read_map(found[subject]) for subject in subjects], SPACING)
        save_shapes(model, options.output, subjects, options.licence)
    except SegMambaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"The shapes of {counted(len(subjects), 'subject')} are in {options.output}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
