"""Samples with tumours: they grow in the wall, in the sizes that are known, and everything is seeded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import small_bowel
from scipy import ndimage

from segmamba.models.manifest import IntensityNormalization
from segmamba.training.colorectal import labels as c
from segmamba.training.colorectal import parameters, samples
from segmamba.training.colorectal.bowel import Scene, _heights, _pouches, build_tissues
from segmamba.training.colorectal.contents import (
    PREPARATIONS,
    STOMACH_LOOP,
    Row,
    bowel_tables,
    large_bowel,
    other_bowel,
)
from segmamba.training.colorectal.map_format import BowelMap, unpack
from segmamba.training.colorectal.parameters import (
    KINDS,
    Tumour,
    draw_seed,
    draw_tumour,
    draw_tumours,
)
from segmamba.training.colorectal.samples import BEYOND, BowelSynthesizer, arms, crop_centre, small_field, synthesize_ct
from segmamba.training.colorectal.seeds import IN_RECTUM, POSITION, RADIUS, STEP
from segmamba.training.colorectal.zones import ZONE_SHARES, ZONES, zones_of
from segmamba.training.synthesis.context import SamplingContext
from segmamba.training.synthesis.tissue_labels import COLON, SOFT, SPACING

CPU = torch.device("cpu")
PATCH = (48, 56, 56)
CHANNELS = (IntensityNormalization("clip", -5000.0, 5000.0, 0.0, 1.0),)
CONNECTIVITY_26 = np.ones((3, 3, 3), dtype=bool)


@pytest.fixture(scope="module")
def bowel() -> BowelMap:
    return small_bowel.small_map()


def context_of(seed: int) -> SamplingContext:
    return SamplingContext(PATCH, SPACING, CPU, np.random.default_rng(seed), torch.Generator().manual_seed(seed))


def sample(bowel: BowelMap, kind: str, seed: int) -> tuple[Tumour, torch.Tensor, Scene]:
    """Return a tumour, the CT around it and its scene."""
    context = context_of(seed)
    row = draw_seed(bowel.seeds, context.rng)
    tumour = draw_tumour(row, float(bowel.seeds[row, RADIUS]), context.rng, kind)
    image, scene = synthesize_ct(bowel, [tumour], bowel.seeds[row, POSITION], context, cut=False)
    return tumour, image, scene


@pytest.fixture(scope="module")
def grown(bowel: BowelMap) -> dict[str, list[tuple[Tumour, torch.Tensor, Scene]]]:
    return {kind: [sample(bowel, kind, seed) for seed in range(4)] for kind in KINDS}


def of_all(grown: dict[str, list[tuple[Tumour, torch.Tensor, Scene]]]) -> Iterator[tuple[str, Tumour, Scene]]:
    for kind, rows in grown.items():
        for tumour, _, scene in rows:
            yield kind, tumour, scene


def test_every_tumour_touches_the_wall_and_is_one_piece(grown: dict) -> None:
    for kind, tumour, scene in of_all(grown):
        mask = scene.labels.numpy() == c.TUMOUR_LABEL
        bowel = np.isin(scene.labels.numpy(), (c.COLON_LABEL, c.RECTUM_LABEL))
        assert (ndimage.binary_dilation(mask, CONNECTIVITY_26) & bowel).any(), (kind, tumour)
        pieces, _ = ndimage.label(mask, CONNECTIVITY_26)
        sizes = np.bincount(pieces.ravel())[1:]
        assert sizes.max() > 0.9 * sizes.sum(), (kind, tumour)


def test_volumes_are_those_of_tumours(grown: dict) -> None:
    volumes = np.array([(t.labels == c.TUMOUR_LABEL).sum() * SPACING**3 / 1000 for _, _, t in of_all(grown)])
    assert volumes.min() > 0.2
    assert volumes.max() < 200
    assert 4 < np.median(volumes) < 40  # Park et al. 2017 divide their patients at 12.9 mL


def test_labels_and_tissues_are_the_same_thing(grown: dict) -> None:
    for _, _, scene in of_all(grown):
        solid = torch.isin(scene.tissues, torch.tensor([c.TUMOUR, c.NECROSIS]))
        assert torch.equal(solid, scene.labels == c.TUMOUR_LABEL)
        hollow = torch.isin(scene.tissues, torch.tensor([c.WALL, c.LUMEN, c.DIVERTICULUM]))
        assert torch.equal(hollow, (scene.labels == c.COLON_LABEL) | (scene.labels == c.RECTUM_LABEL))


@pytest.mark.parametrize("kind", KINDS)
def test_tumours_take_bowel_and_fat_only(bowel: BowelMap, kind: str) -> None:
    shape = small_bowel.SHAPE
    context = SamplingContext(shape, SPACING, CPU, np.random.default_rng(3), torch.Generator().manual_seed(3))
    fields = unpack(bowel.packed)
    taken = torch.zeros(256, dtype=torch.int64)
    for row in range(0, len(bowel.seeds), len(bowel.seeds) // 3):
        seed = bowel.seeds[row]
        tumour = replace(
            draw_tumour(row, float(seed[RADIUS]), context.rng, kind), outward=parameters.LARGEST_OUTWARD_MM
        )
        tables = bowel_tables(bowel.radii, bowel.seeds, [tumour], context.rng)
        points = torch.from_numpy(np.stack(arms(seed))).float()
        grown = [(tumour, float(seed[RADIUS]), int(seed[STEP]), points)]
        scene = build_tissues(fields, tables, grown, torch.zeros(0, 6), context)
        taken += torch.bincount(fields.tissues[scene.labels == c.TUMOUR_LABEL], minlength=256)
    assert set(taken.nonzero().flatten().tolist()) <= {COLON, c.RECTUM, c.MESENTERY, SOFT}
    assert taken[COLON] > 100 and taken[c.MESENTERY] > 0


def test_a_circumferential_tumour_surrounds_a_lumen(bowel: BowelMap) -> None:
    for seed in range(3):
        tumour, _, scene = sample(bowel, "circumferential", seed)
        assert tumour.half_angle == np.pi
        mask, hollow = scene.labels.numpy() == c.TUMOUR_LABEL, scene.tissues.numpy() == c.LUMEN
        surrounded = 0
        for axis in range(3):
            filled = [ndimage.binary_fill_holes(plane) for plane in np.moveaxis(mask, axis, 0)]
            surrounded += int((np.moveaxis(np.array(filled), 0, axis) & hollow).sum())
        assert surrounded > 20


def test_an_apple_core_narrows_the_bowel_from_outside(bowel: BowelMap) -> None:
    tumour, _, scene = sample(bowel, "apple core", 1)
    table = large_bowel(bowel.radii, bowel.seeds, [tumour], "none", np.random.default_rng(0))
    step = int(bowel.seeds[tumour.seed, STEP])
    assert table[Row.SHRINK, step] == pytest.approx(tumour.narrowing)
    assert 0.05 < tumour.narrowing / bowel.seeds[tumour.seed, RADIUS] < 0.45
    assert (scene.labels == c.TUMOUR_LABEL).any()


def test_an_ulcer_takes_from_the_inner_side_and_necrosis_from_the_core(bowel: BowelMap) -> None:
    def volumes(**changes: float) -> tuple[int, int]:
        context = context_of(3)
        tumour = Tumour(
            int(np.argmax(bowel.seeds[:, RADIUS])), "circumferential", 25.0, 20.0, 10.0, 4.0, np.pi, 3.0, 0.2, 0.05,
            **({"crater": 0.0, "necrosis": 0.0} | changes), narrowing=0.0,
        )  # fmt: skip
        scene = synthesize_ct(bowel, [tumour], bowel.seeds[tumour.seed, POSITION], context, cut=False)[1]
        return int((scene.labels == c.TUMOUR_LABEL).sum()), int((scene.tissues == c.NECROSIS).sum())

    whole, none = volumes()
    ulcerated, _ = volumes(crater=0.7)
    assert none == 0
    assert 0.5 * whole < ulcerated < 0.99 * whole
    same, necrotic = volumes(necrosis=0.8)
    assert same == whole
    assert 0.02 * whole < necrotic < 0.8 * whole


def test_sizes_follow_the_literature(bowel: BowelMap) -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_tumour(0, float(rng.uniform(8, 20)), rng) for _ in range(600)]
    counts = {kind: sum(t.kind == kind for t in drawn) for kind in KINDS}
    assert min(counts.values()) > 60
    lengths = np.array([2 * t.half_length for t in drawn])
    assert 28 < np.median(lengths) < 50  # 28 mm (Sosna et al. 2003), 45 mm (Balta et al. 2014), 59 mm (four masks)
    assert 10 <= lengths.min() < lengths.max() <= 104
    thick = np.array([t.inward + t.outward for t in drawn if t.kind != "polypoid"])
    assert 6 <= np.quantile(thick, 0.05) < np.quantile(thick, 0.95) < 32
    assert all(0 <= t.outward <= parameters.LARGEST_OUTWARD_MM for t in drawn)
    assert 0.1 < np.mean([t.crater > 0 for t in drawn]) < 0.4
    assert 0.05 < np.mean([t.necrosis > 0 for t in drawn]) < 0.5


def test_shares_of_samples_without_tumour_and_in_each_part_of_the_bowel(bowel: BowelMap) -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_tumours(bowel.seeds, rng) for _ in range(600)]
    assert np.mean([not tumours for tumours in drawn]) == pytest.approx(1 - parameters.TUMOUR_SHARE, abs=0.06)
    zones = zones_of(bowel.seeds)
    found = [int(zones[int(bowel.seeds[t.seed, STEP])]) for tumours in drawn for t in tumours[:1]]
    shares = np.bincount(found, minlength=len(ZONES)) / len(found)
    np.testing.assert_allclose(shares, ZONE_SHARES, atol=0.06)
    assert sum(ZONE_SHARES) == pytest.approx(1)


def test_the_parts_of_the_bowel_follow_each_other(bowel: BowelMap) -> None:
    zones = zones_of(bowel.seeds)
    assert (np.diff(zones) >= 0).all() and set(zones) == set(range(len(ZONES)))
    rectum = bowel.seeds[:, IN_RECTUM] > 0
    of_seeds = zones[bowel.seeds[:, STEP].astype(int)]
    assert (of_seeds[rectum] == 0).all() and (of_seeds == 0).sum() < 1.3 * rectum.sum()


def test_more_tumours_lie_apart(bowel: BowelMap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "APART", 4)  # this bowel is short
    rng = np.random.default_rng(0)
    drawn = [draw_tumours(bowel.seeds, rng, more=3) for _ in range(200)]
    assert max(len(tumours) for tumours in drawn) > 2
    for tumours in drawn:
        steps = np.sort([bowel.seeds[tumour.seed, STEP] for tumour in tumours])
        assert (np.diff(steps) > parameters.APART).all()


def test_a_good_part_of_the_crops_with_and_without_tumours_lies_elsewhere(bowel: BowelMap) -> None:
    context = SamplingContext((8, 8, 8), SPACING, CPU, np.random.default_rng(0), torch.Generator())
    tumours = [draw_tumour(draw_seed(bowel.seeds, context.rng), 12.0, context.rng)]
    at = bowel.seeds[tumours[0].seed, POSITION]
    far = np.array([np.linalg.norm(crop_centre(bowel, tumours, context) - at) > 8 for _ in range(300)])
    assert abs(far.mean() - (1 - samples.AT_TUMOUR_SHARE)) < 0.1
    bare = [crop_centre(bowel, [], context) for _ in range(300)]
    assert all(((centre >= 0) & (centre <= bowel.packed.shape)).all() for centre in bare)
    near_bowel = np.array([np.linalg.norm(bowel.seeds[:, POSITION] - centre, axis=1).min() < 6 for centre in bare])
    assert 0.6 < near_bowel.mean() < 0.9


@pytest.mark.parametrize(("side_mm", "patch"), [(150.0, 128), (250.0, 100)])
def test_a_small_field_lies_in_front_of_the_spine(
    bowel: BowelMap, monkeypatch: pytest.MonkeyPatch, side_mm: float, patch: int
) -> None:
    monkeypatch.setattr(samples, "SMALL_FIELD_MM", (side_mm, side_mm))
    context = SamplingContext((8, patch, patch), 1.75, CPU, np.random.default_rng(0), torch.Generator())
    found, shown = [], []
    for _ in range(200):
        centre, (low, high) = small_field(bowel, np.array([5.0, 0.0, 0.0]), context)
        assert centre[0] == 5
        assert (high - low == round(side_mm / 1.75)).all()
        shown.append((np.clip(high, 0, patch) - np.clip(low, 0, patch)).tolist())
        found.append(centre[1:] + ((low + high) / 2 - patch / 2) * 1.75 / SPACING)
    whole = min(patch, round(side_mm / 1.75))
    assert (np.array(shown) == whole).mean() > 0.9  # a window is full, or holds the whole scan
    off = (np.array(found) - bowel.field_centre) * SPACING
    assert np.abs(off.mean(axis=0)).max() < 4
    assert np.abs(off).max() < 5 * samples.OFF_CENTRE_MM


def test_what_is_outside_a_small_field_is_not_rendered(bowel: BowelMap) -> None:
    context = SamplingContext((16, 24, 24), 4.0, CPU, np.random.default_rng(0), torch.Generator().manual_seed(0))
    field = (np.array([6, 4]), np.array([20, 15]))
    middle = bowel.seeds[0, POSITION]
    image, scene = synthesize_ct(bowel, [], middle, context, cut=False, field=field)
    inside = torch.zeros(image.shape, dtype=torch.bool)
    inside[:, 6:20, 4:15] = True
    assert bool((scene.labels[~inside] == 0).all()) and bool((scene.labels[inside] > 0).any())
    assert len(image[~inside].unique()) == 1


def test_a_crop_lies_in_the_body_like_a_window_of_a_scan(bowel: BowelMap) -> None:
    shape = np.array(bowel.packed.shape)
    patch = shape // 2
    context = SamplingContext(tuple(patch.tolist()), SPACING, CPU, np.random.default_rng(0), torch.Generator())
    tumours = [draw_tumour(draw_seed(bowel.seeds, context.rng), 12.0, context.rng)]
    centres = np.array([crop_centre(bowel, tumours, context) for _ in range(300)])
    beyond = np.maximum(patch / 2 - centres, centres + patch / 2 - shape)
    assert (beyond <= BEYOND * patch + 1e-6).all() and (beyond > 0).any()
    wide = SamplingContext(tuple((2 * shape).tolist()), SPACING, CPU, np.random.default_rng(0), torch.Generator())
    np.testing.assert_allclose([crop_centre(bowel, tumours, wide) for _ in range(3)], [shape / 2] * 3)
    place = (bowel.seeds[tumours[0].seed, POSITION] - centres) / patch
    assert (place.min(axis=0) < 0).all() and (place.max(axis=0) > 0).all()  # to either side of the middle


def test_all_contents_occur_and_a_tumour_is_not_in_a_collapsed_part(bowel: BowelMap) -> None:
    tumour = draw_tumour(0, float(bowel.seeds[0, RADIUS]), np.random.default_rng(0), "asymmetric")
    step = int(bowel.seeds[0, STEP])
    tables = [
        large_bowel(bowel.radii, bowel.seeds, [tumour], preparation, np.random.default_rng(seed))
        for preparation in PREPARATIONS
        for seed in range(40)
    ]
    table = np.concatenate(tables, axis=1)
    assert (table[Row.LEVEL] < 0.1).any() and (table[Row.LEVEL] > 1).any()  # gas, and filled
    assert (table[Row.MOTTLE] > 0.3).any() and (table[Row.FILLING] > 150).any()  # stool, contrast
    thick = (table[Row.FILLING] > 25) & (table[Row.FILLING] < 80) & (table[Row.MOTTLE] < 0.05)
    assert (thick & (table[Row.LEVEL] < 0.75)).any()  # paste under gas
    assert (table[Row.SHRINK] > 3).any()  # collapsed
    assert all(t[Row.SHRINK, step] < 3 for t in tables)
    assert (table[Row.STRANDS] > 0.3).any()


def test_a_full_rectum_holds_stool_and_a_transverse_colon_gas_throughout(bowel: BowelMap) -> None:
    zones = zones_of(bowel.seeds)
    tables = [large_bowel(bowel.radii, bowel.seeds, [], "none", np.random.default_rng(seed)) for seed in range(60)]
    uniform = {
        zone: [
            t[:, zones == ZONES.index(zone)] for t in tables if len(set(t[Row.RUN, zones == ZONES.index(zone)])) == 1
        ]
        for zone in ("rectum", "transverse")
    }
    full = [t for t in uniform["rectum"] if t[Row.LEVEL].min() > 0.7 and t[Row.FILLING].mean() > 20]
    assert len(full) > 5
    assert sum(t[Row.LEVEL].max() < 0.2 for t in uniform["transverse"]) > 5


def test_contrast_by_mouth_is_as_bright_as_real_one_and_reaches_small_bowel_and_stomach() -> None:
    tables = [other_bowel(True, np.random.default_rng(seed)) for seed in range(40)]
    brightest = [t[Row.FILLING].max() for t in tables]
    assert max(brightest) > 800 and min(brightest) > 80
    assert all(t[Row.FILLING, STOMACH_LOOP] >= 120 and t[Row.FOLDS, STOMACH_LOOP] >= 3 for t in tables)
    assert max(other_bowel(False, np.random.default_rng(seed))[Row.FILLING].max() for seed in range(20)) < 60


def test_contracted_loops_have_thick_walls_that_enhance_by_loop_and_hold_some_gas() -> None:
    tables = [other_bowel(False, np.random.default_rng(seed)) for seed in range(40)]
    table = np.concatenate(tables, axis=1)
    contracted = table[Row.WALL] >= 5
    assert 0.15 < contracted.mean() < 0.5
    assert (table[Row.MOTTLE, contracted] > 0.3).any()
    assert 12 < table[Row.ENHANCED].std() < 24
    stomachs = np.array([t[Row.WALL, STOMACH_LOOP] for t in tables])
    assert (stomachs > 10).any() and (stomachs < 6.5).any()


def test_a_level_is_one_row_of_the_image_in_all_loops_of_a_run(bowel: BowelMap) -> None:
    context = context_of(2)
    run, inside = torch.zeros(PATCH), torch.zeros(PATCH, dtype=torch.bool)
    inside[:, 10:20, :8], inside[:, 30:40, -8:] = True, True  # two loops, one behind the other
    height = _heights(run, inside, context)
    for row, loop in ((10, 0), (19, 0), (30, -1), (39, -1)):
        assert height[:, row, loop].numpy() == pytest.approx((39 - row) / 29)


def test_pouches_lie_in_the_fat_next_to_the_bowel_and_count_as_colon() -> None:
    context = context_of(0)
    depth = torch.full(PATCH, 3.0)
    depth[:, :28] = -4.0
    field = _pouches(depth, torch.ones(PATCH), context)
    assert 0.005 < float((field[:, :28] > 0).float().mean()) < 0.3
    assert not (field[:, 28:] > 0).any()
    assert not (_pouches(depth, torch.zeros(PATCH), context) > 0).any()


def test_gas_lies_above_fluid(bowel: BowelMap) -> None:
    found = 0
    for seed in range(6):
        context = context_of(seed)
        row = draw_seed(bowel.seeds, context.rng)
        image, scene = synthesize_ct(bowel, [], bowel.seeds[row, POSITION], context, cut=False)
        lumen = scene.tissues == c.LUMEN
        gas, fluid = lumen & (image < -600), lumen & (image > -60)
        if min(int(gas.sum()), int(fluid.sum())) > 200:
            found += 1
            assert scene.height[gas].mean() > scene.height[fluid].mean()
    assert found


def test_the_seed_decides_everything(bowel: BowelMap) -> None:
    def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        made = BowelSynthesizer([bowel], (24, 32, 32), 3.0, CHANNELS, seed).batch(2)
        return made.image, made.labels

    first, again, other = batch(5), batch(5), batch(6)
    assert first[0].shape == (2, 1, 24, 32, 32) and first[1].dtype == torch.int64
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert first[0].isfinite().all() and first[0].min() >= -1024 and first[0].max() <= 3071
    assert set(first[1].unique().tolist()) <= {0, 1, 2, 3}
