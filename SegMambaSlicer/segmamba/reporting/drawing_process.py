"""Previews drawn in processes of their own: matplotlib holds Python's lock nearly all the time that it draws.

``python -m segmamba.reporting.drawing_process`` draws what `DrawingProcess` sends it, until its input ends. Pictures
and answers are sent as their length in eight bytes and then that many: an .npz file of arrays and JSON, or a PNG.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import queue
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

from segmamba.models.decode import decode_label, encode_label
from segmamba.reporting.preview import Picture, draw
from segmamba.reporting.slice_planes import Plane, Section, View
from segmamba.utils.child import NO_WINDOW, take_input, take_output

logger = logging.getLogger(__name__)

# The folder that this package lies in.
PACKAGES = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "segmamba.reporting.drawing_process")
LENGTH = struct.Struct(">Q")
PNG = b"\x89PNG"
# A message is a few megabytes: a larger length is none.
LONGEST = 1 << 30


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
        except (OSError, EOFError, ValueError) as error:
            logger.warning("A preview was drawn by the engine, as the process for it failed: %s", error)
            self.end()
            return draw(picture)

    def _drawn(self, picture: Picture) -> bytes:
        if self._child is None:
            # Not a `Child`: it belongs to the engine's process group, which is ended as a whole. From another folder
            # Python might import a user's numpy.py.
            self._child = subprocess.Popen(
                COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PACKAGES, creationflags=NO_WINDOW
            )
        given, taken = self._child.stdin, self._child.stdout
        assert given is not None and taken is not None
        send(packed(picture), given)
        answer = received(taken)
        if not answer.startswith(PNG):
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


def serve(given: IO[bytes], taken: IO[bytes]) -> None:
    """Draw the pictures that come in, until no more come."""
    while True:
        try:
            message = received(given)
        except EOFError:
            return
        send(draw(unpacked(message)), taken)


def send(message: bytes, stream: IO[bytes]) -> None:
    """Write a message: its length, then itself."""
    stream.write(LENGTH.pack(len(message)))
    stream.write(message)
    stream.flush()


def received(stream: IO[bytes]) -> bytes:
    """Read a message; EOFError where it, or all of it, does not come, ValueError where something else does."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        raise EOFError("the other side has ended")
    (length,) = LENGTH.unpack(head)
    if length > LONGEST:
        raise ValueError("what came is no message")
    message = stream.read(length)
    if len(message) < length:
        raise EOFError("the other side has ended in a message")
    return message


def packed(picture: Picture) -> bytes:
    """Return a picture as an .npz file: its arrays, and all else as JSON."""
    arrays: dict[str, np.ndarray] = {}
    planes: list[dict[str, Any]] = []
    for plane in picture.planes:
        parts = {"plane": plane} | {f"section {value}": found for value, found in plane.sections.items()}
        parts |= {f"reference {value}": found for value, found in plane.references.items()}
        for part, owner in parts.items():
            for name, array in vars(owner).items():
                if isinstance(array, np.ndarray):
                    arrays[f"{len(planes)} {part} {name}"] = array
        values = {"sections": list(plane.sections), "references": list(plane.references)}
        planes.append({"view": asdict(plane.view), "position": plane.position, **values})
    structures = [encode_label(label) for label in picture.structures]
    plain = {name: getattr(picture, name) for name in ("window", "title", "subtitle", "empty", "certain")}
    stream = io.BytesIO()
    text = json.dumps({"planes": planes, "structures": structures, **plain}, default=lambda number: number.item())
    np.savez(stream, text=text, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def unpacked(message: bytes) -> Picture:
    """Return the picture that `packed` has packed."""
    with np.load(io.BytesIO(message)) as arrays:
        text = json.loads(str(arrays["text"]))
        planes = [_plane(number, entry, arrays) for number, entry in enumerate(text.pop("planes"))]
    structures = tuple(decode_label(entry) for entry in text.pop("structures"))
    return Picture(planes, tuple(text.pop("window")), structures, **text)


def _plane(number: int, entry: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Plane:
    def sections(kind: str) -> dict[int, Section]:
        names = ("mask", "right", "down")
        found = {value: [arrays[f"{number} {kind} {value} {name}"] for name in names] for value in entry[f"{kind}s"]}
        return {value: Section(*given) for value, given in found.items()}

    right, down, image = (arrays[f"{number} plane {name}"] for name in ("right", "down", "image"))
    view, position = View(**entry["view"]), entry["position"]
    return Plane(view, position, right, down, image, sections("section"), sections("reference"))


if __name__ == "__main__":
    answers = take_output()
    serve(take_input(), answers)
