"""A synthetic patient that is known at every point: a body of water with three vertebrae of bone in air."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from segmamba.io.volume import Geometry, Volume, image_geometry, to_image
from segmamba.labels import Code, Label
from segmamba.models.manifest import IntensityNormalization, Model, ModelFile, Postprocessing, Preprocessing

AIR, WATER, BONE = -1000, 40, 500
BODY_CENTRE, BODY_AXES = (5.0, -10.0, 100.0), (46.0, 42.0, 70.0)
VERTEBRA_AXES = (28.0, 21.0, 13.0)
# Label value: centre in LPS millimetres. They lie off the body's middle, so that no flip goes unseen.
VERTEBRAE = {20: (9.0, 4.0, 126.0), 21: (4.0, 8.0, 99.0), 22: (1.0, 3.0, 72.0)}

STRAIGHT = Geometry((76, 68, 88), (1.5, 1.5, 2.0), (-52.0, -61.0, 13.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))


def rotation(x_degrees: float, y_degrees: float) -> tuple[float, ...]:
    """Return the direction of axes rotated about x, then about y."""
    return tuple(Rotation.from_euler("xy", (x_degrees, y_degrees), degrees=True).as_matrix().ravel())


def grid_around_patient(spacing: tuple[float, float, float], direction: tuple[float, ...]) -> Geometry:
    """Return a grid of any spacing and direction that has the whole patient in it."""
    size = [int(np.ceil(170.0 / step)) for step in spacing]
    middle = np.reshape(direction, (3, 3)) @ ((np.array(size) - 1) / 2 * spacing)
    x, y, z = (float(value) for value in np.subtract(BODY_CENTRE, middle))
    return Geometry((size[0], size[1], size[2]), spacing, (x, y, z), direction)


OBLIQUE = grid_around_patient((1.8, 1.7, 2.5), rotation(20, 20))
ANISOTROPIC = grid_around_patient((1.1, 1.2, 3.7), (1.0, 0, 0, 0, -1.0, 0, 0, 0, -1.0))


@functools.lru_cache(maxsize=4)
def positions(geometry: Geometry) -> np.ndarray:
    """Return the LPS position of every voxel: shape (z, y, x, 3), to read only."""
    k, j, i = np.meshgrid(*(np.arange(size) for size in reversed(geometry.size)), indexing="ij")
    matrix = geometry.affine
    points = np.stack([i, j, k], axis=-1) @ matrix[:3, :3].T + matrix[:3, 3]
    points.setflags(write=False)
    return points


def true_labels(geometry: Geometry) -> np.ndarray:
    """Return the vertebrae's labels at the voxels' centres."""
    return _true_labels(geometry).copy()


@functools.lru_cache(maxsize=8)
def _true_labels(geometry: Geometry) -> np.ndarray:
    labels = np.zeros(geometry.size[::-1], dtype=np.uint8)
    points = positions(geometry)
    for value, centre in VERTEBRAE.items():
        labels[(((points - centre) / VERTEBRA_AXES) ** 2).sum(axis=-1) < 1] = value
    return labels


def phantom(geometry: Geometry = STRAIGHT) -> Volume:
    """Return the patient's CT on a grid."""
    return Volume(_ct(geometry).copy(), geometry)


@functools.lru_cache(maxsize=8)
def _ct(geometry: Geometry) -> np.ndarray:
    body = (((positions(geometry) - BODY_CENTRE) / BODY_AXES) ** 2).sum(axis=-1) < 1
    array = np.where(body, WATER, AIR).astype(np.int16)
    array[_true_labels(geometry) > 0] = BONE
    return array


def restored(volume: Volume) -> list[Volume]:
    """Return copies of a volume with the same voxels at the same places, stored along other axes."""
    image = to_image(volume.array, volume.geometry)
    copies = []
    for order, flips in itertools.product([(2, 0, 1), (1, 0, 2)], [(True, False, False), (True, False, True)]):
        copy = sitk.Flip(sitk.PermuteAxes(image, order), flips, False)
        copies.append(Volume(sitk.GetArrayFromImage(copy), image_geometry(copy)))
    return copies


def on_axes_of(labels: np.ndarray, geometry: Geometry, reference: Geometry) -> np.ndarray:
    """Return labels of a `restored` copy as they are stored in the volume that it is a copy of."""
    image = sitk.Resample(
        to_image(labels, geometry),
        reference.size,
        sitk.Transform(),
        sitk.sitkNearestNeighbor,
        reference.origin,
        reference.spacing,
        reference.direction,
    )
    return sitk.GetArrayFromImage(image)


def spine_labels() -> tuple[Label, ...]:
    structure = Code("SCT", "123037004", "Anatomical Structure")
    codes = {20: ("L1", "66794005"), 21: ("L2", "14293000"), 22: ("L3", "36470004")}
    return tuple(
        Label(value, f"{name} vertebra", (10 * value, 100, 255), structure, Code("SCT", code, f"{name} vertebra"))
        for value, (name, code) in codes.items()
    )


def spine_model(orientation: str = "LPS", **preprocessing: object) -> Model:
    """Return a model of the three vertebrae; keywords replace parts of its preprocessing."""
    defaults = {
        "spacing": (2.0, 2.0, 2.0),
        "interpolation": "linear",
        "crop_threshold": -500.0,
        "fill_value": -1024.0,
        "normalization": (IntensityNormalization("clip", -1000.0, 1000.0, 0.0, 500.0),),
    }
    return Model(
        id="test-spine",
        version="1",
        title="Test",
        task="vertebrae",
        architecture="none",
        arguments={},
        modalities=("CT",),
        labels=spine_labels(),
        channel_values=(0, 20, 21, 22),
        preprocessing=Preprocessing(orientation, **(defaults | preprocessing)),  # type: ignore[arg-type]
        patch=(32, 32, 32),
        overlap=0.5,
        flip_axes=(),
        postprocessing=Postprocessing.LARGEST_COLUMN,
        file=ModelFile("none", None, None, None),
        entry={},
    )


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * np.count_nonzero(first & second) / (np.count_nonzero(first) + np.count_nonzero(second))


def write_pair(folder: Path) -> None:
    """Write ct.nii.gz and labels.nii.gz: three vertebrae with little around them."""
    near = Geometry((48, 36, 44), (1.5, 1.5, 2.0), (-30.0, -22.0, 56.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    volume = phantom(near)
    sitk.WriteImage(to_image(volume.array, near), str(folder / "ct.nii.gz"))
    sitk.WriteImage(to_image(true_labels(near), near), str(folder / "labels.nii.gz"))
