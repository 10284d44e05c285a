"""Masks on an isotropic grid beside those on the volume's own voxels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from helpers.bright_bone import VALUE, bright_bone, write_model
from helpers.dicom_files import write_slices
from helpers.phantoms import AIR, OBLIQUE, STRAIGHT, dice, phantom, true_labels

from segmamba.errors import InputError, OutputError
from segmamba.evaluation.metrics import surface_distances
from segmamba.evaluation.perturbations import resampled
from segmamba.inference import pipeline
from segmamba.inference.file_to_file import segment_file
from segmamba.inference.forecast import forecast, isotropic_voxels, main_memory
from segmamba.inference.model_grid import isotropic_geometry, isotropic_spacing
from segmamba.inference.outputs import isotropic_path
from segmamba.io.read import read_image
from segmamba.io.volume import Geometry, Volume, to_image
from segmamba.models.manifest import load_manifest
from segmamba.request import Options, Request

__all__ = ["bright_bone"]
THICK = Geometry((66, 60, 24), (1.5, 1.5, 7.0), (-42.0, -56.0, 19.0), STRAIGHT.direction)
FINE = Geometry((82, 80, 105), (1.25, 1.25, 1.25), (-45.0, -45.0, 50.0), STRAIGHT.direction)


def run(volume: Volume, folder: Path, **options: object) -> pipeline.Result:
    model = write_model(folder, 2.5)
    return pipeline.segment(volume, model, Options(device="cpu", precision="float32", **options), root=folder)  # type: ignore[arg-type]


def test_thick_slices_get_smooth_masks_that_lie_nearer_to_the_truth(tmp_path: Path, bright_bone: None) -> None:
    result = run(phantom(THICK), tmp_path, output_spacing="iso")
    assert result.labels.shape == THICK.size[::-1] and result.isotropic is not None
    fine = result.isotropic
    assert fine.geometry.spacing == (1.5, 1.5, 1.5) and fine.geometry.direction == THICK.direction
    assert fine.labels.size < 0.5 * np.prod(isotropic_geometry(THICK, "iso").size)
    truth = true_labels(FINE) > 0
    found = resampled(Volume(fine.labels, fine.geometry), FINE).array == VALUE
    coarse = resampled(Volume(result.labels, THICK), FINE).array == VALUE
    distances = [surface_distances(mask, truth, FINE.spacing)[0] for mask in (found, coarse)]
    assert dice(found, truth) > 0.9 and distances[0] < distances[1]
    # The surface goes on from slice to slice of 1.25 mm, and not every 7 mm.
    steps = [np.diff(mask.astype(int), axis=0).any(axis=(1, 2)).sum() for mask in (found, coarse)]
    assert steps[0] > 3 * steps[1]


@pytest.mark.parametrize(("spacing", "step"), [("iso", 1.7), (1.0, 1.0), (3.0, 3.0)])
def test_oblique_grid_covers_the_same_place_with_the_volumes_axes(spacing: str | float, step: float) -> None:
    grid = isotropic_geometry(OBLIQUE, spacing)
    assert grid.spacing == (step,) * 3 and grid.direction == OBLIQUE.direction
    faces = [np.array([-0.5, -0.5, -0.5, 1.0]), np.array([*np.subtract(grid.size, 0.5), 1.0])]
    first = OBLIQUE.affine @ faces[0]
    np.testing.assert_allclose((grid.affine @ faces[0])[:3], first[:3], atol=1e-9)
    low = np.array(grid.size) * step - np.multiply(OBLIQUE.size, OBLIQUE.spacing)
    assert (low > -0.02 * step).all() and (low < step).all()


def test_iso_is_never_finer_than_half_a_millimetre() -> None:
    assert isotropic_spacing(replace(STRAIGHT, spacing=(0.2, 0.2, 3.0)), "iso") == 0.5
    assert isotropic_spacing(STRAIGHT, 0.4) == 0.4


def test_nothing_outside_a_region_and_no_other_structure_gets_finer_labels(tmp_path: Path, bright_bone: None) -> None:
    roi = ((-60.0, -60.0, 60.0), (60.0, 60.0, 100.0))
    result = run(phantom(), tmp_path, output_spacing=2.0, roi=roi)
    fine = result.isotropic
    z = fine.geometry.origin[2] + fine.geometry.spacing[2] * np.flatnonzero(fine.labels.any(axis=(1, 2)))
    assert z.min() >= 60 and z.max() <= 100 and result.report["isotropic"]["spacing_mm"] == [2.0] * 3
    other = run(phantom(), tmp_path, output_spacing=2.0, structures="L2 vertebra")
    assert not other.isotropic.labels.any() and not other.labels.any()


def test_where_nothing_is_found_the_isotropic_labels_are_empty(tmp_path: Path, bright_bone: None) -> None:
    water = phantom()
    water.array[water.array > AIR] = 40
    result = run(water, tmp_path, output_spacing="iso")
    assert not result.isotropic.labels.any() and not result.labels.any()
    assert run(phantom(), tmp_path).isotropic is None


def request_of(folder: Path, output: str, **options: object) -> Request:
    write_model(folder, 4.0)
    made = Options(device="cpu", precision="float32", **options)  # type: ignore[arg-type]
    return Request(
        str(folder / "ct.nrrd"), str(folder / output), "vertebrae", manifest=str(folder / "manifest.json"), options=made
    )


@pytest.mark.parametrize("output", ["spine.nii.gz", "spine.seg.nrrd"])
def test_second_file_lies_beside_the_first_which_stays_the_same(output: str, tmp_path: Path, bright_bone: None) -> None:
    sitk.WriteImage(to_image(phantom().array, phantom().geometry), str(tmp_path / "ct.nrrd"))
    segment_file(request_of(tmp_path, "plain-" + output))
    report = segment_file(request_of(tmp_path, output, output_spacing=1.2))
    fine = tmp_path / output.replace("spine", "spine_iso")
    assert report["isotropic"]["output"] == str(fine) and report["isotropic"]["spacing_mm"] == [1.2] * 3
    assert json.dumps(report) and report["run"]["options"]["output_spacing"] == 1.2
    own, plain, found = (read_image(tmp_path / name) for name in (output, "plain-" + output, fine.name))
    np.testing.assert_array_equal(own.array, plain.array)
    assert own.geometry.size == STRAIGHT.size and np.allclose(found.geometry.spacing, 1.2)
    truth = true_labels(FINE) > 0
    assert dice(resampled(Volume(found.array, found.geometry), FINE).array == VALUE, truth) > 0.85


def test_existing_second_file_is_not_overwritten_and_is_found_before_the_run(tmp_path: Path) -> None:
    sitk.WriteImage(to_image(phantom().array, phantom().geometry), str(tmp_path / "ct.nrrd"))
    (tmp_path / "spine_iso.nii").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"spine_iso\.nii already exists"):
        segment_file(request_of(tmp_path, "spine.nii", output_spacing="iso"))
    assert (tmp_path / "spine_iso.nii").read_bytes() == b"mine" and not (tmp_path / "spine.nii").exists()


def test_beside_a_dicom_seg_it_is_a_segmentation_file(tmp_path: Path, bright_bone: None) -> None:
    write_slices(tmp_path / "in", phantom(THICK).array, THICK)
    request = replace(request_of(tmp_path, "spine.dcm", output_spacing="iso"), input=str(tmp_path / "in"))
    segment_file(request)
    assert isotropic_path("a/b.dcm") == Path("a/b_iso.seg.nrrd")
    assert (tmp_path / "spine_iso.seg.nrrd").is_file() and (tmp_path / "spine.dcm").is_file()


@pytest.mark.parametrize("value", [0.1, 9, "fine", True, [1.0], float("nan")])
def test_other_spacings_are_refused_in_one_sentence(value: object) -> None:
    with pytest.raises(InputError, match=r"output spacing is .*: give 'iso', or a voxel size from 0\.3 to 5 mm\."):
        Options(output_spacing=value)  # type: ignore[arg-type]


def test_forecast_counts_finer_labels_also_of_a_coarser_copy() -> None:
    model = load_manifest().default("vertebrae")
    volume = phantom()
    told = forecast(volume, model, Options(output_spacing="iso"))
    voxels = isotropic_voxels(volume, model, told.size, Options(output_spacing="iso"))
    result_of_all = np.prod([n * s for n, s in zip(told.size, model.preprocessing.spacing, strict=True)]) / 1.5**3
    assert voxels == pytest.approx(result_of_all, rel=0.01)
    coarse = Volume(
        np.ascontiguousarray(volume.array[::2, ::2, ::2]), replace(STRAIGHT, size=(38, 34, 44), spacing=(3.0, 3.0, 4.0))
    )
    assert isotropic_voxels(coarse, model, told.size, Options(output_spacing="iso"), volume.array.size) == voxels
    size = (200, 100, 300)
    assert main_memory(model, size, 12, 10**6, isotropic=10**9) > 8 * 10**9 > main_memory(model, size, 12, 10**6)
