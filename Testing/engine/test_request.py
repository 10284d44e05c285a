"""The one declaration of the options: what follows from it, and what is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.option_values import sample_value

from segmamba import scan
from segmamba.errors import DeviceError, InputError, ModelError, SegMambaError
from segmamba.inference.device import PRECISIONS
from segmamba.option_types import Number, convert_options, declared, option
from segmamba.request import FILES, SETTINGS, Options, Request


@pytest.mark.parametrize("name", [*FILES, *SETTINGS])
def test_each_option_survives_json(name: str) -> None:
    given = Request.of(**{name: sample_value(name)})
    assert given != Request.of()
    content = json.loads(json.dumps(given.to_dict()))
    absolute = Request.from_dict(content)
    path = given.options.levels_from
    assert absolute.options == replace(given.options, levels_from=path and str(Path(path).absolute()))
    assert Request.from_dict(absolute.to_dict()) == absolute


def test_paths_for_json_are_absolute_and_none_stays_none() -> None:
    content = Request.of("a.nii", report=Path("b.json")).to_dict()
    assert content["input"] == str(Path("a.nii").absolute()) and content["report"] == str(Path("b.json").absolute())
    assert content["output"] == "" and content["preview"] is None


def test_one_field_is_all_that_an_option_needs() -> None:
    @dataclass(frozen=True)
    class More(Options):
        margin: float | None = option(Number(0, 50), "around the region", None, metavar="MM", title="margin in mm")

        def __post_init__(self) -> None:
            convert_options(self)

    assert More(margin=3).margin == 3.0 and "margin" in declared(More) and "seed" in declared(More)
    with pytest.raises(InputError, match=r"^The margin in mm is 51: give a number from 0 to 50\.$"):
        More(margin=51)
    with pytest.raises(DeviceError):
        More(device="tpu")


@pytest.mark.parametrize(
    ("values", "kind", "sentence"),
    [
        ({"overlap": 1.5}, InputError, "The overlap is 1.5: give a number from 0 to 0.9."),
        ({"overlap": float("nan")}, InputError, "The overlap is nan: give a number from 0 to 0.9."),
        ({"overlap": True}, InputError, "The overlap is True: give a number from 0 to 0.9."),
        (
            {"density_calibration": "0.8"},
            InputError,
            "The density calibration is '0.8': give a slope from 0.2 to 3 and",
        ),
        ({"density_calibration": "12,0"}, InputError, "and an intercept, such as 0.8,-5."),
        ({"density_calibration": (0.8, float("inf"))}, InputError, "give a slope from 0.2 to 3 and an intercept"),
        ({"seed": -1}, InputError, "The seed is -1: give a whole number from 0 to 2^63 - 1."),
        ({"seed": 1.5}, InputError, "The seed is 1.5: give a whole number from 0 to 2^63 - 1."),
        ({"tta": "yes"}, InputError, "The tta is 'yes': give True or False."),
        ({"structures": 5}, InputError, "The list of structures is 5: give names, separated by commas."),
        ({"roi": [[0, 0], [1, 1]]}, InputError, "give two corners that differ along all axes."),
        ({"roi": ((0, 0, 0), (1, 0, 1))}, InputError, "The region of interest is ((0, 0, 0), (1, 0, 1)): give two"),
        ({"device": "tpu"}, DeviceError, "There is no device 'tpu': choose auto, cpu, cuda, cuda:N or mps."),
        ({"device": "cuda:x"}, DeviceError, "There is no device 'cuda:x': choose auto, cpu, cuda, cuda:N or mps."),
        ({"device": None}, DeviceError, "There is no device None: choose auto, cpu, cuda, cuda:N or mps."),
        ({"precision": "int8"}, DeviceError, "choose auto, float32, float16 or bfloat16."),
        ({"scan_backend": "x"}, ModelError, "There is no scan backend 'x': choose auto, torch, triton or mamba_ssm."),
        ({"anchor": "L7=1,2,3"}, InputError, "The anchor is 'L7=1,2,3': give a level and a point in patient coordi"),
        ({"anchor": "L5=1,2"}, InputError, "The anchor is 'L5=1,2': give a level and a point in patient coordinates"),
        ({"anchor": ["L5=1,2,3", "l5=4,5,6"]}, InputError, "such as L5=12.5,-30,870; each level once."),
        ({"anchor": [("L5", 1, 2, float("nan"))]}, InputError, "give a level and a point in patient coordinates"),
        ({"levels_from": 3}, InputError, "The segmentation with levels is 3: give a path."),
        ({"task": 3}, InputError, "The task is 3: give a name."),
        ({"checkpoint": 3}, InputError, "The checkpoint is 3: give a path."),
        ({"report": b"r.json"}, InputError, "The report is b'r.json': give a path."),
        ({"channels": ["t1c"]}, InputError, "The channels is ['t1c']: give one file for each name, as NAME=FILE."),
        ({"channels": ["a=b", "a=c"]}, InputError, "give one file for each name, as NAME=FILE."),
        ({"channels": {"a": 3}}, InputError, "give one file for each name, as NAME=FILE."),
        ({"overwrite": 1}, InputError, "The overwrite is 1: give True or False."),
    ],
)
def test_a_wrong_value_is_one_sentence(values: dict[str, Any], kind: type[SegMambaError], sentence: str) -> None:
    with pytest.raises(SegMambaError) as caught:
        Request.of(**values)
    assert type(caught.value) is kind and sentence in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([], "The request holds [] where fields belong: give a JSON object."),
        ({"input": "a", "output": "b", "options": 1}, "The request holds 1 where fields belong: give a JSON object."),
        ({"input": "a", "outputs": "b"}, "The request has the unknown field 'outputs': choose from input, output"),
        ({"input": "a", "output": "b", "options": {"keep": 1}}, "unknown field 'keep': choose from structures, roi"),
        ({"input": "a"}, "The request has no 'output': it has the fields input, output"),
    ],
)
def test_a_request_that_is_not_one_says_which_fields_there_are(content: Any, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        Request.from_dict(content)
    assert sentence in str(caught.value)


def test_structures_are_given_as_text_or_as_a_list_and_none_means_all() -> None:
    for given in ("L1 vertebra, 21", ["L1 vertebra", 21], ("L1 vertebra,21",)):
        assert Options(structures=given).structures == ("L1 vertebra", "21")  # type: ignore[arg-type]
    for nothing in (None, "", [], " , "):
        assert Options(structures=nothing).structures is None  # type: ignore[arg-type]


def test_anchors_are_given_as_text_or_as_values_and_none_of_them_is_none() -> None:
    for given in ("l5 = 12.5,-30,870", ["L5=12.5,-30,870"], [("L5", 12.5, -30, 870)], [["L5", "12.5", "-30", "870"]]):
        assert Options(anchor=given).anchor == (("L5", 12.5, -30.0, 870.0),)  # type: ignore[arg-type]
    assert Options(anchor=[]).anchor is None  # type: ignore[arg-type]


def test_values_of_numpy_are_converted() -> None:
    roi = np.array([[0, 1, 2], [3, 4, 5]], np.float32)
    options = Options(seed=np.int64(3), overlap=np.float32(0.25), roi=roi)  # type: ignore[arg-type]
    assert json.loads(json.dumps(Request.of(seed=options.seed, roi=options.roi).to_dict()))["options"]["seed"] == 3
    assert (options.seed, options.overlap, options.roi) == (3, 0.25, ((0.0, 1.0, 2.0), (3.0, 4.0, 5.0)))


def test_choices_are_those_of_the_engine() -> None:
    known = declared(Options)
    assert known["precision"][1].kind.names == ("auto", *PRECISIONS)  # type: ignore[attr-defined]
    assert set(known["scan_backend"][1].kind.names) == {"auto", *scan.BACKENDS}  # type: ignore[attr-defined]
