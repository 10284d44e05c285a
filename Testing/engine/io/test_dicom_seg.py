"""DICOM segmentations: the same voxels at the same places, with the manifest's terms, for the source's study."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from helpers import tiny
from helpers.dicom_files import write_slices
from helpers.phantoms import grid_around_patient, phantom, rotation

from segmamba.cli.main import main
from segmamba.errors import InputError, InstallationError, OutputError
from segmamba.io.dicom_index import Series, find_series
from segmamba.io.dicom_results import check_sources, write_dicom
from segmamba.io.dicom_source import MAY_BE_EMPTY
from segmamba.io.read import read_volume
from segmamba.io.volume import Geometry
from segmamba.models.manifest import Manifest, Model

GEOMETRY = Geometry((13, 12, 10), (0.7, 0.8, 2.5), (-10.0, 20.5, -300.0), rotation(20, -15))
VALUES = (8, 9, 25)


def some_labels() -> np.ndarray:
    """T1 and T2 side by side, L6 alone in the last slices, nothing in the first one."""
    labels = np.zeros(GEOMETRY.size[::-1], np.uint8)
    labels[1:5, 3:6, 2:5], labels[3:7, 3:6, 6:9], labels[8:, 2:7, 5:11] = VALUES
    return labels


@pytest.fixture(scope="module")
def model(manifest: Manifest) -> Model:
    return manifest.default("vertebrae")


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Series:
    folder = tmp_path_factory.mktemp("series")
    array = np.random.default_rng(1).integers(-1000, 1500, GEOMETRY.size[::-1]).astype(np.int16)
    # What a scanner also writes, so that a checker has nothing to say of the source.
    write_slices(folder, array, GEOMETRY, PatientName="Phantom^Test", PatientPosition="HFS", Manufacturer="none")
    return find_series(folder)[0]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, series: Series, model: Model) -> Path:
    path = tmp_path_factory.mktemp("seg") / "spine.dcm"
    write_dicom(path, some_labels(), series.files, model.labels, model)
    return path


def test_highdicom_reads_the_same_voxels_at_the_same_places(written: Path) -> None:
    volume = highdicom.seg.segread(written).get_volume(combine_segments=True)
    # Empty slices are not stored: each voxel is looked up where it lies.
    k, j, i = np.nonzero(some_labels())
    places = np.stack([i, j, k, np.ones(len(i))]).T @ GEOMETRY.affine.T
    index = volume.map_reference_to_indices(places[:, :3])
    np.testing.assert_allclose(index, np.rint(index), atol=1e-3)
    found = volume.array[tuple(np.rint(index).astype(int).T)]
    assert np.count_nonzero(volume.array) == len(k)
    np.testing.assert_array_equal(np.array([0, *VALUES])[found], some_labels()[k, j, i])


def test_it_belongs_to_the_source_s_study_and_refers_to_its_images(written: Path, series: Series) -> None:
    dataset = pydicom.dcmread(written)
    sources = [pydicom.dcmread(file, stop_before_pixels=True) for file in series.files]
    for name in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "StudyDate"):
        assert dataset[name].value == sources[0][name].value
    assert dataset.SeriesInstanceUID != series.uid and dataset.Modality == "SEG"
    (referenced,) = dataset.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == series.uid
    by_uid = {source.SOPInstanceUID: source for source in sources}
    assert {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence} == set(by_uid)
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        (image,) = frame.DerivationImageSequence[0].SourceImageSequence
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(place, by_uid[image.ReferencedSOPInstanceUID].ImagePositionPatient, atol=1e-4)


def test_segments_have_the_manifest_s_names_terms_and_colours(written: Path, model: Model) -> None:
    dataset = highdicom.seg.segread(written)
    labels = [label for label in model.labels if label.value in VALUES]
    assert [segment.SegmentLabel for segment in dataset.SegmentSequence] == [label.name for label in labels]
    for number, label in enumerate(labels, start=1):
        segment = dataset.get_segment_description(number)
        kind, category = segment.segmented_property_type, segment.segmented_property_category
        assert (kind.scheme_designator, kind.value, kind.meaning) == (
            label.type.scheme,
            label.type.value,
            label.type.meaning,
        )
        assert category.value == label.category.value
        color = highdicom.color.CIELabColor.from_dicom_value(segment.RecommendedDisplayCIELabValue)
        np.testing.assert_allclose(color.to_rgb(), label.color, atol=1)


def test_it_says_what_made_it_and_that_it_is_for_research(written: Path, model: Model) -> None:
    dataset = pydicom.dcmread(written)
    (algorithm,) = dataset.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == (model.id, model.version)
    assert dataset.SeriesDescription.startswith("Research use only")
    assert dataset.ContentDescription == "Research use only, not a medical device"


def test_simpleitk_reads_its_frames_and_frame_of_reference(written: Path, series: Series) -> None:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(written))
    image = reader.Execute()
    reference = pydicom.dcmread(series.files[0], stop_before_pixels=True).FrameOfReferenceUID
    assert reader.GetMetaData("0020|0052").strip("\0 ") == reference
    np.testing.assert_allclose(image.GetDirection(), GEOMETRY.direction, atol=1e-5)
    # One frame for each slice of each structure, structure by structure.
    array, labels = sitk.GetArrayFromImage(image), some_labels()
    frames = [plane for value in VALUES for plane in labels == value if plane.any()]
    np.testing.assert_array_equal(array > 0, frames)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
def test_dciodvfy_finds_no_error(written: Path) -> None:
    said = subprocess.run(["dciodvfy", "-new", str(written)], capture_output=True, text=True).stderr
    assert "Segmentation" in said
    assert [line for line in said.splitlines() if line.startswith("Error")] == []


def test_the_order_of_the_files_does_not_matter(tmp_path: Path, series: Series, model: Model, written: Path) -> None:
    write_dicom(tmp_path / "again.dcm", some_labels(), series.files[::-1], model.labels, model)
    assert pydicom.dcmread(tmp_path / "again.dcm").PixelData == pydicom.dcmread(written).PixelData


def test_a_segmentation_without_structures_is_a_sentence(tmp_path: Path, series: Series, model: Model) -> None:
    with pytest.raises(OutputError, match="cannot be empty"):
        write_dicom(tmp_path / "no.dcm", np.zeros_like(some_labels()), series.files, model.labels, model)
    assert not list(tmp_path.iterdir())


def test_labels_of_another_series_are_a_sentence(tmp_path: Path, series: Series, model: Model) -> None:
    with pytest.raises(InputError, match="do not fit the series"):
        write_dicom(tmp_path / "no.dcm", some_labels()[1:], series.files, model.labels, model)


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        ("FrameOfReferenceUID", "names no frame of reference"),
        ("StudyInstanceUID", "lacks what a DICOM SEG must repeat"),
    ],
)
def test_a_series_that_lacks_what_is_needed_is_a_sentence(tmp_path: Path, model: Model, lacks: str, said: str) -> None:
    write_slices(tmp_path, np.zeros(GEOMETRY.size[::-1], np.int16), GEOMETRY, **{lacks: None})
    files = [str(path) for path in sorted(tmp_path.iterdir())]
    with pytest.raises(InputError, match=said):
        write_dicom(tmp_path / "no.dcm", some_labels(), files, model.labels, model)


USUAL = {
    "Japan": {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎"},
    "Korea": {"SpecificCharacterSet": ["", "ISO 2022 IR 149"], "PatientName": "Hong^Gildong=洪^吉洞=홍^길동"},
    "unknown set of characters": {"SpecificCharacterSet": "latin1", "PatientName": "Muller^A"},
    "year of birth": {"PatientBirthDate": "1960"},
    "dates with dots": {"PatientBirthDate": "1950.12.11", "StudyDate": "2024.01.01"},
    "words for dates": {"PatientBirthDate": "REMOVED", "StudyDate": "ANONYMIZED"},
    "impossible time": {"StudyTime": "25:61:00"},
    "sex in another language": {"PatientSex": "W"},
    "sex in a word": {"PatientSex": "Female"},
    "age without its unit": {"PatientAge": "63"},
    "long identifiers": {"PatientID": "x" * 90, "AccessionNumber": "y" * 40},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", USUAL)
def test_what_is_wrong_in_a_header_is_left_out_and_told(name: str, tmp_path: Path, model: Model) -> None:
    write_slices(tmp_path / "in", np.zeros(GEOMETRY.size[::-1], np.int16), GEOMETRY)
    files = [str(path) for path in sorted((tmp_path / "in").iterdir())]
    for file in files:
        header = pydicom.dcmread(file)
        for key, value in USUAL[name].items():
            tag = pydicom.datadict.tag_for_keyword(key)
            kind = pydicom.datadict.dictionary_VR(tag)
            header[tag] = pydicom.DataElement(tag, kind, value, validation_mode=pydicom.config.IGNORE)
        header.save_as(file)
    check_sources(files)
    said = write_dicom(tmp_path / "out.dcm", some_labels(), files, model.labels, model)
    written = pydicom.dcmread(tmp_path / "out.dcm")
    assert written.pixel_array.any()
    if "PatientName" in USUAL[name]:
        assert str(written.PatientName) == USUAL[name]["PatientName"]
        return
    for key in USUAL[name]:
        assert key in said[0] and not written.get(key)


@pytest.mark.parametrize("lacks", [*MAY_BE_EMPTY, "SliceThickness"])
def test_what_an_anonymiser_removed_is_not_needed(tmp_path: Path, model: Model, lacks: str) -> None:
    write_slices(tmp_path / "in", np.zeros(GEOMETRY.size[::-1], np.int16), GEOMETRY, **{lacks: None})
    files = [str(path) for path in sorted((tmp_path / "in").iterdir())]
    write_dicom(tmp_path / "spine.dcm", some_labels(), files, model.labels, model)
    volume = highdicom.seg.segread(tmp_path / "spine.dcm").get_volume(combine_segments=True)
    assert np.count_nonzero(volume.array) == np.count_nonzero(some_labels())
    assert volume.spacing[0] == pytest.approx(GEOMETRY.spacing[2], abs=1e-4)


def test_a_missing_package_is_a_sentence(
    tmp_path: Path, series: Series, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(InstallationError, match="pip install"):
        write_dicom(tmp_path / "no.dcm", some_labels(), series.files, model.labels, model)


@pytest.fixture(scope="module")
def a_case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a DICOM series of the phantom, a tiny model and the same volume as NIfTI."""
    folder = tmp_path_factory.mktemp("case")
    volume = phantom(grid_around_patient((6.0, 6.0, 8.0), rotation(0, 0)))
    write_slices(folder / "series", volume.array, volume.geometry)
    sitk.WriteImage(sitk.GetImageFromArray(volume.array), str(folder / "ct.nii.gz"))
    tiny.write_model(folder)
    return folder


