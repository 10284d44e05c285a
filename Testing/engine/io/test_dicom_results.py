"""SEG, label map SEG and RTSTRUCT of any series lie on the series, belong to it and keep their identifiers.

They are read back by pydicom and a rasteriser of the tests' own.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from helpers.dicom_files import write_frames, write_slices
from helpers.phantoms import rotation
from helpers.rasterize import filled
from pydicom.uid import generate_uid

from segmamba.batch.plan import FORMATS
from segmamba.cli.main import main
from segmamba.errors import OutputError
from segmamba.io import dicom_source
from segmamba.io.dicom_index import find_series, read_series
from segmamba.io.dicom_results import DICOM_EXTENSIONS, check_sources, write_dicom
from segmamba.io.dicom_source import Identifiers, Result
from segmamba.io.stored_grid import labels_as_stored
from segmamba.io.volume import Geometry
from segmamba.models.manifest import Manifest, Model
from segmamba.option_types import declared
from segmamba.request import Request

# Those that draw structures on slices; an SR holds numbers.
DRAWN = tuple(extension for extension in DICOM_EXTENSIONS if extension != ".sr.dcm")
SIZE = (13, 12, 10)
VALUES = (8, 9, 25)
AXIAL = (1.0, 0, 0, 0, 1, 0, 0, 0, 1)
SAGITTAL = (0.0, 0, -1, 1, 0, 0, 0, -1, 0)
CORONAL = (1.0, 0, 0, 0, 0, 1, 0, -1, 0)
OBLIQUE = rotation(20, -15)
NAMES = {
    "German": {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Jürgen"},
    "Japanese": {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎"},
}
# Orientation, how slices lie, one file or many, modality, set of characters.
STUDIES = [
    (AXIAL, "tilted", "slices", "CT", "Japanese"),
    (AXIAL, "uneven", "frames", "CT", "German"),
    (SAGITTAL, "even", "frames", "MR", "Japanese"),
    (SAGITTAL, "uneven", "slices", "MR", "German"),
    (CORONAL, "tilted", "frames", "MR", "German"),
    (OBLIQUE, "even", "slices", "CT", "Japanese"),
]
ROTATED = (OBLIQUE, "even", "frames", "CT", "German")


def some_labels() -> np.ndarray:
    """T1 with a hole, T2 beside it in two parts, L6 alone in the last slices, nothing in the first one."""
    labels = np.zeros(SIZE[::-1], np.uint8)
    labels[1:5, 2:7, 1:6], labels[3:7, 3:6, 8:10], labels[8:, 2:7, 5:11] = VALUES
    labels[2:4, 4, 3] = 0
    labels[4, 9:11, 2:12:2] = 9
    return labels


def write_study(folder: Path, study: tuple[Any, ...]) -> tuple[tuple[str, ...], np.ndarray]:
    """Write the series of a study, and return its files and where its slices lie: LPS matrices (z, 4, 4)."""
    direction, lie, files, modality, charset = study
    geometry = Geometry(SIZE, (0.7, 0.8, 2.5), (-10.0, 20.5, -300.0), direction)
    heights = np.r_[np.arange(6), 5 + 2 * np.arange(1, 5)] if lie == "uneven" else np.arange(SIZE[2])
    steps = heights[:, None] * np.array([0.0, 0.6 if lie == "tilted" else 0, 2.5])
    positions = np.array(geometry.origin) + steps @ np.reshape(direction, (3, 3)).T
    array = np.random.default_rng(1).integers(0, 1500, SIZE[::-1]).astype(np.int16)
    tags = {**NAMES[charset], "Modality": modality}
    tags |= {name: generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    if files == "frames":
        order = np.random.default_rng(2).permutation(SIZE[2]).tolist()
        write_frames(
            folder / "scan.dcm", array, geometry, order, positions=positions, repeated=modality == "MR", **tags
        )
    else:
        for k, position in enumerate(positions):
            alone = replace(geometry, size=(*SIZE[:2], 1), origin=tuple(position.tolist()))
            write_slices(folder, array[k : k + 1], alone, start=k, **tags)
    matrices = np.repeat(geometry.affine[None], len(positions), axis=0)
    matrices[:, :3, 3] = positions
    return find_series(folder)[0].files, matrices


def write(path: Path, files: tuple[str, ...], model: Model) -> Any:
    """Write some labels as what the name asks for, and return the dataset that is read back."""
    assert write_dicom(path, some_labels(), files, model.labels, model) == ()
    return pydicom.dcmread(path)


def read_seg(dataset: Any, matrices: np.ndarray) -> dict[str, np.ndarray]:
    """Return the mask (z, y, x) of each segment by its name, each frame on the slice at which it lies."""
    names = {int(item.SegmentNumber): str(item.SegmentLabel) for item in dataset.SegmentSequence}
    masks = {name: np.zeros(SIZE[::-1], bool) for number, name in names.items() if number > 0}
    shared = dataset.SharedFunctionalGroupsSequence[0]
    orientation = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3)).astype(float)
    np.testing.assert_allclose(orientation.T @ np.diag([0.7, 0.8]), matrices[0, :3, :2], atol=1e-5)
    np.testing.assert_allclose(shared.PixelMeasuresSequence[0].PixelSpacing, [0.8, 0.7])
    for frame, pixels in zip(dataset.PerFrameFunctionalGroupsSequence, dataset.pixel_array, strict=True):
        position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        apart = np.linalg.norm(matrices[:, :3, 3] - position, axis=1)
        assert apart.min() < 1e-4
        if dataset.SegmentationType == "BINARY":
            number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            masks[names[number]][apart.argmin()] = pixels > 0
        else:
            for number in np.unique(pixels[pixels > 0]):
                masks[names[number]][apart.argmin()] = pixels == number
    return masks


def read_rtstruct(dataset: Any, matrices: np.ndarray) -> dict[str, np.ndarray]:
    """Return the mask (z, y, x) of each region of interest by its name, each contour on the slice in its plane."""
    names = {item.ROINumber: str(item.ROIName) for item in dataset.StructureSetROISequence}
    masks = {}
    for region in dataset.ROIContourSequence:
        rings: list[list[np.ndarray]] = [[] for _ in matrices]
        for contour in region.ContourSequence:
            points = np.reshape(contour.ContourData, (-1, 3)).astype(float)
            assert contour.NumberOfContourPoints == len(points)
            local = [np.linalg.solve(matrix, np.c_[points, np.ones(len(points))].T).T for matrix in matrices]
            # Index along the normal: 0 for all points in the one plane that they lie in.
            off = [np.abs(each[:, 2]).max() for each in local]
            assert min(off) < 1e-4
            rings[int(np.argmin(off))].append(local[int(np.argmin(off))][:, :2])
        masks[names[region.ReferencedROINumber]] = np.stack([filled(each, SIZE[1::-1]) for each in rings])
    return masks


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("study", STUDIES, ids=["-".join(study[1:]) for study in STUDIES])
def test_each_result_comes_back_on_its_source(study: tuple[Any, ...], tmp_path: Path, manifest: Manifest) -> None:
    model = manifest.default("vertebrae")
    files, matrices = write_study(tmp_path / "in", study)
    sources = {header.SOPInstanceUID: header for header in map(pydicom.dcmread, files)}
    first = next(iter(sources.values()))
    names = {label.value: label.name for label in model.labels}
    expected = {names[value]: some_labels() == value for value in VALUES}
    for extension in DRAWN:
        written = write(tmp_path / f"spine{extension}", files, model)
        masks = (read_rtstruct if written.Modality == "RTSTRUCT" else read_seg)(written, matrices)
        assert masks.keys() == expected.keys()
        for name, mask in expected.items():
            np.testing.assert_array_equal(masks[name], mask, err_msg=f"{extension} {name}")
        for name in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "StudyDate", "StudyID"):
            assert written[name].value == first[name].value
        assert str(written.PatientName) == NAMES[study[-1]]["PatientName"]
        assert written.SpecificCharacterSet == "ISO_IR 192"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("study", STUDIES[1:5], ids=["-".join(study[1:]) for study in STUDIES[1:5]])
def test_what_is_read_of_a_series_goes_back_to_it(study: tuple[Any, ...], tmp_path: Path) -> None:
    """Labels on the volume that a network sees, which may be resampled, find their slices again."""
    _, matrices = write_study(tmp_path / "in", study)
    volume = read_series(find_series(tmp_path / "in")[0])
    assert volume.modality == study[3] and (volume.stored is None) == (study[1] == "even")
    # A label for each height: in a volume of another order or place, slices would get others.
    heights = np.arange(1, len(volume.array) + 1, dtype=np.uint8)[:, None, None]
    labels = np.broadcast_to(heights, volume.array.shape)
    if volume.stored is not None:
        labels = labels_as_stored(labels, volume.geometry, volume.stored)
    normal = np.reshape(volume.geometry.direction, (3, 3))[:, 2]
    places = (matrices[:, :3, 3] - volume.geometry.origin) @ normal / volume.geometry.spacing[2]
    np.testing.assert_array_equal(labels[:, 6, 6], np.rint(places) + 1)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    """Files of one scan as slices and as frames."""
    folder = tmp_path_factory.mktemp("series")
    studies = {files: (*ROTATED[:2], files, *ROTATED[3:]) for files in ("slices", "frames")}
    return {files: write_study(folder / files, study)[0] for files, study in studies.items()}


@pytest.fixture(scope="module")
def model(manifest: Manifest) -> Model:
    return manifest.default("vertebrae")


@pytest.fixture(scope="module")
def results(series: dict[str, Any], model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
    """Each kind of result of both."""
    folder = tmp_path_factory.mktemp("results")
    paths = {(kind, ending): folder / f"{kind}{ending}" for kind in series for ending in DICOM_EXTENSIONS}
    for (kind, _), path in paths.items():
        write(path, series[kind], model)
    return paths


WRITTEN = (
    "ContentDate",
    "ContentTime",
    "InstanceCreation",
    "StructureSetDate",
    "StructureSetTime",
    "ContributionDateTime",
)


def own_uids(dataset: Any) -> set[str]:
    return {str(element.value) for element in dataset.iterall() if str(element.value).startswith("2.25.")}


@pytest.mark.parametrize(
    ("kind", "extension"),
    [("slices", ".dcm"), ("frames", ".labelmap.dcm"), ("slices", ".rtstruct.dcm"), ("frames", ".sr.dcm")],
)
def test_identifiers_stay_for_the_same_input_and_version(
    kind: str, extension: str, tmp_path: Path, series: dict[str, Any], results: dict[Any, Path], model: Model
) -> None:
    check_sources(series[kind], f"again{extension}")
    first = pydicom.dcmread(results[kind, extension])
    again = write(tmp_path / f"again{extension}", series[kind][::-1], model)
    assert own_uids(first) == own_uids(again) and len(own_uids(first)) >= 2
    assert {first.SOPInstanceUID, first.SeriesInstanceUID} <= own_uids(first)
    # All that differs is when it was written.
    for dataset in (first, again):
        for part in (dataset, *dataset.get("ContributingEquipmentSequence", ())):
            for name in [name for name in part.dir() if name.startswith(WRITTEN)]:
                del part[name]
    assert first == again


def test_another_result_has_other_identifiers(
    series: dict[str, Any], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = dicom_source.read_source(series["frames"])
    result = Result(some_labels(), [label for label in model.labels if label.value in VALUES], model)
    first = Identifiers.of("rtstruct", source, result)
    # Of other options, it is another instance of the series.
    fewer = replace(result, labels=np.where(some_labels() == 9, 0, some_labels()))
    others = [Identifiers.of("rtstruct", source, fewer)]
    assert others[0].series == first.series
    others += [Identifiers.of("BINARY", source, result)]
    others += [Identifiers.of("rtstruct", source, replace(result, model=replace(model, version="99")))]
    monkeypatch.setattr(dicom_source, "__version__", "99")
    others += [Identifiers.of("rtstruct", source, result)]
    assert len({first.series, *(other.series for other in others[1:])}) == 4
    assert len({first.instance, *(other.instance for other in others)}) == 5


@pytest.mark.parametrize("extension", DRAWN)
@pytest.mark.parametrize("kind", ["slices", "frames"])
def test_each_part_refers_to_the_image_that_it_was_drawn_on(
    kind: str, extension: str, series: dict[str, Any], results: dict[Any, Path]
) -> None:
    written = pydicom.dcmread(results[kind, extension])
    places = {}
    for header in map(pydicom.dcmread, series[kind]):
        uid = str(header.SOPInstanceUID)
        if kind == "slices":
            places[uid, None] = header.ImagePositionPatient
            continue
        for number, frame in enumerate(header.PerFrameFunctionalGroupsSequence, 1):
            places[uid, number] = frame.PlanePositionSequence[0].ImagePositionPatient
    if written.Modality == "RTSTRUCT":
        contours = [item for region in written.ROIContourSequence for item in region.ContourSequence]
        parts = [(item.ContourImageSequence[0], item) for item in contours]
    else:
        groups = written.PerFrameFunctionalGroupsSequence
        parts = [(frame.DerivationImageSequence[0].SourceImageSequence[0], frame) for frame in groups]
    normal = np.reshape(OBLIQUE, (3, 3))[:, 2]
    for image, part in parts:
        place = np.array(places[str(image.ReferencedSOPInstanceUID), image.get("ReferencedFrameNumber")], float)
        drawn = part.ContourData[:3] if "ContourData" in part else part.PlanePositionSequence[0].ImagePositionPatient
        assert abs((np.array(drawn, float) - place) @ normal) < 1e-3


def test_regions_have_the_manifest_s_names_terms_and_colours(results: dict[Any, Path], model: Model) -> None:
    written = pydicom.dcmread(results["slices", ".rtstruct.dcm"])
    labels = [label for label in model.labels if label.value in VALUES]
    assert [item.ROIName for item in written.StructureSetROISequence] == [label.name for label in labels]
    assert [tuple(item.ROIDisplayColor) for item in written.ROIContourSequence] == [label.color for label in labels]
    for item, label in zip(written.RTROIObservationsSequence, labels, strict=True):
        (code,) = item.RTROIIdentificationCodeSequence
        assert (code.CodingSchemeDesignator, code.CodeValue) == (label.type.scheme, label.type.value)
    assert written.StructureSetDescription == "Research use only, not a medical device"
    assert written.SeriesDescription.startswith("Research use only") and written.ApprovalStatus == "UNAPPROVED"


def test_a_label_map_is_compressed_without_loss(results: dict[Any, Path]) -> None:
    written = pydicom.dcmread(results["slices", ".labelmap.dcm"])
    assert written.SOPClassUID == pydicom.uid.UID("1.2.840.10008.5.1.4.1.1.66.7")
    assert written.file_meta.TransferSyntaxUID == pydicom.uid.JPEGLSLossless


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
@pytest.mark.parametrize("extension", [".rtstruct.dcm", ".dcm"])
@pytest.mark.parametrize("kind", ["slices", "frames"])
def test_dciodvfy_finds_no_error(kind: str, extension: str, results: dict[Any, Path]) -> None:
    said = subprocess.run(["dciodvfy", "-new", str(results[kind, extension])], capture_output=True, text=True).stderr
    assert ("RTStructureSet" if "rtstruct" in extension else "Segmentation") in said
    assert [line for line in said.splitlines() if line.startswith("Error")] == []


def test_every_kind_is_offered_where_outputs_are_declared(capsys: pytest.CaptureFixture[str]) -> None:
    assert {f".{name}" for name in FORMATS} > set(DICOM_EXTENSIONS)
    assert all(ending in declared(Request)["output"][1].help for ending in DICOM_EXTENSIONS)
    with pytest.raises(SystemExit):
        main(["batch", "--help"])
    said = capsys.readouterr().out
    assert all(name in said for name in FORMATS)


def test_a_name_of_another_format_is_a_sentence(tmp_path: Path, series: dict[str, Any], model: Model) -> None:
    with pytest.raises(OutputError, match=r"end it in one of \.sr\.dcm"):
        write(tmp_path / "a.nii.gz", series["slices"], model)
