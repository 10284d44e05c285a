"""What an option takes: how its value is checked, and how it is written on a command line.

A class declares its options once, as dataclass fields made with `option`. The command line (`segmamba.cli.options`),
the console calls of the module, the JSON that the worker gets and the checks of the values all follow from that.
"""

from __future__ import annotations

import math
import operator
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

from segmamba.errors import InputError, SegMambaError

Corner = tuple[float, float, float]
LevelPlace = tuple[str, float, float, float]
# The names of levels, C1 to L6.
LEVEL = "C[1-7]|T[1-9]|T1[0-3]|L[1-6]"
KEY = "option"
# An output spacing that follows from the volume's own voxels.
ISO = "iso"


class OptionType:
    """The type of an option's values; by default any text.

    Attributes
    ----------
    words : int or None
        How many words a value is on the command line; None for one.
    word : callable
        What makes a value of each word.
    repeated : bool
        Whether the option is named once for each of several words.
    """

    words: ClassVar[int | None] = None
    word: ClassVar[Any] = str
    repeated: ClassVar[bool] = False

    def convert(self, value: Any) -> Any:
        """Return a value as its field holds it; TypeError or ValueError if it is not one."""
        if not isinstance(value, str):
            raise TypeError("not a text")
        return value

    def from_words(self, words: Any) -> Any:
        """Return the value that a word, or a list of them, stands for."""
        return words

    def to_words(self, value: Any) -> list[str]:
        """Return the words for a value; the inverse of `from_words` and `convert`."""
        return [str(value)]

    def absolute(self, value: Any) -> Any:
        """Return a value that means the same in another working folder."""
        return value

    def values(self) -> str:
        """Return in words which values there are; empty for any."""
        return ""

    def problem(self, title: str, value: Any) -> str:
        """Return the sentence about a value that `convert` refuses."""
        return f"The {title} is {value!r}: give {self.values() or 'a name'}."


@dataclass(frozen=True)
class Choice(OptionType):
    """One of some names; an N in a name stands for a number."""

    names: tuple[str, ...]

    def convert(self, value: Any) -> str:
        patterns = (re.escape(name).replace("N", r"\d+") for name in self.names)
        if not any(re.fullmatch(pattern, value) for pattern in patterns):
            raise ValueError("not a choice")
        return str(value)

    def values(self) -> str:
        return f"{', '.join(self.names[:-1])} or {self.names[-1]}"

    def problem(self, title: str, value: Any) -> str:
        return f"There is no {title} {value!r}: choose {self.values()}."


@dataclass(frozen=True)
class Number(OptionType):
    """A number from ``low`` to ``high``."""

    low: float
    high: float
    word: ClassVar[Any] = float

    def convert(self, value: Any) -> float:
        if isinstance(value, bool):
            raise TypeError("not a number")
        number = float(value)
        if not self.low <= number <= self.high:
            raise ValueError("out of range")
        return number

    def values(self) -> str:
        return f"a number from {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Spacing(OptionType):
    """A voxel size from ``low`` to ``high`` mm, or `ISO` for one that follows from the volume."""

    low: float
    high: float

    def convert(self, value: Any) -> str | float:
        return ISO if value == ISO else Number(self.low, self.high).convert(value)

    def values(self) -> str:
        return f"'{ISO}', or a voxel size from {self.low:g} to {self.high:g} mm"


@dataclass(frozen=True)
class WholeNumber(OptionType):
    """A whole number of at least 0 and below 2^``bits``."""

    bits: int
    word: ClassVar[Any] = int

    def convert(self, value: Any) -> int:
        number = operator.index(value)
        if isinstance(value, bool) or not 0 <= number < 2**self.bits:
            raise ValueError("out of range")
        return number

    def values(self) -> str:
        return f"a whole number from 0 to 2^{self.bits} - 1"


