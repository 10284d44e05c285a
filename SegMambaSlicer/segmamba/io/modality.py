"""Does a volume suit a model, and as what?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from segmamba.errors import InputError
from segmamba.io.volume import Volume
from segmamba.models.manifest import Model

# Air, fat, water and bone span more than this in any CT in Hounsfield units.
SMALLEST_CT_RANGE = 100
CT, MR = "CT", "MR"
# Fat and air of any CT in Hounsfield units are darker than this; an MR image that was resampled with splines may go a
# little below zero.
DARKEST_MR = -100
# Of a patient in a scanner, fat, water and muscle are a large part and dense bone or metal a small one. An offset of
# about 1000 that was left out or applied twice moves them out of their range.
SOFTEST, SMALLEST_SOFT_PART = 300, 0.02
DENSE_BONE, LARGEST_DENSE_PART = 700, 0.25
VALUES_LOOKED_AT = 1_000_000


def for_volume(volume: Volume, model: Model) -> Model:
    """Return a model with the preprocessing for this volume's modality.

    Formats other than DICOM do not state the modality: there a model for both takes a volume without values below
    -100 for MR.
    """
    if model.mr_preprocessing is None or taken_for(volume) != MR:
        return model
    return replace(model, preprocessing=model.mr_preprocessing)


def taken_for(volume: Volume) -> str:
    """Return the modality of a volume, or the one that its values suggest."""
    if volume.modality is not None:
        return volume.modality
    return MR if float(volume.array.min()) >= DARKEST_MR else CT


def guess(volume: Volume, model: Model) -> str | None:
    """Return a sentence on what a volume was taken for, where a person has to check it; else None."""
    if taken_for(volume) == CT:
        return _doubt_of_hounsfield_units(volume.array)
    if model.mr_preprocessing is None or volume.modality is not None or taken_for(volume) != MR:
        return None
    return (
        f"The file does not say its modality, and nothing in it is below {DARKEST_MR}, so it was taken for MR: if it "
        "is a CT, convert its values to Hounsfield units."
    )


def _doubt_of_hounsfield_units(array: np.ndarray) -> str | None:
    """Return a sentence if a CT's values look as if an offset of about 1000 was left out or applied twice."""
    values = array.ravel()[:: max(1, array.size // VALUES_LOOKED_AT)]
    if np.mean(values > DENSE_BONE) > LARGEST_DENSE_PART:
        what = f"More than a quarter of the volume is as bright as dense bone (above {DENSE_BONE})"
    elif np.mean(np.abs(values.astype(float)) < SOFTEST) < SMALLEST_SOFT_PART:
        what = f"Hardly anything in the volume is between -{SOFTEST} and {SOFTEST}, where fat, water and muscle are"
    else:
        return None
    return f"{what}: if its values are not Hounsfield units (an offset of 1024?), convert them and segment it again."


def check_modality(volume: Volume, model: Model) -> None:
    """Refuse a volume that a model was not made for.

    Formats other than DICOM do not state the modality. There, a model for CT only accepts what can be in
    Hounsfield units: some values are below zero (fat or air), and they span more than 100. For one that takes both,
    what has values below -100 is a CT (`taken_for`) and has to span as much.

    Raises
    ------
    InputError
        The modality is another one, or the intensities cannot be Hounsfield units.
    """
    takes = " and ".join(model.modalities)
    if volume.modality is not None and volume.modality not in model.modalities:
        raise InputError(
            f"The volume is {volume.modality} and the model '{model.id}' takes {takes}: choose another model or volume."
        )
    if CT not in model.modalities or (MR in model.modalities and taken_for(volume) == MR):
        return
    low, high = float(volume.array.min()), float(volume.array.max())
    if low >= 0:
        raise InputError(
            f"The volume's values start at {low:g}, so it is an MR image or a CT that is not in Hounsfield units, and "
            f"the model '{model.id}' takes CT: choose a CT, or convert its values to Hounsfield units."
        )
    if high - low < SMALLEST_CT_RANGE:
        raise InputError(
            f"The volume's values go from {low:g} to {high:g}, which cannot be Hounsfield units, and the model "
            f"'{model.id}' takes {takes}: convert its values to Hounsfield units."
        )
