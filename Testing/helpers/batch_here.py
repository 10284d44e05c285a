"""The command line with an engine that needs no process of its own; TEST_ENGINE names one of `helpers.quick_engine`.

``python -m helpers.batch_here batch ...``, in a process that was forked from one that has imported torch.
"""

from __future__ import annotations

import os
import sys

from helpers import quick_engine
from segmamba.batch import engine
from segmamba.cli.main import main

if __name__ == "__main__":
    engine.Engine = getattr(quick_engine, os.environ.get("TEST_ENGINE", "EngineHere"))  # type: ignore[misc]
    sys.exit(main())
