"""A labelled data set: which images belong together, what their labels mean, and whose they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

IMAGE_EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")


@dataclass(frozen=True)
class Case:
    """The images of one examination, and its labels.

    Attributes
    ----------
    name : str
    images : tuple of Path
        One a channel, on one grid; or a single one, of four dimensions, for several channels.
    labels : Path
    person : str
        Whose it is: all cases of one person go into the same part of a split.
    drawn : tuple of str or None
        The structures that were drawn, where only some were; None: all of them.
    """

    name: str
    images: tuple[Path, ...]
    labels: Path
    person: str
    drawn: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Dataset:
    """A labelled data set.

    Attributes
    ----------
    folder : Path
    channels : tuple of str
        What each image of a case is, e.g. ("CT",) or ("T2", "T1").
    labels : mapping of str to int
        Name and value of each structure, in ascending order of values; the background (0) is not in it. Of regions the
        value that the result has in each, in the order in which they lie over one another.
    ignore : int or None
        The value of voxels that nobody has labelled.
    cases : tuple of Case
        Sorted by name.
    regions : mapping of str to tuple of int
        Where the structures are regions that may overlap: the label values that each is made of. Else empty.
    unlabelled : tuple of Path
        Images that belong to no labels: they are left out.
    """

    folder: Path
    channels: tuple[str, ...]
    labels: Mapping[str, int]
    ignore: int | None
    cases: tuple[Case, ...]
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    unlabelled: tuple[Path, ...] = ()

    @property
    def values(self) -> tuple[int, ...]:
        """The values that label maps may hold besides the background."""
        return values_of(self.labels, self.regions)

    @property
    def is_ct(self) -> bool:
        """Whether all channels are CT, whose intensities mean the same everywhere."""
        return all(channel.upper() == "CT" for channel in self.channels)


def values_of(labels: Mapping[str, int], regions: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Return the values of label maps: those of the structures, or all that regions are made of, ascending."""
    return tuple(sorted({value for values in regions.values() for value in values})) or tuple(labels.values())


def stem(path: Path) -> str:
    """Return a file's name without its extension, of which ``.nii.gz`` is one."""
    extension = next((e for e in IMAGE_EXTENSIONS if path.name.lower().endswith(e)), path.suffix)
    return path.name[: len(path.name) - len(extension)]


def images_in(folder: Path) -> Sequence[Path]:
    """Return the image files of a folder, sorted; hidden ones are left out. Empty where there is no folder."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.name.lower().endswith(IMAGE_EXTENSIONS))
    return sorted(path for path in found if not path.name.startswith("."))
