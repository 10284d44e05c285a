"""Progress as a bar in a terminal, or as a few plain lines in a log."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm

# A log gets a line in this many seconds, besides one at each new stage or failed case.
SECONDS_BETWEEN_LINES = 15.0


class ProgressBar:
    """Shows the stage of one job, and the fraction of it that is done."""

    def __init__(self, stream: TextIO, shown: bool = True) -> None:
        self._stream = stream
        self._shown = shown
        self._terminal = stream.isatty()
        self._bar: tqdm[Any] | None = None
        self._stage = ""
        self._last_line = 0.0

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, stage: str, fraction: float) -> None:
        """Show that ``fraction`` (0 to 1) of a stage is done."""
        if not self._shown:
            return
        if self._terminal:
            self._update_bar(stage, fraction)
        else:
            self._update_lines(stage, fraction)

    def _update_bar(self, stage: str, fraction: float) -> None:
        from tqdm import tqdm

        if self._bar is None or stage != self._stage:
            if self._bar is not None:
                self._bar.close()
            form = "{desc:<12}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
            self._bar = tqdm(total=1.0, desc=stage, file=self._stream, bar_format=form, leave=False)
            self._stage = stage
        self._bar.update(fraction - self._bar.n)

    def _update_lines(self, stage: str, fraction: float) -> None:
        now = time.monotonic()
        if stage == self._stage and now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        print(f"{stage} {fraction:.0%}" if stage == self._stage else stage, file=self._stream, flush=True)
        self._stage, self._last_line = stage, now


class CaseProgress:
    """Counts the cases of a batch, and shows how many there are, at what rate, and how long the rest will take.

    Parameters
    ----------
    total : int
        Number of cases.
    machine : bool
        Print each row as a JSON line on standard output.
    quiet : bool
        Show nothing but that and failed cases.
    stream : text stream, optional
        Gets what is for people; by default standard error.

    Attributes
    ----------
    counts : Counter
        Number of cases by status.
    """

    def __init__(self, total: int, machine: bool, quiet: bool, stream: TextIO | None = None) -> None:
        from tqdm import tqdm

        from segmamba.batch.outcome import DONE, FAILED, SKIPPED

        self._statuses, self._failed = (DONE, FAILED, SKIPPED), FAILED
        self.counts: Counter[str] = Counter()
        self._total = total
        self._machine = machine
        self._stream = stream or sys.stderr
        self._lines = not quiet and not self._stream.isatty()
        self._last_line = time.monotonic()
        hidden = quiet or self._lines
        self._bar = tqdm(total=total, unit="case", file=self._stream, disable=hidden, dynamic_ncols=True)

    def __enter__(self) -> CaseProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def add(self, row: dict[str, Any]) -> None:
        """Count and show a case by its row of the table."""
        self.counts[row["status"]] += 1
        if self._machine:
            print(json.dumps(row), flush=True)
        self._bar.set_postfix_str(self.summary(), refresh=False)
        self._bar.update()
        if row["status"] == self._failed:
            self._say(f"{row['case']}: {row['error']}")
        if self._lines and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._say(f"{sum(self.counts.values())}/{self._total}: {self.summary()}")

    def summary(self) -> str:
        """Return how many cases have which status."""
        return ", ".join(f"{self.counts[status]} {status}" for status in self._statuses)

    def _say(self, line: str) -> None:
        if self._bar.disable:
            print(line, file=self._stream, flush=True)
        else:
            self._bar.write(line, file=self._stream)
