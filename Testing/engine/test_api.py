"""The public call and the names that `segmamba` offers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from helpers import tiny
from helpers.phantoms import AIR, WATER, phantom, rotation
from helpers.repository import PACKAGES

import segmamba
from segmamba import api
from segmamba.errors import InputError, ModelError, OutputError
from segmamba.inference import pipeline
from segmamba.io.convert import RAS_TO_LPS
from segmamba.io.labelmap import write_labelmap
from segmamba.io.read import read_image
from segmamba.io.volume import Geometry, Volume, to_image
from segmamba.models import store
from segmamba.models.manifest import load_manifest

AROUND_VERTEBRAE = Geometry((40, 34, 42), (2.0, 1.8, 2.4), (-38.0, -22.0, 48.0), rotation(8, 5))
QUICK = {"device": "cpu", "precision": "float32", "overlap": 0.0}


@pytest.fixture(scope="module")
def a_ct() -> Volume:
    return phantom(AROUND_VERTEBRAE)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The software's manifest is one of a tiny model, whose checkpoint is beside it."""
    folder = tmp_path_factory.mktemp("model")
    manifest = load_manifest(tiny.write_model(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "load_models", lambda: manifest)
        patch.setattr(store, "resource_root", lambda: folder)
        yield


@pytest.fixture(scope="module")
def of_volume(a_ct: Volume, tiny_model: None) -> pipeline.Result:
    """What `segmamba.segment` gives for a `Volume`."""
    return segmamba.segment(a_ct, "vertebrae", **QUICK)


def saved(ct: Volume, folder: Path) -> Path:
    path = folder / "ct.nii.gz"
    sitk.WriteImage(to_image(ct.array, ct.geometry), str(path))
    return path


IMAGES: dict[str, Callable[[Volume, Path], tuple[Any, np.ndarray | None]]] = {
    "path": lambda ct, folder: (saved(ct, folder), None),
    "text": lambda ct, folder: (str(saved(ct, folder)), None),
    "SimpleITK": lambda ct, folder: (to_image(ct.array, ct.geometry), None),
    "nibabel": lambda ct, folder: (nibabel.Nifti1Image(ct.array.T, RAS_TO_LPS @ ct.geometry.affine), None),
    "nibabel file": lambda ct, folder: (nibabel.load(saved(ct, folder)), None),
    "array": lambda ct, folder: (np.ascontiguousarray(ct.array.T), RAS_TO_LPS @ ct.geometry.affine),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_the_same_image_of_any_kind_gives_the_same_labels(
    kind: str, a_ct: Volume, of_volume: pipeline.Result, tmp_path: Path
) -> None:
    expected = of_volume
    image, affine = IMAGES[kind](a_ct, tmp_path)
    result = segmamba.segment(image, "vertebrae", affine=affine, **QUICK)
    assert len(np.unique(expected.labels)) > 1
    assert result.labels.shape == a_ct.array.shape
    np.testing.assert_allclose(result.geometry.affine, a_ct.geometry.affine, atol=1e-3)
    # Files round the grid, so that a voxel between two labels may get the other one.
    assert np.count_nonzero(result.labels != expected.labels) <= 1e-3 * np.count_nonzero(expected.labels)


def test_it_gives_what_the_pipeline_gives(a_ct: Volume, tiny_model: None) -> None:
    options = segmamba.Options(**QUICK)
    model = api.load_models().default("vertebrae")
    expected = pipeline.segment(a_ct, model, options)
    for result in (
        segmamba.segment(a_ct, model=tiny.MODEL_ID, options=options),
        segmamba.segment(a_ct, model=model, **QUICK),
        segmamba.segment(a_ct, "vertebrae", options=segmamba.Options(device="cuda"), **QUICK),
    ):
        np.testing.assert_array_equal(result.labels, expected.labels)
        assert result.report["run"]["options"] == expected.report["run"]["options"]


def test_a_result_is_saved_with_its_grid_and_names(a_ct: Volume, of_volume: pipeline.Result, tmp_path: Path) -> None:
    result = of_volume
    result.save(tmp_path / "spine.seg.nrrd")
    write_labelmap(tmp_path / "expected.seg.nrrd", result.labels, a_ct.geometry, result.model.labels)
    assert (tmp_path / "spine.seg.nrrd").read_bytes() == (tmp_path / "expected.seg.nrrd").read_bytes()
    np.testing.assert_allclose(read_image(tmp_path / "spine.seg.nrrd").geometry.affine, a_ct.geometry.affine)
    with pytest.raises(OutputError, match="no extension that can be written"):
        result.save(tmp_path / "spine.png")


def test_progress_is_shown(a_ct: Volume, tiny_model: None) -> None:
    stages = []
    segmamba.segment(a_ct, "vertebrae", progress=lambda stage, fraction: stages.append(stage), **QUICK)
    assert list(dict.fromkeys(stages)) == ["load", "preprocess", "predict", "postprocess"]


def test_what_cannot_be_is_refused_before_torch_runs(
    a_ct: Volume, tiny_model: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "segment", lambda *_: pytest.fail("the model runs"))
    with pytest.raises(ModelError, match="There is no task 'liver': choose one of vertebrae"):
        segmamba.segment(a_ct, "liver")
    with pytest.raises(ModelError, match="No task is given"):
        segmamba.segment(a_ct)
    with pytest.raises(ModelError, match="is for the task 'vertebrae', not 'colorectal'"):
        segmamba.segment(a_ct, "colorectal", model=tiny.MODEL_ID)
    with pytest.raises(InputError, match="The overlap is 3"):
        segmamba.segment(a_ct, "vertebrae", overlap=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'overlaps'"):
        segmamba.segment(a_ct, "vertebrae", overlaps=0.5)
    with pytest.raises(InputError, match="is MR and the model 'tiny-spine' takes CT"):
        segmamba.segment(Volume(a_ct.array, a_ct.geometry, "MR"), "vertebrae")
    with pytest.raises(InputError, match="not in Hounsfield units"):
        segmamba.segment(Volume(np.where(a_ct.array == AIR, 0, WATER), a_ct.geometry), "vertebrae")


def test_the_public_names_are_there_and_nothing_heavy_is_imported_for_them() -> None:
    program = (
        "import sys, segmamba\n"
        "assert set(segmamba.__all__) <= set(dir(segmamba))\n"
        "assert not {'numpy', 'SimpleITK', 'nibabel', 'torch', 'segmamba.errors'} & set(sys.modules)\n"
        "from segmamba import *\n"
        "assert callable(segment) and callable(read_volume) and callable(load_manifest)\n"
        "assert all(isinstance(kind, type) for kind in (Options, Volume, Geometry, SegMambaError))\n"
        "assert 'torch' not in sys.modules\n"
        "try:\n    segmamba.nothing\nexcept AttributeError as error:\n    print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(PACKAGES)}, capture_output=True, text=True, check=False
    )
    assert (run.stdout, run.stderr) == ("module 'segmamba' has no attribute 'nothing'\n", "")


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGES / "segmamba" / "py.typed").is_file()
