"""From file to file: what was computed is never lost to a writer, and what was assumed is in the report."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from helpers import tiny
from helpers.bright_bone import VALUE, bright_bone
from helpers.dicom_files import write_frames, write_slices
from helpers.phantoms import dice, grid_around_patient, phantom, rotation, true_labels
from helpers.stored_phantom import drawn, points_of, sheared

from segmamba.errors import InputError, OutputError
from segmamba.inference import file_to_file
from segmamba.inference.file_to_file import segment_file
from segmamba.io.read import read_image
from segmamba.io.stored_grid import StoredGrid
from segmamba.io.volume import to_image
from segmamba.reporting.preview import draw
from segmamba.request import Options, Request

__all__ = ["bright_bone"]


@pytest.fixture
def request_of(tmp_path: Path, bright_bone: None) -> Callable[..., Request]:
    """Return what makes the request of an input and an output."""
    (tmp_path / "model").mkdir()
    preprocessing = tiny.model_entry({})["preprocessing"] | {"spacing_mm": [5.0] * 3}
    manifest = str(tiny.write_model(tmp_path / "model", preprocessing=preprocessing))

    def make(source: Path, output: str, **more: object) -> Request:
        options = Options(device="cpu", precision="float32")
        return Request(str(source), str(tmp_path / output), "vertebrae", manifest=manifest, options=options, **more)

    return make


def some_ct(path: Path) -> Path:
    sitk.WriteImage(to_image(phantom().array, phantom().geometry), str(path))
    return path


def refuse(*_: object, **__: object) -> None:
    raise ValueError("the writer\ntakes no such thing")


@pytest.mark.parametrize("output", ["spine.nii.gz", "spine.seg.nrrd", "spine.dcm", "spine.rtstruct.dcm"])
def test_labels_that_a_writer_does_not_take_are_kept_in_another_file(
    output: str, tmp_path: Path, request_of: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    if output.endswith(".dcm"):
        write_slices(tmp_path / "in", phantom().array, phantom().geometry)
        source = tmp_path / "in"
    else:
        source = some_ct(tmp_path / "ct.nrrd")
    (tmp_path / "spine-old.nii.gz").write_bytes(b"of another run")
    for name in ("write_labelmap", "write_dicom"):
        monkeypatch.setattr(file_to_file, name, refuse)
    with pytest.raises(OutputError, match="The labels were kept in") as caught:
        segment_file(request_of(source, output))
    assert "\n" not in str(caught.value)
    kept = Path(re.search(r"kept in (\S+\.nii\.gz)", str(caught.value))[1])
    assert kept.parent == tmp_path and not (tmp_path / output).exists()
    assert dice(read_image(kept).array == VALUE, true_labels(phantom().geometry) > 0) > 0.85
    assert (tmp_path / "spine-old.nii.gz").read_bytes() == b"of another run"


def test_a_preview_is_drawn_in_a_child_process_where_there_are_some(
    tmp_path: Path, request_of: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[object] = []

    def call(function: object, *arguments: object) -> object:
        called.append(function)
        return b"a picture" if function is draw else function(*arguments)

    monkeypatch.setattr(file_to_file.helper_processes, "call", call)
    segment_file(request_of(some_ct(tmp_path / "ct.nrrd"), "out.nrrd", preview=str(tmp_path / "out.png")))
    assert draw in called
    assert (tmp_path / "out.png").read_bytes() == b"a picture"


def test_what_reading_assumed_is_in_the_report(tmp_path: Path, request_of: Callable[..., Request]) -> None:
    geometry = sheared(0.25)
    array, labels = drawn(points_of(StoredGrid.of(geometry)))
    nibabel.save(nibabel.Nifti1Image(array.T, np.diag([-1, -1, 1, 1]) @ geometry.affine), tmp_path / "ct.nii")
    report = segment_file(request_of(tmp_path / "ct.nii", "out.nii.gz", preview=str(tmp_path / "out.png")))
    assert "resampled to a rectangular grid" in report["run"]["warnings"][0]
    written, source = nibabel.load(tmp_path / "out.nii.gz"), nibabel.load(tmp_path / "ct.nii")
    np.testing.assert_array_equal(written.get_sform(), source.get_sform())
    assert dice(np.asanyarray(written.dataobj).T == VALUE, labels > 0) > 0.85
    assert (tmp_path / "out.png").stat().st_size > 0


def test_a_file_that_goes_away_meanwhile_is_named(
    tmp_path: Path, request_of: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(path: str) -> object:
        Path(path).unlink()
        return Path(path).stat()

    monkeypatch.setattr(file_to_file, "read_volume", gone)
    with pytest.raises(InputError, match=r"ct\.nii cannot be used \(No such file or directory\): check"):
        segment_file(request_of(some_ct(tmp_path / "ct.nii"), "labels.nrrd"))


def test_slices_at_two_distances_get_a_dicom_seg_on_themselves(
    tmp_path: Path, request_of: Callable[..., Request]
) -> None:
    pydicom = pytest.importorskip("pydicom")
    heights = np.r_[np.arange(0, 60, 4.0), np.arange(60, 140, 8.0)]
    positions = np.array([-45.0, -60.0, 30.0]) + heights[:, None] * (0.0, 0.0, 1.0)
    grid = StoredGrid((26, 36, len(heights)), np.array([[4.0, 0], [0, 4.0], [0, 0]]), positions)
    array, labels = drawn(points_of(grid))
    uids = {"SeriesInstanceUID": "1.2.3", "StudyInstanceUID": "1.2", "FrameOfReferenceUID": "1.2.4"}
    for k, (plane, place) in enumerate(zip(array, positions, strict=True)):
        alone = replace(sheared(0.0), size=(26, 36, 1), spacing=(4.0,) * 3, origin=tuple(place.tolist()))
        write_slices(tmp_path / "in", plane[None], alone, start=k, **uids)
    report = segment_file(request_of(tmp_path / "in", "out.dcm"))
    assert "uneven distances" in report["run"]["warnings"][0]
    written = pydicom.dcmread(tmp_path / "out.dcm")
    found = {
        round(float(frame.PlanePositionSequence[0].ImagePositionPatient[2])): pixels
        for frame, pixels in zip(written.PerFrameFunctionalGroupsSequence, written.pixel_array, strict=True)
    }
    back = np.stack([found.get(round(30 + height), np.zeros((36, 26))) for height in heights])
    assert dice(back > 0, labels > 0) > 0.85


def test_an_enhanced_ct_gets_a_label_map_on_its_frames(tmp_path: Path, request_of: Callable[..., Request]) -> None:
    pydicom = pytest.importorskip("pydicom")
    ct = phantom()
    order = np.random.default_rng(0).permutation(len(ct.array))
    write_frames(tmp_path / "scan.dcm", ct.array, ct.geometry, order.tolist())
    segment_file(request_of(tmp_path / "scan.dcm", "out.labelmap.dcm"))
    written = pydicom.dcmread(tmp_path / "out.labelmap.dcm")
    back = np.zeros(ct.array.shape, bool)
    for frame, pixels in zip(written.PerFrameFunctionalGroupsSequence, written.pixel_array, strict=True):
        back[order[frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber - 1]] = pixels > 0
    assert dice(back, true_labels(ct.geometry) > 0) > 0.85


def test_several_dicom_results_of_one_run_are_the_same_as_one_by_one(
    tmp_path: Path, request_of: Callable[..., Request]
) -> None:
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("highdicom")
    small = grid_around_patient((6.0, 6.0, 8.0), rotation(0, 0))
    write_slices(tmp_path / "series", phantom(small).array, small)
    request = request_of(tmp_path / "series", "a.nii.gz")
    report = segment_file(replace(request, also=("dcm", "rtstruct.dcm")))
    assert report["also"] == [str(tmp_path / "a.dcm"), str(tmp_path / "a.rtstruct.dcm")]
    segment_file(replace(request, output=str(tmp_path / "b.rtstruct.dcm")))
    ids = [pydicom.dcmread(tmp_path / f"{name}.rtstruct.dcm").SOPInstanceUID for name in "ab"]
    assert ids[0] == ids[1]
    with pytest.raises(OutputError, match="already exists"):
        segment_file(replace(request, output=str(tmp_path / "a.nii"), also=("dcm",)))
    for wrong in ("exe", "dcm,dcm", "nii.gz"):
        with pytest.raises(OutputError, match="no further DICOM result"):
            segment_file(replace(request, also=(*wrong.split(","),)))
