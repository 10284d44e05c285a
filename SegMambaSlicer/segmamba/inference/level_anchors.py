"""Levels that a run is given: by a person, and by another segmentation in the same frame of reference."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segmamba.errors import InputError
from segmamba.inference.model_grid import ModelGrid
from segmamba.io.level_map import read_levels
from segmamba.io.volume import Geometry
from segmamba.models.manifest import Model
from segmamba.request import Options
from segmamba.spine.anchors import ANCHOR_MM, Anchor
from segmamba.spine.levels import ORDER, level_name, level_named
from segmamba.utils.arrays import label_boxes
from segmamba.utils.paths import check_input

PERSON, SEGMENTATION = "person", "segmentation"


@dataclass(frozen=True)
class LevelAnchor:
    """A level that is set at a point of the patient.

    Attributes
    ----------
    level : int
    ras_mm : tuple of float
        Patient coordinates, RAS.
    source : str
        `PERSON` or `SEGMENTATION`.
    """

    level: int
    ras_mm: tuple[float, float, float]
    source: str = PERSON

    def on_grid(self, grid: ModelGrid) -> Anchor:
        """Return the anchor on a model's grid, whose axes are LPS."""
        return Anchor(self.level, np.subtract(self._lps, grid.geometry.origin)[::-1], self.source == PERSON)

    def distance_from(self, geometry: Geometry) -> float:
        """Return how far outside a grid the point lies, in mm; 0 within."""
        index = (np.linalg.inv(geometry.affine) @ [*self._lps, 1.0])[:3]
        outside = index - np.clip(index, -0.5, np.array(geometry.size) - 0.5)
        return float(np.linalg.norm(geometry.affine[:3, :3] @ outside))

    def describe(self, used: bool) -> dict[str, Any]:
        """Return the anchor as JSON."""
        return {
            "level": level_name(self.level),
            "ras_mm": [round(value, 2) for value in self.ras_mm],
            "set_by": self.source,
            "used": used,
        }

    @property
    def _lps(self) -> np.ndarray:
        right, anterior, superior = self.ras_mm
        return np.array([-right, -anterior, superior])


def level_anchors(options: Options, geometry: Geometry, model: Model) -> tuple[LevelAnchor, ...]:
    """Return the levels that a run is given, those of a person first.

    Parameters
    ----------
    options : Options
    geometry : Geometry
        Of the volume.
    model : Model

    Raises
    ------
    InputError
        The model has no levels, an anchor lies outside the volume, or the other segmentation cannot be read or has no
        vertebra there.
    """
    if not options.anchor and options.levels_from is None:
        return ()
    if model.fine is None:
        raise InputError(f"The model '{model.id}' does not count vertebrae: leave out anchors and levels of others.")
    of_person = [LevelAnchor(_level(name), (r, a, s)) for name, r, a, s in options.anchor or ()]
    for anchor in of_person:
        if anchor.distance_from(geometry) > ANCHOR_MM:
            where = ", ".join(f"{value:g}" for value in anchor.ras_mm)
            raise InputError(
                f"The anchor {level_name(anchor.level)}={where} lies outside the volume: give a point of that vertebra "
                "in patient coordinates (RAS, mm)."
            )
    return (*of_person, *(_of_segmentation(Path(options.levels_from), geometry) if options.levels_from else ()))


def _level(name: str) -> int:
    level = level_named(name)
    assert level is not None, name  # the option's type has checked it
    return level


def _of_segmentation(path: Path, geometry: Geometry) -> list[LevelAnchor]:
    found = [LevelAnchor(level, place, SEGMENTATION) for level, place in read_centroids(path).items()]
    inside = [anchor for anchor in found if anchor.distance_from(geometry) == 0]
    if not inside:
        raise InputError(
            f"None of the vertebrae of {path} lies in the volume: give a segmentation in the same frame of reference."
        )
    return inside


def read_centroids(path: Path) -> dict[int, tuple[float, float, float]]:
    """Return the centroid (RAS, mm) of each vertebra of a segmentation, by level.

    Parameters
    ----------
    path : Path
        A label map with VerSe's numbers, a ``.seg.nrrd``, whose segments' names ("L5 vertebra", "L5") count, or a
        ``.json`` of centroids by name: ``{"L5": [right, anterior, superior]}``.

    Raises
    ------
    InputError
        It cannot be read, or has no vertebrae.
    """
    if path.suffix.lower() == ".json":
        return _centroids_of_json(path)
    volume = read_levels(path)
    found = {}
    for level, box in label_boxes(volume.array).items():
        if level in ORDER:
            index = np.argwhere(volume.array[box] == level).mean(axis=0) + [part.start for part in box]
            x, y, z = (volume.geometry.affine @ [*index[::-1], 1.0])[:3].tolist()
            found[level] = (-x, -y, z)
    return found


def _centroids_of_json(path: Path) -> dict[int, tuple[float, float, float]]:
    check_input(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = {level_named(name): tuple(map(float, place)) for name, place in content.items()}
        if (
            None in found
            or not found
            or any(len(place) != 3 or not np.isfinite(place).all() for place in found.values())
        ):
            raise ValueError("not levels and points")
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise InputError(
            f'{path} is not a file of centroids: give {{"L5": [right, anterior, superior]}} in mm, with a point for '
            "each level."
        ) from error
    return {level: (r, a, s) for level, (r, a, s) in found.items() if level is not None}