def segment(folder: Path, source: str, output: str, *more: str) -> int:
    options = ("--in-process", "--device", "cpu", "--task", "vertebrae", "--manifest", str(folder / "manifest.json"))
    return main(["segment", str(folder / source), "-o", str(folder / output), *options, *more])


def test_the_command_line_writes_dicom_for_a_dicom_series(
    a_case: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(a_case)
    assert segment(Path(), "series", "out.nrrd", "--also", "dcm") == 0
    assert "\nWritten: out.nrrd, out.dcm\n" in capsys.readouterr().out
    labels = read_volume(a_case / "out.nrrd").array
    dataset = highdicom.seg.segread(a_case / "out.dcm")
    assert dataset.number_of_segments == len(np.unique(labels)) - 1
    volume = dataset.get_volume(combine_segments=True)
    assert np.count_nonzero(volume.array) == np.count_nonzero(labels)


def test_other_inputs_cannot_become_dicom(a_case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert segment(a_case, "ct.nii.gz", "no.dcm") == OutputError.exit_code
    assert "needs a DICOM series as input" in capsys.readouterr().err
    assert segment(a_case, "nowhere", "no.dcm") == InputError.exit_code
    assert "does not exist" in capsys.readouterr().err


def test_the_command_line_says_what_is_missing_before_it_works(
    a_case: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    assert segment(a_case, "series", "late.dcm") == InstallationError.exit_code
    assert "pip install highdicom" in capsys.readouterr().err
