"""Bytes that are damaged at random, and how what reads them ended: by its return, or in one typed sentence, soon."""

from __future__ import annotations

import hashlib
import random
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from segmamba.errors import SegMambaError
from segmamba.remote.client import Interrupted

# Seconds that any of these may take.
SOON = 60.0


@dataclass
class Tally:
    """How the inputs ended, by kind, and what must not be."""

    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def call(self, kind: str, given: bytes, function: Callable[[], Any]) -> None:
        """Call a function with an input in it and note how it ended: by its return, or by a typed sentence."""
        started = time.monotonic()
        try:
            answer = function()
            end = "silence" if isinstance(answer, bytes) and not answer else "taken"
        except (SegMambaError, Interrupted) as error:
            end = type(error).__name__
            if isinstance(error, SegMambaError) and (
                type(error) is SegMambaError or not str(error).endswith(".") or "\n" in str(error)
            ):
                self.wrong.append(f"{kind}: no sentence: {error!r}: {digest(given)}")
        except Exception as error:
            end = "wrong"
            self.wrong.append(f"{kind}: {error!r}: {digest(given)}")
        self.ends[f"{kind}: {end}"] += 1
        if time.monotonic() - started > SOON:
            self.wrong.append(f"{kind}: it took {time.monotonic() - started:.0f} s: {digest(given)}")


def digest(content: bytes) -> str:
    """Return the beginning of an input and what tells it from others."""
    return f"{content[:60]!r}, {len(content)} bytes, {hashlib.sha256(content).hexdigest()[:8]}"


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Return bytes with some of them changed, lost, doubled or cut; or others altogether."""
    changed = bytearray(content)
    kind = draw.randrange(7)
    if kind == 0 or not changed:
        return draw.randbytes(draw.choice((0, 1, 7, 400, 5000)))
    # Headers are where it hurts.
    end = min(len(changed), draw.choice((64, 512, len(changed))))
    place = draw.randrange(end)
    if kind == 1:
        del changed[place:]
    elif kind == 2:
        del changed[place : place + draw.randrange(1, 40)]
    elif kind == 3:
        changed[place:place] = changed[place : place + draw.randrange(1, 40)]
    elif kind == 4:
        changed[place : place + 8] = draw.choice((b"\xff" * 8, bytes(8), b"\x7f" + b"\xff" * 7, b"-1\n", b"1e999"))
    else:
        for _number in range(draw.choice((1, 3, 20))):
            changed[draw.randrange(end)] = draw.randrange(256)
    return bytes(changed)


def quietly(function: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    """Call a function without the warnings of libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments, **more)
