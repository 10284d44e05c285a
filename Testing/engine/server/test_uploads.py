"""Hostile and damaged uploads: each is refused in one sentence, before anything of it is unpacked into memory."""

from __future__ import annotations

import gzip
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from helpers.dicom_files import write_slices
from helpers.phantoms import grid_around_patient, phantom, rotation

pytest.importorskip("fastapi", reason="the server's packages are not installed")

from segmamba.errors import InputError
from segmamba.io.read import read_volume
from segmamba.io.volume import to_image
from segmamba.server.uploads import CHECKS, MOST_FILES

LIMIT = 1 << 24
VOLUME = phantom(grid_around_patient((8.0, 8.0, 9.0), rotation(5, -3)))


def nrrd(fields: str = "", sizes: str = "4 4 4", voxels: bytes = bytes(64), encoding: str = "raw") -> bytes:
    header = f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: {sizes}\nencoding: {encoding}\n{fields}\n"
    return header.encode("latin-1") + voxels


def nifti(size: int = 4, bits: int = 8, start: float = 352.0, magic: bytes = b"n+1\0", voxels: bytes = b"") -> bytes:
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, size, size, size, 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, 2, bits)
    struct.pack_into("<f", header, 108, start)
    header[344:348] = magic
    return bytes(header) + voxels


def zipped(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)


def dicom(folder: Path, **tags: object) -> bytes:
    return write_slices(folder, VOLUME.array[:1], VOLUME.geometry, **tags)[0].read_bytes()


def encrypted(path: Path) -> None:
    zipped(path, {"a": b"x" * 100}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(bytes(content))


def many_files(path: Path) -> None:
    """A zip whose end speaks of more files than a series has."""
    zipped(path, {"a": b""})
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\5\6")
    struct.pack_into("<HH", content, place + 8, MOST_FILES + 1, MOST_FILES + 1)
    path.write_bytes(bytes(content))


def wrong_checksum(path: Path) -> None:
    zipped(path, {"a": b"x" * 100}, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"xxxx", b"yyyy", 1))


def deflated(path: Path) -> None:
    from pydicom import dcmread
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    dicom(path.parent / "one")
    file = next((path.parent / "one").iterdir())
    dataset = dcmread(file)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(file, enforce_file_format=True)
    zipped(path, {"a.dcm": file.read_bytes()})


