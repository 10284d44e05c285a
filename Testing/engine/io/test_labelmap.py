"""Writing segmentations: whole files or none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from helpers.phantoms import OBLIQUE, spine_labels, true_labels

from segmamba.errors import OutputError
from segmamba.io import nifti
from segmamba.io.labelmap import LABELMAP_EXTENSIONS, write_labelmap
from segmamba.io.volume import image_geometry
from segmamba.utils.atomic import atomic_write, check_output

LABELS = true_labels(OBLIQUE)


@pytest.mark.parametrize("extension", LABELMAP_EXTENSIONS)
def test_a_label_map_keeps_voxels_and_grid(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"Wirbel é{extension}"
    write_labelmap(path, LABELS, OBLIQUE, spine_labels())
    image = sitk.ReadImage(str(path))
    assert image.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), LABELS)
    np.testing.assert_allclose(image_geometry(image).affine, OBLIQUE.affine, atol=1e-4)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def segment_fields(path: Path) -> dict[str, str]:
    image = sitk.ReadImage(str(path))
    return {key: image.GetMetaData(key) for key in image.GetMetaDataKeys() if key.startswith("Segment")}


def test_a_segmentation_names_the_labels_that_are_present(tmp_path: Path) -> None:
    path = tmp_path / "spine.seg.nrrd"
    labels = np.where(LABELS == 21, 0, LABELS).astype(np.uint8)
    write_labelmap(path, labels, OBLIQUE, spine_labels())
    fields = segment_fields(path)
    assert {fields[f"Segment{n}_Name"]: fields[f"Segment{n}_LabelValue"] for n in range(2)} == {
        "L1 vertebra": "20",
        "L3 vertebra": "22",
    }
    assert "Segment2_ID" not in fields
    assert fields["Segment1_ID"] == "L3_vertebra" and fields["Segment1_Layer"] == "0"
    assert fields["Segment1_Tags"] == (
        "Segmentation.Status:inprogress|TerminologyEntry:SegMambaSlicer terminology~SCT^123037004^Anatomical Structure"
        "~SCT^36470004^L3 vertebra~^^~SegMambaSlicer anatomic regions~^^~^^|"
    )
    color = np.array([float(part) for part in fields["Segment1_Color"].split()])
    np.testing.assert_allclose(color * 255, spine_labels()[2].color, atol=0.01)


def test_a_segment_extent_is_the_labels_bounding_box(tmp_path: Path) -> None:
    write_labelmap(tmp_path / "spine.seg.nrrd", LABELS, OBLIQUE, spine_labels())
    x0, x1, y0, y1, z0, z1 = map(int, segment_fields(tmp_path / "spine.seg.nrrd")["Segment1_Extent"].split())
    mask = LABELS == 21
    assert mask[z0 : z1 + 1, y0 : y1 + 1, x0 : x1 + 1].sum() == mask.sum()
    for axis, (first, last) in enumerate([(z0, z1), (y0, y1), (x0, x1)]):
        assert mask.take(first, axis).any() and mask.take(last, axis).any()


def test_a_result_without_structures_is_an_empty_segmentation(tmp_path: Path) -> None:
    write_labelmap(tmp_path / "none.seg.nrrd", np.zeros_like(LABELS), OBLIQUE, spine_labels())
    fields = segment_fields(tmp_path / "none.seg.nrrd")
    assert "Segment0_ID" not in fields and fields["Segmentation_MasterRepresentation"] == "Binary labelmap"


def test_a_failed_write_leaves_nothing_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(image: sitk.Image, name: str, **options: object) -> None:
        Path(name).write_bytes(b"half of")
        raise RuntimeError("no space left on device")

    monkeypatch.setattr(sitk, "WriteImage", disk_full)
    with pytest.raises(OutputError, match="cannot be written: check the folder's permissions and free space"):
        write_labelmap(tmp_path / "spine.seg.nrrd", LABELS, OBLIQUE, spine_labels())
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "spine.nii.gz"
    path.write_text("an earlier result")
    with pytest.raises(KeyboardInterrupt), atomic_write(path, LABELMAP_EXTENSIONS) as temporary:
        temporary.write_text("half of")
        raise KeyboardInterrupt
    assert path.read_text() == "an earlier result" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["spine.png", "spine", "spine.seg.nrrd.txt", ".nii.gz"])
def test_an_unknown_extension_is_refused_before_the_run(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=r"use \.seg\.nrrd, \.nii\.gz"):
        check_output(tmp_path / name, LABELMAP_EXTENSIONS)


def test_a_folder_that_is_not_there_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist: create it"):
        check_output(tmp_path / "nowhere" / "spine.nii.gz", LABELMAP_EXTENSIONS)


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: object) -> None:
        raise PermissionError

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(OutputError, match="cannot be written to: choose another"):
        check_output(tmp_path / "spine.nii.gz", LABELMAP_EXTENSIONS)


def test_a_folder_is_no_output_file(tmp_path: Path) -> None:
    (tmp_path / "spine.nrrd").mkdir()
    with pytest.raises(OutputError, match="is a folder: give the name of a file"):
        check_output(tmp_path / "spine.nrrd", LABELMAP_EXTENSIONS)


def test_a_good_output_passes_and_nothing_is_written(tmp_path: Path) -> None:
    check_output(tmp_path / "spine.SEG.nrrd", LABELMAP_EXTENSIONS)
    check_output(tmp_path / "report.json", (".json",))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("extension", [".nii.gz", ".nii", ".nrrd"])
def test_a_file_that_was_cut_while_it_was_written_is_an_error(
    extension: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cutting(write: Callable[..., None], place: int) -> Callable[..., None]:
        def cut(*parts: object, **keywords: object) -> None:
            write(*parts, **keywords)
            path = Path(str(parts[place]))
            path.write_bytes(path.read_bytes()[:-20])

        return cut

    monkeypatch.setattr(sitk, "WriteImage", cutting(sitk.WriteImage, 1))
    monkeypatch.setattr(nifti, "write", cutting(nifti.write, 0))
    with pytest.raises(OutputError, match="free space"):
        write_labelmap(tmp_path / f"out{extension}", LABELS, OBLIQUE, spine_labels())
    assert not list(tmp_path.iterdir())
