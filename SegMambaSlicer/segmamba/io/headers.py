"""What the headers of NRRD, MetaImage and other files leave out: the place of the voxels, or the voxels themselves."""

from __future__ import annotations

import re
from pathlib import Path

from segmamba.errors import InputError
from segmamba.io.volume import FORMATS

# ITK's readers of formats that hold directions.
ORIENTED = ("NiftiImageIO", "GDCMImageIO", "HDF5ImageIO", "MINCImageIO")
# Those of formats that hold no voxel size in three dimensions.
UNSIZED = ("TIFFImageIO", "PNGImageIO", "JPEGImageIO", "BMPImageIO")
HEADER_BYTES = 1 << 16
# What says where the data of a header without voxels are.
DETACHED = {".nhdr": ("data file", "datafile"), ".mhd": ("elementdatafile",)}
NO_SIZE = "{} does not say how large its voxels are: give {}, with the voxel size in its header."
NO_ORIENTATION = (
    "The file does not say how the patient lies: x was taken to grow to the left, y to the back and z to the head. If "
    "that is not so, all results are wrong: give it its directions."
)


def place_notes(path: Path, reader: str) -> tuple[str, ...]:
    """Return what was assumed of where the voxels of a file lie, a sentence each.

    Parameters
    ----------
    path : Path
        A file that ITK can read.
    reader : str
        Name of ITK's class for it.

    Raises
    ------
    InputError
        The file does not say how large its voxels are.
    """
    if reader in ORIENTED:
        return ()
    fields = header_fields(path)
    if reader == "NrrdImageIO":
        sized = {"spacings", "space directions"} & set(fields)
        oriented = "space directions" in fields and "space" in fields
    elif reader == "MetaImageIO":
        sized = {"elementspacing", "elementsize"} & set(fields)
        oriented = bool({"transformmatrix", "rotation", "orientation"} & set(fields))
    else:
        sized, oriented = {reader} - set(UNSIZED), False
    if not sized:
        raise InputError(NO_SIZE.format(path, FORMATS))
    return () if oriented else (NO_ORIENTATION,)


def missing_data(path: Path) -> str | None:
    """Return a sentence if the voxels of a header (.nhdr, .mhd) are not there, or are packed as nobody here reads."""
    fields = header_fields(path)
    if fields.get("encoding", "") in ("bzip2", "bz2"):
        return f"{path} is packed with bzip2, which cannot be read: save it with gzip, or unpacked."
    names = [fields[key] for key in DETACHED.get(path.suffix.lower(), ()) if key in fields]
    # A list of files, or a pattern for their names.
    if not names or names[0].upper().startswith(("LIST", "LOCAL")) or "%" in names[0]:
        return None
    data = path.parent / names[0]
    return None if data.is_file() else f"{path} belongs to {names[0]}, which is missing: copy both into one folder."


def header_fields(path: Path) -> dict[str, str]:
    """Return the fields in the text that a file begins with, by their names in small letters."""
    with path.open("rb") as stream:
        text = stream.read(HEADER_BYTES).decode("latin-1")
    fields = {}
    for line in text.splitlines():
        # An empty line ends the header of NRRD, this field that of MetaImage.
        found = re.match(r"([A-Za-z][\w ]*?)\s*(?::=?|=)\s*(.*)", line)
        if not line.strip():
            break
        if found:
            fields[found[1].lower()] = found[2].strip()
            if found[1].lower() == "elementdatafile":
                break
    return fields
