"""What a run shows while it goes on: a line that lives in a terminal, lines in a log, JSON lines for machines."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from typing import Any, TextIO

from tqdm import tqdm

from segmamba.batch.outcome import DONE, FAILED, LEFT_OUT

Row = dict[str, Any]

# A log gets a line in this many seconds, besides one for each case that failed.
SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Counts rows, and shows how many there are, at what rate, and how long the rest will take.

    Parameters
    ----------
    total : int
        Number of cases.
    machine : bool
        Print each row as a JSON line on standard output.
    quiet : bool
        Show nothing but that.
    stream : text stream
        Gets what is for people.
    """

    def __init__(self, total: int, machine: bool, quiet: bool, stream: TextIO = sys.stderr) -> None:
        self.counts: Counter[str] = Counter()
        self._total = total
        self._machine = machine
        self._stream = stream
        self._lines = not quiet and not stream.isatty()
        self._last_line = time.monotonic()
        self._bar = tqdm(total=total, unit="case", file=stream, disable=quiet or self._lines, dynamic_ncols=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def add(self, row: Row) -> None:
        """Count and show a row."""
        self.counts[row["status"]] += 1
        if self._machine:
            print(json.dumps(row), flush=True)
        self._bar.set_postfix_str(self.summary(), refresh=False)
        self._bar.update()
        if row["status"] == FAILED:
            self._say(f"{row['case']}: {row['error']}")
        if self._lines and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._say(f"{sum(self.counts.values())}/{self._total}: {self.summary()}")

    def summary(self) -> str:
        """Return how many cases have come to what end."""
        return ", ".join(f"{self.counts[status]} {status}" for status in (DONE, FAILED, LEFT_OUT))

    def _say(self, line: str) -> None:
        if self._lines:
            print(line, file=self._stream, flush=True)
        elif not self._bar.disable:
            self._bar.write(line, file=self._stream)
