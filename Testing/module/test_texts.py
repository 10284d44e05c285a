"""What the panel says, word for word where it matters."""

from __future__ import annotations

import pytest


@pytest.fixture
def texts(the_module):
    """The module of the panel's sentences."""
    from SegMambaSlicerLib import texts

    return texts


def test_stages_make_up_a_whole_run(texts):
    assert sum(texts.STAGES.values()) == pytest.approx(1)
    assert texts.overallFraction("read", 0) == 0
    assert texts.overallFraction("write", 1) == pytest.approx(1)
    assert texts.overallFraction("predict", 0.5) > texts.overallFraction("preprocess", 1)
    assert set(texts.STAGE_TITLES) == set(texts.STAGES)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(3, "a few seconds"), (22, "about 20 s"), (89, "about 90 s"), (100, "about 2 min"), (1800, "about 30 min")],
)
def test_durations_are_rough(texts, seconds, expected):
    assert texts.duration(seconds) == expected


def test_remaining_time_is_told_from_the_windows_only(texts):
    assert texts.remainingSeconds("predict", 0.25, 10) == 30
    assert texts.remainingSeconds("predict", 0, 10) is None
    assert texts.remainingSeconds("load", 0.5, 10) is None
    assert texts.progressText("predict", 30) == "Segmenting, about 30 s left"
    assert texts.progressText("load", None) == "Loading the model"


def test_accuracy_is_the_span_of_each_measure(texts):
    rows = [{"measure": "Dice", "value": 0.581}, {"measure": "Dice", "value": 0.86}, {"measure": "Hit", "value": 1}]
    assert texts.accuracy({"accuracy": rows}) == "Dice 0.58 to 0.86; Hit 1.00"
    assert texts.accuracy({}) == "accuracy not measured"


def test_memory_that_is_short_warns_and_memory_that_is_not_there_refuses(texts):
    need = 4 * 2**30
    assert texts.memoryProblem(need, 8 * 2**30, 6 * 2**30) == ("", False)
    warning, hopeless = texts.memoryProblem(need, 8 * 2**30, 2 * 2**30)
    assert "2.0 GiB are free: close other programs" in warning and not hopeless
    refusal, hopeless = texts.memoryProblem(need, 2 * 2**30, 2**30)
    assert "limit the region" in refusal and hopeless
    assert texts.memoryProblem(need, 0, 0) == ("", False)
    assert texts.gpuProblem(need, need) == ""
    assert "choose the processor" in texts.gpuProblem(need, 2**30)


def test_segments_to_look_at_are_flagged(texts):
    assert texts.segmentFlags({"mean_confidence": 0.9, "at_border": False}) == []
    assert texts.segmentFlags({"mean_confidence": 0.4, "at_border": True}) == ["low confidence", "cut off"]


def test_gpus_are_read_from_nvidia_smi_and_nonsense_is_not(the_module):
    from SegMambaSlicerLib.devices import Gpu, gpus

    lines = ["0, NVIDIA A100, 40000", "1, NVIDIA T4, [N/A]", "No devices were found"]
    assert gpus(lines) == [Gpu("cuda:0", "NVIDIA A100", 40000 * 2**20)]


@pytest.mark.parametrize(
    ("case", "expected"),
    [("a.nii.gz", "a.seg.nrrd"), ("b/c.d.NRRD", "b/c.d.seg.nrrd"), ("e.mha", "e.seg.nrrd"), ("f", "f.seg.nrrd")],
)
def test_results_of_a_folder_are_named_after_the_cases(the_module, case, expected):
    from pathlib import Path

    from SegMambaSlicerLib.folder import outputName

    assert outputName(Path(case)).as_posix() == expected
