"""Maps of the bowel: how far along it a voxel lies, what is rectum, where gas rises to, where a tumour can start."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import small_bowel, small_spine

from segmamba.errors import InputError
from segmamba.training.colorectal import label_maps as anatomy
from segmamba.training.colorectal.centreline import lengths_along
from segmamba.training.colorectal.label_maps import BowelArrays, bowel_arrays, fill_cavity, prepare
from segmamba.training.colorectal.labels import LARGE, MESENTERY, RECTUM
from segmamba.training.colorectal.map_format import load_bowel_maps, unpack
from segmamba.training.colorectal.seeds import ALONG, IN_RECTUM, INWARD, POSITION, RADIUS, STEP
from segmamba.training.synthesis.tissue_labels import AIR, COLON, LIVER, SMALL_BOWEL, SPACING, VERTEBRAE

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def arrays() -> BowelArrays:
    return bowel_arrays(small_bowel.tissues(), np.random.default_rng(0))


def lengths_of(mask: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    return lengths_along(mask, ndimage.distance_transform_edt(mask, sampling=SPACING), SPACING)


def test_lengths_grow_along_the_bowel_to_its_far_end() -> None:
    mask = small_bowel.tissues() == COLON
    length = lengths_of(mask)
    assert np.isfinite(length[mask]).all()
    assert np.isnan(length[~mask]).all()
    assert np.nanmax(length) == pytest.approx(small_bowel.length_mm(), rel=0.12)
    first, second = (length[small_bowel.SECOND_LOWEST + 4, y, x] for y, x in small_bowel.LEGS)
    assert second - first > 0.6 * small_bowel.length_mm()


def test_a_path_does_not_leap_where_loops_touch() -> None:
    z, y, x = np.mgrid[:120, :20, :40]
    legs = np.minimum(np.hypot(y - 10, x - 10), np.hypot(y - 10, x - 29))
    mask = (legs <= 9.1) & ((x < 20) | (z >= 6)) & (z < 110)  # they share a wall, and are joined at the top
    mask |= (np.hypot(z - 110, y - 10) <= 9.0) & (x > 3) & (x < 37)
    assert mask[:, 10, 19].any()
    length = lengths_of(mask)
    assert length[60, 10, 29] > length[108, 10, 10] > 1.5 * length[60, 10, 10]


def test_the_path_goes_on_beyond_a_gap_but_not_into_specks() -> None:
    mask = np.zeros((60, 20, 20), dtype=bool)
    mask[2:28, 4:14, 4:14] = mask[34:58, 4:14, 4:14] = True
    mask[30:32, 17:19, 17:19] = True
    length = lengths_of(mask)
    assert np.isnan(length[30, 17, 17])
    assert length[56, 8, 8] == pytest.approx(54 * SPACING, rel=0.15)


def test_the_rectum_is_the_lower_end_below_the_promontory(arrays: BowelArrays) -> None:
    z, _, x = np.nonzero(arrays.tissues == RECTUM)
    assert z.max() < small_bowel.PROMONTORY <= z.max() + 3
    assert x.max() < small_bowel.SHAPE[2] / 2
    assert (arrays.tissues == COLON).sum() > 2 * len(z)
    long = small_bowel.tissues()
    long[:, 58:68, 44:56] = VERTEBRAE
    z, _, _ = np.nonzero(bowel_arrays(long, np.random.default_rng(0)).tissues == RECTUM)
    assert (z.max() - small_bowel.LOWEST) * SPACING < anatomy.RECTUM_MM + 20


def test_depth_grows_from_the_surface_inwards(arrays: BowelArrays) -> None:
    fields = unpack(small_bowel.small_map().packed)
    depth, large = fields.depth.numpy(), np.isin(arrays.tissues, LARGE)
    other = arrays.tissues == SMALL_BOWEL
    assert depth[large | other].min() > 0
    assert depth[~large & ~other].max() <= 0
    y, x = small_bowel.LEGS[0]
    assert depth[30, y, x] == pytest.approx(small_bowel.RADIUS * SPACING, abs=1.2)
    assert depth[30, y - small_bowel.RADIUS - 4, x] == pytest.approx(-4 * SPACING, abs=1.2)


def test_gas_would_rise_to_the_front_and_outside_voxels_know_their_bowel(arrays: BowelArrays) -> None:
    y, x = small_bowel.LEGS[0]
    column = arrays.height[30, y - small_bowel.RADIUS + 1 : y + small_bowel.RADIUS, x].astype(int)
    assert (np.diff(column) < 0).all()
    assert arrays.height[30, y - small_bowel.RADIUS - 3, x] == anatomy.HEIGHTS  # nearest is the large bowel
    assert arrays.height[20, 8, 50] == 0  # nearest is the small one
    outside, inside = (int(arrays.centreline_index[30, y - small_bowel.RADIUS + shift, x]) for shift in (-3, 1))
    assert abs(outside - inside) <= 1 < inside


def test_seeds_lie_on_the_surface_and_point_into_the_bowel_and_along_it(arrays: BowelArrays) -> None:
    seeds = arrays.seeds
    leg = seeds[seeds[:, 0] < small_bowel.TOP - 6]
    assert len(leg) > 100
    axes = np.where(leg[:, 2:3] < 50, np.array(small_bowel.LEGS[0]), np.array(small_bowel.LEGS[1]))
    to_axis = axes - leg[:, 1:3]
    distance = np.linalg.norm(to_axis, axis=1)
    assert distance == pytest.approx(small_bowel.RADIUS, abs=1.6)
    cosine = (to_axis / distance[:, None] * leg[:, INWARD][:, 1:]).sum(axis=1)
    assert np.quantile(cosine, 0.05) > 0.9
    assert np.quantile(np.abs(leg[:, ALONG][:, 0]), 0.05) > 0.85
    assert np.median(leg[:, RADIUS]) == pytest.approx(small_bowel.RADIUS * SPACING, abs=1.0)
    assert (seeds[:, STEP] >= 4).all()
    inside = arrays.tissues[tuple(seeds[:, POSITION].astype(int).T)] == RECTUM
    assert (inside == (seeds[:, IN_RECTUM] > 0)).all()


def test_the_cavity_is_filled_with_fat_and_no_organ_is_changed() -> None:
    before, after = small_bowel.tissues(), small_bowel.tissues()
    fill_cavity(after, anatomy._cavity(after))
    organs = np.isin(before, (AIR, LIVER, COLON, SMALL_BOWEL, VERTEBRAE))
    assert (after[organs] == before[organs]).all()
    assert after[40, 36, 40] == MESENTERY  # between the legs


def test_a_map_without_a_colon_is_refused() -> None:
    tissues = small_bowel.tissues()
    tissues[tissues == COLON] = LIVER
    with pytest.raises(InputError, match="no colon"):
        bowel_arrays(tissues, np.random.default_rng(0))


def test_label_maps_become_files_that_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = tmp_path / "labels"
    small_spine.write_subjects(labels)
    classes = small_spine.organs()
    classes[4:56, 12:22, 10:40] = 20
    small_spine.write(labels / "whole_organs.nii.gz", classes)
    assert anatomy.main([str(labels), str(tmp_path / "maps")]) == 0
    (bowel,) = load_bowel_maps(sorted((tmp_path / "maps").glob("*.npz")), CPU)
    assert bowel.subject == "whole"
    assert set(np.unique(bowel.packed.numpy() & 255)) >= {COLON}
    assert anatomy.main([str(labels), str(tmp_path / "none"), "--without", "whole"]) == 3
    assert "with a colon" in capsys.readouterr().err
    with pytest.raises(InputError, match="no bowel map to train on"):
        load_bowel_maps([], CPU)
    (tmp_path / "bad.npz").write_bytes(b"x")
    with pytest.raises(InputError, match="make it again"):
        load_bowel_maps([tmp_path / "bad.npz"], CPU)
    assert prepare(labels, tmp_path / "again", random_courses=1) == ["whole"]
    real, random = (tmp_path / "again" / f"whole_{number}.npz" for number in range(2))
    assert real.read_bytes() == (tmp_path / "maps" / "whole_0.npz").read_bytes()
    first, second = load_bowel_maps([real, random], CPU)
    assert first.subject == second.subject == "whole"
    bodies = [(tissues.packed.numpy() & 255 != AIR).sum() for tissues in (first, second)]
    assert bodies[0] != bodies[1]  # another layer of fat
