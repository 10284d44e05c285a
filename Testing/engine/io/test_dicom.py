"""Reading a DICOM series: the right voxels at the right places, or one clear sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.dicom_files import write_frames, write_slices
from helpers.small_series import GEOMETRY, SAGITTAL, only, some_ct

from segmamba.errors import InputError
from segmamba.io.dicom_index import read_series
from segmamba.io.volume import Geometry


@pytest.mark.parametrize("geometry", [GEOMETRY, SAGITTAL], ids=["oblique", "sagittal"])
@pytest.mark.parametrize("backwards", [False, True])
def test_voxels_lie_where_the_files_say(tmp_path: Path, geometry: Geometry, backwards: bool) -> None:
    array = some_ct()
    order = slice(None, None, -1) if backwards else slice(None)
    # The files' order says nothing: a stack that is written from its last slice on is the same volume.
    last = (geometry.affine @ [0, 0, len(array) - 1, 1])[:3]
    direction = np.reshape(geometry.direction, (3, 3)) * ([1, 1, -1] if backwards else [1, 1, 1])
    origin = tuple(last.tolist()) if backwards else geometry.origin
    stored = Geometry(geometry.size, geometry.spacing, origin, tuple(direction.ravel().tolist()))
    write_slices(tmp_path, array[order], stored)
    volume = read_series(only(tmp_path))
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.geometry.affine, geometry.affine, atol=1e-4)


@pytest.mark.parametrize(
    "rescale",
    [((1, 0),), ((2, -1024),), ((0.5, -1000),), ((1, -1024), (0.5, -1000), (0.25, -1000))],
    ids=["none", "whole", "half", "of each slice"],
)
def test_slopes_and_intercepts_are_applied_slice_by_slice(
    tmp_path: Path, rescale: tuple[tuple[float, float], ...]
) -> None:
    array = some_ct() // 2 * 2.0
    write_slices(tmp_path, array, GEOMETRY, rescale)
    np.testing.assert_allclose(read_series(only(tmp_path)).array, array, atol=1e-3)


def test_the_first_slice_does_not_decide_what_values_the_others_can_have(tmp_path: Path) -> None:
    array = np.abs(some_ct()) * 1.0
    array[1:] = some_ct()[1:] + 0.25
    # Stored without a sign: the first slice rescales to whole numbers from 0, and all others to less and to fractions.
    rescale = ((1, 0), *[(0.25, -1000)] * 9)
    write_slices(tmp_path, array, GEOMETRY, rescale, PixelRepresentation=0)
    np.testing.assert_allclose(read_series(only(tmp_path)).array, array, atol=1e-3)


def test_missing_slices_are_a_sentence(tmp_path: Path) -> None:
    write_slices(tmp_path, some_ct(), GEOMETRY)[4].unlink()
    with pytest.raises(InputError, match=r"CT series 'spine'.*lacks 1 slice: export the complete series"):
        read_series(only(tmp_path))


def test_uneven_slices_are_resampled_with_a_note(tmp_path: Path) -> None:
    write_slices(tmp_path, some_ct()[:6], GEOMETRY, SeriesInstanceUID="1.2.3")
    x, y, z = (GEOMETRY.affine @ [0, 0, 6.4, 1])[:3]
    apart = Geometry(GEOMETRY.size, GEOMETRY.spacing, (x, y, z), GEOMETRY.direction)
    write_slices(tmp_path, some_ct()[6:], apart, SeriesInstanceUID="1.2.3", start=100)
    volume = read_series(only(tmp_path))
    assert "slices at uneven distances" in volume.notes[0]
    assert volume.array.shape[0] > 10 and volume.geometry.spacing[2] == pytest.approx(GEOMETRY.spacing[2], abs=1e-3)
    assert volume.stored is not None and volume.stored.geometry is None


def test_a_tilted_gantry_is_resampled_with_a_note(tmp_path: Path) -> None:
    for k in range(10):
        shifted = Geometry((9, 8, 1), (1.0, 1.0, 2.0), (0.0, 0.6 * k, 2.0 * k), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
        write_slices(tmp_path, some_ct()[k : k + 1], shifted, start=k, SeriesInstanceUID="1.2.3")
    volume = read_series(only(tmp_path))
    assert "tilted by 16.7 degrees" in volume.notes[0]
    assert volume.array.shape == (10, 14, 9)


@pytest.mark.parametrize("axis", [0, 2])
def test_a_position_that_is_not_a_number_is_a_sentence(tmp_path: Path, axis: int) -> None:
    positions = np.array([(GEOMETRY.affine @ [0, 0, k, 1])[:3] for k in range(10)])
    positions[6, axis] = np.nan
    write_frames(tmp_path / "enhanced.dcm", some_ct(), GEOMETRY, range(10), positions=positions)
    with pytest.raises(InputError, match="positions are not numbers: export"):
        read_series(only(tmp_path))


def test_slices_shifted_in_the_middle_of_a_series_are_a_sentence(tmp_path: Path) -> None:
    aside = GEOMETRY.affine @ [4, 0, 4, 1]
    shifted = Geometry((9, 8, 2), GEOMETRY.spacing, tuple(aside[:3].tolist()), GEOMETRY.direction)
    rest = Geometry((9, 8, 4), GEOMETRY.spacing, tuple((GEOMETRY.affine @ [0, 0, 6, 1])[:3]), GEOMETRY.direction)
    for start, part, array in ((0, GEOMETRY, some_ct()[:4]), (20, shifted, some_ct()[4:6]), (40, rest, some_ct()[6:])):
        write_slices(tmp_path, array, part, start=start, SeriesInstanceUID="1.2.3")
    with pytest.raises(InputError, match="slices that are shifted sideways"):
        read_series(only(tmp_path))


def test_two_sizes_of_pixels_in_one_series_are_a_sentence(tmp_path: Path) -> None:
    write_slices(tmp_path, some_ct()[:5], GEOMETRY, SeriesInstanceUID="1.2.3")
    x, y, z = (GEOMETRY.affine @ [0, 0, 5, 1])[:3].tolist()
    finer = Geometry((9, 8, 5), (0.5, 0.5, 2.5), (x, y, z), GEOMETRY.direction)
    write_slices(tmp_path, some_ct()[5:], finer, SeriesInstanceUID="1.2.3", start=100)
    with pytest.raises(InputError, match="different size or orientation"):
        read_series(only(tmp_path))


def test_pixels_without_a_size_are_a_sentence(tmp_path: Path) -> None:
    write_slices(tmp_path, some_ct(), GEOMETRY, PixelSpacing=None)
    with pytest.raises(InputError, match="does not say how large its pixels are"):
        read_series(only(tmp_path))


@pytest.mark.parametrize("order", [[*range(10)], [*range(9, -1, -1)], [3, 0, 1, 2, *range(4, 10)]])
def test_frames_of_one_file_are_put_in_the_order_of_their_places(tmp_path: Path, order: list[int]) -> None:
    write_frames(tmp_path / "enhanced.dcm", some_ct(), GEOMETRY, order=order)
    volume = read_series(only(tmp_path))
    np.testing.assert_array_equal(volume.array, some_ct())
    np.testing.assert_allclose(volume.geometry.affine, GEOMETRY.affine, atol=1e-4)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_each_frame_is_rescaled_by_its_own_slope(tmp_path: Path, modality: str) -> None:
    slopes = (0.5, 1, 0.25)
    write_frames(tmp_path / "enhanced.dcm", some_ct(), GEOMETRY, range(9, -1, -1), slopes, Modality=modality)
    volume = read_series(only(tmp_path))
    np.testing.assert_array_equal(volume.array, some_ct())
    assert volume.modality == modality


@pytest.mark.parametrize(
    ("order", "slopes", "lost", "said"),
    [
        ([0, 1, 2, 3, 6, 7, 8, 9], (1,), "", "lacks 2 slices"),
        ([0, 1, 2, 3, 4, 0, 1, 2, 3, 4], (1,), "", "5 slices at the position of another"),
        ([*range(10)], (1, 0), "", "a rescale slope of 0"),
        ([*range(10)], (1,), "PlanePositionSequence", "does not say where its frames lie"),
        ([*range(10)], (1,), "PixelMeasuresSequence", "does not say where its frames lie"),
    ],
)
def test_frames_that_make_no_grid_are_a_sentence(
    tmp_path: Path, order: list[int], slopes: tuple[float, ...], lost: str, said: str
) -> None:
    write_frames(tmp_path / "enhanced.dcm", some_ct(), GEOMETRY, order, slopes, lost)
    with pytest.raises(InputError, match=said):
        read_series(only(tmp_path))


def test_mixed_orientations_in_one_series_are_a_sentence(tmp_path: Path) -> None:
    write_slices(tmp_path, some_ct(), GEOMETRY, SeriesInstanceUID="1.2.3")
    write_slices(tmp_path, some_ct()[:3], SAGITTAL, SeriesInstanceUID="1.2.3", start=100)
    with pytest.raises(InputError, match="different size or orientation"):
        read_series(only(tmp_path))


def test_two_phases_in_one_series_are_a_sentence(tmp_path: Path) -> None:
    write_slices(tmp_path, some_ct(), GEOMETRY, SeriesInstanceUID="1.2.3")
    write_slices(tmp_path, some_ct(2), GEOMETRY, SeriesInstanceUID="1.2.3", start=100)
    with pytest.raises(InputError, match="10 slices at the position of another"):
        read_series(only(tmp_path))
