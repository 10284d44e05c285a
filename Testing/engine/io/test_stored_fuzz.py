"""The same patient stored in all the ways that people have: segmented in place, or told; never wrong in silence.

``pytest Testing/engine/io/test_stored_fuzz.py --hypothesis-profile=many`` tries many more of them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from helpers.bright_bone import VALUE, bright_bone, segment, write_model
from helpers.dicom_files import write_slices
from helpers.phantoms import dice, grid_around_patient, phantom, rotation, true_labels
from helpers.stored_phantom import drawn, points_of, sheared
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segmamba.inference import pipeline
from segmamba.io.read import read_volume
from segmamba.io.stored_grid import StoredGrid
from segmamba.io.volume import SHEAR_TOLERANCE, Geometry, Volume, corners, image_geometry, to_image
from segmamba.models.manifest import Model
from segmamba.request import Options

# A third of what the profile says: each is a whole run.
few = settings(
    max_examples=settings.default.max_examples // 3,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
__all__ = ["bright_bone"]
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
GRID = grid_around_patient((5.0, 5.0, 6.0), rotation(0, 0))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def model(root: Path) -> Model:
    return write_model(root, 5.0)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@st.composite
def moves(draw: st.DrawFn) -> np.ndarray:
    """A matrix that turns, mirrors or shifts the patient."""
    matrix = np.eye(4)
    angles = st.sampled_from((0, 0, 1, 20, 90, 180))
    matrix[:3, :3] = np.reshape(rotation(draw(angles), draw(angles)), (3, 3)) @ np.diag(
        draw(st.tuples(*[st.sampled_from((1, 1, -1))] * 3))
    )
    matrix[:3, 3] = draw(st.tuples(*[st.sampled_from((0.0, 0.0, 0.1, 7.0, -300.0))] * 3))
    return matrix


@few
@given(
    move=moves(),
    codes=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    extensions=st.tuples(*[st.sampled_from((".nii", ".nii.gz"))] * 2),
)
def test_two_places_in_a_header_agree_or_are_told_and_both_come_back(
    move: np.ndarray,
    codes: tuple[int, int],
    extensions: tuple[str, str],
    folder: Path,
    model: Model,
    root: Path,
    bright_bone: None,
) -> None:
    place = FLIP @ GRID.affine
    image = nibabel.Nifti1Image(phantom(GRID).array.T, None)
    image.header.set_zooms(GRID.spacing)
    image.set_qform(place, codes[0])
    image.set_sform(move @ place, codes[1])
    paths = folder / f"ct{extensions[0]}", folder / f"labels{extensions[1]}"
    nibabel.save(image, paths[0])
    volume = read_volume(paths[0])
    result = pipeline.segment(volume, model, Options(device="cpu", precision="float32"), root=root)
    result.save(paths[1])
    source, written = (nibabel.load(path) for path in paths)
    ends = place @ corners((0, 0, 0), np.array(GRID.size) - 1).T
    apart = np.linalg.norm((move @ ends - ends)[:3], axis=0).max()
    codes = tuple(int(source.header[f"{form}_code"]) for form in ("qform", "sform"))
    if all(codes):
        assert any("two places" in note for note in volume.notes) == (apart > 3.0)
    used = (move @ place if codes[1] == 1 or not codes[0] else place) if any(codes) else None
    if used is None:
        assert any("does not say how the patient lies" in note for note in volume.notes)
    else:
        np.testing.assert_allclose(FLIP @ volume.geometry.affine, used, atol=1e-2)
    for form in ("get_sform", "get_qform"):
        (matrix, code), (other, own) = (getattr(one, form)(coded=True) for one in (source, written))
        assert code == own and (matrix is None) == (other is None)
        if matrix is not None:
            np.testing.assert_array_equal(matrix, other)
    by_itk = [image_geometry(sitk.ReadImage(str(path))) for path in paths]
    np.testing.assert_allclose(by_itk[0].affine, by_itk[1].affine)
    # Where nothing is said of directions, the patient is taken to lie otherwise, but has the same bones.
    assert dice(np.asanyarray(written.dataobj).T == VALUE, true_labels(GRID) > 0) > 0.85


@few
@given(
    exponent=st.floats(-6, -0.35),
    sign=st.sampled_from((-1, 1)),
    axes=st.sampled_from([(0, 1), (1, 0), (0, 2), (1, 2), (2, 0), (2, 1)]),
    degrees=st.sampled_from((0, 20)),
    extension=st.sampled_from((".nii", ".nii.gz", ".nrrd", ".mha")),
)
def test_a_volume_sheared_by_anything_is_segmented_in_place(
    exponent: float,
    sign: int,
    axes: tuple[int, int],
    degrees: int,
    extension: str,
    folder: Path,
    model: Model,
    root: Path,
    bright_bone: None,
) -> None:
    shear = sign * 10**exponent
    geometry = sheared(shear, axes, degrees)
    array, labels = drawn(points_of(StoredGrid.of(geometry)))
    path = folder / f"ct{extension}"
    if extension.startswith(".nii"):
        nibabel.save(nibabel.Nifti1Image(array.T, FLIP @ geometry.affine), path)
    else:
        sitk.WriteImage(to_image(array, geometry), str(path))
    found = segment(path, model, root)
    assert found.shape == array.shape
    assert dice(found == VALUE, labels > 0) > 0.82
    notes = read_volume(path).notes
    if not 0.99 < abs(np.sin(np.arctan(shear))) / SHEAR_TOLERANCE < 1.01:
        assert any("off a right angle" in note for note in notes) == (abs(np.sin(np.arctan(shear))) > SHEAR_TOLERANCE)


@few
@given(
    tilt=st.one_of(st.just(0.0), st.floats(-0.5, 0.5)),
    gaps=st.one_of(
        st.just([5.0] * 28),
        st.lists(st.floats(3.0, 7.0), min_size=28, max_size=28),
        st.builds(lambda low, high: [low] * 20 + [high] * 8, st.floats(3.0, 5.0), st.floats(6.0, 9.0)),
    ),
)
def test_slices_that_are_tilted_or_uneven_lie_where_the_files_say(
    tilt: float, gaps: list[float], folder: Path, model: Model, root: Path, bright_bone: None
) -> None:
    heights = np.r_[0.0, np.cumsum(gaps)]
    positions = np.array([-60.0, -70.0 - 0.5 * tilt * heights[-1], 30.0]) + heights[:, None] * (0.0, tilt, 1.0)
    grid = StoredGrid((30, 34, len(heights)), np.array([[4.5, 0], [0, 4.5], [0, 0]]), positions)
    array, _ = drawn(points_of(grid))
    for k, (plane, place) in enumerate(zip(array, positions, strict=True)):
        alone = Geometry((30, 34, 1), (4.5, 4.5, 5.0), tuple(place.tolist()), rotation(0, 0))
        write_slices(folder / "in", plane[None], alone, start=k, SeriesInstanceUID="1.2.3")
    volume = read_volume(folder / "in")
    uneven = np.abs(heights - np.linspace(0, heights[-1], len(heights))).max() > 0.2 * np.mean(gaps)
    if bool(volume.notes) != (uneven or abs(tilt) * heights[-1] > 1.0):
        assert 0.9 < abs(tilt) * heights[-1] < 1.1
    labels = drawn(points_of(StoredGrid.of(volume.geometry)))[1]
    out = segment(folder / "in", model, root)
    if out.shape == volume.array.shape:
        assert dice(out == VALUE, labels > 0) > 0.8
    else:
        assert dice(out == VALUE, drawn(points_of(grid))[1] > 0) > 0.8
    shutil.rmtree(folder / "in")


@few
@given(
    value=st.sampled_from((62512, 64511, 32767 + 1024, 65535, 1e6, -2000, -3024, -32768)),
    width=st.integers(1, 6),
    dtype=st.sampled_from(("int32", "float32", "float64")),
    extension=st.sampled_from((".nii.gz", ".nrrd", ".mha")),
)
def test_padding_changes_nothing_in_the_patient(
    value: float, width: int, dtype: str, extension: str, folder: Path, model: Model, root: Path, bright_bone: None
) -> None:
    array = phantom(GRID).array.astype(dtype)
    array[:, :width], array[:, :, :width] = value, value
    path = folder / f"ct{extension}"
    sitk.WriteImage(to_image(array, GRID), str(path))
    volume = read_volume(path)
    assert volume.array.max() < 31000
    assert bool(volume.notes) == (value > 0)
    found = segment(path, model, root)
    assert dice(found == VALUE, true_labels(GRID) > 0) > 0.85


def _raw(path: Path, volume: Volume, encoding: str, order: str) -> Path:
    """Write an NRRD by hand, in an encoding and byte order."""
    axes = " ".join("(" + ",".join(map(repr, step)) + ")" for step in volume.geometry.affine[:3, :3].T.tolist())
    origin = ",".join(map(repr, volume.geometry.origin))
    values = volume.array.astype(f"{'<' if order == 'little' else '>'}i2").tobytes()
    lines = ["NRRD0004", "type: short", "dimension: 3", "space: left-posterior-superior"]
    lines += [f"sizes: {' '.join(map(str, volume.geometry.size))}", f"space directions: {axes}", f"endian: {order}"]
    lines += [f"encoding: {encoding}", f"space origin: ({origin})"]
    if encoding == "ascii":
        values = "\n".join(map(str, volume.array.ravel().tolist())).encode()
    elif encoding == "hex":
        values = values.hex().encode()
    if path.suffix == ".nhdr":
        path.with_suffix(".raw").write_bytes(values)
        path.write_text("\n".join([*lines, f"data file: {path.stem}.raw", ""]))
    else:
        path.write_bytes("\n".join([*lines, "", ""]).encode() + values)
    return path


@few
@given(data=st.data())
def test_every_encoding_holds_the_same_patient(
    data: st.DataObject, folder: Path, model: Model, root: Path, bright_bone: None
) -> None:
    volume = phantom(GRID)
    kind = data.draw(st.sampled_from(("nrrd", "nhdr", "mha", "mhd", "nifti", "pair", "nifti2")))
    if kind in ("nrrd", "nhdr"):
        encoding = data.draw(st.sampled_from(("raw", "ascii", "hex")))
        path = _raw(folder / f"ct.{kind}", volume, encoding, data.draw(st.sampled_from(("little", "big"))))
    elif kind in ("mha", "mhd"):
        path = folder / f"ct.{kind}"
        sitk.WriteImage(to_image(volume.array, GRID), str(path), useCompression=data.draw(st.booleans()))
    else:
        header_of = {"nifti": nibabel.Nifti1Image, "pair": nibabel.Nifti1Pair, "nifti2": nibabel.Nifti2Image}[kind]
        slope, intercept = data.draw(st.sampled_from(((1, 0), (2, -1024), (0.5, 10), (-1, 0))))
        order = data.draw(st.sampled_from("<>"))
        stored = np.rint((volume.array - intercept) / slope).astype(f"{order}i2")
        image = header_of(stored.T, FLIP @ GRID.affine, header_of.header_class(endianness=order))
        image.header.set_slope_inter(slope, intercept)
        image.header.set_data_dtype(f"{order}i2")
        end = data.draw(st.sampled_from((".img", ".img.gz") if kind == "pair" else (".nii", ".nii.gz")))
        path = folder / f"ct{end}"
        nibabel.save(header_of(volume.array.astype(f"{order}f4").T, FLIP @ GRID.affine, image.header), path)
    read = read_volume(path)
    np.testing.assert_allclose(read.array, volume.array, atol=1.0)
    np.testing.assert_allclose(read.geometry.affine, GRID.affine, atol=1e-3)
    assert read.notes == ()
    assert dice(segment(path, model, root) == VALUE, true_labels(GRID) > 0) > 0.85
