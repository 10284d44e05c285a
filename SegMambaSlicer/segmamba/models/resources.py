"""Paths of the files that are bundled with the software."""

from __future__ import annotations

import site
import sys
import sysconfig
from pathlib import Path

from segmamba.errors import InstallationError

MANIFEST_NAME = "weights_manifest.json"
# The shape model of vertebrae, see `segmamba.spine.shape_model`.
SHAPES = "Resources/Models/vertebra-shapes.safetensors"
# What draws vertebrae again that the image shows badly, see `segmamba.inference.redraw`.
REDRAWING = "Resources/Models/vertebra-redrawing.safetensors"


def resource_root() -> Path:
    """Return the folder that holds ``weights_manifest.json`` and ``Resources/``.

    It is the root of a source tree, the ``SegMamba`` folder next to an installed Slicer module's packages, or
    ``share/segmamba`` where pip installed the package (an environment, ``--user`` or ``--target``).

    Raises
    ------
    InstallationError
        None of these holds the manifest.
    """
    here = Path(__file__).resolve()
    prefixes = (sysconfig.get_path("data"), site.getuserbase(), sys.prefix, str(here.parents[2]))
    installed = (Path(prefix) / "share" / "segmamba" for prefix in prefixes)
    candidates = (here.parents[3], here.parents[2] / "Resources" / "SegMamba", *installed)
    for candidate in candidates:
        if (candidate / MANIFEST_NAME).is_file():
            return candidate
    raise InstallationError(f"{MANIFEST_NAME} is missing from this installation: install SegMambaSlicer again.")
