"""The choices of a run, under the names that the command line has for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from segmamba.request import Options, Request
from segmamba_mrml.volumes import roi_box

# What the command line has no text for.
NODES = ("output", "roi")


@dataclass(frozen=True)
class Choices:
    """How a volume is to be segmented.

    Attributes
    ----------
    task, model : str, optional
        "vertebrae" or "colorectal", or a model's ID.
    output : vtkMRMLSegmentationNode, optional
        Node to add the segments to; by default a new one.
    overwrite : bool
        Replace what ``output``, or an existing file, holds. By default a node's segments are kept.
    structures : str or sequence of str, optional
        Names or values to keep, as a list or separated by commas; by default all.
    roi : vtkMRMLMarkupsROINode, optional
        Region to segment; by default the whole volume.
    tta : bool
        Test-time augmentation: average over mirrored copies.
    overlap : float, optional
        Of the windows, 0 to 0.9; by default the model's.
    noRefine : bool
        Do not refine the masks by the shapes of vertebrae.
    noPostprocess : bool
        Keep also what is not part of the column.
    device, precision, scanBackend, seed, checkpoint, manifest
        As for ``segmamba segment``.
    """

    task: str | None = None
    model: str | None = None
    output: Any = None
    overwrite: bool = False
    structures: str | Sequence[str] | None = None
    roi: Any = None
    tta: bool = False
    overlap: float | None = None
    noRefine: bool = False
    noPostprocess: bool = False
    device: str = "auto"
    precision: str = "auto"
    scanBackend: str = "auto"
    seed: int = 0
    checkpoint: str | None = None
    manifest: str | None = None

    def options(self) -> Options:
        """Return the engine's options; the region of interest is not among them."""
        names = self.structures.split(",") if isinstance(self.structures, str) else self.structures
        return Options(
            device=self.device,
            precision=self.precision,
            scan_backend=self.scanBackend,
            overlap=self.overlap,
            tta=self.tta,
            structures=tuple(str(name).strip() for name in names) if names else None,
            refine=not self.noRefine,
            postprocess=not self.noPostprocess,
            seed=self.seed,
        )

    def request(self, source: str = "", target: str = "") -> Request:
        """Return the engine's request for a file, or for one whose names are not known yet."""
        return Request(
            input=source,
            output=target,
            task=self.task,
            model=self.model,
            checkpoint=str(self.checkpoint) if self.checkpoint else None,
            manifest=str(self.manifest) if self.manifest else None,
            overwrite=self.overwrite,
            options=self.options(),
        )

    def arguments(self) -> list[str]:
        """Return the same for the command line, without the output node.

        Raises
        ------
        InputError
            ``roi`` is no region.
        """
        values = vars(self) | {"structures": ",".join(self.options().structures or ()) or None}
        found = []
        for field in fields(self):
            value = values[field.name]
            if field.name in NODES or value == field.default:
                continue
            option = "--" + re.sub("[A-Z]", lambda letter: f"-{letter[0].lower()}", field.name)
            found.append(option if value is True else f"{option}={value}")
        if self.roi is not None:
            corners = ((-x, -y, z) for x, y, z in roi_box(self.roi))
            # No exponents: what begins with a dash and is no plain number would be taken for an option.
            found += ["--roi", *(f"{value:.6f}" for corner in corners for value in corner)]
        return found
