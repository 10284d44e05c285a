"""Cases on the network's grid, in files that are mapped into memory: a crop is read without the rest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segmamba.errors import InputError, OutputError
from segmamba.inference.model_grid import ModelGrid
from segmamba.io.volume import Geometry
from segmamba.training.dataset.plan import IGNORED
from segmamba.utils.atomic import atomic_write

# Places that are kept of each class, for samples centred on it.
PLACES = 5000
# What makes a `Geometry`.
PARTS = ("size", "spacing", "origin", "direction")


@dataclass(frozen=True, eq=False)
class CachedCase:
    """A case on the network's grid.

    Attributes
    ----------
    name, person : str
    image : ndarray of float16 (channels, z, y, x)
        Normalised; mapped from its file.
    labels : ndarray of uint8 (z, y, x)
        Classes, or `IGNORED`; mapped from its file.
    places : list of ndarray of int (n, 3)
        Voxels (z, y, x) of each class from 1 on, at most `PLACES` of each.
    padding : tuple of float
        What each channel holds beyond the volume.
    grid : ModelGrid
        Where the voxels lie in the patient.
    """

    name: str
    person: str
    image: np.ndarray
    labels: np.ndarray
    places: Sequence[np.ndarray]
    padding: tuple[float, ...]
    grid: ModelGrid


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case on the network's grid, in memory: attributes as in `CachedCase`."""

    image: np.ndarray
    labels: np.ndarray
    padding: tuple[float, ...]
    grid: ModelGrid


def write_case(folder: Path, name: str, person: str, case: PreparedCase, classes: int) -> None:
    """Write a case; its description last, so that a case that has one is whole.

    Raises
    ------
    OutputError
        A file cannot be written.
    """
    rng = np.random.default_rng(0)
    places = {f"class_{value}": _some_places(case.labels == value, rng) for value in range(1, classes)}
    with atomic_write(folder / f"{name}_image.npy", (".npy",)) as file:
        np.save(file, case.image.astype(np.float16))
    with atomic_write(folder / f"{name}_labels.npy", (".npy",)) as file:
        np.save(file, case.labels.astype(np.uint8))
    with atomic_write(folder / f"{name}_places.npz", (".npz",)) as file:
        np.savez(file, **places)  # type: ignore[arg-type]
    description = {"person": person, "padding": list(case.padding), "grid": described(case.grid)}
    with atomic_write(folder / f"{name}.json", (".json",)) as file:
        file.write_text(json.dumps(description), encoding="utf-8")


def read_case(folder: Path, name: str) -> CachedCase:
    """Return a case that `write_case` wrote.

    Raises
    ------
    InputError
        A file is missing or damaged.
    """
    try:
        description = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        image = np.load(folder / f"{name}_image.npy", mmap_mode="r")
        labels = np.load(folder / f"{name}_labels.npy", mmap_mode="r")
        with np.load(folder / f"{name}_places.npz") as content:
            places = [content[key] for key in sorted(content.files, key=lambda key: int(key.split("_")[1]))]
        grid = restored_grid(description["grid"])
        return CachedCase(name, description["person"], image, labels, places, tuple(description["padding"]), grid)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"The cached case {folder / name} is damaged: delete {folder}, and it is rebuilt.") from error


def is_cached(folder: Path, name: str) -> bool:
    """Whether a case was written whole."""
    return (folder / f"{name}.json").is_file()


def make_folder(folder: Path) -> None:
    """Make a folder with all above it. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {folder} cannot be created: choose another one.") from error


def as_classes(labels: np.ndarray, values: Sequence[int], ignore: int | None) -> np.ndarray:
    """Return a label map in classes: 0, 1, ... in the order of ``values``, `IGNORED` where ``ignore`` was. uint8."""
    table = np.zeros(256, np.uint8)
    table[list(values)] = np.arange(1, len(values) + 1)
    if ignore is not None:
        table[ignore] = IGNORED
    return table[labels]


def _some_places(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    found = np.flatnonzero(mask)
    if len(found) > PLACES:
        found = np.sort(rng.choice(found, PLACES, replace=False))
    return np.stack(np.unravel_index(found, mask.shape), axis=1).astype(np.int32)


def described(grid: ModelGrid) -> dict[str, object]:
    """Return a grid as JSON."""
    crop = [[part.start, part.stop] for part in grid.crop]
    grids = {"geometry": grid.geometry, "input": grid.input}
    return {name: {part: getattr(one, part) for part in PARTS} for name, one in grids.items()} | {"crop": crop}


def restored_grid(described: dict[str, Any]) -> ModelGrid:
    """Return the grid that `described` wrote."""
    grids = []
    for name in ("geometry", "input"):
        parts: dict[str, Any] = {part: tuple(described[name][part]) for part in PARTS}
        grids.append(Geometry(**parts))
    z, y, x = (slice(int(first), int(last)) for first, last in described["crop"])
    return ModelGrid(grids[0], grids[1], (z, y, x))
