"""What a user asks for. Travels to the worker as JSON.

A new option is one field here: command line, console calls, JSON and the check of its value follow from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from segmamba.errors import DeviceError, InputError, ModelError
from segmamba.option_types import (
    Choice,
    Corner,
    FilePath,
    LevelPlace,
    LevelPlaces,
    Line,
    NamedFiles,
    Names,
    Number,
    OptionType,
    Region,
    Spacing,
    Switch,
    WholeNumber,
    convert_options,
    declared,
    option,
)

RAS_CORNERS = ("R", "A", "S", "R2", "A2", "S2")


@dataclass(frozen=True)
class Options:
    """How a model runs.

    Values may be given as JSON or a Python call has them, for example ``structures="L1,L2"`` or a list; they are
    checked and converted.

    Raises
    ------
    SegMambaError
        A value is not one of its option.
    """

    structures: tuple[str, ...] | None = option(
        Names(), "keep only these structures, by name or label value", None, metavar="A,B", title="list of structures"
    )
    roi: tuple[Corner, Corner] | None = option(
        Region(),
        "segment only the box between two corners: patient coordinates in mm as Slicer shows them (RAS)",
        None,
        metavar=RAS_CORNERS,
        title="region of interest",
    )
    anchor: tuple[LevelPlace, ...] | None = option(
        LevelPlaces(),
        "the vertebra at this point has this level, and the others follow: patient coordinates in mm as Slicer shows "
        "them (RAS); may be repeated",
        None,
        metavar="L5=R,A,S",
    )
    levels_from: str | None = option(
        FilePath(),
        "take the levels from this segmentation of the same frame of reference: a label map with VerSe's numbers, a "
        ".seg.nrrd, or a .json of centroids",
        None,
        metavar="FILE",
        title="segmentation with levels",
    )
    tta: bool = option(Switch(), "test-time augmentation: average over flipped copies; slower", False)
    fast: bool = option(
        Switch(),
        "find vertebrae on a coarser grid, on a processor in fewer windows of other sizes: less time there, and less "
        "accurate, most in the neck",
        False,
    )
    overlap: float | None = option(
        Number(0, 0.9), "overlap of neighbouring windows, 0 to 0.9 (default: the model's)", None, metavar="FRACTION"
    )
    refine: bool = option(Switch(), "do not refine vertebra masks with the shape model", True)
    postprocess: bool = option(
        Switch(),
        "skip the model's postprocessing, which removes implausible components: see its model card",
        True,
    )
    output_spacing: str | float | None = option(
        Spacing(0.3, 5),
        "also write the masks on an isotropic grid, with smooth surfaces also of thick slices, beside the output as "
        "NAME_iso: 'iso' for the finest voxel size of the volume (at least 0.5 mm), or a voxel size in mm",
        None,
        metavar="iso|MM",
    )
    density_calibration: tuple[float, float] | None = option(
        Line(0.2, 3),
        "also give trabecular density in mg/cm3, by a phantom that you measured in the same scanner and protocol: "
        "mg/cm3 = SLOPE x HU + INTERCEPT",
        None,
        metavar="SLOPE,INTERCEPT",
    )
    device: str = option(
        Choice(("auto", "cpu", "cuda", "cuda:N", "mps")),
        "device for the networks",
        "auto",
        metavar="NAME",
        error=DeviceError,
    )
    precision: str = option(
        Choice(("auto", "float32", "float16", "bfloat16")),
        "precision of the networks",
        "auto",
        metavar="NAME",
        error=DeviceError,
    )
    scan_backend: str = option(
        Choice(("auto", "torch", "triton", "mamba_ssm")),
        "backend of the selective scan",
        "auto",
        metavar="NAME",
        error=ModelError,
    )
    modality: str = option(
        Choice(("auto", "CT", "MR")),
        "what the volume is; by default what the file or its values say",
        "auto",
        metavar="NAME",
    )
    seed: int = option(WholeNumber(63), "random seed", 0, metavar="N")

    def __post_init__(self) -> None:
        convert_options(self)


@dataclass(frozen=True)
class Request:
    """One volume to segment, from file to file.

    Raises
    ------
    SegMambaError
        A value is not one of its option.
    """

    input: str = option(FilePath(), "NIfTI, NRRD or MetaImage file, or a folder with a DICOM series")
    output: str = option(
        FilePath(),
        ".seg.nrrd, .nii.gz, .nii, .nrrd or .mha; for a DICOM series also .dcm (DICOM SEG), "
        ".labelmap.dcm (SEG as one map of labels), .rtstruct.dcm (RTSTRUCT) or .sr.dcm (SR with the measurements)",
        metavar="FILE",
    )
    task: str | None = option(
        OptionType(), "vertebrae, colorectal or brain-tumour: use the default model of this task", None
    )
    model: str | None = option(OptionType(), "use this model: see 'segmamba models'", None, metavar="ID")
    report: str | None = option(FilePath(), "write the report (what was found, and how) as JSON", None, metavar="FILE")
    preview: str | None = option(FilePath(), "write a PNG preview of three planes", None, metavar="FILE")
    measurements: str | None = option(
        FilePath(), "write volume, heights, density and angles of each vertebra as CSV", None, metavar="FILE"
    )
    page: str | None = option(
        FilePath(),
        "write one HTML page of the spine: pictures, heights, grades, curves, density, and what to look at first",
        None,
        metavar="FILE",
    )
    probabilities: str | None = option(
        FilePath(),
        "write the probability of each structure at each voxel, 0 to 255, as one file of four dimensions (.nii.gz, "
        ".nii or .nrrd)",
        None,
        metavar="FILE",
    )
    uncertainty: str | None = option(
        FilePath(),
        "write how uncertain each voxel is, the entropy of its probabilities in hundredths of a bit, as a volume",
        None,
        metavar="FILE",
    )
    checkpoint: str | None = option(FilePath(), "use these weights instead of the model's own", None, metavar="FILE")
    # The paths of its bundled checkpoints start from its folder.
    manifest: str | None = option(FilePath(), "use your own manifest", None, metavar="FILE")
    overwrite: bool = option(Switch(), "replace existing results", False)
    channels: dict[str, str] | None = option(
        NamedFiles(),
        "for a model that takes several co-registered volumes: one of those besides the input, by the name of its "
        "channel, such as t1c=T1C.nii.gz; once for each",
        None,
        metavar="NAME=FILE",
        flag="channel",
    )
    also: tuple[str, ...] | None = option(
        Names(),
        "of a DICOM series, also write these results beside the output, by their endings: dcm, labelmap.dcm, "
        "rtstruct.dcm, sr.dcm",
        None,
        metavar="A,B",
    )
    options: Options = field(default_factory=Options)

    def __post_init__(self) -> None:
        convert_options(self)

    @classmethod
    def of(cls, input: str = "", output: str = "", **values: Any) -> Request:
        """Return a request from its fields and those of its options, all by name.

        Raises
        ------
        TypeError
            There is no such field.
        SegMambaError
            A value is not one of its option.
        """
        options = {name: values.pop(name) for name in declared(Options) if name in values}
        return cls(input, output, **values, options=Options(**options))

    def to_dict(self) -> dict[str, Any]:
        """Return the request for JSON, with absolute paths: the worker may run in another folder."""
        content = asdict(self)
        for owner, values in ((self, content), (self.options, content["options"])):
            for name, (_field, declaration) in declared(owner).items():
                if values[name]:
                    values[name] = declaration.kind.absolute(values[name])
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Request:
        """Return the request that `to_dict` wrote.

        Raises
        ------
        SegMambaError
            A field is missing or unknown, or a value is not one of its option.
        """
        _check_names(cls, content)
        options = content.get("options", {})
        _check_names(Options, options)
        return cls(**{**content, "options": Options(**options)})


# What differs from volume to volume, and what is the same for many.
FILES = ("input", "output", "channels", "report", "preview", "measurements", "page", "probabilities", "uncertainty")
SETTINGS = tuple(name for name in (*declared(Request), *declared(Options)) if name not in FILES)


def _check_names(owner: Any, content: Any) -> None:
    """Raise an error unless a mapping has all fields that a dataclass needs and no others."""
    if not isinstance(content, Mapping):
        raise InputError(f"The request holds {content!r} where fields belong: give a JSON object.")
    known = ", ".join(each.name for each in fields(owner))
    unknown = [str(name) for name in content if name not in {each.name for each in fields(owner)}]
    if unknown:
        raise InputError(f"The request has the unknown field '{unknown[0]}': choose from {known}.")
    optional = (each.name for each in fields(owner) if each.default is MISSING and each.default_factory is MISSING)
    missing = [name for name in optional if name not in content]
    if missing:
        raise InputError(f"The request has no '{missing[0]}': it has the fields {known}.")
