"""Levels that a run is given: what is refused before any work, and what another segmentation says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from segmamba.errors import InputError
from segmamba.inference.level_anchors import PERSON, SEGMENTATION, level_anchors, read_centroids
from segmamba.io.labelmap import write_labelmap
from segmamba.io.volume import Geometry
from segmamba.models.manifest import load_manifest
from segmamba.reporting.report import summary
from segmamba.request import Options

GRID = Geometry((20, 20, 30), (2.0, 2.0, 3.0), (10.0, -20.0, 100.0), (0, 1, 0, 1, 0, 0, 0, 0, 1))
MANIFEST = load_manifest()
MODEL = MANIFEST.default("vertebrae")


@pytest.fixture(scope="module")
def localiser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """L1 and L2, one voxel each, where the grid is, and T12 above it."""
    labels = np.zeros((80, 20, 20), np.uint8)
    labels[4, 10, 5], labels[20, 10, 5], labels[60, 10, 5] = 21, 20, 19
    path = tmp_path_factory.mktemp("localiser") / "spine.seg.nrrd"
    write_labelmap(path, labels, replace(GRID, size=(20, 20, 80)), MODEL.labels)
    return path


def test_an_anchor_keeps_its_place_and_may_lie_a_little_outside() -> None:
    inside, outside = ("L5", -30.0, 10.0, 130.0), ("L1", -30.0, 10.0, 199.0)
    found = level_anchors(Options(anchor=(inside, outside)), GRID, MODEL)
    assert [(each.level, each.ras_mm, each.source) for each in found] == [
        (24, inside[1:], PERSON),
        (20, outside[1:], PERSON),
    ]
    assert found[0].distance_from(GRID) == 0 and found[1].distance_from(GRID) == pytest.approx(10.5)
    with pytest.raises(InputError) as caught:
        level_anchors(Options(anchor="L1=-30,10,230.5"), GRID, MODEL)
    assert str(caught.value) == (
        "The anchor L1=-30, 10, 230.5 lies outside the volume: give a point of that vertebra in patient coordinates "
        "(RAS, mm)."
    )


def test_a_model_that_does_not_count_vertebrae_takes_no_levels(localiser: Path) -> None:
    for options in (Options(anchor="L5=1,2,3"), Options(levels_from=str(localiser))):
        with pytest.raises(InputError, match="does not count vertebrae"):
            level_anchors(options, GRID, MANIFEST.default("colorectal"))
    assert level_anchors(Options(), GRID, MANIFEST.default("colorectal")) == ()


def test_levels_of_another_segmentation_are_those_whose_centroids_lie_in_the_volume(localiser: Path) -> None:
    found = level_anchors(Options(levels_from=str(localiser), anchor="L5=-30,10,130"), GRID, MODEL)
    assert [(each.level, each.source) for each in found] == [(24, PERSON), (20, SEGMENTATION), (21, SEGMENTATION)]
    assert found[2].ras_mm == pytest.approx((-30.0, 10.0, 112.0))


def test_a_segmentation_elsewhere_or_of_something_else_is_refused(localiser: Path, tmp_path: Path) -> None:
    elsewhere = replace(GRID, origin=(500.0, 0.0, 0.0))
    with pytest.raises(InputError) as caught:
        level_anchors(Options(levels_from=str(localiser)), elsewhere, MODEL)
    assert str(caught.value) == (
        f"None of the vertebrae of {localiser} lies in the volume: give a segmentation in the same frame of reference."
    )
    other = tmp_path / "sacrum.nii.gz"
    labels = np.zeros((30, 20, 20), np.uint8)
    labels[3:9] = 26
    write_labelmap(other, labels, GRID, MODEL.labels)
    with pytest.raises(InputError, match=r"has no vertebrae: give a label map with VerSe's numbers"):
        level_anchors(Options(levels_from=str(other)), GRID, MODEL)
    with pytest.raises(InputError, match="does not exist"):
        level_anchors(Options(levels_from=str(tmp_path / "none.nii.gz")), GRID, MODEL)


def test_segments_of_a_segmentation_file_are_told_by_their_names(localiser: Path, tmp_path: Path) -> None:
    # Slicer writes segments that were renamed with any values.
    image = sitk.ReadImage(str(localiser))
    keys = {image.GetMetaData(key): key for key in image.GetMetaDataKeys() if key.endswith("_Name")}
    image.SetMetaData(keys["L1 vertebra"], "T11")
    image.SetMetaData(keys["L2 vertebra"], "my lesion")
    path = tmp_path / "renamed.seg.nrrd"
    sitk.WriteImage(image, str(path))
    assert sorted(read_centroids(path)) == [18, 19]
    plain = tmp_path / "plain.nrrd"
    sitk.WriteImage(sitk.ReadImage(str(localiser)), str(plain))
    assert sorted(read_centroids(plain)) == [19, 20, 21]


def test_the_summary_says_who_has_set_the_levels() -> None:
    row, numbering = {"name": "L5 vertebra"}, {"certain": True, "reason": "", "variants": []}
    anchors = [
        {"level": "L5", "set_by": PERSON, "used": True},
        {"level": "L1", "set_by": SEGMENTATION, "used": True},
        {"level": "T9", "set_by": PERSON, "used": False},
    ]
    for part, said in (
        (anchors[:1], " Vertebral levels were set by a person (L5)."),
        (anchors[1:2], " Vertebral levels were taken from another segmentation."),
        (anchors[:2], " Vertebral levels were set by a person (L5) and taken from another segmentation."),
        (anchors[2:], ""),
        ([], ""),
    ):
        report = {"segments": [row], "numbering": {**numbering, "anchors": part}}
        assert summary(report) == f"1 structure found: L5 vertebra.{said}"


@pytest.mark.parametrize("content", ['{"L9": [1, 2, 3]}', '{"L5": [1, 2]}', "[]", "{}", '{"L5": [1, 2, NaN]}', "L5"])
def test_centroids_may_be_a_file_of_their_own(content: str, tmp_path: Path) -> None:
    path = tmp_path / "levels.json"
    path.write_text('{"L5": [1, -2, 3.5], "t12": [4, 5, 6]}', encoding="utf-8")
    assert read_centroids(path) == {24: (1.0, -2.0, 3.5), 19: (4.0, 5.0, 6.0)}
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r'is not a file of centroids: give \{"L5": \[right, anterior, superior\]\}'):
        read_centroids(path)
