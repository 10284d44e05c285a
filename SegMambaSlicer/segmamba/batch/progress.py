"""What a run needs of whoever shows its progress: the command line's is `segmamba.cli.progress.CaseProgress`."""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager
from typing import Any, Protocol

Row = dict[str, Any]


class Progress(AbstractContextManager["Progress"], Protocol):
    """Shows rows until it is left.

    Attributes
    ----------
    counts : Counter
        Number of cases by status.
    """

    counts: Counter[str]

    def add(self, row: Row) -> None:
        """Count and show a case by its row of the table."""
        ...

    def summary(self) -> str:
        """Return how many cases have which status."""
        ...
