"""The modality of a volume: decided once, and whether it suits a model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from segmamba.errors import InputError
from segmamba.io.volume import USER, VALUES, Volume
from segmamba.models.manifest import Model

# Air, fat, water and bone span more than this in any CT in Hounsfield units.
SMALLEST_CT_RANGE = 100
CT, MR, AUTO = "CT", "MR", "auto"
# A constant this dark may be air, or what a program wrote beside an MR when it resampled it: it decides nothing.
DARKEST_TISSUE = -200
# Air and lung lie below this in Hounsfield units. Splines take an MR's values there at the edges of a dark background.
LUNG, SMALLEST_AIR_PART = -300, 0.1
# Fat lies between -200 and this; so does the noise of an MR around zero, but only as far as a part of its bright end.
FAT, RINGING, SMALLEST_FAT_PART = -50, 0.03, 0.02
# A drawing, such as a phantom without noise, has fewer values than any scan.
FEWEST_VALUES = 64
# Of a patient in a scanner, fat, water and muscle are a large part and dense bone or metal a small one. An offset of
# about 1000 that was left out or applied twice moves them out of their range.
SOFTEST, SMALLEST_SOFT_PART = 300, 0.02
DENSE_BONE, LARGEST_DENSE_PART = 700, 0.25
VALUES_LOOKED_AT = 1_000_000


def resolve_modality(volume: Volume, chosen: str = AUTO) -> Volume:
    """Return a volume with its modality: as the user, its source or its values say.

    This is where the modality of a run is decided, once, at its start. What comes after reads ``volume.modality``.

    Parameters
    ----------
    volume : Volume
    chosen : str
        "CT" or "MR" where the user says it, which wins; "auto" for what the source states or else the values suggest.
    """
    if chosen != AUTO:
        return replace(volume, modality=chosen, modality_from=USER)
    if volume.modality is not None:
        return volume
    return replace(volume, modality=infer_modality(volume.array), modality_from=VALUES)


def infer_modality(array: np.ndarray) -> str:
    """Return the modality that intensities suggest: CT where a part of them are those of air, lung or fat; else MR.

    A part, so that single voxels do not decide: splines take an MR below zero. And not one constant: programs fill
    what lies beside an MR with -1000 or -1024.
    """
    found, counts = _counted(_sample(array))
    most = counts.argmax()
    if found[most] < DARKEST_TISSUE and len(found) > FEWEST_VALUES:
        found, counts = np.delete(found, most), np.delete(counts, most)
    bright = found[np.searchsorted(counts.cumsum(), 0.99 * counts.sum())]
    dark = min(FAT, -RINGING * float(bright))
    air = counts[found < LUNG].sum() / counts.sum()
    fat = counts[(found >= DARKEST_TISSUE) & (found < dark)].sum() / counts.sum()
    return CT if air > SMALLEST_AIR_PART or fat > SMALLEST_FAT_PART else MR


def model_for_modality(volume: Volume, model: Model, chosen: str = AUTO) -> Model:
    """Return a model with the preprocessing for a volume's modality; ``chosen`` as for `resolve_modality`."""
    if model.mr_preprocessing is None or resolve_modality(volume, chosen).modality != MR:
        return model
    return replace(model, preprocessing=model.mr_preprocessing)


def modality_note(volume: Volume, model: Model) -> str | None:
    """Return a sentence that says what a volume was taken for, where nobody states it and the model takes both."""
    if not volume.modality_inferred or not {CT, MR} <= set(model.modalities):
        return None
    other = MR if volume.modality == CT else CT
    why = "has" if volume.modality == CT else "does not have"
    hint = ", with its values in Hounsfield units" if other == CT else ""
    return (
        f"The file does not say its modality. It was taken for {volume.modality}, as it {why} the values of air or fat "
        f"in Hounsfield units: if it is {other}, say so (--modality {other}){hint}."
    )


def modality_warning(volume: Volume, model: Model) -> str | None:
    """Return a sentence where a person has to check a volume's modality or its Hounsfield units; else None."""
    volume = resolve_modality(volume)
    if volume.modality == CT:
        return _doubt_of_hounsfield_units(volume.array)
    return modality_note(volume, model)


