"""Faults at random moments of what is built around a worker, and what is left of each.

A `Scene` is one such thing (a server, a training, a comparison ...) with the faults that may happen to it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import multiprocessing
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from helpers.random_faults import Tally, in_random_order
from segmamba.errors import SegMambaError

# Imported once by the process that others are forked from.
IMPORTED = ["helpers.struck_files", "segmamba.cli.main", "segmamba.inference.pipeline", "segmamba.training.loop"]
# Seconds that a process may take that nobody kills.
LIMIT = 300.0


class Struck(Exception):
    """A process was killed as it was meant to be."""


class Said(SegMambaError):
    """What a command said, a sentence a line, before it ended with another status than 0."""


class Scene(Protocol):
    """What faults happen to."""

    kinds: Sequence[str]

    def strike(self, kind: str) -> None:
        """Do a job to which a fault of a kind happens; SegMambaError or `Struck` where it ends so."""

    def again(self) -> None:
        """Do the same job in peace, where the fault left things."""

    def wrong(self, complete: bool) -> list[str]:
        """Return what should not be: parts of results, other results and, if it is complete, missing ones."""


def fault(scene: Scene, kind: str, tally: Tally) -> None:
    """Let a fault happen, look at what is left, do the job in peace, and look again."""
    tally.faults[kind] += 1
    try:
        scene.strike(kind)
        tally.ends["done"] += 1
    except Struck:
        tally.ends["killed"] += 1
    except SegMambaError as error:
        tally.ends[type(error).__name__] += 1
        said = str(error).splitlines() if isinstance(error, Said) else [str(error)]
        if type(error) is SegMambaError or not said or not all(map(is_sentence, said)):
            tally.unclear_errors.append(f"{kind}: {error!r}")
    except Exception as error:
        tally.ends["another error"] += 1
        tally.unclear_errors.append(f"{kind}: {error!r}")
    tally.half_written += [f"{kind}: {each}" for each in scene.wrong(complete=False)]
    try:
        scene.again()
    except Exception as error:
        tally.next_runs_failed.append(f"after {kind}: {error!r}")
    else:
        tally.half_written += [f"after {kind}: {each}" for each in scene.wrong(complete=True)]


def is_sentence(said: str) -> bool:
    """Say whether an error says in one line what is wrong, and does so for something that was foreseen."""
    return said.endswith(".") and "\n" not in said and "unexpected error" not in said


def inject(
    scenes: Sequence[Scene], count: int, seed: int, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Let faults happen, each kind as often as the others, in a random order, and return the tally."""
    kinds = [(scene, kind) for scene in scenes for kind in scene.kinds]
    tally = Tally()
    for number, (scene, kind) in enumerate(in_random_order(kinds, count, seed), start=1):
        fault(scene, kind, tally)
        if number % 25 == 0:
            say(f"{number} of {count}: {tally}")
    return {**vars(tally), "sound": tally.sound()}


@contextlib.contextmanager
def full_disk(after: int) -> Iterator[None]:
    """Let the system refuse to put files in place, as a full disk does, after so many of them."""
    replace, count = os.replace, itertools.count()

    def refuse(*arguments: Any, **more: Any) -> None:
        if next(count) >= after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(*arguments, **more)

    os.replace = refuse  # type: ignore[assignment]
    try:
        yield
    finally:
        os.replace = replace


@contextlib.contextmanager
def later(seconds: float, function: Callable[[], Any]) -> Iterator[None]:
    """Call a function in so many seconds, while the block runs, or at its end."""
    timer = threading.Timer(seconds, function)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def killed(seconds: float, function: Callable[..., None], *arguments: Any) -> None:
    """Call a function in a process that is killed after so many seconds; `Struck` if it was not over by then."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    process = context.Process(target=_call, args=(function, *arguments), daemon=True)
    process.start()
    process.join(seconds)
    late = process.is_alive()
    process.kill()
    process.join()
    if late:
        raise Struck
    assert process.exitcode == 0, process.exitcode


def _call(function: Callable[..., None], *arguments: Any) -> None:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        function(*arguments)


def remove(folder: Path) -> Callable[[], None]:
    """Return a function that removes a folder, while others may write into it."""
    return lambda: shutil.rmtree(folder, ignore_errors=True)


def cut(path: Path, draw: random.Random) -> None:
    """Cut a file at a random place."""
    os.truncate(path, draw.randrange(path.stat().st_size))
