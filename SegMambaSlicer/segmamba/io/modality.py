"""The modality of a volume: decided once, and whether it suits a model."""

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


def resolve_modality(volume: Volume) -> Volume:
    """Return a volume with its modality: the one that its source states, or else the one that its values suggest.

    This is where the modality of a run is decided, once, at its start. What comes after reads ``volume.modality``.
    """
    if volume.modality is not None:
        return volume
    return replace(volume, modality=infer_modality(volume.array), modality_inferred=True)


def infer_modality(array: np.ndarray) -> str:
    """Return the modality that intensities suggest: MR where none is below -100, else CT."""
    return MR if float(array.min()) >= DARKEST_MR else CT


def model_for_modality(volume: Volume, model: Model) -> Model:
    """Return a model with the preprocessing for a volume's modality."""
    if model.mr_preprocessing is None or resolve_modality(volume).modality != MR:
        return model
    return replace(model, preprocessing=model.mr_preprocessing)


def modality_warning(volume: Volume, model: Model) -> str | None:
    """Return a sentence where a person has to check a volume's modality or its Hounsfield units; else None."""
    volume = resolve_modality(volume)
    if volume.modality == CT:
        return _doubt_of_hounsfield_units(volume.array)
    if model.mr_preprocessing is None or not volume.modality_inferred:
        return None
    return (
        f"The file does not say its modality, and no value in it is below {DARKEST_MR}, so it was taken for MR: if it "
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
    what has values below -100 is a CT (`infer_modality`) and has to span as much.

    Raises
    ------
    InputError
        The modality is another one, or the intensities cannot be Hounsfield units.
    """
    volume = resolve_modality(volume)
    takes = " and ".join(model.modalities)
    if not volume.modality_inferred and volume.modality not in model.modalities:
        raise InputError(
            f"The volume is {volume.modality} and the model '{model.id}' takes {takes}: choose another model or volume."
        )
    if CT not in model.modalities or (MR in model.modalities and volume.modality == MR):
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
