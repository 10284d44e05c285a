"""Signals call what is connected, in order."""

from __future__ import annotations

import pytest

from SegMambaSlicerLib.signal import Signal


@pytest.fixture
def heard():
    return []


def test_slots_get_the_values_in_the_order_in_which_they_were_connected(heard):
    signal = Signal()
    signal.connect(lambda *values: heard.append(("first", *values)))
    signal.connect(lambda *values: heard.append(("second", *values)))
    signal.connect(None)
    signal.emit("L1", 0.5)
    assert heard == [("first", "L1", 0.5), ("second", "L1", 0.5)]


def test_a_slot_that_is_disconnected_hears_no_more_even_from_within(heard):
    signal = Signal()

    def once():
        heard.append("once")
        signal.disconnect(once)

    signal.connect(once)
    signal.connect(lambda: heard.append("always"))
    signal.emit()
    signal.emit()
    assert heard == ["once", "always", "always"]
    with pytest.raises(ValueError):
        signal.disconnect(once)


def test_an_error_in_a_slot_is_raised_where_the_signal_is_emitted():
    signal = Signal()
    signal.connect(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        signal.emit()
