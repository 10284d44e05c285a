"""Options of the command line follow from the declaration of the request, in both directions."""

from __future__ import annotations

import pytest
from helpers.option_values import sample_value
from hypothesis import given
from hypothesis import strategies as st

from segmamba.cli.main import make_parser
from segmamba.cli.options import read_request, to_arguments
from segmamba.request import FILES, SETTINGS, Request

NUMBERS = st.floats(-1e5, 1e5)
BOXES = st.tuples(st.tuples(NUMBERS, NUMBERS, NUMBERS), st.tuples(NUMBERS, NUMBERS, NUMBERS)).filter(
    lambda box: all(low < high for low, high in zip(*box, strict=True))
)


def parsed(request: Request, command: tuple[str, ...] = ("batch", "in", "out")) -> Request:
    return read_request(make_parser().parse_args([*command, *to_arguments(request)]), input="", output="")


@pytest.mark.parametrize("name", SETTINGS)
def test_each_option_is_one_of_segment_and_of_batch(name: str) -> None:
    request = Request.of(**{name: sample_value(name)})
    for command in (("segment", "in", "--output", "out"), ("batch", "in", "out")):
        assert parsed(request, command) == request != Request.of()


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("input", "output", "channels")])
def test_each_file_is_an_option_of_segment(name: str) -> None:
    words = ["segment", "in", "--output", "out", f"--{name}", "file"]
    assert read_request(make_parser().parse_args(words)) == Request.of("in", "out", **{name: "file"})


def test_channels_are_given_one_by_one() -> None:
    words = ["segment", "in", "--output", "out", "--channel", "t1c=a=b.nii", "--channel", "T2w=c.nii"]
    given = read_request(make_parser().parse_args(words))
    assert given == Request.of("in", "out", channels={"t1c": "a=b.nii", "T2w": "c.nii"})


def test_all_options_at_once_come_back() -> None:
    request = Request.of(**{name: sample_value(name) for name in SETTINGS})
    assert parsed(request) == request
    assert to_arguments(Request.of()) == []


@given(roi=BOXES, overlap=st.floats(0, 0.9), seed=st.integers(0, 2**63 - 1))
def test_numbers_come_back_to_the_last_bit(roi: object, overlap: float, seed: int) -> None:
    request = Request.of(roi=roi, overlap=overlap, seed=seed)
    assert parsed(request) == request


def test_an_anchor_may_be_given_more_than_once() -> None:
    words = ["segment", "in", "--output", "out", "--anchor", "L5=1,-2,3", "--anchor", "T12=-4,5,6.5"]
    anchors = (("L5", 1.0, -2.0, 3.0), ("T12", -4.0, 5.0, 6.5))
    assert read_request(make_parser().parse_args(words)).options.anchor == anchors


def test_a_corner_is_given_in_ras_and_any_two_opposite_ones_will_do() -> None:
    words = ["batch", "in", "out", "--roi", "1", "2", "3", "-4", "5", "-6.5"]
    roi = ((-1.0, -5.0, -6.5), (4.0, -2.0, 3.0))
    assert read_request(make_parser().parse_args(words), output="").options.roi == roi
