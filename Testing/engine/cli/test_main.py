"""The command line as a user meets it: results, exit statuses and one-sentence errors."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from helpers import tiny
from helpers.own_time import PATIENCE, seconds_computed
from helpers.phantoms import phantom
from helpers.repository import PACKAGES

from segmamba.cli import examination
from segmamba.cli.main import EXIT_CODES, main
from segmamba.cli.progress import ProgressBar
from segmamba.errors import Cancelled, InstallationError, WorkerError
from segmamba.io.read import read_volume
from segmamba.io.volume import to_image
from segmamba.models.manifest import load_manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("case")
    volume = phantom()
    sitk.WriteImage(to_image(volume.array, volume.geometry), str(folder / "ct.nii.gz"))
    sitk.WriteImage(to_image(volume.array - volume.array.min(), volume.geometry), str(folder / "mr.nii.gz"))
    sitk.WriteImage(sitk.GetImageFromArray(volume.array[0]), str(folder / "flat.mha"))
    whole = (folder / "ct.nii.gz").read_bytes()
    (folder / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.nii").write_bytes(b"")
    broken = volume.array.astype(np.float32)
    broken[3, 4, 5] = np.nan
    sitk.WriteImage(to_image(broken, volume.geometry), str(folder / "nan.nrrd"))
    four = np.zeros((2, 8, 8, 8), dtype=np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(four, isVector=False), str(folder / "four.nii"))
    tiny.write_model(folder)
    return folder


def arguments(folder: Path, source: str = "ct.nii.gz", output: str = "out.nii.gz", *more: str) -> list[str]:
    manifest = ("--manifest", str(folder / "manifest.json"))
    options = ("--in-process", "--device", "cpu", *manifest)
    return ["segment", str(folder / source), "--output", str(folder / output), *options, *more]


def test_one_command_writes_segmentation_report_and_preview(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = ("--report", str(folder / "r.json"), "--preview", str(folder / "p.png"))
    assert main(arguments(folder, "ct.nii.gz", "all.seg.nrrd", "--task", "vertebrae", *outputs)) == 0
    report = json.loads((folder / "r.json").read_text(encoding="utf-8"))
    assert report["segments"]
    assert report["timings_s"]["total"] > 0
    assert (folder / "p.png").read_bytes().startswith(b"\x89PNG")
    header = (folder / "all.seg.nrrd").read_bytes()[:4000]
    assert report["segments"][0]["name"].encode() in header
    printed = capsys.readouterr().out
    assert "found: L" in printed
    assert "not a medical device" in printed


def test_colorectal_cancer_gets_names_colours_and_codes_and_what_has_to_be_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tiny.write_bowel_model(folder)
    run = ["segment", str(folder / "ct.nii.gz"), "--output", str(folder / "bowel.seg.nrrd"), "--task", "colorectal"]
    report = ["--report", str(folder / "bowel-report.json")]
    assert main([*run, *report, "--manifest", str(manifest), "--in-process", "--device", "cpu"]) == 0
    assert f"Note: {tiny.CAUTION}." in capsys.readouterr().out
    found = json.loads((folder / "bowel-report.json").read_text(encoding="utf-8"))["segments"]
    image = sitk.ReadImage(str(folder / "bowel.seg.nrrd"))
    labels = {label.name: label for label in load_manifest(manifest).default("colorectal").labels}
    assert found and {row["name"] for row in found} <= {"Colorectal tumour", "Colon", "Rectum"}
    for index, row in enumerate(found):
        label = labels[row["name"]]
        assert image.GetMetaData(f"Segment{index}_Name") == label.name
        assert label.terminology_tag in image.GetMetaData(f"Segment{index}_Tags")
        color = [round(255 * float(part)) for part in image.GetMetaData(f"Segment{index}_Color").split()]
        assert color == list(label.color)


def test_quiet_prints_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(folder, "ct.nii.gz", "quiet.mha", "--task", "vertebrae", "--quiet")) == 0
    assert capfd.readouterr() == ("", "")


FAR_AWAY = ("900", "900", "900", "990", "990", "990")
BAD_RUNS = {
    "missing": (["nowhere.nii.gz"], 3, "does not exist"),
    "2-D": (["flat.mha"], 3, "2-D"),
    "4-D": (["four.nii"], 3, "4-D"),
    "empty": (["empty.nii"], 3, "empty"),
    "NaN": (["nan.nrrd"], 3, "NaN"),
    "truncated": (["cut.nii.gz"], 3, "truncated"),
    "no image": (["manifest.json"], 3, "not an image"),
    "wrong modality": (["mr.nii.gz"], 3, "Hounsfield"),
    "unknown model": (["ct.nii.gz", "bad.nii", "--model", "x"], 4, "no model 'x'"),
    "unknown task": (["ct.nii.gz", "bad.nii", "--task", "liver"], 4, "no task 'liver'"),
    "no task": (["ct.nii.gz", "bad.nii"], 4, "choose one of vertebrae"),
    "not installed": (["ct.nii.gz", "bad.nii", "--model", tiny.MISSING_ID], 4, "put the file at"),
    "no checkpoint": (["ct.nii.gz", "bad.nii", "--task", "vertebrae", "--checkpoint", "no.pt"], 4, "no.pt"),
    "no manifest": (["ct.nii.gz", "bad.nii", "--task", "vertebrae", "--manifest", "no.json"], 4, "no.json"),
    "unknown device": (["ct.nii.gz", "bad.nii", "--task", "vertebrae", "--device", "tpu"], 5, "choose auto"),
    "unknown scan": (["ct.nii.gz", "bad.nii", "--task", "vertebrae", "--scan-backend", "x"], 4, "scan backend 'x'"),
    "unknown format": (["ct.nii.gz", "bad.jpg", "--task", "vertebrae"], 6, "extension"),
    "no folder": (["ct.nii.gz", "no/bad.nii", "--task", "vertebrae"], 6, "does not exist"),
    "report name": (["ct.nii.gz", "bad.nii", "--task", "vertebrae", "--report", "r.txt"], 6, ".json"),
    "overlap": (["ct.nii.gz", "bad.nii", "--task", "vertebrae", "--overlap", "1.5"], 3, "0 to 0.9"),
    "ROI": (["ct.nii.gz", "bad.nii", "--task", "vertebrae", "--roi", *FAR_AWAY], 3, "region"),
}


@pytest.mark.parametrize(("given", "status", "says"), BAD_RUNS.values(), ids=BAD_RUNS.keys())
def test_a_bad_run_ends_in_one_sentence_a_status_and_no_file(
    folder: Path, capfd: pytest.CaptureFixture[str], given: list[str], status: int, says: str
) -> None:
    known = {path.name for path in folder.iterdir()}
    source, output, *more = (*given, "bad.nii", "--task", "vertebrae") if len(given) == 1 else given
    assert main(arguments(folder, source, output, "--quiet", *more)) == status
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("segmamba: error: ")
    assert says in printed.err
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.err
    assert {path.name for path in folder.iterdir()} == known


def test_an_existing_file_is_replaced_only_with_leave(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = folder / "mine.nii"
    target.write_text("my own edits")
    run = arguments(folder, "ct.nii.gz", "mine.nii", "--task", "vertebrae", "--quiet")
    assert main(run) == 6
    assert "--overwrite" in capsys.readouterr().err
    assert target.read_text() == "my own edits"
    assert main([*run, "--overwrite"]) == 0
    assert read_volume(target).array.any()


def test_the_input_is_never_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = arguments(folder, "ct.nii.gz", "ct.nii.gz", "--task", "vertebrae", "--overwrite")
    assert main(run) == 6
    assert "is an input" in capsys.readouterr().err


@pytest.mark.parametrize(("off", "on"), [("refine", "postprocess"), ("postprocess", "refine")])
def test_refinement_and_post_processing_are_switched_off_apart(folder: Path, off: str, on: str) -> None:
    more = ("--task", "vertebrae", "--quiet", f"--no-{off}", "--report", str(folder / f"{off}.json"))
    assert main(arguments(folder, "ct.nii.gz", f"{off}.nii", *more)) == 0
    options = json.loads((folder / f"{off}.json").read_text(encoding="utf-8"))["run"]["options"]
    assert options[on] and not options[off]


def test_a_region_of_interest_is_given_in_ras(folder: Path) -> None:
    # Right 0 to 20 mm is -20 to 0 in LPS.
    roi = ("--roi", "0", "-20", "80", "20", "10", "120")
    assert main(arguments(folder, "ct.nii.gz", "roi.nii", "--task", "vertebrae", "--quiet", *roi)) == 0
    result = read_volume(folder / "roi.nii")
    x = np.nonzero(result.array)[2] * result.geometry.spacing[0] + result.geometry.origin[0]
    assert x.min() >= -20
    assert x.max() <= 0


@pytest.mark.parametrize("given", [[], ["segment"], ["segment", "a.nii"], ["fly"], ["segment", "a", "--output"]])
def test_wrong_arguments_are_one_line_and_status_2(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(given)
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_tells_the_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"{code:3}  {meaning}" in printed for code, meaning in EXIT_CODES)


def test_models_lists_what_is_installed_and_where_the_rest_belongs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEGMAMBA_MODELS", str(tmp_path))
    assert main(["models", "--manifest", str(folder / "manifest.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:4] == [tiny.MODEL_ID, "vertebrae", "CT", "yes"]
    assert lines[2].split()[:4] == [tiny.MISSING_ID, "vertebrae", "CT", "no"]
    assert str(tmp_path / tiny.MISSING_ID / "missing.pt") in lines[3]


def test_models_lists_every_model_of_the_software(manifest: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    assert all(model.id in printed for model in manifest.listed)  # type: ignore[attr-defined]


def test_doctor_checks_the_device_a_network_and_the_worker(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor", "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    subjects = {line[6:].split(":")[0]: line[:4].strip() for line in lines}
    for subject in ("Python", "numpy", "torch", "device", "scan backend torch", "worker", "manifest"):
        assert subjects[subject] in ("OK", "WARN"), lines
    assert status == (InstallationError.exit_code if "FAIL" in subjects.values() else 0)


def test_doctor_fails_with_a_next_step_on_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        examination, "_worker", lambda: examination.Finding(examination.OK, "worker", "not started here")
    )
    findings = {finding.subject: finding for finding in examination.examine("tpu")}
    assert findings["device"].state == examination.FAIL
    assert "choose" in findings["device"].text


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["doctor", "--device", "cpu"], "FAIL  SimpleITK: does not load"),
        (["segment", "a.nii", "-o", "b.nii", "--in-process"], "A package does not load"),
        (["segment", "a.nii", "-o", "b.nii"], "SimpleITK"),
    ],
)
def test_a_missing_package_is_told_instead_of_a_traceback(command: list[str], says: str, tmp_path: Path) -> None:
    for package in ("SimpleITK", "torch"):  # importing torch takes seconds
        (tmp_path / f"{package}.py").write_text(f"raise ImportError('no {package} here')")
    program = f"import sys; from segmamba.cli.main import main; sys.exit(main({command!r}))"
    paths = (str(tmp_path), str(PACKAGES))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE)
    assert says in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode in (InstallationError.exit_code, WorkerError.exit_code)


def test_progress_in_a_log_is_a_line_a_stage() -> None:
    stream = io.StringIO()
    with ProgressBar(stream) as bar:
        for stage in ("read", "predict"):
            for step in range(100):
                bar.update(stage, step / 100)
    assert stream.getvalue().splitlines() == ["read", "predict"]


def test_progress_on_a_terminal_is_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with ProgressBar(stream) as bar:
        bar.update("predict", 0.0)
        bar.update("predict", 1.0)
        bar.update("write", 0.5)
    assert "predict" in stream.getvalue()
    assert "\r" in stream.getvalue()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_cancels_cleanly(folder: Path) -> None:
    known = {path.name for path in folder.iterdir()}
    run = [part for part in arguments(folder, "ct.nii.gz", "long.nii", "--task", "vertebrae") if part != "--in-process"]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGES)}
    command = [sys.executable, "-m", "segmamba", *run, "--overlap", "0.9", "--tta"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment)
    assert process.stderr is not None
    try:
        while process.stderr.readline() != b"predict\n":
            assert process.poll() is None
        before = seconds_computed(process.pid)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read().decode().splitlines()
        status = process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert status == Cancelled.exit_code
    assert seconds_computed() - before < 8
    assert rest[-1] == "segmamba: error: The job was cancelled; nothing was written."
    assert {path.name for path in folder.iterdir()} == known
