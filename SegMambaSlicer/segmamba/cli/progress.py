"""Progress in a terminal, or as a few plain lines in a log."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm

# A log file gets a line at each new stage and then one in this many seconds.
SECONDS_BETWEEN_LINES = 15.0


class ProgressBar:
    """Shows stage and fraction on a stream: a bar on a terminal, else plain lines."""

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
