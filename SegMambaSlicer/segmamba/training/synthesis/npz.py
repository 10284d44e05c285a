"""Arrays that training reads: label maps, and its own ``.npz`` files (tissue label maps and evaluation cases)."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segmamba.errors import InputError


def read_arrays(path: Path, names: Sequence[str], made_by: str) -> list[np.ndarray]:
    """Return the 3-D arrays of those names from an ``.npz`` file.

    Raises
    ------
    InputError
        The file cannot be read or lacks one; the sentence says to make it again with ``made_by``.
    """
    try:
        with np.load(path) as content:
            arrays = [content[name] for name in names]
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} holds no {' and '.join(names)}: make it again with {made_by}.") from error
    if any(array.ndim != 3 or array.shape != arrays[0].shape for array in arrays):
        raise InputError(f"{path} holds no 3-D arrays of one shape: make it again with {made_by}.")
    return arrays
