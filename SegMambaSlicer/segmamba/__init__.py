"""SegMamba engine: segmentation of CT and MR volumes with SegMamba-V2 and SpineMamba.

The names of ``__all__`` are the public ones; each is imported when it is first used, so that importing this package
imports nothing heavy. Knows nothing of Slicer.

Examples
--------
>>> import segmamba
>>> segmamba.load_manifest().tasks
('vertebrae', 'colorectal', 'brain-tumour')
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.3.0"

# Where each public name is defined.
_PUBLIC = {
    "segment": "segmamba.api",
    "read_volume": "segmamba.io.read",
    "load_manifest": "segmamba.models.manifest",
    "Options": "segmamba.request",
    "Volume": "segmamba.io.volume",
    "Geometry": "segmamba.io.volume",
    "SegMambaError": "segmamba.errors",
}
__all__ = ["Geometry", "Options", "SegMambaError", "Volume", "load_manifest", "read_volume", "segment"]

if TYPE_CHECKING:
    from segmamba.api import segment
    from segmamba.errors import SegMambaError
    from segmamba.io.read import read_volume
    from segmamba.io.volume import Geometry, Volume
    from segmamba.models.manifest import load_manifest
    from segmamba.request import Options


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'segmamba' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_PUBLIC[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