def _sample(array: np.ndarray) -> np.ndarray:
    """Return some of the values of an array, from all over it."""
    # An odd number that no length of an axis is likely to be a multiple of, so that no column is left out.
    step = max(1, array.size // VALUES_LOOKED_AT) | 1
    sampled: np.ndarray = array.ravel()[::step]
    return sampled


def _counted(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what values there are, from the lowest up, and how often each is there."""
    if values.dtype.kind not in "iu" or values.dtype.itemsize > 2:
        return np.unique(values, return_counts=True)
    # Sorting takes ten times as long.
    lowest = int(values.min())
    counts = np.bincount(values.astype(np.int64) - lowest)
    found = np.flatnonzero(counts)
    return found + lowest, counts[found]


def _doubt_of_hounsfield_units(array: np.ndarray) -> str | None:
    """Return a sentence if a CT's values look as if an offset of about 1000 was left out or applied twice."""
    values = _sample(array).astype(float)
    if np.mean(values > DENSE_BONE) > LARGEST_DENSE_PART:
        what = f"More than a quarter of the volume is as bright as dense bone (above {DENSE_BONE})"
    elif np.mean(np.abs(values) < SOFTEST) < SMALLEST_SOFT_PART and not _holds_muscle(values):
        what = f"Hardly anything in the volume is between -{SOFTEST} and {SOFTEST}, where fat, water and muscle are"
    else:
        return None
    return f"{what}: if its values are not Hounsfield units (an offset of 1024?), convert them and segment it again."


def _holds_muscle(values: np.ndarray) -> bool:
    """Say whether values beyond fat are mostly those of muscle, as in a small body in much air.

    What an offset too many brings there is dense bone, the more of it the darker.
    """
    muscle, dark = (np.count_nonzero((values >= low) & (values < low + 150)) for low in (0, -SOFTEST))
    return bool(muscle > 2 * dark)


def check_modality(volume: Volume, model: Model, chosen: str = AUTO, name: str = "The volume") -> None:
    """Refuse a volume that a model was not made for.

    Formats other than DICOM do not state the modality: there, the values say it (`infer_modality`), or the user does.
    What is a CT has values that can be Hounsfield units: some are below zero (fat or air), unless the user says that
    it is CT, and they span more than 100.

    Parameters
    ----------
    volume : Volume
    model : Model
    chosen : str
        As for `resolve_modality`.
    name : str
        What errors call it.

    Raises
    ------
    InputError
        The modality is another one, or the intensities cannot be Hounsfield units.
    """
    volume = resolve_modality(volume, chosen)
    takes = " and ".join(model.modalities)
    low, high = float(volume.array.min()), float(volume.array.max())
    if not volume.modality_inferred and volume.modality not in model.modalities:
        raise InputError(
            f"{name} is {volume.modality} and the model '{model.id}' takes {takes}: choose another model or volume."
        )
    if volume.modality_inferred and volume.modality == CT and CT not in model.modalities:
        raise InputError(
            f"{name} has air or fat in Hounsfield units, so it is a CT, and the model '{model.id}' takes {takes}: "
            f"choose another model or volume, or say that it is {takes} (--modality {takes})."
        )
    if CT not in model.modalities or (MR in model.modalities and volume.modality == MR):
        return
    if low >= 0 and volume.modality_from != USER:
        raise InputError(
            f"{name}'s values start at {low:g}, so it is an MR image or a CT that is not in Hounsfield units, and "
            f"the model '{model.id}' takes CT: choose a CT, or convert its values to Hounsfield units."
        )
    if high - low < SMALLEST_CT_RANGE:
        raise InputError(
            f"{name}'s values go from {low:g} to {high:g}, which cannot be Hounsfield units, and the model "
            f"'{model.id}' takes {takes}: convert its values to Hounsfield units."
        )
    if volume.modality not in model.modalities:
        raise InputError(
            f"{name} has hardly any value of air or fat in Hounsfield units, so it is an MR image, and the model "
            f"'{model.id}' takes {takes}: choose another volume, or say that it is CT (--modality CT)."
        )
