"""Perturbations of a case, computed in memory; the reference is transformed with the image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk

from segmamba.evaluation.names import CROPS as CROP_KINDS
from segmamba.evaluation.names import NOISE, OBLIQUE, SAGITTAL, STORAGE, THICK
from segmamba.evaluation.references import at_border
from segmamba.inference.model_grid import cropped_geometry
from segmamba.io.volume import Geometry, Volume, image_geometry, to_image
from segmamba.spine.levels import L6, T12, T13
from segmamba.utils.arrays import label_boxes

THICKNESS_MM, SAGITTAL_MM = 5.0, 4.5
LEFT, UP = 0, 2  # axes of the patient
NOISE_HU = 60.0
CROPS = 3
CROP_MARGIN_MM = 3.0
AXIS_ORDER, AXIS_FLIPS = (2, 0, 1), (True, False, True)
OBLIQUE_DEGREES = (12.0, 0.0, 9.0)

Reasons = Mapping[int, str | None]


@dataclass(frozen=True, eq=False)
class PerturbedCase:
    """A case, perturbed or as it is.

    Attributes
    ----------
    kind : str
        "native", or the perturbation.
    name : str
        The kind, and for a crop what it shows.
    image, reference : Volume
        On one grid.
    reasons : mapping
        For each label of the reference why it is not eligible, or None where it is.
    """

    kind: str
    name: str
    image: Volume
    reference: Volume
    reasons: Reasons


def perturb(kind: str, image: Volume, reference: Volume, reasons: Reasons, seed: int = 0) -> Iterator[PerturbedCase]:
    """Give the perturbed cases of one kind: one, or for crops none to three.

    Parameters
    ----------
    kind : str
        A key of `KINDS`.
    image, reference : Volume
        The case, on one grid. Noise is only of use on CT.
    reasons : mapping
        At native resolution: what is not eligible there is not eligible in any perturbed case.
    seed : int
        Of the noise.
    """
    return KINDS[kind](PerturbedCase(kind, kind, image, reference, reasons), seed)


def _thick(case: PerturbedCase, seed: int) -> Iterator[PerturbedCase]:
    return _in_slices(case, slice_axis(case.image.geometry), THICKNESS_MM)


def _sagittal(case: PerturbedCase, seed: int) -> Iterator[PerturbedCase]:
    return _in_slices(case, slice_axis(case.image.geometry, LEFT), SAGITTAL_MM)


def _in_slices(case: PerturbedCase, axis: int, thickness: float) -> Iterator[PerturbedCase]:
    geometry = case.image.geometry
    step = geometry.spacing[2 - axis]
    if step >= thickness:
        return
    weights = slab_weights(case.image.array.shape[axis], step, thickness)
    grid = thick_grid(geometry, axis, thickness, len(weights))
    labels = thick_labels(case.reference.array, weights, axis)
    image = of_each(case.image, lambda array: as_type(averaged(array, weights, axis), array.dtype), grid)
    yield replace(case, image=image, reference=Volume(labels, grid))


def _noise(case: PerturbedCase, seed: int) -> Iterator[PerturbedCase]:
    rng = np.random.default_rng(seed)

    def noisy(array: np.ndarray) -> np.ndarray:
        return as_type(array + rng.standard_normal(array.shape, dtype=np.float32) * NOISE_HU, array.dtype)

    yield replace(case, image=of_each(case.image, noisy))


def _crop(case: PerturbedCase, seed: int) -> Iterator[PerturbedCase]:
    count = CROP_KINDS[case.kind]
    labels, geometry = case.reference.array, case.reference.geometry
    axis = slice_axis(geometry)
    margin = int(np.ceil(CROP_MARGIN_MM / geometry.spacing[2 - axis]))
    boxes = label_boxes(labels)
    for first in crop_starts(case.reasons, count):
        shown = range(first, first + count)
        low = max(0, min(boxes[level][axis].start for level in shown) - margin)
        high = min(labels.shape[axis], max(boxes[level][axis].stop for level in shown) + margin)
        if high - low == labels.shape[axis]:
            continue
        index = [slice(0, length) for length in labels.shape]
        index[axis] = slice(low, high)
        image, reference = (_cropped(volume, (index[0], index[1], index[2])) for volume in (case.image, case.reference))
        reasons = dict(case.reasons)
        for level, box in label_boxes(reference.array).items():
            if reasons.get(level) is None and at_border(box, reference.array.shape):
                reasons[level] = "cut by the crop"
        name = f"{case.kind} {shown[0]}-{shown[-1]}"
        yield replace(case, name=name, image=image, reference=reference, reasons=reasons)


def _storage(case: PerturbedCase, seed: int) -> Iterator[PerturbedCase]:
    def turned(array: np.ndarray) -> sitk.Image:
        image = sitk.PermuteAxes(to_image(array, case.image.geometry), AXIS_ORDER)
        copy: sitk.Image = sitk.Flip(image, AXIS_FLIPS, False)
        return copy

    def stored(volume: Volume) -> Volume:
        grid = image_geometry(turned(volume.array))
        return of_each(volume, lambda array: sitk.GetArrayFromImage(turned(array)), grid)

    yield replace(case, image=stored(case.image), reference=stored(case.reference))


def _oblique(case: PerturbedCase, seed: int) -> Iterator[PerturbedCase]:
    grid = rotated_grid(case.image.geometry)

    def turned(array: np.ndarray) -> np.ndarray:
        volume = Volume(array, case.image.geometry)
        return resampled(volume, grid, sitk.sitkLinear, float(array.min())).array

    yield replace(case, image=of_each(case.image, turned, grid), reference=resampled(case.reference, grid))


KINDS: dict[str, Callable[[PerturbedCase, int], Iterator[PerturbedCase]]] = {
    THICK: _thick,
    SAGITTAL: _sagittal,
    NOISE: _noise,
    **dict.fromkeys(CROP_KINDS, _crop),
    STORAGE: _storage,
    OBLIQUE: _oblique,
}


def of_each(volume: Volume, change: Callable[[np.ndarray], np.ndarray], grid: Geometry | None = None) -> Volume:
    """Return a volume with its intensities changed, and those of all its channels alike; on another grid if given."""
    channels = tuple(change(channel) for channel in volume.channels)
    # The volume itself is one of its channels.
    own = next((number for number, channel in enumerate(volume.channels) if channel is volume.array), None)
    array = change(volume.array) if own is None else channels[own]
    return replace(volume, array=array, geometry=grid or volume.geometry, channels=channels)


def resampled(volume: Volume, grid: Geometry, how: int = sitk.sitkNearestNeighbor, outside: float = 0.0) -> Volume:
    """Return a volume on another grid."""
    image = to_image(volume.array, volume.geometry)
    where = (grid.origin, grid.spacing, grid.direction)
    copy = sitk.Resample(image, grid.size, sitk.Transform(), how, *where, outside)
    return replace(volume, array=sitk.GetArrayFromImage(copy), geometry=grid)


def slice_axis(geometry: Geometry, patient_axis: int = UP) -> int:
    """Return the array's axis (0, 1, 2) that runs most along an axis of the patient, its long one or `LEFT`."""
    return 2 - int(np.abs(np.reshape(geometry.direction, (3, 3))[patient_axis]).argmax())


