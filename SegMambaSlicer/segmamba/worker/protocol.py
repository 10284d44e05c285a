"""What the worker and its parent say to each other: one JSON object a line.

To the worker: ``{"type": "job", "id", "request"}``, ``{"type": "cancel", "id"}``, ``{"type": "quit"}``.
From the worker: ``{"type": "ready", "protocol", "version", "pid"}``, then for a job any number of
``{"type": "progress", "id", "stage", "fraction"}`` and at its end either ``{"type": "result", "id", "report"}`` or
``{"type": "error", "id", "error", "message"}``, where ``error`` names a class of `segmamba.errors`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

PROTOCOL_VERSION = 1
# Argument of the worker: have what segmenting needs imported before "ready".
PRELOAD = "--preload"


def encode(message: Mapping[str, Any]) -> bytes:
    """Return a message as one line."""
    # Escaping all but ASCII keeps the line whole in any system's encoding.
    return json.dumps(message, ensure_ascii=True).encode("ascii") + b"\n"


def decode(line: bytes) -> dict[str, Any] | None:
    """Return the message of a line, or None if the line is not one."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) and isinstance(message.get("type"), str) else None