class Switch(OptionType):
    """On or off. On the command line, naming it gives the opposite of its default."""

    def convert(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise TypeError("not a switch")
        return value

    def values(self) -> str:
        return "True or False"


@dataclass(frozen=True)
class Line(OptionType):
    """A straight line, as its slope from ``low`` to ``high`` and its intercept; or as a text with a comma."""

    low: float
    high: float

    def convert(self, value: Any) -> tuple[float, float]:
        slope, intercept = (float(part) for part in (value.split(",") if isinstance(value, str) else value))
        if not self.low <= slope <= self.high or not math.isfinite(intercept):
            raise ValueError("out of range")
        return slope, intercept

    def to_words(self, value: tuple[float, float]) -> list[str]:
        return [",".join(map(repr, value))]

    def values(self) -> str:
        return f"a slope from {self.low:g} to {self.high:g} and an intercept, such as 0.8,-5"


class FilePath(OptionType):
    """A path, as text or as a ``Path``."""

    def convert(self, value: Any) -> str:
        path = os.fspath(value)
        if not isinstance(path, str):
            raise TypeError("bytes")
        return path

    def absolute(self, value: str) -> str:
        return str(Path(value).absolute())

    def values(self) -> str:
        return "a path"


class NamedFiles(OptionType):
    """Paths by name: a mapping, or on the command line ``NAME=FILE`` once for each. None where there is none."""

    repeated: ClassVar[bool] = True

    def convert(self, value: Any) -> dict[str, str] | None:
        pairs = list(value.items()) if isinstance(value, Mapping) else [_named(word) for word in value]
        found = {str(name): FilePath().convert(path) for name, path in pairs}
        if len(found) < len(pairs) or not all(name and path for name, path in found.items()):
            raise ValueError("not one file for each name")
        return found or None

    def to_words(self, value: Mapping[str, str]) -> list[str]:
        return [f"{name}={path}" for name, path in value.items()]

    def absolute(self, value: Mapping[str, str]) -> dict[str, str]:
        return {name: FilePath().absolute(path) for name, path in value.items()}

    def values(self) -> str:
        return "one file for each name, as NAME=FILE"


class Names(OptionType):
    """Some names, as a sequence or as a text with commas; of no name there is None."""

    def convert(self, value: Any) -> tuple[str, ...] | None:
        parts: Iterable[Any] = [value] if isinstance(value, str) else value
        names = (name.strip() for part in parts for name in str(part).split(","))
        return tuple(name for name in names if name) or None

    def to_words(self, value: Sequence[str]) -> list[str]:
        return [",".join(value)]

    def values(self) -> str:
        return "names, separated by commas"


class Region(OptionType):
    """A box with edges along the patient's axes: its smallest and its largest LPS coordinates, in mm.

    On the command line, the RAS coordinates of any two opposite corners, as Slicer shows them.
    """

    words: ClassVar[int | None] = 6
    word: ClassVar[Any] = float

    def convert(self, value: Any) -> tuple[Corner, Corner]:
        low, high = (_corner(corner) for corner in value)
        if not all(first < second for first, second in zip(low, high, strict=True)):
            raise ValueError("empty")
        return low, high

    def from_words(self, words: Sequence[float]) -> tuple[Corner, Corner]:
        pairs = zip((-1, -1, 1), words[:3], words[3:], strict=True)
        x, y, z = (sorted((sign * first, sign * second)) for sign, first, second in pairs)
        return (x[0], y[0], z[0]), (x[1], y[1], z[1])

    def to_words(self, value: tuple[Corner, Corner]) -> list[str]:
        # No exponents: argparse takes what begins with a dash and is not a plain number for an option.
        return [f"{Decimal(repr(number)):f}" for x, y, z in value for number in (-x, -y, z)]

    def values(self) -> str:
        return "two corners that differ along all axes"


class LevelPlaces(OptionType):
    """Levels of vertebrae, each with a point of that vertebra: its name, and RAS coordinates in mm.

    A value is a text ("L5=12.5,-30,870"), or a sequence of texts or of (name, right, anterior, superior); of none of
    them there is None.
    """

    repeated: ClassVar[bool] = True

    def convert(self, value: Any) -> tuple[LevelPlace, ...] | None:
        places = tuple(map(_level_place, [value] if isinstance(value, str) else value))
        if len({name for name, *_point in places}) < len(places):
            raise ValueError("a level twice")
        return places or None

    def to_words(self, value: Sequence[LevelPlace]) -> list[str]:
        return [f"{name}={','.join(map(repr, point))}" for name, *point in value]

    def values(self) -> str:
        return "a level and a point in patient coordinates (RAS, mm), such as L5=12.5,-30,870; each level once"


@dataclass(frozen=True)
class Declaration:
    """What is said of an option.

    Attributes
    ----------
    kind : OptionType
    help : str
        For the command line; of a `Switch`, what naming it does.
    metavar : str, tuple of str or None
        Stands for the value in the command line's help.
    title : str
        What errors call it; by default its name.
    flag : str
        What the command line calls it; by default its name.
    error : type of SegMambaError
        Of the error for a wrong value.
    """

    kind: OptionType
    help: str
    metavar: str | tuple[str, ...] | None = None
    title: str = ""
    flag: str = ""
    error: type[SegMambaError] = InputError


def option(kind: OptionType, help: str, default: Any = MISSING, **more: Any) -> Any:
    """Return a dataclass field that is an option; ``more`` as for `Declaration`. A default of None allows None."""
    return field(default=default, metadata={KEY: Declaration(kind, help, **more)})


def declared(owner: Any) -> dict[str, tuple[Field[Any], Declaration]]:
    """Return the options of a dataclass or an instance of one, by name."""
    return {each.name: (each, each.metadata[KEY]) for each in fields(owner) if KEY in each.metadata}


def convert_options(owner: Any) -> None:
    """Check all options of a new instance, and keep them as their types have them; for ``__post_init__``.

    Raises
    ------
    SegMambaError
        Of the kind that the option declares.
    """
    for name, (each, declaration) in declared(owner).items():
        value = getattr(owner, name)
        if value is None and each.default is None:
            continue
        try:
            # The class may be frozen.
            object.__setattr__(owner, name, declaration.kind.convert(value))
        except (TypeError, ValueError) as error:
            title = declaration.title or name.replace("_", " ")
            raise declaration.error(declaration.kind.problem(title, value)) from error


def _named(word: str) -> tuple[str, str]:
    name, sign, path = word.partition("=")
    if not sign:
        raise ValueError("no name")
    return name.strip(), path


def _level_place(value: Any) -> LevelPlace:
    """Return a level's name, in capitals, and a point, from a text or a sequence."""
    if isinstance(value, str):
        name, _equals, point = value.partition("=")
        value = (name, *point.split(","))
    name, right, anterior, superior = value
    name = str(name).strip().upper()
    place = (name, float(right), float(anterior), float(superior))
    if not re.fullmatch(LEVEL, name) or not all(map(math.isfinite, place[1:])):
        raise ValueError("not a level and a point")
    return place


def _corner(values: Any) -> Corner:
    x, y, z = (float(value) for value in values)
    return x, y, z
