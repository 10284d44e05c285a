"""A worker whose jobs go through the stages of `segment_file` and do what their input's name says.

``python -m helpers.staged_worker``
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segmamba.errors import Cancelled
from segmamba.request import Request
from segmamba.worker import server

STAGES = ("read", "load", "predict", "postprocess", "write")


def segment(request: Request, progress: Callable[[str, float], None], cancelled: Callable[[], bool]) -> dict[str, Any]:
    """Leave a file for each stage; "A@STAGE:B@STAGE" waits in one of its own until another job has begun one."""
    name = Path(request.input).name
    own, _, rest = name.partition(":")
    own, _, where = own.partition("@")
    folder = Path(request.output).parent
    for stage in STAGES:
        progress(stage, 0.0)
        (folder / f"{own}@{stage}").touch()
        while stage == where and not (folder / rest).exists():
            if cancelled():
                raise Cancelled()
            time.sleep(0.005)
        if own == "crash" and stage == where:
            os._exit(9)
    return {"own": own}


if __name__ == "__main__":
    server.main(segment)
