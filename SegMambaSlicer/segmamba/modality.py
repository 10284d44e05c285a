"""Does a volume suit a model, and as what?"""

from __future__ import annotations

from dataclasses import replace

from segmamba.errors import InputError
from segmamba.manifest import Model
from segmamba.volume import Volume

# Air, fat, water and bone span more than this in any CT in Hounsfield units.
SMALLEST_CT_RANGE = 100
CT, MR = "CT", "MR"
# Fat and air of any CT in Hounsfield units are darker than this; an MR image that was resampled with splines may go a
# little below zero.
DARKEST_MR = -100


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
    if model.mr_preprocessing is None or volume.modality is not None or taken_for(volume) != MR:
        return None
    return (
        f"The file does not say its modality, and nothing in it is below {DARKEST_MR}, so it was taken for MR: if it "
        "is a CT, convert its values to Hounsfield units."
    )


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
