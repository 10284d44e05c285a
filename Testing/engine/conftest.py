"""What several tests of the spine share."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest
from helpers.modelled_spine import modelled

from segmamba.models.resources import SHAPES, resource_root
from segmamba.spine.shape_model import ShapeModel, load_shapes


@pytest.fixture(autouse=True)
def no_scan_is_left_chosen() -> Iterator[None]:
    """A run that has to go to the processor chooses the scan for all that follow in its process."""
    yield
    if "segmamba.scan" in sys.modules:
        sys.modules["segmamba.scan"].set_backend(None)


@pytest.fixture(scope="session")
def shapes() -> ShapeModel:
    """The shape model that comes with the software."""
    return load_shapes(resource_root() / SHAPES)


@pytest.fixture(scope="session")
def column(shapes: ShapeModel) -> np.ndarray:
    """T12 to L3, as that model has them."""
    return modelled(shapes, (19, 20, 21, 22))
