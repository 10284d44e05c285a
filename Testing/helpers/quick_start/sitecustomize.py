"""What Python runs at its start where this folder is on its path: batches get an engine that takes no time."""

from __future__ import annotations

from helpers.quick_engine import QuickEngine

from segmamba.batch import engine

engine.Engine = QuickEngine  # type: ignore[misc]
