"""Volumes of any kind: random ones are segmented as they lie in the patient or end in one sentence, never otherwise.

``pytest Testing/engine/io/test_input_fuzz.py --hypothesis-profile=many`` tries many more of them.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from helpers.bright_bone import VALUE, bright_bone, segment, write_model
from helpers.dicom_files import write_slices
from helpers.phantoms import AIR, dice, grid_around_patient, phantom, rotation, true_labels
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segmamba.errors import InputError
from segmamba.io.read import read_volume
from segmamba.io.volume import Geometry, Volume, image_geometry, to_image
from segmamba.models.manifest import Model

FORMATS = (".nii.gz", ".nii", ".nrrd", ".mha")
DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64")
SPACING = 5.0
# Part of the labelled voxels that may differ between two copies of one volume: those whose centre lies just between.
TOLERANCE = 0.005

few = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
__all__ = ["bright_bone"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def model(root: Path) -> Model:
    return write_model(root, SPACING)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def firsts() -> dict[int, np.ndarray]:
    """Labels of volumes that are segmented once."""
    return {}


def write(volume: Volume, path: Path) -> Path:
    sitk.WriteImage(to_image(volume.array, volume.geometry), str(path))
    return path


@st.composite
def volumes(draw: st.DrawFn) -> Volume:
    """Small volumes of noise of any type, size, voxel size, direction and place."""
    size = draw(st.tuples(*[st.integers(2, 7)] * 3))
    spacing = tuple(10 ** draw(st.floats(-1.99, 1.6)) for _ in range(3))
    origin = draw(st.tuples(*[st.floats(-1e4, 1e4)] * 3))
    turned = np.reshape(rotation(draw(st.integers(-180, 180)), draw(st.integers(-180, 180))), (3, 3))
    order = draw(st.permutations(range(3)))
    signs = draw(st.tuples(*[st.sampled_from((-1, 1))] * 3))
    direction = tuple((turned[:, order] * signs).ravel())
    dtype = draw(st.sampled_from(DTYPES))
    seed = draw(st.integers(0, 2**31))
    array = np.random.default_rng(seed).integers(0, 120, size[::-1]).astype(dtype)
    return Volume(array, Geometry(size, spacing, origin, direction))


@few
@given(volume=volumes(), extension=st.sampled_from(FORMATS))
def test_any_volume_is_read_with_its_voxels_type_and_grid(volume: Volume, extension: str, folder: Path) -> None:
    path = write(volume, folder / f"any{extension}")
    if volume.array.min() == volume.array.max():
        with pytest.raises(InputError, match="everywhere"):
            read_volume(path)
        return
    read = read_volume(path)
    assert read.array.dtype == volume.array.dtype
    np.testing.assert_array_equal(read.array, volume.array)
    far = 1e-4 * max(1.0, *np.abs(volume.geometry.origin))
    np.testing.assert_allclose(read.geometry.affine, volume.geometry.affine, rtol=1e-3, atol=far)


@few
@given(data=st.data(), extension=st.sampled_from(FORMATS[1:]))
def test_a_file_with_damaged_bytes_is_read_or_ends_in_one_sentence(
    data: st.DataObject, extension: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    volume = Volume(
        np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6),
        Geometry((6, 5, 4), (1.0,) * 3, (0.0,) * 3, rotation(0, 0)),
    )
    path = write(volume, folder / f"damaged{extension}")
    content = bytearray(path.read_bytes())
    places = st.integers(0, min(len(content), 420) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=4)):
        content[place] = value
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    capfd.readouterr()
    try:
        read = read_volume(path)
    except InputError as error:
        text = str(error)
        assert text.endswith(".") and ": " in text and "\n" not in text.replace(str(path), "")
    else:
        assert min(read.geometry.size) >= 2 and np.isfinite(read.array).all()
        assert np.isfinite(read.geometry.affine).all()
    assert capfd.readouterr() == ("", "")


Change = Callable[[sitk.Image], sitk.Image]


def flipped(axes: tuple[bool, ...]) -> Change:
    return lambda image: sitk.Flip(image, axes, False)


def permuted(order: tuple[int, ...]) -> Change:
    return lambda image: sitk.PermuteAxes(image, order)


def turned_by_90_degrees(axis: int) -> Change:
    order = [1, 0, 2] if axis == 2 else [0, 2, 1] if axis == 0 else [2, 1, 0]
    return lambda image: sitk.Flip(sitk.PermuteAxes(image, order), [number == axis - 1 for number in range(3)], False)


def padded(low: tuple[int, ...], high: tuple[int, ...]) -> Change:
    return lambda image: sitk.ConstantPad(image, low, high, AIR)


@st.composite
def restorings(draw: st.DrawFn) -> Change:
    """A way to store the same voxels at the same places otherwise, perhaps with air around."""
    counts = st.tuples(*[st.integers(0, 5)] * 3)
    steps = st.one_of(
        st.sampled_from([flipped(axes) for axes in itertools.product((False, True), repeat=3)]),
        st.sampled_from([permuted(order) for order in itertools.permutations(range(3))]),
        st.sampled_from([turned_by_90_degrees(axis) for axis in range(3)]),
        st.builds(padded, counts, counts),
    )
    changes = draw(st.lists(steps, min_size=1, max_size=3))

    def change(image: sitk.Image) -> sitk.Image:
        for step in changes:
            image = step(image)
        return image

    return change


def labels_at(labels: np.ndarray, geometry: Geometry, places: Geometry) -> np.ndarray:
    """Return labels on another grid whose voxel centres are some of theirs."""
    image = to_image(labels, geometry)
    grid = to_image(np.zeros(places.size[::-1], np.uint8), places)
    return sitk.GetArrayFromImage(sitk.Resample(image, grid, sitk.Transform(), sitk.sitkNearestNeighbor))


@few
@given(
    change=restorings(),
    extension=st.sampled_from(FORMATS),
    dtype=st.sampled_from(("int16", "int32", "float32", "float64")),
    degrees=st.sampled_from((0, 20)),
    shift=st.tuples(*[st.integers(-900, 900)] * 3),
)
def test_a_volume_stored_otherwise_is_segmented_the_same_in_the_patient(
    change: Change,
    extension: str,
    dtype: str,
    degrees: int,
    shift: tuple[int, int, int],
    folder: Path,
    model: Model,
    root: Path,
    firsts: dict[int, np.ndarray],
    bright_bone: None,
) -> None:
    geometry = grid_around_patient((4.0, 5.0, 6.0), rotation(degrees, -degrees))
    volume = phantom(geometry)
    if degrees not in firsts:
        firsts[degrees] = segment(write(volume, folder / "first.nrrd"), model, root)
    labels = firsts[degrees]
    assert dice(labels == VALUE, true_labels(geometry) > 0) > 0.85
    image = change(to_image(volume.array.astype(dtype), geometry))
    image.SetOrigin([float(part + step) for part, step in zip(image.GetOrigin(), shift, strict=True)])
    path = folder / f"otherwise{extension}"
    sitk.WriteImage(image, str(path))
    other = segment(path, model, root)
    moved = replace(image_geometry(image), origin=tuple(np.subtract(image.GetOrigin(), shift)))
    assert other.shape == image.GetSize()[::-1]
    back = labels_at(other, moved, geometry)
    assert np.count_nonzero(back != labels) <= TOLERANCE * np.count_nonzero(labels)
    assert np.count_nonzero(other) == np.count_nonzero(back)


def test_a_dicom_series_is_segmented_as_the_file_of_the_same_voxels(
    tmp_path: Path, model: Model, root: Path, bright_bone: None
) -> None:
    volume = phantom(grid_around_patient((4.0, 5.0, 6.0), rotation(0, 0)))
    write_slices(tmp_path / "series", volume.array, volume.geometry)
    labels = segment(write(volume, tmp_path / "one.nii.gz"), model, root)
    assert labels.any()
    np.testing.assert_array_equal(segment(tmp_path / "series", model, root), labels)


SIZES = {
    "two slices": ((60, 60, 2), (1.0, 1.0, 20.0)),
    "two voxels wide": ((2, 60, 60), (20.0, 1.0, 1.0)),
    "whole body": ((12, 12, 2000), (8.0, 8.0, 1.0)),
    "micro-CT": ((90, 90, 90), (0.2, 0.2, 0.2)),
    "finer still": ((50, 50, 50), (0.02, 0.02, 0.02)),
    "needle": ((2, 2, 500), (50.0, 50.0, 0.05)),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_cube_of_bone_comes_back_whatever_the_number_and_size_of_voxels(
    name: str, tmp_path: Path, bright_bone: None
) -> None:
    size, spacing = SIZES[name]
    shortest = min(count * step for count, step in zip(size, spacing, strict=True))
    model = write_model(tmp_path, max(shortest / 20, max(spacing) / 10))
    array = np.full(size[::-1], 40, np.int16)
    array[0] = AIR
    centre = tuple(slice(length // 4, math.ceil(length * 3 / 4)) for length in array.shape)
    array[centre] = 500
    volume = Volume(array, Geometry(size, spacing, (0.0, 0.0, 0.0), rotation(0, 0)))
    labels = segment(write(volume, tmp_path / "cube.nrrd"), model, tmp_path)
    assert dice(labels == VALUE, array == 500) > 0.9


@pytest.mark.parametrize("value", [32767.0, 1e30, -1e30, float(np.finfo(np.float64).max)])
def test_one_voxel_of_any_value_does_not_change_the_rest(
    value: float, folder: Path, model: Model, root: Path, firsts: dict[int, np.ndarray], bright_bone: None
) -> None:
    volume = phantom(grid_around_patient((4.0, 5.0, 6.0), rotation(0, 0)))
    if 0 not in firsts:
        firsts[0] = segment(write(volume, folder / "first.nrrd"), model, root)
    array = volume.array.astype(np.float64)
    middle = tuple(length // 2 for length in array.shape)
    array[middle] = value
    other = segment(write(replace(volume, array=array), folder / "odd.nrrd"), model, root)
    near = np.zeros(array.shape, bool)
    near[tuple(slice(index - 3, index + 4) for index in middle)] = True
    assert other[~near].any()
    np.testing.assert_array_equal(other[~near], firsts[0][~near])
