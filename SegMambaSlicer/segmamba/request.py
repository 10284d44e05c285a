"""What a user asks for. Travels to the worker as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from segmamba.errors import InputError

Corner = tuple[float, float, float]
PATHS = ("input", "output", "report", "preview", "measurements", "checkpoint", "manifest")


@dataclass(frozen=True)
class Options:
    """How a model runs.

    Attributes
    ----------
    device : str
        "auto", "cpu", "cuda", "cuda:N" or "mps".
    precision : str
        "auto", "float32", "float16" or "bfloat16".
    scan_backend : str
        "auto", or the name of a backend of the selective scan.
    overlap : float or None
        Part of a window that its neighbour covers; None is the model's.
    tta : bool
        Test-time augmentation: average over the model's mirrored copies (8 times the time for three axes).
    roi : pair of corners or None
        Smallest and largest LPS coordinates in millimetres; nothing outside is labelled.
    structures : tuple of str or None
        Names or values of the structures to keep; None keeps all.
    refine : bool
        Refine the masks by anatomy, by the steps that the model names; one without such steps is not refined.
    postprocess : bool
        Apply the model's rule of what to keep (the largest column of vertebrae, say), if it has one.
    seed : int
        Of the random numbers; a run with the same seed gives the same labels.
    """

    device: str = "auto"
    precision: str = "auto"
    scan_backend: str = "auto"
    overlap: float | None = None
    tta: bool = False
    roi: tuple[Corner, Corner] | None = None
    structures: tuple[str, ...] | None = None
    refine: bool = True
    postprocess: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("device", "precision", "scan_backend"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"The option '{name}' is {getattr(self, name)!r}: give a name.")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"The seed is {self.seed}: choose a whole number from 0 to 2^63 - 1.")
        if self.overlap is not None and not 0 <= self.overlap <= 0.9:
            raise InputError(f"The overlap is {self.overlap:g}: choose a number from 0 to 0.9.")
        if self.roi is not None and not all(low < high for low, high in zip(*self.roi, strict=True)):
            raise InputError("The region of interest is empty: its two corners must differ along all axes.")


@dataclass(frozen=True)
class Request:
    """One volume to segment, from file to file.

    Attributes
    ----------
    input, output : str
        Paths of the volume and of the segmentation.
    task, model : str or None
        The model's id, or a task, whose default model is then taken.
    report, preview, measurements : str or None
        Paths of the JSON report, of the PNG preview and of the CSV table of measurements, where wanted.
    checkpoint : str or None
        A checkpoint to use instead of the model's own.
    manifest : str or None
        A manifest to use instead of the one that comes with the software; paths of bundled checkpoints start from
        its folder.
    overwrite : bool
        Existing files of these names may be replaced.
    options : Options
    """

    input: str
    output: str
    task: str | None = None
    model: str | None = None
    report: str | None = None
    preview: str | None = None
    measurements: str | None = None
    checkpoint: str | None = None
    manifest: str | None = None
    overwrite: bool = False
    options: Options = field(default_factory=Options)

    def to_dict(self) -> dict[str, Any]:
        """Return the request for JSON, with absolute paths: the worker may run in another folder."""
        content = asdict(self)
        for name in PATHS:
            if content[name] is not None:
                content[name] = str(Path(content[name]).absolute())
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Request:
        """Return the request that `to_dict` wrote.

        Raises
        ------
        InputError
            Something is missing, unknown or out of range.
        """
        try:
            options = dict(content.get("options", {}))
            if options.get("roi") is not None:
                low, high = (_corner(corner) for corner in options["roi"])
                options["roi"] = (low, high)
            if options.get("structures") is not None:
                options["structures"] = tuple(str(name) for name in options["structures"])
            wrong = [name for name in PATHS if not isinstance(content.get(name), (str, type(None)))]
            if wrong:
                raise TypeError(f"{', '.join(wrong)} must be text")
            return cls(**{**content, "options": Options(**options)})
        except (TypeError, ValueError, AttributeError) as error:
            known = ", ".join(item.name for item in fields(cls))
            raise InputError(f"The request is not one ({error}): it has the fields {known}.") from error


def _corner(values: Any) -> Corner:
    x, y, z = (float(value) for value in values)
    return x, y, z
