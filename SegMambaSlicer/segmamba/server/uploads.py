"""What somebody has sent, before anything reads it: files that are not what they say are refused.

Checked is what could fill memory or disk, or lead to another file, when an image is read later, in the worker's
process: sizes that a header declares, what is packed into how much, names of other files.
"""

from __future__ import annotations

import errno
import gzip
import math
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from segmamba.errors import InputError
from segmamba.io.dicom_headers import is_dicom, is_marked, pydicom

# Bytes of the text before the voxels of an NRRD, and of a NIfTI's extensions.
MOST_HEADER, MOST_EXTENSIONS = 1 << 16, 1 << 24
MOST_JSON = 1 << 20
# Files of a DICOM series, and bytes of the directory of a zip.
MOST_FILES, MOST_DIRECTORY = 20_000, 1 << 24
CHUNK = 1 << 20
MOST_DIGITS = 12
# The end of a zip's directory, and what a directory beyond 65535 files or 4 GB has besides.
END, END_SIZE, LOCATOR, LOCATOR_SIZE = b"PK\5\6", 22, b"PK\6\7", 20
NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), 8),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), 8),
    **{"float": 4, "double": 8},
}
NAMES_A_FILE = re.compile(r"^\s*data\s*file\s*:", re.IGNORECASE | re.MULTILINE)
SKIPS = re.compile(r"^\s*(line|byte)\s*skip\s*:\s*(?!0\s*$)", re.IGNORECASE | re.MULTILINE)
# What text cannot hold: readers differ in where a line ends.
CONTROL = re.compile(r"[^\t\n\x20-\x7e\x80-\xff]")
DEFLATED = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.8.1")
SIZES = ["Rows", "Columns", "NumberOfFrames", "BitsAllocated", "SamplesPerPixel"]
TOO_LARGE = "The volume has {:.1f} GiB unpacked, more than this server takes ({:.1f} GiB): send a part of it."
BROKEN = "The file is damaged or cut off ({}): send it again."


def check_nifti(path: Path, limit: int) -> Path:
    """Check a NIfTI file, packed (.gz) or not, and return it.

    Parameters
    ----------
    path : Path
    limit : int
        Bytes that an upload may have when it is unpacked.

    Raises
    ------
    InputError
    """
    packed = path.name.endswith(".gz")
    try:
        with gzip.open(path, "rb") if packed else path.open("rb") as stream:
            declared = _nifti_size(stream.read(540))
            _check_size(declared, limit)
            _count(stream.read, 540, declared + MOST_EXTENSIONS)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise InputError(BROKEN.format(type(error).__name__)) from error
    return path


def check_nrrd(path: Path, limit: int) -> Path:
    """Check an NRRD file with its voxels in itself, and return it; as `check_nifti`."""
    with path.open("rb") as stream:
        beginning = stream.read(MOST_HEADER).replace(b"\r\n", b"\n")
    header, blank, _voxels = beginning.partition(b"\n\n")
    text = header.decode("latin-1")
    if not text.startswith("NRRD000") or not blank:
        raise InputError(f"The file is not NRRD, or its header is longer than {MOST_HEADER} bytes: save it again.")
    if CONTROL.search(text):
        raise InputError("The header of the NRRD file is not plain text: save it again.")
    if NAMES_A_FILE.search(text) or SKIPS.search(text):
        raise InputError("The NRRD file leaves its voxels to another file: save it as one .nrrd.")
    fields = dict(re.findall(r"^([\w ]+?)\s*:\s*(.*?)\s*$", text.lower(), re.MULTILINE))
    sizes = fields.get("sizes", "").split()
    item = NRRD_BYTES.get(fields.get("type", ""))
    packed = fields.get("encoding", "")
    if not sizes or not all(size.isdecimal() and len(size) <= MOST_DIGITS for size in sizes) or item is None:
        raise InputError("The NRRD file does not say how large it is, or has no numbers as voxels: save it again.")
    if packed not in ("raw", "gzip", "gz"):
        raise InputError(f"The NRRD file is encoded as '{packed}': save it as raw or gzip.")
    declared = math.prod(int(size) for size in sizes) * item
    _check_size(declared, limit)
    try:
        with path.open("rb") as stream:
            _skip_header(stream.readline)
            with gzip.open(stream, "rb") if packed != "raw" else stream as voxels:
                counted = _count(voxels.read, 0, declared)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(BROKEN.format(type(error).__name__)) from error
    if counted != declared:
        raise InputError(BROKEN.format(f"{counted} bytes of voxels, where the header says {declared}"))
    return path


def check_json(path: Path, limit: int) -> Path:
    """Check that a file of levels is small, and return it; as `check_nifti`."""
    if path.stat().st_size > min(limit, MOST_JSON):
        raise InputError("The file of levels is larger than 1 MiB: send the centroids only.")
    return path


def unpack_dicom(path: Path, limit: int) -> Path:
    """Unpack a zip with a DICOM series into a new folder beside it, and return the folder; as `check_nifti`.

    The files get names of our own, so none of the zip's leads anywhere. The zip is deleted.
    """
    folder = path.with_name(f"{path.name}.files")
    folder.mkdir()
    _check_directory(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            _check_members(members, limit)
            left = limit
            for number, member in enumerate(members):
                with archive.open(member) as stream, (folder / f"{number:06d}.dcm").open("xb") as target:
                    while chunk := stream.read(CHUNK):
                        left -= len(chunk)
                        if left < 0:
                            raise InputError(TOO_LARGE.format(limit / 2**30, limit / 2**30))
                        target.write(chunk)
    except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError, ValueError) as error:
        raise InputError(BROKEN.format(type(error).__name__)) from error
    except OSError as error:
        # A list whose places lie before the file; not a full disk.
        if error.errno != errno.EINVAL:
            raise
        raise InputError(BROKEN.format(type(error).__name__)) from error
    path.unlink()
    _check_images(folder, limit)
    return folder


