"""What a run does to each of its cases, and the hash that identifies its settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from segmamba.batch.fingerprint import digest_of, file_digest
from segmamba.batch.layout import PAGE, PREVIEW
from segmamba.errors import InputError
from segmamba.inference.file_to_file import requested_model
from segmamba.inference.outputs import also_paths
from segmamba.io.dicom_results import DICOM_EXTENSIONS, kind_of
from segmamba.models import store
from segmamba.models.manifest import Model, chosen_labels
from segmamba.request import Request
from segmamba.tasks import VERTEBRAE_TASK

FORMATS = ("seg.nrrd", "nii.gz", *(ending.removeprefix(".") for ending in reversed(DICOM_EXTENSIONS)))


@dataclass(frozen=True)
class Plan:
    """The settings of a run. Travels to the workers, which may be other computers with the same file system.

    Attributes
    ----------
    folder : str
        Of the results.
    request : dict
        As `Request.to_dict` gives it, with no input and no output.
    format : str
        One of `FORMATS`: the extension of the segmentations.
    model : dict
        ``id``, ``version`` and ``checkpoint_sha256``.
    settings : str
        SHA-256 of all that the labels depend on: the model's entry in the manifest, its normalization parameters, its
        checkpoint, the options but the device (results of devices differ by rounding only), the format.
    structures : tuple of str
        Names of the model's structures, in its order.
    channels : tuple of str
        Names of the volumes that the model takes, in its order, where it takes several; else empty.
    pages : bool
        Whether each case gets a page: cases of vertebrae do.
    """

    folder: str
    request: dict[str, Any]
    format: str
    model: dict[str, str]
    settings: str
    structures: tuple[str, ...]
    channels: tuple[str, ...] = ()
    pages: bool = False

    @property
    def output(self) -> str:
        """Name of the segmentation in a case's folder."""
        return f"segmentation.{self.format}"

    def case_request(self, source: str, work: Path, device: str | None = None) -> Request:
        """Return what the engine is asked for in a working folder; ``device`` replaces the plan's."""
        request = Request.from_dict({**self.request, "input": source, "output": str(work / self.output)})
        options = request.options if device is None else replace(request.options, device=device)
        page = str(work / PAGE) if self.pages else None
        return replace(request, preview=str(work / PREVIEW), page=page, options=options)


# What a manifest's entry says for people, of memory or of downloads: other words leave finished cases finished.
WORDS = frozenset(
    (
        "title",
        "citation",
        "training_data",
        "accuracy",
        "limits",
        "licence",
        "unknown",
        "caution",
        "file",
        "parameters",
        "memory_gib",
        "main_memory_gib",
        "origin",
        "compared",
    )
)

# Options and structures that came later: cases that were finished before them are finished where they are not given.
NEWER = ("anchor", "levels_from", "output_spacing", "T13 vertebra")


def make_plan(request: Request, folder: Path, output_format: str) -> Plan:
    """Return the plan of a run, after making sure that the model is there.

    Parameters
    ----------
    request : Request
        Task or model and the options; its input and output do not matter.
    folder : Path
    output_format : str
        One of `FORMATS`.

    Raises
    ------
    InputError
        There is no such format.
    ModelError
        The model is unknown, not installed or damaged.
    InstallationError
        A package that the format needs is missing.
    """
    if output_format not in FORMATS:
        raise InputError(f"There is no format '{output_format}': choose one of {', '.join(FORMATS)}.")
    for path in (Path(f"x.{output_format}"), *also_paths(replace(request, output=f"x.{output_format}"))):
        kind = kind_of(path)
        if kind is not None:
            kind.require()
    model, digest = _installed(requested_model(request), request)
    chosen = chosen_labels(model, request.options.structures)
    content = replace(request, input="", output="", report=None, preview=None, channels=None).to_dict()
    # Paths of this call, not of the model or its settings.
    content["input"] = content["output"] = ""
    options = {
        name: value
        for name, value in asdict(request.options).items()
        if name != "device" and not (name in NEWER and value is None)
    }
    if request.options.levels_from is not None:
        options["levels_from"] = file_digest(request.options.levels_from)
    # The same structures are the same settings, in any order and however they are called.
    options["structures"] = [label.name for label in chosen if request.options.structures or label.name not in NEWER]
    settings = {
        "model": {key: value for key, value in model.entry.items() if key not in WORDS},
        "preprocessing": asdict(model.preprocessing),
        "checkpoint": digest,
        "options": options,
        "format": ",".join([output_format, *sorted(request.also or ())]),
    }
    described = {"id": model.id, "version": model.version, "checkpoint_sha256": digest}
    structures = tuple(label.name for label in model.labels)
    channels = tuple(channel.name for channel in model.input_channels)
    return Plan(
        str(folder.absolute()),
        content,
        output_format,
        described,
        digest_of(settings),
        structures,
        channels,
        model.task == VERTEBRAE_TASK,
    )


def _installed(model: Model, request: Request) -> tuple[Model, str]:
    """Return the model as it will run, and the SHA-256 of its checkpoint."""
    if request.checkpoint is not None:
        return model, store.sha256(Path(request.checkpoint))
    found = store.installed(model, Path(request.manifest).parent if request.manifest else None)
    return store.configured(model, found), store.verify(found)
