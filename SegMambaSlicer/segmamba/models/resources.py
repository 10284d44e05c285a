"""Where the files that come with the software are."""

from __future__ import annotations

import site
import sys
import sysconfig
from pathlib import Path

from segmamba.errors import InstallationError

MANIFEST_NAME = "weights_manifest.json"
# What vertebrae look like, see `segmamba.spine.shape_model`.
SHAPES = "Resources/Models/vertebra-shapes.safetensors"


def resource_root() -> Path:
    """Return the folder that holds ``weights_manifest.json`` and ``Resources/``.

    That is the top of a source tree, the ``SegMamba`` folder beside an installed Slicer module's packages,
    or ``share/segmamba`` of where pip installed the package (an environment, ``--user`` or ``--target``).

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
