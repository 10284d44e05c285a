"""What several tests of the spine share."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.modelled_spine import modelled

from segmamba.models.resources import SHAPES, resource_root
from segmamba.spine.shape_model import ShapeModel, load_shapes


@pytest.fixture(scope="session")
def shapes() -> ShapeModel:
    """The shape model that comes with the software."""
    return load_shapes(resource_root() / SHAPES)


@pytest.fixture(scope="session")
def column(shapes: ShapeModel) -> np.ndarray:
    """T12 to L3, as that model has them."""
    return modelled(shapes, (19, 20, 21, 22))