CHECKS: Mapping[str, Callable[[Path, int], Path]] = {
    "nii": check_nifti,
    "nii.gz": check_nifti,
    "nrrd": check_nrrd,
    "seg.nrrd": check_nrrd,
    "dicom.zip": unpack_dicom,
    "json": check_json,
}


def _nifti_size(header: bytes) -> int:
    """Return how many bytes of voxels and of what lies before them a NIfTI header declares."""
    for order in "<>":
        size = struct.unpack_from(f"{order}i", header)[0]
        if size == 348 and header[344:347] in (b"n+1", b"ni1"):
            dimensions = struct.unpack_from(f"{order}8h", header, 40)
            bits = struct.unpack_from(f"{order}h", header, 72)[0]
            start = struct.unpack_from(f"{order}f", header, 108)[0]
            break
        if size == 540 and header[4:7] in (b"n+2", b"ni2"):
            dimensions = struct.unpack_from(f"{order}8q", header, 16)
            bits = struct.unpack_from(f"{order}h", header, 14)[0]
            start = struct.unpack_from(f"{order}q", header, 168)[0]
            break
    else:
        raise InputError("The file is not NIfTI: send it with the kind that it has.")
    if header[344:347] == b"ni1" or header[4:7] == b"ni2":
        raise InputError("The NIfTI file leaves its voxels to another file: save it as one .nii.gz.")
    count, shape = dimensions[0], dimensions[1 : 1 + max(0, dimensions[0])]
    # Also not a number and infinite.
    if not 1 <= count <= 7 or min(shape) < 0 or bits <= 0 or not 0 <= start <= MOST_EXTENSIONS:
        raise InputError("The header of the NIfTI file declares impossible sizes: save it again.")
    voxels: int = math.prod(shape) * bits // 8
    return int(start) + voxels


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise InputError(TOO_LARGE.format(size / 2**30, limit / 2**30))


def _count(read: Callable[[int], bytes], counted: int, most: int) -> int:
    """Read to the end, without keeping it, and return how many bytes there were; `InputError` beyond the most."""
    while chunk := read(CHUNK):
        counted += len(chunk)
        if counted > most:
            raise InputError(BROKEN.format("there is more in it than its header says"))
    return counted


def _skip_header(readline: Callable[[], bytes]) -> None:
    while readline().strip(b"\r\n"):
        pass


def _check_directory(path: Path) -> None:
    """Check how long the list of a zip's files is, before it is read into memory."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        stream.seek(max(0, size - MOST_HEADER - END_SIZE - LOCATOR_SIZE))
        last = stream.read()
    place = last.rfind(END)
    if place < 0 or len(last) < place + END_SIZE:
        raise InputError("The file is not a zip: send the files of one DICOM series in a zip.")
    files, length = struct.unpack_from("<HI", last, place + 10)
    large = last[max(0, place - LOCATOR_SIZE) : place].startswith(LOCATOR)
    if large or files > MOST_FILES or length > MOST_DIRECTORY:
        raise InputError(f"The zip has more than {MOST_FILES} files, or more than 4 GB: send one series in it.")


def _check_members(members: list[zipfile.ZipInfo], limit: int) -> None:
    if not members:
        raise InputError("The zip is empty: send the files of one DICOM series in it.")
    for member in members:
        name = member.filename.replace("\\", "/")
        if name.startswith("/") or ".." in name.split("/") or ":" in name or "\0" in name:
            raise InputError("A name in the zip leads out of its folder: send the files of one DICOM series in it.")
        if member.flag_bits & 1:
            raise InputError("The zip is encrypted: send it without a password.")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError("The zip is compressed in an unusual way: send it stored or deflated.")
    _check_size(sum(member.file_size for member in members), limit)


def _check_images(folder: Path, limit: int) -> None:
    """Delete what is not DICOM, and check how large the images of the others are when they are unpacked."""
    total = 0
    for path in sorted(folder.iterdir()):
        if not is_dicom(path):
            path.unlink()
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                marked = is_marked(path)
                if marked and pydicom().filereader.read_file_meta_info(path).get("TransferSyntaxUID") in DEFLATED:
                    raise InputError("A DICOM file is deflated as a whole: send it in another transfer syntax.")
                header = pydicom().dcmread(path, stop_before_pixels=True, specific_tags=SIZES, force=not marked)
                rows, columns, frames, bits, samples = (int(header.get(name) or 1) for name in SIZES)
        except InputError:
            raise
        except Exception as error:  # pydicom has no base class for what a damaged file may raise
            raise InputError(BROKEN.format(f"a DICOM file, {type(error).__name__}")) from error
        total += max(0, rows * columns * frames * samples) * max(1, bits // 8)
        _check_size(total, limit)
    if not any(folder.iterdir()):
        raise InputError("There is no DICOM file in the zip: send the files of one DICOM series in it.")
