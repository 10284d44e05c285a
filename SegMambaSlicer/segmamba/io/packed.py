"""Gzip files: unpacked by the fastest library there is, packed on all processors."""

from __future__ import annotations

import gzip
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import BinaryIO

from segmamba.utils.parallel import processors

try:
    # Half of zlib's time, with the same answers. Nothing depends on it.
    from isal import igzip as library
    from isal.isal_zlib import error as damaged
except ImportError:
    library, damaged = gzip, zlib.error

# What reading a truncated or damaged file may raise.
DAMAGED: tuple[type[Exception], ...] = (EOFError, OSError, zlib.error, damaged)
LEVEL = 6
# So many bytes are packed at a time: large enough that what each part cannot know of the last one costs nothing. It
# does not depend on the processors, so that the same content makes the same bytes everywhere.
PART = 1 << 20
# A gzip header without a name and a time; 255 stands for an unknown system.
HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
RAW = -zlib.MAX_WBITS


def opened(path: Path) -> BufferedIOBase:
    """Return a stream of the unpacked content of a gzip file; see `DAMAGED` for what reading it may raise."""
    stream: BufferedIOBase = library.open(path, "rb")
    return stream


class Packing:
    """Packs what is written to it into a file; `packing` makes one."""

    def __init__(self, file: BinaryIO, pool: ThreadPoolExecutor) -> None:
        self._file, self._pool = file, pool
        self._pending = bytearray()
        self._begun: deque[Future[bytes]] = deque()
        self._sum, self._size = zlib.crc32(b""), 0
        file.write(HEADER)

    def write(self, content: bytes | memoryview) -> None:
        """Pack some more."""
        view = memoryview(content).cast("B")
        self._sum, self._size = zlib.crc32(view, self._sum), self._size + len(view)
        self._pending += view
        while len(self._pending) > PART:
            self._pack(bytes(self._pending[:PART]), zlib.Z_FULL_FLUSH)
            del self._pending[:PART]

    def finish(self) -> None:
        """Pack what is left, and end the file."""
        self._pack(bytes(self._pending), zlib.Z_FINISH)
        while self._begun:
            self._file.write(self._begun.popleft().result())
        self._file.write(self._sum.to_bytes(4, "little") + (self._size % 2**32).to_bytes(4, "little"))

    def _pack(self, content: bytes, end: int) -> None:
        self._begun.append(self._pool.submit(_deflated, content, end))
        # What waits to be written is bounded, whatever the size of the file.
        while len(self._begun) > 2 * processors():
            self._file.write(self._begun.popleft().result())


@contextmanager
def packing(file: BinaryIO) -> Iterator[Packing]:
    """Give what packs what is written to it into a file, as one member of gzip.

    Its parts are independent blocks of deflate, one after the other, so that threads can make them.
    """
    with ThreadPoolExecutor(processors()) as pool:
        stream = Packing(file, pool)
        yield stream
        stream.finish()


def _deflated(content: bytes, end: int) -> bytes:
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, RAW)
    return packer.compress(content) + packer.flush(end)
