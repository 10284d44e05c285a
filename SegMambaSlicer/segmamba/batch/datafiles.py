"""The data files of an image whose header is a file of its own: MetaImage's .mhd, NRRD's .nhdr, pairs of NIfTI."""

from __future__ import annotations

import os
import re
from pathlib import Path

HEADERS = (".mhd", ".nhdr")
# Each half of a pair names the other one.
PAIRS = {".hdr.gz": ".img.gz", ".img.gz": ".hdr.gz", ".hdr": ".img", ".img": ".hdr"}
# Enough for a list of some ten thousand slices; an .mhd may hold its data too.
HEADER_BYTES = 1 << 20
LINE = re.compile(r"^(?:ElementDataFile\s*=|data ?file:)[ \t]*(.*)$", re.IGNORECASE | re.MULTILINE)


def data_files(header: str) -> list[str]:
    """Return the files that a header names, whether they are there or not; none where the data are in the file itself.

    Both formats name one file, or "LIST" and a file on each line that follows, or a pattern as of C's printf with first
    and last number and, perhaps, a step.

    Raises
    ------
    OSError
        The header cannot be read.
    """
    for end, other in PAIRS.items():
        if header.lower().endswith(end):
            return [header[: -len(end)] + (other.upper() if header[-len(end) :].isupper() else other)]
    if not header.lower().endswith(HEADERS):
        return []
    with open(header, "rb") as stream:
        text = os.fsdecode(stream.read(HEADER_BYTES)).replace("\r\n", "\n")
    found = LINE.search(text)
    if found is None or found[1].strip().upper() == "LOCAL":
        return []
    value = found[1].strip()
    numbered = re.fullmatch(r"(.*)(%\d*d)(.*?)\s+(\d+)\s+(\d+)(?:\s+(\d+))?.*", value)
    if numbered is not None:
        before, pattern, after = numbered[1], numbered[2], numbered[3]
        numbers = range(int(numbered[4]), int(numbered[5]) + 1, int(numbered[6] or 1))
        names = [f"{before}{pattern % number}{after}" for number in numbers]
    elif value.upper().startswith("LIST"):
        names = [line.strip() for line in text[found.end() :].splitlines() if line.strip()]
    else:
        names = [value]
    # The same file may be given for several slices.
    return [os.path.join(Path(header).parent, name) for name in dict.fromkeys(names)]
