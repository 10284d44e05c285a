"""``segmamba compare``: from two reports or segmentations to sentences, a table, JSON and a page."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import SimpleITK as sitk
from helpers.followed_spine import GRID, STRUCTURES, write_exams

from segmamba.cli.main import main
from segmamba.errors import InputError, OutputError
from segmamba.io.labelmap import write_labelmap
from segmamba.io.volume import to_image
from segmamba.measurements.comparison import QUANTITIES
from segmamba.spine.levels import L1

BROKEN = L1 + 1


@dataclass(frozen=True)
class Files:
    """A folder with two exams: image, segmentation and report of each, the second in a folder as batches make it."""

    folder: Path

    @property
    def reports(self) -> list[str]:
        return [str(self.folder / "first.json"), str(self.folder / "second")]

    @property
    def masks(self) -> list[str]:
        return [str(self.folder / "first.nii.gz"), str(self.folder / "second" / "segmentation.seg.nrrd")]

    @property
    def images(self) -> list[str]:
        return [str(self.folder / f"{name}_ct.nii.gz") for name in ("first", "second")]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    made = Files(tmp_path_factory.mktemp("exams"))
    write_exams(made.folder)
    return made


def test_reports_give_sentences_table_json_and_page_with_the_same_numbers(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = [str(tmp_path / name) for name in ("c.json", "c.csv", "c.html")]
    assert main(["compare", *files.reports, "--output", written[0], "--table", written[1], "--page", written[2]]) == 0
    printed = capsys.readouterr().out
    found = json.loads(Path(written[0]).read_text(encoding="utf-8"))
    assert all(sentence in printed for sentence in found["summary"])
    assert found["summary"][0].startswith("L2: grade 0 before, ")
    assert found["first"]["segmentation"] == "first.nii.gz" and found["first"]["model"] == "spinemamba 0.4.0"
    page = Path(written[2]).read_text(encoding="utf-8")
    cells = re.findall(r'data-key="(\w+)">([^<]*)<', page)
    with Path(written[1]).open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    values = iter(cells)
    for line, row in zip(lines, found["vertebrae"], strict=True):
        for name in QUANTITIES:
            for key in ("first", "second", "change", "sd"):
                value = row["changes"][name][key]
                assert line[f"{name}_{key}"] == ("" if value is None else str(value))
                if key != "sd" or value is not None:
                    assert next(values) == (f"{name}_{key}", "–" if value is None else str(value))
    assert page.count('href="data:image/png;base64,') == 2 and str(files.folder) not in page


def test_segmentations_are_measured_with_their_images_or_without_density(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, again = str(tmp_path / "a.json"), str(tmp_path / "b.json")
    assert main(["compare", *files.masks, "--images", *files.images, "--output", output]) == 0
    assert main(["compare", *files.masks, "--output", again]) == 0
    assert "has no image here, so that density is not compared" in capsys.readouterr().out
    measured, plain = (json.loads(Path(path).read_text(encoding="utf-8"))["vertebrae"] for path in (output, again))
    said = json.loads(Path(files.reports[0]).read_text(encoding="utf-8"))["measurements"]
    for row, other, known in zip(measured, plain, said, strict=True):
        assert row["changes"]["trabecular_hu"]["first"] == known["trabecular_hu"]
        assert other["changes"]["trabecular_hu"]["first"] is None
        assert row["changes"]["anterior_height_mm"] == other["changes"]["anterior_height_mm"]


def test_an_edited_segmentation_is_measured_again(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = sitk.GetArrayFromImage(sitk.ReadImage(files.masks[0]))
    labels[labels == L1] = 0
    write_labelmap(tmp_path / "first.nii.gz", labels, GRID, STRUCTURES)
    (tmp_path / "first.json").write_text(Path(files.reports[0]).read_text(encoding="utf-8"), encoding="utf-8")
    assert main(["compare", str(tmp_path / "first.json"), files.masks[1], "--output", str(tmp_path / "c.json")]) == 0
    assert "was edited after its report" in capsys.readouterr().out
    assert json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))["matching"]["only_second"] == ["L1 vertebra"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["no.json", "first.nii.gz"], "does not exist"),
        (["first_ct.nii.gz", "first.nii.gz"], "is not a label map"),
        ([".", "first.nii.gz"], "has no report.json"),
        (["other.json", "first.nii.gz"], "is not the report of vertebrae"),
        (["lost.json", "first.nii.gz"], "which is not there"),
        (["old.json", "first.nii.gz"], "is from an older version"),
    ],
)
def test_what_is_no_exam_is_a_sentence(
    files: Files, given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in (
        ("other.json", {"measurements": 5}),
        ("lost.json", {"output": "lost.nrrd", "measurements": []}),
        ("old.json", {"output": "first.nii.gz", "measurements": [{"value": 20}]}),
    ):
        (files.folder / name).write_text(json.dumps(content))
    assert main(["compare", *(str(files.folder / name) for name in given)]) == InputError.exit_code
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_images_must_be_those_of_the_segmentations_and_results_replace_nothing(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    far = to_image(sitk.GetArrayFromImage(sitk.ReadImage(files.images[0])), GRID)
    far.SetOrigin((500.0, 0.0, 0.0))
    sitk.WriteImage(far, str(tmp_path / "far.nii.gz"))
    arguments = ["compare", *files.masks, "--images", str(tmp_path / "far.nii.gz"), files.images[1]]
    assert main(arguments) == InputError.exit_code
    assert "does not lie in" in capsys.readouterr().err
    for option, name, text in (
        ("--output", files.reports[0], "is an input"),
        ("--page", str(tmp_path / "p.pdf"), "use .html"),
        ("--table", str(tmp_path / "there.csv"), "already exists"),
    ):
        (tmp_path / "there.csv").touch()
        assert main(["compare", *files.reports, option, name]) == OutputError.exit_code
        assert text in capsys.readouterr().err