def a_bomb(path: Path) -> None:
    zipped(path, {f"{number}.dcm": bytes(LIMIT // 2) for number in range(3)})


HOSTILE: list[tuple[str, str, bytes | Callable[[Path], None], str]] = [
    ("NRRD: another file", "nrrd", nrrd("data file: /etc/passwd\n"), "to another file"),
    ("NRRD: another file, hidden", "nrrd", nrrd("  Data File: /etc/passwd\n"), "to another file"),
    ("NRRD: behind another line end", "nrrd", nrrd("a:=b\r\r\rdata file: /etc/passwd\n"), "plain text"),
    ("NRRD: part of another file", "nrrd", nrrd("byte skip: -1\n"), "to another file"),
    ("NRRD: huge header", "nrrd", nrrd("#" * (1 << 17) + "\n"), "header is longer"),
    ("NRRD: huge volume", "nrrd", nrrd(sizes="100000 100000 100000"), "GiB unpacked"),
    ("NRRD: endless number", "nrrd", nrrd(sizes="9" * 5000), "how large it is"),
    ("NRRD: bomb", "nrrd", nrrd(voxels=gzip.compress(bytes(LIMIT), 1), encoding="gzip"), "more in it"),
    ("NRRD: too short", "nrrd", nrrd(voxels=bytes(63)), "63 bytes of voxels"),
    ("NRRD: damaged", "nrrd", nrrd(voxels=gzip.compress(bytes(64))[:-9], encoding="gzip"), "damaged"),
    ("NRRD: odd encoding", "nrrd", nrrd(encoding="hex"), "encoded as 'hex'"),
    ("NRRD: none", "nrrd", b"MZ" + bytes(1000), "is not NRRD"),
    ("NIfTI: bomb", "nii.gz", gzip.compress(nifti(voxels=bytes(4 * LIMIT)), 1), "more in it"),
    ("NIfTI: huge volume", "nii", nifti(32767), "GiB unpacked"),
    ("NIfTI: voxels far away", "nii", nifti(start=2e9), "impossible"),
    ("NIfTI: voxels nowhere", "nii", nifti(start=float("nan")), "impossible"),
    ("NIfTI: negative", "nii", nifti(-4), "impossible"),
    ("NIfTI: in two files", "nii", nifti(magic=b"ni1\0"), "to another file"),
    ("NIfTI: not packed", "nii.gz", nifti(), "damaged"),
    ("NIfTI: none", "nii", b"x" * 400, "not NIfTI"),
    ("NIfTI: empty", "nii", b"", "damaged"),
    ("zip: out of the folder", "dicom.zip", lambda path: zipped(path, {"../../evil": b"x"}), "out of its folder"),
    ("zip: absolute", "dicom.zip", lambda path: zipped(path, {"/etc/cron.d/evil": b"x"}), "out of its folder"),
    ("zip: of Windows", "dicom.zip", lambda path: zipped(path, {"C:\\evil": b"x"}), "out of its folder"),
    ("zip: bomb", "dicom.zip", a_bomb, "GiB unpacked"),
    ("zip: many files", "dicom.zip", many_files, "more than 20000 files"),
    ("zip: encrypted", "dicom.zip", encrypted, "encrypted"),
    ("zip: odd compression", "dicom.zip", lambda path: zipped(path, {"a": b"x"}, zipfile.ZIP_BZIP2), "unusual way"),
    ("zip: damaged", "dicom.zip", wrong_checksum, "damaged"),
    ("zip: none", "dicom.zip", b"x" * 400, "not a zip"),
    ("zip: empty", "dicom.zip", lambda path: zipped(path, {}), "is empty"),
    ("zip: no DICOM", "dicom.zip", lambda path: zipped(path, {"a": b"hello"}), "no DICOM file"),
    ("zip: deflated DICOM", "dicom.zip", deflated, "deflated as a whole"),
    (
        "zip: huge DICOM",
        "dicom.zip",
        lambda path: zipped(path, {"a": dicom(path.parent / "one", Rows=65535, Columns=65535)}),
        "GiB unpacked",
    ),
    ("levels: large", "json", b"[" * (2 << 20), "1 MiB"),
]


@pytest.mark.parametrize(("kind", "content", "sentence"), [case[1:] for case in HOSTILE], ids=[c[0] for c in HOSTILE])
def test_a_hostile_or_damaged_upload_is_refused(
    kind: str, content: bytes | Callable[[Path], None], sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / f"input.{kind}"
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        CHECKS[kind](path, LIMIT)
    assert not (tmp_path.parent / "evil").exists()


@pytest.mark.parametrize("kind", ["nii", "nii.gz", "nrrd", "dicom.zip"])
@pytest.mark.parametrize("packed", [False, True])
def test_what_programs_write_is_taken_and_read(kind: str, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / f"input.{kind}"
    if kind == "dicom.zip":
        files = write_slices(tmp_path / "series", VOLUME.array, VOLUME.geometry, PatientName="Müller^Jörg")
        members = {f"a/b/{file.name}": file.read_bytes() for file in files} | {"a/readme.txt": b"hello"}
        zipped(path, members, zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED)
    else:
        image = to_image(VOLUME.array, VOLUME.geometry)
        image.SetMetaData("content", "Größe")
        sitk.WriteImage(image, str(path), packed)
    taken = CHECKS[kind](path, LIMIT)
    assert np.array_equal(read_volume(taken).array, VOLUME.array)
