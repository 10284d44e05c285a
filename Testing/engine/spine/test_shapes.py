"""The shape model of vertebrae: learned, stored, fitted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.modelled_spine import SPACING, distance_at
from safetensors import safe_open
from scipy import ndimage

from segmamba.errors import InputError, ModelError
from segmamba.models.resources import SHAPES, resource_root
from segmamba.spine.frames import Frame, column_frames
from segmamba.spine.shape_model import (
    ShapeModel,
    apply_pose,
    fit,
    load_shapes,
    region_of,
    signed_distance,
    without_modes,
)
from segmamba.training.vertebrae.shape_model import CONTENT, VERSION, learn, main, read_map, save_shapes


def test_the_shipped_model_has_closed_shapes_of_anatomical_size_and_is_small(shapes: ShapeModel) -> None:
    for level in range(1, 26):
        half = shapes.half_extents[region_of(level)]
        cell = np.prod(2 * half / (np.array(shapes.means.shape[1:]) - 1))
        millilitres = np.count_nonzero(shapes.means[level - 1] < 0) * cell / 1000
        assert (5 if level < 8 else 12) < millilitres < 100
        assert ndimage.label(shapes.means[level - 1] < 0)[1] == 1
    assert (resource_root() / SHAPES).stat().st_size < 4e6


def test_the_shipped_model_says_what_it_was_learned_from_and_its_licence() -> None:
    with safe_open(resource_root() / SHAPES, "np") as file:
        metadata = file.metadata()
    subjects = metadata.pop("subjects").split(", ")
    assert len(subjects) == 11 and subjects == sorted(subjects) and "verse004" in subjects
    assert metadata == {"content": CONTENT, "version": VERSION, "licence": "CC-BY-SA-4.0"}


def test_the_distance_of_a_fit_is_that_of_its_shape_in_its_pose(shapes: ShapeModel, column: np.ndarray) -> None:
    found = fit(column == 21, 21, without_modes(shapes), column_frames(column, SPACING)[21], SPACING)
    places = np.moveaxis(np.indices(column.shape), 0, -1)[found.box] * SPACING
    half = shapes.half_extents[region_of(21)]
    expected = distance_at(shapes.means[20], half, found.frame.to_local(places)) * found.frame.scale
    assert np.abs(found.distance - expected).max() < 1e-3


def test_signed_distances_are_those_to_the_surface_between_voxels(column: np.ndarray) -> None:
    mask = column == 21
    outside, inside = (ndimage.distance_transform_edt(part, sampling=SPACING) for part in (~mask, mask))
    assert np.abs(signed_distance(mask, SPACING) - np.where(mask, 1.0 - inside, outside - 1.0)).max() < 1e-4


def test_a_fit_finds_a_moved_and_grown_vertebra(shapes: ShapeModel, column: np.ndarray) -> None:
    frame = column_frames(column, SPACING)[21]
    off = apply_pose(frame, [4.0, -3.0, 3.0, 0.1, -0.1, 0.05, 0.08])
    assert fit(column == 21, 21, shapes, off, SPACING).dice > 0.93


def test_a_fit_tells_a_vertebra_from_a_ball(shapes: ShapeModel, column: np.ndarray) -> None:
    frame = column_frames(column, SPACING)[21]
    ball = np.linalg.norm(np.moveaxis(np.indices(column.shape), 0, -1) * SPACING - frame.centre, axis=-1) < 35
    assert fit(ball, 21, shapes, frame, SPACING).dice < 0.7


def test_a_frame_goes_there_and_back() -> None:
    frame = apply_pose(Frame(np.array([3.0, 4.0, 5.0]), np.eye(3), 1.2), [1, 2, 3, 0.1, 0.2, -0.1, 0.05])
    points = np.random.default_rng(0).normal(size=(7, 3))
    assert frame.to_local(frame.to_world(points)) == pytest.approx(points)


def test_a_missing_or_damaged_model_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="install the software again"):
        load_shapes(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no model")
    with pytest.raises(ModelError, match="install the software again"):
        load_shapes(tmp_path / "bad.safetensors")


def test_a_model_learned_from_one_subject_looks_like_that_subject(shared, tmp_path: Path) -> None:
    labels = read_map(shared / "data/labels/open/totalseg_s0224_vertebrae.nii.gz")[::2, ::2, ::2]
    save_shapes(learn([labels], 3.0, modes=2), tmp_path / "one.safetensors", ["s0224"], "CC-BY-4.0")
    learned = load_shapes(tmp_path / "one.safetensors")
    frames = column_frames(labels, 3.0)
    for level in (2, 5, 10, 16, 22):
        assert fit(labels == level, level, learned, frames[level], 3.0).dice > 0.75


def test_maps_without_a_level_are_refused(column: np.ndarray) -> None:
    with pytest.raises(InputError, match="add one that does"):
        learn([column], SPACING)


def test_an_empty_folder_is_told_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), str(tmp_path / "out.safetensors"), "--licence", "CC0-1.0"]) == 3
    assert "give the right folder" in capsys.readouterr().err
