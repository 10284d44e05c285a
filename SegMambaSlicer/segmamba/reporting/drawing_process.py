"""Previews drawn in processes of their own: matplotlib holds Python's lock nearly all the time that it draws.

``python -m segmamba.reporting.drawing_process`` draws what `DrawingProcess` sends it, until its input ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import queue
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

from segmamba.reporting.preview import Picture, draw
from segmamba.utils.child import NO_WINDOW, take_input

logger = logging.getLogger(__name__)

# The folder that this package lies in.
PACKAGES = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "segmamba.reporting.drawing_process")


class DrawingProcesses:
    """Some drawing processes, each of which starts when all others are drawing; any thread may draw."""

    def __init__(self, most: int) -> None:
        self._idle: queue.LifoQueue[DrawingProcess] = queue.LifoQueue()
        for _ in range(most):
            self._idle.put(DrawingProcess())

    def draw(self, picture: Picture) -> bytes:
        """Draw a preview as a PNG."""
        process = self._idle.get()
        try:
            return process.draw(picture)
        finally:
            self._idle.put(process)


class DrawingProcess:
    """Draws pictures in a child process, which starts with the first one and ends with this process.

    One that fails is replaced with the next picture. One thread at a time may draw.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def draw(self, picture: Picture) -> bytes:
        """Draw a preview as a PNG; here, where the child process does not."""
        try:
            return self._drawn(picture)
        except (OSError, EOFError, ValueError, pickle.PickleError) as error:
            logger.warning("A preview was drawn by the engine, as the process for it failed: %s", error)
            self.end()
            return draw(picture)

    def _drawn(self, picture: Picture) -> bytes:
        if self._child is None:
            # From another folder Python might import a user's numpy.py.
            self._child = subprocess.Popen(
                COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PACKAGES, creationflags=NO_WINDOW
            )
        given, taken = self._child.stdin, self._child.stdout
        assert given is not None and taken is not None
        pickle.dump(picture, given, pickle.HIGHEST_PROTOCOL)
        given.flush()
        # It is from our own child, as what that reads is from us.
        answer = pickle.load(taken)  # nosec B301
        if not isinstance(answer, bytes):
            raise ValueError("it did not answer with a picture")
        return answer

    def end(self) -> None:
        """End the child process, if there is one."""
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            # What was not sent is not sent any more.
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]


def serve(given: BinaryIO, taken: BinaryIO) -> None:
    """Draw the pictures that come in, until no more come."""
    while True:
        try:
            picture = pickle.load(given)  # nosec B301
        except EOFError:
            return
        pickle.dump(draw(picture), taken)
        taken.flush()


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(take_input(), answers)
