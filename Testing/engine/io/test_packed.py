"""Gzip files are those of the standard library, whoever unpacks or packs them."""

from __future__ import annotations

import gzip
import importlib
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from segmamba.errors import InputError
from segmamba.io import nifti, packed
from segmamba.io.volume import Geometry


@pytest.fixture(params=["isal", "zlib"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module as it is with isal installed, and without."""
    if request.param == "isal":
        pytest.importorskip("isal")
    else:
        monkeypatch.setitem(sys.modules, "isal", None)
    yield importlib.reload(packed)
    monkeypatch.undo()
    importlib.reload(packed)


def content(size: int) -> bytes:
    values = np.random.default_rng(0).integers(0, 26, size // 2, dtype=np.uint8).tobytes()
    return values + bytes(size - len(values))


def pack(path: Path, parts: list[bytes]) -> bytes:
    with path.open("wb") as file, packed.packing(file) as stream:
        for part in parts:
            stream.write(part)
    return path.read_bytes()


@pytest.mark.parametrize("size", [0, 1, packed.PART, packed.PART + 1, 5 * packed.PART // 2])
def test_what_is_packed_in_parts_is_one_member_that_everybody_unpacks(
    size: int, tmp_path: Path, library: ModuleType
) -> None:
    given = content(size)
    whole = pack(tmp_path / "whole.gz", [given])
    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
    assert unpacker.decompress(whole) == given
    assert unpacker.eof and not unpacker.unused_data
    with library.opened(tmp_path / "whole.gz") as stream:
        assert stream.read() == given


def test_the_same_content_makes_the_same_bytes_on_any_number_of_processors_and_however_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = content(3 * packed.PART)
    whole = pack(tmp_path / "whole.gz", [given])
    monkeypatch.setattr(packed, "processors", lambda: 1)
    pieces = [given[first : first + 100_003] for first in range(0, len(given), 100_003)]
    assert pack(tmp_path / "pieces.gz", pieces) == whole


def test_labels_take_hardly_more_room_than_in_one_part(tmp_path: Path) -> None:
    given = content(4 * packed.PART)
    assert len(pack(tmp_path / "parts.gz", [given])) < 1.01 * len(gzip.compress(given, packed.LEVEL))


@pytest.mark.parametrize("more", [b"", bytes(512), gzip.compress(b"")])
def test_zeros_and_other_members_may_follow_the_first_one(more: bytes, tmp_path: Path, library: ModuleType) -> None:
    given = content(packed.PART)
    (tmp_path / "whole.gz").write_bytes(gzip.compress(given) + more)
    with library.opened(tmp_path / "whole.gz") as stream:
        assert stream.read() == given


@pytest.mark.parametrize("damage", ["checksum", "cut", "bit", "not packed"])
def test_a_damaged_file_ends_in_one_sentence(damage: str, tmp_path: Path, library: ModuleType) -> None:
    path = tmp_path / "ct.nii.gz"
    grid = Geometry.from_affine((64, 64, 32), np.eye(4))
    nifti.write(path, np.frombuffer(content(32 * 64 * 64), np.uint8).reshape(32, 64, 64), grid)
    stored = bytearray(path.read_bytes())
    if damage == "checksum":
        stored[-8] ^= 1
    elif damage == "cut":
        del stored[-100:]
    elif damage == "bit":
        stored[len(stored) // 3] ^= 16
    else:
        stored = bytearray(gzip.decompress(stored))
    path.write_bytes(stored)
    sentence = nifti.UNKNOWN.format(path) if damage == "not packed" else f"{path} is truncated or damaged: copy"
    with pytest.raises(InputError, match=re.escape(sentence)):
        nifti.read(path)
