"""Images of other libraries become volumes with the same voxels at the same places, or end in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from helpers.phantoms import rotation
from hypothesis import given
from hypothesis import strategies as st

from segmamba.errors import InputError
from segmamba.io.convert import RAS_TO_LPS, as_volume, volume_from_array, volume_from_nibabel, volume_from_sitk
from segmamba.io.read import read_volume
from segmamba.io.volume import Geometry, Volume, to_image

OBLIQUE = Geometry((9, 8, 7), (0.7, 0.8, 2.5), (-10.0, 20.5, -300.0), rotation(20, -15))
LEFT_HANDED = Geometry((9, 8, 7), (0.7, 0.8, 2.5), (1.0, 2.0, 3.0), (0, 1.0, 0, 1.0, 0, 0, 0, 0, 1.0))
SHEAR = np.eye(4) + np.eye(4, k=1) * (0, 2.0, 0, 0)


def some_ct(geometry: Geometry) -> Volume:
    return Volume(np.random.default_rng(1).integers(-1000, 1500, geometry.size[::-1]).astype(np.int16), geometry)


@pytest.mark.parametrize("geometry", [OBLIQUE, LEFT_HANDED])
def test_every_library_gives_the_same_volume(geometry: Geometry, tmp_path: Path) -> None:
    ct = some_ct(geometry)
    image, affine = to_image(ct.array, geometry), RAS_TO_LPS @ geometry.affine
    sitk.WriteImage(image, str(tmp_path / "ct.nii"))
    for volume in (
        as_volume(ct),
        as_volume(image),
        as_volume(nibabel.Nifti1Image(ct.array.T, affine)),
        as_volume(nibabel.load(tmp_path / "ct.nii")),
        as_volume(ct.array.T, affine),
        as_volume(np.ascontiguousarray(ct.array.T), affine.tolist()),
        as_volume(ct.array.T[..., None], affine),
        as_volume(ct.array.T.astype(">i2"), affine),
        as_volume(tmp_path / "ct.nii"),
    ):
        assert volume.array.dtype == np.int16
        np.testing.assert_array_equal(volume.array, ct.array)
        np.testing.assert_allclose(volume.geometry.affine, geometry.affine, atol=1e-4)


@given(
    angles=st.tuples(*[st.integers(-180, 180)] * 2),
    spacing=st.tuples(*[st.floats(0.1, 9.0)] * 3),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
)
def test_any_grid_survives_the_way_through_its_affine(
    angles: tuple[int, int], spacing: tuple[float, float, float], origin: tuple[float, float, float]
) -> None:
    geometry = Geometry((4, 5, 6), spacing, origin, rotation(*angles))
    back = Geometry.from_affine(geometry.size, geometry.affine)
    np.testing.assert_allclose(back.affine, geometry.affine, atol=1e-9)
    np.testing.assert_allclose(back.spacing, spacing)
    assert back.size == geometry.size


def test_a_sitk_image_keeps_its_modality_and_loses_a_fourth_dimension() -> None:
    image = to_image(some_ct(OBLIQUE).array, OBLIQUE)
    image.SetMetaData("0008|0060", "MR")
    assert volume_from_sitk(image).modality == "MR"
    volume = volume_from_sitk(sitk.JoinSeries([image]))
    np.testing.assert_allclose(volume.geometry.affine, OBLIQUE.affine, atol=1e-9)
    np.testing.assert_array_equal(volume.array, some_ct(OBLIQUE).array)


@pytest.mark.parametrize("kind", ["int16", "float64"])
def test_a_nibabel_image_with_rescaled_values_is_what_its_file_is(kind: str, tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(some_ct(OBLIQUE).array.T.astype(kind), np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    nibabel.save(image, tmp_path / "ct.nii")
    from_file, from_nibabel = read_volume(tmp_path / "ct.nii"), volume_from_nibabel(nibabel.load(tmp_path / "ct.nii"))
    assert from_nibabel.array.dtype == from_file.array.dtype
    np.testing.assert_array_equal(from_nibabel.array, from_file.array)


def with_affine(affine: Any) -> Callable[[], Volume]:
    return lambda: as_volume(some_ct(OBLIQUE).array.T, affine)


def array(values: np.ndarray) -> Callable[[], Volume]:
    return lambda: as_volume(values, np.eye(4))


NOISE = np.random.default_rng(0).normal(size=(5, 6, 7))
CASES: dict[str, tuple[Callable[[], Volume], str]] = {
    "no affine": (lambda: as_volume(NOISE), "has no affine: give"),
    "an affine too many": (lambda: as_volume(some_ct(OBLIQUE), np.eye(4)), "has its own geometry: leave it out"),
    "3 x 3": (with_affine(np.eye(3)), "not a 4 x 4 matrix"),
    "transposed": (with_affine(OBLIQUE.affine.T), "ending in 0 0 0 1"),
    "text": (with_affine("eye"), "not a 4 x 4 matrix"),
    "zeros": (with_affine(np.diag([1.0, 0, 1, 1])), "gives no voxel size"),
    "NaN": (with_affine(np.diag([1.0, np.nan, 1, 1])), "gives no voxel size"),
    "singular": (with_affine(np.eye(4) + np.diag([1.0, 0, 0], 1) - np.diag([0.0, 1, 0, 0])), "far from right angles"),
    "sheared beyond any gantry": (with_affine(SHEAR), "far from right angles"),
    "huge voxels": (with_affine(np.diag([99.0, 1, 1, 1])), "voxel size of 99 x 1 x 1 mm"),
    "2-D": (array(NOISE[0]), "2-D image"),
    "4-D": (array(np.stack([NOISE, NOISE], axis=-1)), r"holds 2 volumes \(4-D\)"),
    "booleans": (array(NOISE > 0), "values of the type bool"),
    "complex": (array(NOISE + 1j), "values of the type complex128"),
    "NaN voxel": (array(np.where(NOISE > 2, np.nan, NOISE)), "NaN or infinity"),
    "constant": (array(np.zeros((5, 6, 7))), "value 0 everywhere"),
    "one slice": (array(NOISE[:, :, :1]), "single slice"),
    "vectors": (lambda: as_volume(sitk.GetImageFromArray(NOISE[..., :3], isVector=True)), "colours or vectors"),
    "colours": (
        lambda: as_volume(nibabel.Nifti1Image(np.zeros((5, 6, 7), [(each, "u1") for each in "RGB"]), np.eye(4))),
        "colours or vectors",
    ),
    "4-D SimpleITK": (lambda: as_volume(sitk.JoinSeries([sitk.GetImageFromArray(NOISE)] * 2)), "holds 2 volumes"),
    "another grid": (lambda: as_volume(Volume(NOISE, OBLIQUE)), "the shape has to be the size in reverse"),
    "a list": (lambda: as_volume(NOISE.tolist()), "The image is a list: give a path, a Volume"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_image_ends_in_one_sentence(case: str) -> None:
    call, reason = CASES[case]
    with pytest.raises(InputError, match=reason) as caught:
        call()
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_half_precision_becomes_single() -> None:
    assert volume_from_array(NOISE.astype(np.float16), np.eye(4)).array.dtype == np.float32
