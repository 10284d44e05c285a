"""CT or MR is decided by parts of the values, said in both directions, and the user's word wins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from helpers.phantoms import phantom, spine_model

from segmamba.errors import InputError
from segmamba.io.modality import (
    check_modality,
    infer_modality,
    modality_note,
    modality_warning,
    model_for_modality,
    resolve_modality,
)
from segmamba.io.volume import Geometry, Volume
from segmamba.models.manifest import Model

SIZE = 40
PLACE = Geometry((SIZE,) * 3, (2.0,) * 3, (0.0,) * 3, (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))


def both() -> Model:
    from dataclasses import replace

    model = spine_model()
    return replace(model, modalities=("CT", "MR"), mr_preprocessing=replace(model.preprocessing, fill_value=0.0))


def mr(largest: float = 500.0) -> np.ndarray:
    """Return an MR: air around zero, and a body of many values."""
    rng = np.random.default_rng(0)
    array = rng.gamma(3, largest / 8, (SIZE,) * 3)
    array[:, :10] = np.abs(rng.normal(0, largest / 100, (SIZE, 10, SIZE)))
    return np.rint(array).astype(np.int32)


def ct(air: bool = True) -> np.ndarray:
    """Return a CT: fat, muscle, some bone, and air unless it is cropped."""
    rng = np.random.default_rng(0)
    array = rng.normal(50, 25, (SIZE,) * 3)
    array[:, :6] = rng.normal(-100, 20, (SIZE, 6, SIZE))
    array[:4] = rng.normal(500, 200, (4, SIZE, SIZE))
    if air:
        array[:, -10:] = rng.normal(-1000, 10, (SIZE, 10, SIZE))
    return np.rint(array).astype(np.int32)


def changed(array: np.ndarray, change: Callable[[np.ndarray], None]) -> np.ndarray:
    change(array)
    return array


def ringing(array: np.ndarray) -> None:
    """Do what splines do beside an edge: some of the dark voxels become a little negative."""
    rng = np.random.default_rng(1)
    dark = np.flatnonzero(array < np.percentile(array, 20))
    array.flat[rng.choice(dark, len(dark) // 2)] = -rng.integers(0, int(0.01 * array.max()), len(dark) // 2)


def border(array: np.ndarray) -> None:
    """Put a dark constant beside an MR, and what linear interpolation makes between the two."""
    array[:, :12] = -1024
    array[:, 12] = (array[:, 12] - 1024) // 2


MRS = {
    "as it is": mr(),
    "three voxels below -100": changed(mr(), lambda a: a[0, 0].__setitem__(slice(3), -101)),
    "a hundredth far below zero": changed(mr(), lambda a: a.reshape(-1)[::101].__setitem__(slice(None), -400)),
    "a background of -1024": changed(mr(), lambda a: a[:, :12].__setitem__(slice(None), -1024)),
    "a background of -1000 all around": changed(mr(), lambda a: a[:, :30].__setitem__(slice(None), -1000)),
    "a background with an interpolated border": changed(mr(), border),
    "ringing": changed(mr(), ringing),
    "large values with ringing": changed(mr(20000), ringing),
    "0 to 4000 with three of -150": changed(mr(4000), lambda a: a[0, 0].__setitem__(slice(3), -150)),
    "normalised": mr() / 100.0 - 1.0,
    "8 bits": np.clip(mr(255), 0, 255).astype(np.uint8),
}
CTS = {
    "as it is": ct(),
    "cropped to soft tissue": ct(air=False),
    "padded with -2000": changed(ct(), lambda a: a[:, :, :8].__setitem__(slice(None), -2000)),
    "air clipped at -1024": np.maximum(changed(ct(), lambda a: a.__isub__((a < -900) * 100)), -1024),
    "mostly air": changed(ct(), lambda a: a[:36].__setitem__(slice(None), np.int32(-1000))),
    "phantom without noise": phantom().array,
    "windowed": np.clip(ct(), -160, 240),
}


@pytest.mark.parametrize("name", MRS)
def test_an_mr_is_taken_for_mr(name: str) -> None:
    assert infer_modality(MRS[name]) == "MR"


@pytest.mark.parametrize("name", CTS)
def test_a_ct_is_taken_for_ct(name: str) -> None:
    assert infer_modality(CTS[name]) == "CT"


@pytest.mark.parametrize(("array", "taken", "other"), [(mr(), "MR", "CT"), (ct(), "CT", "MR")])
def test_what_was_guessed_is_said_in_both_directions(array: np.ndarray, taken: str, other: str) -> None:
    volume = resolve_modality(Volume(array, PLACE))
    said = modality_note(volume, both())
    assert said is not None and f"taken for {taken}" in said and f"--modality {other}" in said
    assert modality_note(resolve_modality(Volume(array, PLACE), taken), both()) is None
    assert modality_note(resolve_modality(Volume(array, PLACE, taken)), both()) is None
    assert modality_note(volume, spine_model()) is None


@pytest.mark.parametrize("stated", [None, "CT", "MR"])
@pytest.mark.parametrize("chosen", ["CT", "MR"])
def test_the_users_word_wins(stated: str | None, chosen: str) -> None:
    volume = Volume(ct() + 1100, PLACE, stated)
    check_modality(volume, both(), chosen)
    resolved = resolve_modality(volume, chosen)
    assert (resolved.modality, resolved.modality_inferred) == (chosen, False)
    assert (model_for_modality(volume, both(), chosen).preprocessing.fill_value == 0.0) == (chosen == "MR")
    assert bool(modality_warning(resolved, both())) == (chosen == "CT")


def test_an_mr_is_not_given_to_a_model_for_ct_unless_the_user_says_ct() -> None:
    volume = Volume(MRS["a background of -1024"], PLACE)
    with pytest.raises(InputError, match="so it is an MR image.*--modality CT"):
        check_modality(volume, spine_model())
    check_modality(volume, spine_model(), "CT")
    with pytest.raises(InputError, match="The volume is MR"):
        check_modality(volume, spine_model(), "MR")


def test_a_ct_is_not_given_to_a_model_for_mr_unless_the_user_says_mr() -> None:
    volume, mr_only = Volume(ct(), PLACE), replace(both(), modalities=("MR",))
    with pytest.raises(InputError, match="so it is a CT.*--modality MR"):
        check_modality(volume, mr_only)
    check_modality(volume, mr_only, "MR")
    check_modality(Volume(MRS["normalised"], PLACE), mr_only)


def test_a_small_body_in_much_air_is_no_doubt_of_hounsfield_units() -> None:
    array = np.full((60, 60, 60), -1000, np.int16)
    array[28:33, 25:35, 25:35] = ct(air=False)[:5, :10, :10]
    assert modality_warning(Volume(array, PLACE, "CT"), both()) is None
    assert modality_warning(Volume(array - 1024, PLACE, "CT"), both()) is not None
