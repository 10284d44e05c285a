"""A case on the network's grid, made by the very steps that a model's input goes through when it segments."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from segmamba.inference.preprocess import padding_values, resample_to_model
from segmamba.io.read import read_image
from segmamba.io.volume import Geometry, Volume, to_image
from segmamba.models.manifest import Model, ModelFile, Postprocessing
from segmamba.training.dataset.cache import PreparedCase, as_classes, is_cached, make_folder, write_case
from segmamba.training.dataset.checks import check_grids
from segmamba.training.dataset.images import read_images
from segmamba.training.dataset.layout import Case
from segmamba.training.dataset.partial import DrawnSets, with_codes
from segmamba.training.dataset.plan import Plan
from segmamba.utils.arrays import as_labels
from segmamba.utils.parallel import processors

LARGEST_VALUE = 254


def fill_cache(cases: Iterable[Case], plan: Plan, folder: Path, sets: DrawnSets = ()) -> None:
    """Prepare and write the cases that are not in a cache yet, one on each processor.

    ``sets`` are those of `segmamba.training.dataset.partial.drawn_sets`.

    Raises
    ------
    InputError, DeviceError
        As `segmamba.io.volume.read_volume`; the sentence names the file.
    OutputError
        The cache cannot be written.
    """
    make_folder(folder)
    missing = [case for case in cases if not is_cached(folder, case.name)]

    def add(case: Case) -> None:
        made = prepare(case, plan)
        made = replace(made, labels=with_codes(made.labels, case, sets))
        write_case(folder, case.name, case.person, made, plan.classes)

    with ThreadPoolExecutor(processors()) as pool:
        # In the order of the cases, so that the same broken file is named each time.
        for _ in pool.map(add, missing):
            pass


def prepare(case: Case, plan: Plan) -> PreparedCase:
    """Read a case and bring it to the plan's grid: intensities normalised, labels as classes.

    Raises
    ------
    InputError, DeviceError
        See `fill_cache`.
    """
    volumes, drawn = read_images(case, len(plan.channels)), read_image(case.labels)
    check_grids(case, volumes, drawn)
    model = _model(plan)
    channels = tuple(volume.array for volume in volumes) if model.input_channels else ()
    image, grid = resample_to_model(replace(volumes[0], channels=channels), model)
    padding = padding_values(model, torch.from_numpy(image))
    labels = labels_on_grid(drawn, grid.geometry, str(case.labels))
    return PreparedCase(image, as_classes(labels, plan.values, plan.ignore), padding, grid)


def labels_on_grid(labels: Volume, geometry: Geometry, name: str) -> np.ndarray:
    """Return the label of most weight at each voxel of a grid, uint8 (z, y, x); 0 outside the label map.

    Each label is interpolated linearly, which keeps surfaces smooth where a nearest voxel would make steps.

    Raises
    ------
    InputError
        The label map, called ``name``, holds something else than whole values from 0 to 254.
    """
    image = to_image(as_labels(labels.array, LARGEST_VALUE, name), labels.geometry)
    resampled = sitk.Resample(
        image,
        geometry.size,
        sitk.Transform(),
        sitk.sitkLabelLinear,
        geometry.origin,
        geometry.spacing,
        geometry.direction,
    )
    return sitk.GetArrayFromImage(resampled)


def _model(plan: Plan) -> Model:
    """Return a model that has nothing but a grid and intensities."""
    file = ModelFile("", None, None, None)
    return Model(
        id="",
        version="",
        title="",
        task="",
        architecture="",
        arguments={},
        modalities=(),
        file=file,
        entry={},
        labels=(),
        channel_values=(),
        preprocessing=plan.preprocessing,
        input_channels=plan.input_channels,
        patch=(1, 1, 1),
        overlap=0.5,
        flip_axes=(),
        postprocessing=Postprocessing.NONE,
    )
