"""From a fingerprint to a plan, and plans in files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from segmamba.errors import DeviceError, InputError, ModelError
from segmamba.training.dataset.fingerprint import ChannelIntensities, Fingerprint
from segmamba.training.dataset.layout import Dataset
from segmamba.training.dataset.plan import read_plan, write_plan
from segmamba.training.dataset.planning import choose_patch, make_plan, median_shape, target_spacing

INTENSITIES = ChannelIntensities(-50.0, 200.0, 60.0, 40.0)


def fingerprint(*spacings: tuple[float, float, float], size: tuple[int, int, int] = (100, 100, 50)) -> Fingerprint:
    return Fingerprint((size,) * len(spacings), spacings, (INTENSITIES,), {"body": 9}, {"body": 1})


def dataset(channel: str = "CT", label: str = "body") -> Dataset:
    return Dataset(Path("bodies"), (channel,), {label: 1}, None, ())


def test_spacing_is_the_median_and_finer_along_a_much_coarser_axis() -> None:
    assert target_spacing(fingerprint((1.0, 1.0, 1.0), (1.0, 1.0, 2.0), (1.2, 1.0, 2.0))) == (1.0, 1.0, 2.0)
    x, y, z = target_spacing(fingerprint((1.0, 1.0, 2.0), (1.0, 1.0, 5.0), (1.0, 1.0, 5.0)))
    assert (x, y) == (1.0, 1.0) and z == pytest.approx(2.6)


def test_shape_is_in_voxels_of_the_plan_from_top_to_side() -> None:
    assert median_shape(fingerprint((1.0, 1.0, 4.0)), (2.0, 1.0, 2.0)) == (100, 100, 50)


def test_patch_covers_small_volumes_and_is_bounded_by_the_papers() -> None:
    assert choose_patch((40, 60, 30), None, 4000) == (48, 64, 32)
    assert math.prod(choose_patch((400, 400, 400), None, 4000)) <= 128**3


def test_patch_shrinks_with_the_gpus_memory_along_the_axis_of_which_most_is_covered() -> None:
    large, small = (choose_patch((200, 200, 60), memory * 2**30, 4000) for memory in (24, 4))
    assert math.prod(small) < math.prod(large)
    assert small[2] / 60 == pytest.approx(small[0] / 200, abs=0.3)
    with pytest.raises(DeviceError, match="GiB of free GPU memory"):
        choose_patch((200, 200, 60), 2**20, 4000)


def test_ct_is_clipped_alike_and_mr_in_its_own_percentiles() -> None:
    ct = make_plan(dataset("CT"), fingerprint((1.0, 1.0, 1.0)), "segmamba-v2").normalization[0]
    mr = make_plan(dataset("T1"), fingerprint((1.0, 1.0, 1.0)), "segmamba-v2").normalization[0]
    assert (ct.scheme, ct.low, ct.high, ct.mean, ct.std) == ("clip", -50.0, 200.0, 60.0, 40.0)
    assert (mr.scheme, mr.mean) == ("percentile", None)


def test_nothing_is_mirrored_where_a_label_has_a_side() -> None:
    assert make_plan(dataset(), fingerprint((1.0, 1.0, 1.0)), "segmamba-v2").flip_axes == (2,)
    assert make_plan(dataset(label="Left kidney"), fingerprint((1.0, 1.0, 1.0)), "segmamba-v2").flip_axes == ()


def test_an_unknown_architecture_names_those_that_there_are() -> None:
    with pytest.raises(ModelError, match="choose one of segmamba-v2"):
        make_plan(dataset(), fingerprint((1.0, 1.0, 1.0)), "u-net")


def test_a_plan_is_read_as_it_was_written_and_can_be_edited(tmp_path: Path) -> None:
    plan = make_plan(dataset(), fingerprint((1.0, 1.0, 1.0)), "spinemamba")
    path = tmp_path / "plan.json"
    write_plan(plan, path)
    assert read_plan(path).data() == plan.data()
    content = json.loads(path.read_text())
    content["recipe"]["batch"] = 4
    path.write_text(json.dumps(content))
    assert read_plan(path).recipe.batch == 4
    content["recipe"]["batch"] = 0
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"plan\.json is not valid \(batch must be"):
        read_plan(path)
