"""A value for any option, by its type: other than its default, in words that need care."""

from __future__ import annotations

from typing import Any

from segmamba.option_types import (
    Choice,
    FilePath,
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
    declared,
)
from segmamba.request import Options, Request

SAMPLES: dict[type[OptionType], Any] = {
    OptionType: "a model",
    FilePath: "-folder of/ü.json",
    NamedFiles: {"t1c": "-folder of/ü=1.nii", "T2w": "b.nii"},
    Names: ("L1 vertebra", "21"),
    Number: 1e-5,
    Spacing: 0.75,
    Region: ((-2e-5, 1.5, -40.25), (1e-7, 3.0, 70.0)),
    WholeNumber: 2**63 - 1,
    Line: (0.8125, -2e-5),
    LevelPlaces: (("L5", -2e-5, 1.5, -40.25), ("T12", 1e-7, 3.0, 70.0)),
}


def sample_value(name: str) -> Any:
    """Return a value of an option of `Request` or `Options`."""
    each, declaration = (declared(Request) | declared(Options))[name]
    if isinstance(declaration.kind, Switch):
        return not each.default
    if isinstance(declaration.kind, Choice):
        return declaration.kind.names[-1]
    return SAMPLES[type(declaration.kind)]
