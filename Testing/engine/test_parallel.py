"""Calls on all processors."""

from __future__ import annotations

import threading

import pytest

from segmamba.errors import Cancelled
from segmamba.parallel import at_once


def test_results_come_in_the_order_of_the_items() -> None:
    assert list(at_once(lambda item: item**2, [3, 1, 2]).items()) == [(3, 9), (1, 1), (2, 4)]


def test_what_a_call_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        at_once(lambda item: 1 / item, [1, 0, 2])


def test_a_check_that_raises_ends_what_has_not_begun() -> None:
    begun, go_on = [], threading.Event()

    def call(item: int) -> None:
        begun.append(item)
        go_on.wait(5)

    def check() -> None:
        go_on.set()
        raise Cancelled()

    with pytest.raises(Cancelled):
        at_once(call, range(10_000), check)
    assert len(begun) < 10_000