def slab_weights(length: int, step: float, thickness: float) -> np.ndarray:
    """Return how much of each slab is filled by each slice, (slabs, slices); rows add up to 1.

    Slabs of ``thickness`` mm follow each other from the outer face of the first of ``length`` slices of ``step`` mm.
    """
    slabs = int(np.ceil(length * step / thickness - 1e-6))
    low = np.arange(slabs)[:, None] * thickness
    first = np.arange(length) * step
    part = np.minimum(low + thickness, first + step) - np.maximum(low, first)
    part = np.clip(part, 0, None)
    weights: np.ndarray = part / part.sum(axis=1, keepdims=True)
    return weights.astype(np.float32)


def averaged(array: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    """Return an array with its slices along an axis averaged by weights (new, old), as float32."""
    return np.moveaxis(np.tensordot(weights, array.astype(np.float32), axes=(1, axis)), 0, axis)


def thick_labels(labels: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    """Return labels (uint8) in thick slices: the label that fills most of a voxel, where half of it is labelled."""
    shape = list(labels.shape)
    shape[axis] = len(weights)
    result, most, filled = np.zeros(shape, np.uint8), np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for value, box in label_boxes(labels).items():
        place = [slice(None) if number == axis else part for number, part in enumerate(box)]
        where = tuple(place)
        part = averaged(labels[where] == value, weights, axis)
        filled[where] += part
        result[where] = np.where(part > most[where], value, result[where])
        most[where] = np.maximum(most[where], part)
    return np.where(filled >= 0.5, result, 0).astype(np.uint8)


def crop_starts(reasons: Reasons, count: int) -> list[int]:
    """Return the first levels of up to three runs of ``count`` eligible levels, spread along the column."""
    levels = {value for value, reason in reasons.items() if reason is None and value <= L6}
    # Crops are named by numbers that follow each other: none is made across a T13.
    starts = [level for level in sorted(levels) if levels >= set(range(level, level + count))]
    if T13 in reasons:
        starts = [level for level in starts if not level <= T12 < level + count - 1]
    if not starts:
        return []
    chosen = np.unique(np.rint(np.linspace(0, len(starts) - 1, CROPS)).astype(int))
    return [starts[number] for number in chosen]


def thick_grid(geometry: Geometry, axis: int, thickness: float, count: int) -> Geometry:
    """Return the grid of ``count`` slices of ``thickness`` mm along an axis of the array (z, y, x).

    The first one begins at the outer face of the first voxel.
    """
    size, spacing = list(geometry.size), list(geometry.spacing)
    start = np.zeros(4)
    start[2 - axis], start[3] = thickness / 2 / spacing[2 - axis] - 0.5, 1.0
    size[2 - axis], spacing[2 - axis] = count, thickness
    x, y, z = (float(value) for value in (geometry.affine @ start)[:3])
    return Geometry((size[0], size[1], size[2]), (spacing[0], spacing[1], spacing[2]), (x, y, z), geometry.direction)


def rotated_grid(geometry: Geometry) -> Geometry:
    """Return a grid rotated by 12 degrees about the patient's x and 9 about z that contains the whole of another."""
    image_size = np.array(geometry.size)
    matrix = geometry.affine
    middle = (matrix @ [*((image_size - 1) / 2), 1.0])[:3].tolist()
    rotation = sitk.Euler3DTransform(middle, *np.deg2rad(OBLIQUE_DEGREES).tolist())
    direction = np.reshape(rotation.GetMatrix(), (3, 3)) @ np.reshape(geometry.direction, (3, 3))
    bits = np.array(list(np.ndindex(2, 2, 2)))
    points = ((bits * (image_size - 1)) @ matrix[:3, :3].T + matrix[:3, 3]) @ direction
    low, high = points.min(axis=0), points.max(axis=0)
    x, y, z = (int(np.ceil(length)) + 1 for length in (high - low) / geometry.spacing)
    first, second, third = (direction @ low).tolist()
    return Geometry((x, y, z), geometry.spacing, (first, second, third), tuple(direction.ravel().tolist()))


def as_type(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return values in another data type; for whole numbers rounded and kept within its range."""
    if dtype.kind == "f":
        return array.astype(dtype)
    limits = np.iinfo(dtype)
    whole: np.ndarray = np.clip(np.rint(array), limits.min, limits.max)
    return whole.astype(dtype)


def _cropped(volume: Volume, index: tuple[slice, slice, slice]) -> Volume:
    return of_each(volume, lambda array: array[index], cropped_geometry(volume.geometry, index))
