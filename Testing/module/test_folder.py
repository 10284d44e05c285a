"""Folders from the Python console: ``segmamba batch`` in a process of its own, and Slicer, which stays usable."""

from __future__ import annotations

import contextlib
import json
import os
from functools import partial
from pathlib import Path

import psutil
import pytest
import qt
import slicer
from helpers import many_cases, phantoms
from helpers.own_time import own_time
from helpers.warm_child import BatchChild, start_child

from segmamba.batch.layout import CASES, OVERVIEW, PARQUET, TABLE, WORKING
from segmamba.cli.main import make_parser
from segmamba.cli.options import read_request, to_arguments
from segmamba.errors import Cancelled, InputError, InstallationError, ModelError, WorkerError
from segmamba.io.read import read_volume
from segmamba_mrml.volumes import roi_box

SMALL = phantoms.grid_around_patient((6.0, 6.0, 8.0), phantoms.rotation(0, 0))


@pytest.fixture
def a_folder(tmp_path):
    """Two good cases, a file and a DICOM series in a folder of its own, and a file that is no image."""
    folder = tmp_path / "in"
    many_cases.write(phantoms.phantom(SMALL), folder / "a.nii.gz")
    many_cases.write_series(folder / "deeper" / "study")
    (folder / "b.nii.gz").write_bytes(b"no image")
    return folder


@pytest.fixture
def choices(a_quick_model):
    """What the runs have in common."""
    return {"task": "vertebrae", "manifest": a_quick_model, "device": "cpu"}


class Batches:
    """Starts the panel's batches, and knows their processes.

    ``engine`` is a class of `helpers.quick_engine` that needs no process of its own: EngineHere, or QuickEngine, which
    takes no time. None is the real one.
    """

    engine = None

    def __init__(self):
        self.sessions = set()

    def start(self, *command, **options):
        child = (partial(BatchChild, self.engine) if self.engine else start_child)(*command, **options)
        self.sessions.add(child.pid)
        return child

    def processes(self):
        """Return those that still run, without their launchers."""
        if os.name == "nt":
            started = [psutil.Process(pid) for pid in self.sessions if psutil.pid_exists(pid)]
            return [process for launcher in started for process in launcher.children(recursive=True)]
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.NoSuchProcess):
                ours = os.getsid(process.pid) in self.sessions - {process.pid}
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


@pytest.fixture
def batches(the_module, monkeypatch):
    """The batches that are started from now on."""
    from SegMambaSlicerLib import cli_process

    batches = Batches()
    monkeypatch.setattr(cli_process, "Child", batches.start)
    return batches


@pytest.fixture
def a_roi(a_slicer_host):
    """A region of which one edge has a coordinate that is written with an exponent."""
    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "region")
    roi.SetCenter(-20.00001, 1.5, 40)
    roi.SetSize(40, 300, 70)
    return roi


def a_case_is_in_hand(out):
    """Tell whether a case is being segmented, or waits for the engine to start."""
    return any((out / WORKING).glob("*/results"))


@pytest.mark.slow
def test_folder_gives_a_row_for_each_case_and_goes_on_after_a_bad_one(logic, a_folder, tmp_path, choices, batches):
    batches.engine = "EngineHere"
    heard, ticks, out = [], [], tmp_path / "out"

    def run():
        rows = logic.segmentFolder(a_folder, out, onProgress=lambda *news: heard.append(news), **choices)
        return {Path(row["input"]).relative_to(a_folder).parts[:2]: row for row in rows}

    timer = qt.QTimer()
    timer.connect("timeout()", lambda: ticks.append(own_time()))
    timer.start(10)
    rows = run()
    timer.stop()
    file, series, bad = rows[("a.nii.gz",)], rows[("deeper", "study")], rows[("b.nii.gz",)]
    assert len(rows) == 3
    assert (file["status"], series["status"], bad["status"]) == ("done", "done", "failed")
    assert "b.nii.gz" in bad["error"]
    for row in (file, series):
        case = out / row["folder"]
        assert json.loads((case / "report.json").read_text(encoding="utf-8"))["segments"]
        assert read_volume(case / "segmentation.seg.nrrd").array.any()
        assert (case / "preview.png").is_file()
    assert file["structures"].keys() == series["structures"].keys()
    assert len(list((out / CASES).iterdir())) == 2
    assert all((out / name).is_file() for name in (TABLE, PARQUET, OVERVIEW))
    assert heard[0] == ("3 cases", 0.0)
    assert [fraction for _text, fraction in heard[1:]] == pytest.approx([1 / 3, 2 / 3, 1])
    # Slicer's events were processed all the time.
    assert max(after - before for before, after in zip(ticks, ticks[1:], strict=False)) < 1
    before = many_cases.results(out)
    # What failed would be tried again.
    (a_folder / "b.nii.gz").unlink()
    again = run()
    assert [row["status"] for row in again.values()] == ["done", "done"]
    assert not again[("a.nii.gz",)]["this_run"] and not again[("deeper", "study")]["this_run"]
    assert many_cases.results(out) == before


