"""Measurements of vertebrae whose measures are known, however they lie and on whatever grid."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.measured_spine import ARCH_HU, TRABECULAR_HU, Vertebra, painted, turned
from helpers.phantoms import positions, restored, rotation

from segmamba.errors import OutputError
from segmamba.inference.model_grid import cropped_geometry
from segmamba.io.volume import Geometry, Volume
from segmamba.labels import Label
from segmamba.measurements.vertebrae import measure_labels, write_table
from segmamba.measurements.vertebral_body import Mask, find_body
from segmamba.models.manifest import load_manifest
from segmamba.spine.levels import T13

LABELS = load_manifest().default("vertebrae").labels
STRAIGHT = (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)
# Two voxel sizes of good scans, one of thick slices, and a coarse one.
SPACINGS = {
    "1 mm": (1.0, 1.0, 1.0),
    "fine": (0.8, 0.8, 1.25),
    "thick": (0.8, 0.8, 2.5),
    "sagittal MR": (3.0, 0.9, 0.9),
    "coarse": (2.0, 2.0, 2.0),
}


def grid(spacing: tuple[float, float, float], direction: tuple[float, ...] = STRAIGHT) -> Geometry:
    """A grid of 100 mm to the sides, 110 from front to back and 130 in height, around (0, 20, 0)."""
    extents = np.abs(np.reshape(direction, (3, 3)).T) @ [100, 110, 130]
    size = np.ceil(extents / spacing).astype(int)
    first = np.array([0.3, 20.2, 0.1]) - np.reshape(direction, (3, 3)) @ ((size - 1) / 2 * spacing)
    x, y, z = first.tolist()
    return Geometry(tuple(size.tolist()), spacing, (x, y, z), direction)


def column(sagittal: float = 0, coronal: float = 0, axial: float = 0, **measures: float) -> dict[int, Vertebra]:
    """T12 to L2, each of which leans as said; L1 has the measures, and lies in the middle."""
    axes = turned(sagittal, coronal, axial)
    return {
        value: Vertebra(tuple((step * 34.0 * axes[0]).tolist()), axes, **(measures if value == 20 else {}))
        for value, step in ((19, 1), (20, 0), (21, -1))
    }


def measured(vertebrae: dict[int, Vertebra], geometry: Geometry, value: int = 20) -> dict[str, object]:
    rows = measure_labels(*painted(vertebrae, geometry), LABELS)
    return {row["value"]: row for row in rows}[value]


def heights(row: dict[str, object]) -> list[float]:
    return [row[f"{name}_height_mm"] for name in ("anterior", "middle", "posterior")]


def true_heights(vertebra: Vertebra) -> list[float]:
    """Return the heights at the front, in the middle and at the back."""
    return [vertebra.height(part) for part in (0, 0.5, 1)]


@pytest.mark.parametrize("name", ["1 mm", "thick", "coarse"])
@pytest.mark.parametrize("direction", [STRAIGHT, rotation(18, -12)], ids=["straight", "oblique"])
def test_heights_of_a_wedge_are_found_within_a_voxel_on_any_grid(name: str, direction: tuple[float, ...]) -> None:
    vertebrae = column(anterior=18.0, posterior=27.0)
    row = measured(vertebrae, grid(SPACINGS[name], direction))
    # The labels themselves are rounded to voxels.
    tolerance = 0.8 * SPACINGS[name][2]
    assert heights(row) == pytest.approx(true_heights(vertebrae[20]), abs=tolerance)


@pytest.mark.parametrize("ratio", [1.0, 0.7, 0.4])
def test_wedge_fractures_have_their_ratio(ratio: float) -> None:
    vertebrae = column(anterior=ratio * 27.0, posterior=27.0)
    anterior, _middle, posterior = heights(measured(vertebrae, grid(SPACINGS["fine"])))
    assert anterior / posterior == pytest.approx(ratio, abs=0.03)


@pytest.mark.parametrize(
    "lean", [(25, 0, 0), (-25, 0, 0), (0, 20, 0), (0, 0, 25), (15, -15, -20)], ids=lambda lean: "/".join(map(str, lean))
)
def test_heights_do_not_depend_on_how_the_column_leans(lean: tuple[float, float, float]) -> None:
    vertebrae = column(*lean, anterior=21.0, posterior=27.0)
    row = measured(vertebrae, grid(SPACINGS["1 mm"]))
    assert heights(row) == pytest.approx(true_heights(vertebrae[20]), abs=0.8)


@pytest.mark.parametrize("lean", [(0, 0, 0), (20, -10, 25)], ids=["upright", "leaning"])
def test_the_axes_of_a_body_are_its_own(lean: tuple[float, float, float]) -> None:
    geometry, vertebra = grid(SPACINGS["1 mm"]), column(*lean, anterior=24.0)[20]
    mask = Mask(painted({20: vertebra}, geometry)[0] == 20, geometry.affine)
    body = find_body(mask, np.array([0.0, 0.0, 1.0]))
    assert body is not None
    # Within 2 degrees.
    assert (np.sum(body.axes * vertebra.axes, axis=1) > np.cos(np.radians(2))).all()
    assert body.centre == pytest.approx(vertebra.centre, abs=0.8)
    assert body.size == pytest.approx([25, 32, 42], abs=2)


def test_t13_is_measured_between_t12_and_l1() -> None:
    tilted = {19: 0.0, 20: 6.0, 21: 18.0}
    vertebrae = {value: Vertebra(column()[value].centre, turned(lean)) for value, lean in tilted.items()}
    geometry = grid(SPACINGS["1 mm"])
    usual = measure_labels(*painted(vertebrae, geometry), LABELS)
    labels, ct = painted(vertebrae, geometry)
    renamed = np.array([0, *range(1, 20), T13, 20, *range(22, 29)], np.uint8)[labels]
    rows = measure_labels(renamed, ct, LABELS)
    assert [row["name"] for row in rows] == ["T12 vertebra", "T13 vertebra", "L1 vertebra"]
    for key in ("sagittal_angle_deg", "anterior_height_mm", "note"):
        assert [row[key] for row in rows] == [row[key] for row in usual]
    assert rows[0]["sagittal_angle_deg"] is not None and rows[1]["sagittal_angle_deg"] is not None


@pytest.mark.parametrize("lean", [(0, 0, 0), (20, 10, 15)])
def test_a_vertebra_alone_shows_how_it_leans(lean: tuple[float, float, float]) -> None:
    vertebrae = {20: column(*lean, anterior=20.0)[20]}
    row = measured(vertebrae, grid(SPACINGS["1 mm"]))
    assert heights(row) == pytest.approx(true_heights(vertebrae[20]), abs=0.8)
    assert row["sagittal_angle_deg"] is None


@pytest.mark.parametrize("scale", [0.45, 1.3], ids=["neck or child", "large"])
def test_small_and_large_bodies_are_measured(scale: float) -> None:
    measures = {"anterior": 26 * scale, "posterior": 29 * scale, "depth": 32 * scale, "width": 42 * scale}
    vertebrae = {20: column(**measures)[20]}
    geometry = grid(SPACINGS["1 mm"])
    row = measured(vertebrae, geometry)
    # In a body of 12 mm, steps of 1 mm turn its axis by some degrees.
    tolerance = 1.1 if scale < 1 else 0.8
    assert heights(row) == pytest.approx(true_heights(vertebrae[20]), abs=tolerance)


@pytest.mark.parametrize("name", ["thick", "sagittal MR"])
def test_volume_and_centroid_are_those_of_the_labels(name: str) -> None:
    vertebrae, geometry = column(10, 5), grid(SPACINGS[name])
    row = measured(vertebrae, geometry)
    mask = painted(vertebrae, geometry)[0] == 20
    k, j, i = (part.mean() for part in np.nonzero(mask))
    x, y, z, _ = geometry.affine @ [i, j, k, 1]
    assert row["volume_ml"] == pytest.approx(mask.sum() * geometry.voxel_volume / 1000, abs=1e-3)
    assert row["centroid_ras_mm"] == pytest.approx([-x, -y, z], abs=0.01)
    assert row["name"] == "L1 vertebra" and row["at_border"] is False and row["note"] is None


@pytest.mark.parametrize("name", ["1 mm", "thick", "coarse"])
def test_density_is_that_of_the_bone_within_the_shell(name: str) -> None:
    row = measured(column(12, -8, anterior=22.0), grid(SPACINGS[name]))
    assert row["trabecular_hu"] == pytest.approx(TRABECULAR_HU, abs=3)


def test_density_is_a_mean_and_not_that_of_one_place() -> None:
    vertebrae, geometry = column(), grid(SPACINGS["1 mm"])
    labels, ct = painted({20: vertebrae[20]}, geometry)
    noise = np.random.default_rng(0).normal(0, 60, ct.array.shape)
    (row,) = measure_labels(labels, replace(ct, array=(ct.array + noise).astype(np.int16)), LABELS)
    # 60 HU over more than a thousand voxels.
    assert row["trabecular_hu"] == pytest.approx(TRABECULAR_HU, abs=4)


def test_there_is_no_density_without_hounsfield_units() -> None:
    labels, ct = painted(column(), grid(SPACINGS["coarse"]))
    rows = measure_labels(labels, replace(ct, modality="MR"), LABELS)
    assert [row["trabecular_hu"] for row in rows] == [None] * 3
    assert all(height for row in rows for height in heights(row))


def test_angles_between_neighbours_are_signed() -> None:
    upper, lower = turned(-6, 5), turned(9, -4)
    vertebrae = {19: Vertebra((0, 0, 17.0), upper), 20: Vertebra((0, 0, -20.0), lower)}
    row = measured(vertebrae, grid(SPACINGS["1 mm"]), 19)
    # The lower one leans backwards against the upper one: kyphosis. The upper one leans to the left.
    assert row["sagittal_angle_deg"] == pytest.approx(15, abs=1.5)
    assert row["coronal_angle_deg"] == pytest.approx(9, abs=1.5)


def test_a_leaning_column_without_curves_has_no_angles() -> None:
    for lean in ((25, 0, 0), (0, 20, 0), (15, 15, 15)):
        row = measured(column(*lean), grid(SPACINGS["1 mm"]), 19)
        assert [row["sagittal_angle_deg"], row["coronal_angle_deg"]] == pytest.approx([0, 0], abs=0.6)


def test_measures_do_not_depend_on_how_the_axes_are_stored() -> None:
    vertebrae, geometry = column(12, 8, 10, anterior=20.0), grid(SPACINGS["thick"], rotation(10, 5))
    labels, ct = painted(vertebrae, geometry)
    expected = measure_labels(labels, ct, LABELS)
    for copy, stored in zip(restored(ct), restored(Volume(labels, geometry)), strict=True):
        rows = measure_labels(stored.array, replace(copy, modality="CT"), LABELS)
        for row, reference in zip(rows, expected, strict=True):
            assert row["centroid_ras_mm"] == pytest.approx(reference["centroid_ras_mm"], abs=0.01)
            assert heights(row) == pytest.approx(heights(reference), abs=0.05)
            for figure in ("volume_ml", "trabecular_hu", "sagittal_angle_deg", "coronal_angle_deg"):
                assert row[figure] == pytest.approx(reference[figure], abs=0.1)


def cut(vertebrae: dict[int, Vertebra], box: tuple[slice, slice, slice]) -> list[dict[str, object]]:
    """Measure what a box (slices along z, y, x) of the image holds."""
    geometry = grid(SPACINGS["1 mm"])
    box = tuple(slice(*part.indices(size)[:2]) for part, size in zip(box, geometry.size[::-1], strict=True))
    labels, ct = painted(vertebrae, geometry)
    return measure_labels(labels[box], Volume(ct.array[box], cropped_geometry(geometry, box), "CT"), LABELS)


def test_a_body_that_the_image_cuts_has_no_heights() -> None:
    upper, lower = cut(column(), (slice(0, 70), slice(None), slice(None)))  # the upper half of L1 is gone
    assert upper["at_border"] and upper["note"] == "The image ends within the body."
    assert heights(upper) == [None] * 3 and upper["trabecular_hu"] is None and upper["sagittal_angle_deg"] is None
    assert upper["volume_ml"] > 10
    assert not lower["at_border"] and heights(lower) == pytest.approx([26] * 3, abs=0.8)


def test_a_body_whose_arch_only_is_cut_keeps_its_heights() -> None:
    rows = cut(column(), (slice(None), slice(0, 85), slice(None)))  # the spinous processes go on
    assert all(row["at_border"] and row["note"] is None for row in rows)
    assert heights(rows[1]) == pytest.approx([26] * 3, abs=0.8)


def test_a_body_without_arch_is_measured() -> None:
    vertebra, geometry = column(10, 0, 0, anterior=20.0)[20], grid(SPACINGS["1 mm"])
    labels, ct = painted({20: vertebra}, geometry)
    labels[ct.array == ARCH_HU] = 0
    (row,) = measure_labels(labels, ct, LABELS)
    assert heights(row) == pytest.approx(true_heights(vertebra), abs=0.8)


def test_a_body_that_nothing_separates_from_the_arch_is_not_guessed() -> None:
    vertebrae, geometry = column(), grid(SPACINGS["1 mm"])
    labels, ct = painted(vertebrae, geometry)
    up, back, left = vertebrae[20].local(positions(geometry))
    labels[(np.abs(up) < 12) & (back > 0) & (back < 40) & (np.abs(left) < 12)] = 20  # the canal is filled
    rows = measure_labels(labels, ct, LABELS)
    assert rows[1]["note"] == "The body cannot be separated from the arch."
    assert heights(rows[1]) == [None] * 3 and rows[0]["sagittal_angle_deg"] is None


def test_levels_without_two_end_plates_say_so() -> None:
    labels, ct = painted(column(), grid(SPACINGS["coarse"]))
    renamed = np.select([labels == 19, labels == 20, labels == 21], [1, 2, 26]).astype(np.uint8)
    rows = measure_labels(renamed, ct, LABELS)
    assert [heights(row) for row in rows] == [[None] * 3] * 3
    assert [row["note"].split()[0] for row in rows] == ["C1", "C1", "The"]


def test_scraps_do_not_stop_the_rest() -> None:
    labels, ct = painted(column(), grid(SPACINGS["coarse"]))
    labels[5, 5, 5] = 24
    rows = measure_labels(labels, ct, LABELS)
    assert [row["value"] for row in rows] == [19, 20, 21, 24]
    assert rows[3]["note"] == "The body cannot be separated from the arch."
    assert measure_labels(np.zeros_like(labels), ct, LABELS) == []


def test_a_column_along_the_wrong_axis_does_not_stop_the_run() -> None:
    labels = np.zeros((40, 60, 40), np.uint8)
    labels[10:30, 5:20, 10:30], labels[10:30, 25:40, 10:30] = 20, 21  # from front to back
    rows = measure_labels(labels, Volume(labels, Geometry((40, 60, 40), (2.0, 2.0, 2.0), (0, 0, 0), STRAIGHT)), LABELS)
    assert [row["value"] for row in rows] == [20, 21]
    assert np.isfinite([figure for row in rows for figure in heights(row) if figure is not None]).all()


def test_only_the_structures_asked_for_are_measured() -> None:
    chosen: list[Label] = [label for label in LABELS if label.value == 21]
    rows = measure_labels(*painted(column(), grid(SPACINGS["coarse"])), chosen)
    assert [row["name"] for row in rows] == ["L2 vertebra"]


def test_an_empty_mask_has_no_body() -> None:
    assert find_body(Mask(np.zeros((4, 4, 4), bool), np.eye(4)), np.array([0, 0, 1.0])) is None


def test_the_table_has_a_line_for_each_vertebra(tmp_path: Path) -> None:
    rows = measure_labels(*painted(column(), grid(SPACINGS["coarse"])), LABELS)
    write_table(tmp_path / "out.csv", rows)
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [line["name"] for line in lines] == ["T12 vertebra", "L1 vertebra", "L2 vertebra"]
    assert float(lines[1]["anterior_height_mm"]) == rows[1]["anterior_height_mm"]
    assert float(lines[1]["superior_mm"]) == rows[1]["centroid_ras_mm"][2]
    assert lines[2]["sagittal_angle_deg"] == "" and lines[1]["sagittal_angle_deg"] != ""
    with pytest.raises(OutputError):
        write_table(tmp_path / "out.txt", rows)


def _points(geometry: Geometry) -> np.ndarray:
    from helpers.phantoms import positions

    return positions(geometry)


def test_a_mask_larger_than_any_vertebra_has_a_volume_and_no_body() -> None:
    labels = np.zeros((90, 90, 90), np.uint8)
    labels[10:80, 10:80, 10:80] = 20
    geometry = Geometry((90, 90, 90), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), STRAIGHT)
    (row,) = measure_labels(labels, Volume(np.zeros(labels.shape, np.int16), geometry), LABELS)
    assert row["volume_ml"] == 343.0 and row["anterior_height_mm"] is None
    assert row["note"] == "The mask is larger than any vertebra."
