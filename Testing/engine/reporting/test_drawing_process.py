"""Previews drawn in another process: the same ones, whatever becomes of that process."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from helpers.phantoms import STRAIGHT, phantom, spine_model, true_labels
from matplotlib.image import imread

from segmamba.reporting import drawing_process, preview, slice_planes
from segmamba.reporting.drawing_process import (
    LENGTH,
    DrawingProcess,
    DrawingProcesses,
    packed,
    received,
    send,
    serve,
    unpacked,
)
from segmamba.reporting.overlay import DRAWING
from segmamba.reporting.preview import Picture, compose, draw
from segmamba.worker import server


@pytest.fixture(scope="module")
def picture() -> Iterator[Picture]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slice_planes, "LONGEST_SIDE", 60)
        yield compose(phantom(), true_labels(STRAIGHT), spine_model(), "case")


@pytest.fixture(scope="module")
def here(picture: Picture) -> bytes:
    return draw(picture)


def pixels(picture: bytes) -> np.ndarray:
    return np.asarray(imread(io.BytesIO(picture), format="png"))


def test_one_process_draws_all_pictures_a_killed_one_loses_none_and_it_ends_with_its_input(
    picture: Picture, here: bytes
) -> None:
    process = DrawingProcess()
    try:
        assert (pixels(process.draw(picture)) == pixels(here)).all()
        first = process._child
        assert first is not None
        process.draw(picture)
        assert process._child is first
        first.kill()
        first.wait()
        assert (pixels(process.draw(picture)) == pixels(here)).all()
        assert process._child is None
        assert (pixels(process.draw(picture)) == pixels(here)).all()
        second = process._child
        assert second is not None and second is not first
        assert second.stdin is not None
        second.stdin.close()
        assert second.wait(30) == 0
    finally:
        process.end()


@pytest.mark.parametrize(
    "code",
    [
        "raise SystemExit(3)",
        "print('no picture')",
        f"import os; os.write(1, {LENGTH.pack(10)!r} + b'no picture')",
        f"import os; os.write(1, {LENGTH.pack(10)!r} + b'cut')",
    ],
)
def test_a_process_that_does_not_draw_costs_no_picture(
    code: str, picture: Picture, here: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing_process, "COMMAND", (drawing_process.COMMAND[0], "-S", "-c", code))
    process = DrawingProcess()
    assert (pixels(process.draw(picture)) == pixels(here)).all()
    assert process._child is None


def test_as_many_processes_draw_at_a_time_as_may_and_no_more_start_than_are_needed(
    picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[DrawingProcess] = []
    both = threading.Barrier(2)

    def drawn(process: DrawingProcess, given: Picture) -> bytes:
        used.append(process)
        if len(used) > 3:
            both.wait(30)
        return b""

    monkeypatch.setattr(DrawingProcess, "draw", drawn)
    processes = DrawingProcesses(2)
    for _ in range(3):
        processes.draw(picture)
    assert len(set(used)) == 1
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(processes.draw, [picture] * 2))
    assert len(set(used[3:])) == 2


def test_matplotlib_draws_in_one_thread_at_a_time(picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    alone: list[bool] = []

    def drawn(given: Picture) -> bytes:
        alone.append(DRAWING._is_owned())
        return b""

    monkeypatch.setattr(preview, "_drawn", drawn)
    draw(picture)
    assert alone == [True]


def test_it_draws_until_no_more_comes(picture: Picture, here: bytes) -> None:
    given, answers = io.BytesIO(), io.BytesIO()
    for _ in range(2):
        send(packed(picture), given)
    given.seek(0)
    serve(given, answers)
    answers.seek(0)
    assert [(pixels(received(answers)) == pixels(here)).all() for _ in range(2)] == [True, True]


def test_a_picture_with_a_reference_is_the_same_when_it_is_unpacked(picture: Picture) -> None:
    known = [replace(plane, references=plane.sections) for plane in picture.planes]
    given = replace(picture, planes=known, certain=False)
    taken = unpacked(packed(given))
    for name in ("window", "structures", "title", "subtitle", "empty", "certain"):
        assert getattr(taken, name) == getattr(given, name)
    for ours, theirs in zip(taken.planes, known, strict=True):
        assert (ours.view, ours.position) == (theirs.view, theirs.position)
        assert theirs.sections and list(ours.sections) == list(theirs.sections) == list(ours.references)
        pairs = [(ours, theirs), *((ours.references[n], section) for n, section in theirs.sections.items())]
        for one, other in pairs:
            for name, array in vars(other).items():
                if isinstance(array, np.ndarray):
                    assert np.array_equal(vars(one)[name], array)


def test_an_engine_of_a_batch_has_one_where_there_is_a_processor_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for processors, preload, own in ((16, True, True), (16, False, False), (2, True, False)):
        monkeypatch.setattr(server, "processors", lambda count=processors: count)
        assert (server.drawing(preload) is draw) is not own