def test_what_is_done_is_done_again_with_other_settings_or_where_that_is_asked_for(
    logic, a_folder, tmp_path, choices, a_roi, batches
):
    batches.engine = "QuickEngine"

    def run(**more):
        (row,) = logic.segmentFolder(a_folder, tmp_path / "out", pattern="a*", **(choices | more))
        assert row["this_run"]
        report = json.loads((tmp_path / "out" / row["folder"] / "report.json").read_text(encoding="utf-8"))
        return row, report["run"]["options"]

    everything, _options = run()
    changes = {"structures": "L1 vertebra", "roi": a_roi, "format": "nii.gz"}
    chosen, options = run(**changes)
    assert options["structures"] == ["L1 vertebra"]
    assert chosen["settings"] != everything["settings"]
    assert [value for corner in options["roi"] for value in corner] == pytest.approx(
        [value for corner in roi_box(a_roi) for value in corner], abs=1e-6
    )
    assert (tmp_path / "out" / chosen["folder"] / "segmentation.nii.gz").is_file()
    assert run(**changes, skipExisting=False)[0]["settings"] == chosen["settings"]


@pytest.mark.slow
def test_cancelled_folder_ends_soon_and_leaves_nothing_half_done(
    logic, a_folder, tmp_path, choices, a_slow_model, wait_until, batches
):
    out, ended = tmp_path / "out", []
    slow = choices | {"manifest": a_slow_model}
    job = logic.segmentFolderAsync(a_folder, out, onDone=ended.append, **slow)
    assert not job.finished
    wait_until(lambda: a_case_is_in_hand(out))
    with pytest.raises(WorkerError, match="A job is running"):
        logic.segmentFolder(a_folder, tmp_path / "other", **choices)
    logic.stop()
    wait_until(lambda: job.finished)
    with pytest.raises(Cancelled, match="to resume"):
        job.wait()
    assert ended == [job]
    assert batches.processes() == [] and not (out / WORKING).exists()
    assert list((out / CASES).iterdir()) == []
    assert (out / TABLE).is_file()


def test_error_in_a_callback_stops_the_folder_and_is_raised(logic, a_folder, tmp_path, choices, batches):
    def fail(_text, _fraction):
        raise RuntimeError("The script has a mistake.")

    with pytest.raises(RuntimeError, match="has a mistake"):
        logic.segmentFolder(a_folder, tmp_path / "out", onProgress=fail, **choices)
    assert batches.processes() == [] and not (tmp_path / "out" / WORKING).exists()
    assert list((tmp_path / "out" / CASES).iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_killed_batch_is_a_sentence_and_the_next_one_goes_on(
    logic, a_folder, tmp_path, choices, a_slow_model, wait_until, batches
):
    out = tmp_path / "out"
    job = logic.segmentFolderAsync(a_folder, out, **(choices | {"manifest": a_slow_model}))
    wait_until(lambda: a_case_is_in_hand(out))
    assert many_cases.kill(batches.processes()) >= 1  # or the rest would take minutes, and tell nothing
    with pytest.raises(WorkerError, match="was killed, most likely because memory ran out"):
        job.wait()
    batches.engine = "QuickEngine"
    rows = logic.segmentFolder(a_folder, out, pattern="a*", **choices)
    assert [row["status"] for row in rows] == ["done"]
    assert not (out / WORKING).exists()


def test_wrong_calls_are_sentences(logic, a_folder, a_ct, tmp_path, choices, batches):
    batches.engine = "QuickEngine"
    out = tmp_path / "out"
    with pytest.raises(InputError, match="does not exist"):
        logic.segmentFolder(tmp_path / "no", out, **choices)
    with pytest.raises(InputError, match="no image in .*dcm"):
        logic.segmentFolder(a_folder, out, pattern="*.dcm", **choices)
    with pytest.raises(ModelError, match="no task 'teeth'"):
        logic.segmentFolder(a_folder, out, **(choices | {"task": "teeth"}))
    with pytest.raises(InputError, match="choose no output"):
        logic.segmentFolder(a_folder, out, output=a_ct, **choices)
    with pytest.raises(InputError, match="not a markups ROI"):
        logic.segmentFolder(a_folder, out, roi=a_ct, **choices)
    with pytest.raises(TypeError, match="devise"):
        logic.segmentFolder(a_folder, out, devise="cpu")


def test_missing_packages_are_named_before_anything_starts(logic, a_folder, tmp_path, choices, monkeypatch, batches):
    from SegMambaSlicerLib.sections import dependency as install

    monkeypatch.setattr(
        install, "missingRequirements", lambda path: ["pyarrow>=17"] if path.name == "requirements-batch.txt" else []
    )
    with pytest.raises(InstallationError, match=r"\(pyarrow>=17\): install them .* Dependencies"):
        logic.segmentFolder(a_folder, tmp_path / "out", **choices)
    assert not batches.sessions and not (tmp_path / "out").exists()


def test_the_command_gets_the_region_as_the_roi_node_has_it(the_module, a_roi):
    from SegMambaSlicerLib.parameters import requestOf

    arguments = ["batch", "in", "out", *to_arguments(requestOf(task="vertebrae", roi=a_roi))]
    assert read_request(make_parser().parse_args(arguments), output="").options.roi == roi_box(a_roi)
