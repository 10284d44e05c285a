"""What fills the image beyond the scanner's circle is air, whatever number it was written as."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from helpers.dicom_files import write_slices
from helpers.phantoms import STRAIGHT, phantom
from pydicom.dataelem import DataElement

from segmamba.io.padding import declared_padding, padding_to_air
from segmamba.io.read import read_volume

CORNER = (slice(None), slice(0, 6), slice(0, 5))
# Slices through bone.
FEW = slice(25, 35)


def padded(value: float, kind: str = "int32") -> np.ndarray:
    array = phantom().array.astype(kind)
    array[CORNER] = value
    return array


SERIES = {
    "unsigned": (63536, 62512, 0, True),
    "all bits": (65535, 64511, 0, True),
    "not declared": (63536, 62512, 0, False),
    "signed": (-2000, -3024, 1, True),
    "declared as unsigned": (63536, -3024, 1, True),
    "water": (1024, 0, 1, True),
}


@pytest.mark.parametrize("name", SERIES)
def test_padding_of_a_series_is_air(name: str, tmp_path: Path) -> None:
    stored, read, representation, declared = SERIES[name]
    for file in write_slices(tmp_path, padded(read)[FEW], STRAIGHT, PixelRepresentation=representation):
        if declared:
            header = pydicom.dcmread(file)
            header[0x00280120] = DataElement(0x00280120, "US" if stored >= 0 else "SS", stored)
            header.save_as(file)
    volume = read_volume(tmp_path)
    assert volume.array[CORNER].max() <= -1000
    assert bool(volume.notes) == (read > -1000)
    inside = np.ones(volume.array.shape, bool)
    inside[CORNER] = False
    np.testing.assert_array_equal(volume.array[inside], phantom().array[FEW][inside])


@pytest.mark.parametrize("value", [62512, 64511, 1e9])
def test_padding_of_a_converted_series_is_as_dark_as_its_darkest_voxel_and_told(value: float, tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(padded(value, "float32").T, np.diag([2.0, 2, 2, 1])), tmp_path / "ct.nii")
    volume = read_volume(tmp_path / "ct.nii")
    assert volume.array[CORNER].max() == -1000
    assert f"is padded with {value:g}" in volume.notes[0]


def test_metal_and_saturated_voxels_stay() -> None:
    array = padded(30710)
    assert padding_to_air(array, "CT") == (array, ())
    bright = np.minimum(np.linspace(0, 100_000, 1000), 65535).reshape(10, 10, 10)
    assert padding_to_air(bright.copy(), None)[1] == ()


def test_a_declared_value_within_the_patient_stays() -> None:
    array = phantom().array.copy()
    array[44, 30:36, 30:36] = 7
    kept, notes = padding_to_air(array.copy(), "CT", (7.0,))
    np.testing.assert_array_equal(kept, array)
    assert notes == ()


def test_a_value_may_have_been_stored_with_the_other_sign_or_with_fewer_bits() -> None:
    assert declared_padding(-2000, (16, 12), (1, -1024)) == (-3024, 62512, 1072)
    assert declared_padding(63536, (16, 16), (1, -1024)) == (62512, -3024)
