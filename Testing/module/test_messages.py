"""What the panel says, word for word where it matters."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.repository import PACKAGES

from segmamba.inference.forecast import FINE_TIME, Forecast


@pytest.fixture
def texts(the_module):
    """The module of the panel's sentences."""
    from SegMambaSlicerLib import messages as texts

    return texts


@pytest.mark.parametrize(
    "path", [PACKAGES / "SegMambaSlicer.py", *sorted(PACKAGES.glob("SegMambaSlicerLib/*.py"))], ids=str
)
def test_translators_can_find_what_is_translated(path):
    """Qt's lupdate reads the source: it sees texts in `_()`, and neither variables nor f-strings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_"]
    for call in calls:
        (text,) = call.args
        assert isinstance(text, ast.Constant) and isinstance(text.value, str), f"{path.name}:{call.lineno}"


def test_no_sentence_of_the_panel_is_put_together_from_english_words():
    tree = ast.parse((PACKAGES / "SegMambaSlicerLib/messages.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            words = [part.value for part in node.values if isinstance(part, ast.Constant)]
            assert not re.search(r"[A-Za-z]{3}", " ".join(words)), f"line {node.lineno}"


def test_stages_make_up_a_whole_run(texts):
    assert sum(texts.STAGES.values()) == pytest.approx(1)
    assert texts.overallFraction("read", 0) == 0
    assert texts.overallFraction("write", 1) == pytest.approx(1)
    assert texts.overallFraction("predict", 0.5) > texts.overallFraction("preprocess", 1)
    assert set(texts.STAGE_TITLES) == set(texts.STAGES)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        *((3, "a few seconds"), (10, "about 10 s"), (22, "about 20 s"), (89, "about 90 s")),
        *((90, "about 2 min"), (100, "about 2 min"), (1800, "about 30 min")),
    ],
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
    assert texts.accuracy({"accuracy": rows}) == ["Dice 0.58 to 0.86", "Hit 1.00"]
    assert texts.accuracy({}) == []


def test_summary_of_a_model_has_one_measure_and_its_tip_all(texts, manifest):
    model = manifest.default("vertebrae")
    summary, tip = texts.modelSummary(model, "comes with the software"), " ".join(texts.modelDetails(model).split())
    first, *others = texts.accuracy(model.entry)
    assert first in summary and f"(hover for {len(others)} more)" in summary
    assert not any(measure in summary for measure in others)
    assert all(measure in tip for measure in (first, *others))


def test_outcome_names_few_structures_and_leaves_the_levels_to_the_line_below_the_table(texts):
    def outcome(*names, summary=""):
        plural = "s" if names[1:] else ""
        said = summary or f"{len(names)} structure{plural} found: {', '.join(names)}. Levels are uncertain: x."
        rows, run = [{"name": name} for name in names], {"warnings": ["It was slow."]}
        return texts.outcomeText({"segments": rows, "summary": said, "run": run})

    assert outcome("L1", "L2") == "2 structures found: L1, L2. It was slow."
    assert outcome("Colon") == "1 structure found: Colon. It was slow."
    assert outcome(*"ABCDE") == "5 structures found. It was slow."
    assert outcome(summary="No structure was found.") == "No structure was found. It was slow."
    assert outcome("L1", summary="2 of 2 items of the sequence were segmented.").startswith("2 of 2 items")


def test_the_panel_names_its_controls_and_no_options_of_the_command_line(texts, manifest):
    from segmamba.errors import InputError
    from segmamba.io.modality import check_modality, modality_note, resolve_modality
    from segmamba.io.volume import Geometry, Volume

    grid = Geometry((20, 20, 20), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    bright = Volume(np.random.default_rng(0).integers(0, 900, (20, 20, 20)).astype(np.int16), grid)
    note = texts.inPanel(modality_note(resolve_modality(bright), manifest.default("vertebrae")))
    assert note.endswith("say so (Advanced, Modality: CT), with its values in Hounsfield units.")
    noisy = Volume(bright.array - 20, grid)
    with pytest.raises(InputError) as refused:
        check_modality(noisy, manifest.default("colorectal"))
    assert texts.inPanel(str(refused.value)).endswith("or say that it is CT (Advanced, Modality: CT).")
    shortage = "close other programs, or give a region of interest (--roi)."
    assert texts.inPanel(shortage) == "close other programs, or give a region of interest (Advanced, Region)."
    assert texts.inPanel("choose --device auto or cpu.") == "choose another device (Advanced)."
    assert texts.inPanel("Two are 'a': import yours under another name with --as.").endswith("name (Import as).")
    assert texts.inPanel("Nothing to change - at all.") == "Nothing to change - at all."


def test_controls_that_sentences_name_are_in_the_panel(texts):
    form = (PACKAGES / "Resources/UI/SegMambaSlicer.ui").read_text(encoding="utf-8")
    controls, said = ("Modality", "Region", "Import as"), " ".join(control for _option, control in texts.CONTROLS)
    assert all(control in said for control in controls)
    assert all(re.search(rf"<string>{control}\b[^<]*:</string>", form) for control in controls)


def test_memory_that_is_short_warns_and_memory_that_is_not_there_refuses(texts):
    need = 4 * 2**30
    assert texts.memoryProblem(need, 8 * 2**30, 6 * 2**30) == ("", False)
    warning, hopeless = texts.memoryProblem(need, 8 * 2**30, 2 * 2**30)
    assert "2.0 GiB are free: close other programs" in warning and not hopeless
    refusal, hopeless = texts.memoryProblem(need, 2 * 2**30, 2**30)
    assert "limit the region" in refusal and hopeless
    assert texts.memoryProblem(need, 0, 0) == ("", False)
    assert texts.gpuProblem(2**30, need, need) == ""
    assert "about 4.0 GiB on the GPU and 2.0 GiB are free: it will be assembled" in texts.gpuProblem(2**30, need, 2**31)
    assert "about 4.0 GiB on the GPU and 1.0 GiB are free: close other" in texts.gpuProblem(need, 2 * need, 2**30)


def test_segments_to_look_at_are_flagged(texts):
    row = {"value": 20, "mean_confidence": 0.9, "at_border": False}
    bad = {"value": 20, "mean_confidence": 0.4, "at_border": True}
    assert texts.segmentFlags(row) == []
    assert texts.segmentFlags(bad) == ["low confidence", "cut off"]
    for probability, flags in ((0.9, []), (0.89, ["level uncertain"])):
        assert texts.segmentFlags(row, {"levels": {"20": probability}}) == flags
    for confidence, flags in ((0.6, []), (0.59, ["low confidence"])):
        assert texts.segmentFlags({"value": 20, "mean_confidence": confidence}) == flags
    assert texts.segmentFlags(row, {"levels": {"19": 0.1}}) == []
    assert texts.segmentFlags(row, earlier=True) == ["earlier run"]


def test_a_level_that_was_set_is_flagged_with_who_set_it(texts):
    row = {"value": 20, "name": "L1 vertebra"}
    anchor = {"level": "L1", "set_by": "person", "used": True}
    said = {"person": ["level set by you"], "segmentation": ["level from another segmentation"]}
    for who, flags in said.items():
        assert texts.segmentFlags(row, {"anchors": [anchor | {"set_by": who}]}) == flags
    for other in ({"used": False}, {"level": "L2"}):
        assert texts.segmentFlags(row, {"anchors": [anchor | other]}) == []


@pytest.mark.parametrize(
    ("rival", "said"),
    [
        (None, ""),
        (["T11", "T12", "L1"], " Second most likely (12%): T11 to L1 instead of T12 to L2."),
        (["T12", "L1", "L3"], " Second most likely (12%): L3 instead of L2."),
        (["L1", "L2"], " Second most likely (12%): L1 to L2."),
        (["L1"], " Second most likely (12%): L1."),
        (["T12", "L1", "L2"], " Second most likely (12%): T12 to L2."),
    ],
)
def test_doubt_about_numbers_names_the_rival_where_there_is_one(texts, rival, said):
    numbering = {"certain": False, "reason": "Check.", "variants": ["L6 is there."]}
    numbering |= {"levels": {"19": 0.8, "20": 0.8, "21": 0.8}, "runner_up": rival, "runner_up_probability": 0.12}
    end = "Select a vertebra and renumber it if needed."
    assert texts.numberingText({"numbering": numbering}) == (
        f"Vertebral levels are uncertain: Check. L6 is there.{said} {end}"
    )


def test_numbers_that_are_certain_or_not_spoken_of_raise_no_doubt(texts):
    assert texts.numberingText({"numbering": {"certain": True}}) == texts.numberingText({}) == ""
    certain = {"certain": True, "reason": "", "variants": [], "runner_up": ["L1"], "runner_up_probability": 0.01}
    assert texts.numberingText({"numbering": certain}) == ""


def test_unusual_levels_are_said_even_where_they_are_certain(texts):
    numbering = {"certain": True, "reason": "", "variants": ["The sacrum follows L4.", "There is no T12."]}
    numbering |= {"levels": {"23": 0.99}, "runner_up": ["L5"], "runner_up_probability": 0.01}
    assert texts.numberingText({"numbering": numbering}) == (
        "The sacrum follows L4. There is no T12. Select a vertebra and renumber it if needed."
    )


def test_steps_of_the_refinement_are_said_in_words(texts):
    from segmamba.spine.refine import STEPS

    assert {*STEPS, "redraw"} <= set(texts.REFINEMENT_STEPS)
    change = {"step": "split", "level": "L1", "added_ml": 0.0, "removed_ml": 20.0}
    assert texts.refinementText([change], "L1") == "Refinement of L1\n• separated from its neighbour: -20 mL"
    drawn = {"step": "redraw", "level": "L1", "added_ml": 1.0, "removed_ml": 0.0, "reason": "metal"}
    expected = "Refinement of L1\n• drawn again by the shapes of vertebrae (metal): +1 mL"
    assert texts.refinementText([drawn], "L1") == expected
    assert texts.changeText({"added_ml": 1.234, "removed_ml": 0.456}) == "+1.23 mL, -0.456 mL"
    assert texts.changeText({"added_ml": 0.0, "removed_ml": 0.0}) == "less than 0.001 mL"
    assert texts.refinementText([change], "L2") == texts.refinementText([], "L1") == ""


def test_gravest_limit_is_said_and_the_others_are_counted(texts):
    assert texts.limitsText([]) == ""
    assert texts.limitsText(["Not for MR."]) == "Limitations: Not for MR."
    assert texts.limitsText(["Not for MR.", "b", "c"]).endswith("Not for MR. (hover for 2 more)")
    assert texts.bulletList(["a", "b " * 60]).count("\n") == 2


def test_tasks_have_names_also_those_of_models_of_ones_own(texts):
    assert texts.taskTitle("vertebrae", "another") == "Vertebrae"
    assert texts.taskTitle("own-liver", "Liver on MR") == "Liver on MR"
    assert texts.taskTitle("own-liver") == "Own-liver"


def test_a_command_shows_its_last_error_its_news_or_how_it_ended(texts):
    lines = ["segmamba: error: Too early.", "FAIL  disk: It is full.", "Done."]
    assert texts.commandOutcome(lines, 6) == "It is full."
    assert texts.commandOutcome(["Installed: a", "12 %", "Note: b"], 0) == "Installed: a\nNote: b"
    assert "was killed, most likely because memory ran out" in texts.commandOutcome(["12 %"], -9)
    assert "crashed (SIGSEGV)" in texts.commandOutcome([], -11)
    assert "status 3: press" in texts.commandOutcome([], 3)
    assert "status 3 (Odd.): press" in texts.commandOutcome(["First.", "Odd."], 3)


def test_a_missing_checkpoint_is_to_be_downloaded_or_where_nobody_offers_it_imported(texts, manifest):
    model = manifest.default("vertebrae")
    for urls, said in ((("https://x/y",), "download it"), ((), "import it")):
        there = replace(model, file=replace(model.file, urls=urls, note="Ask its authors."))
        sentence = texts.missingCheckpoint(there, Path("/models/a"))
        assert f"{said} in the section Models below, or put its file at {Path('/models/a')}." in sentence
        assert sentence.endswith("Ask its authors.")


def test_a_forecast_names_windows_memory_and_time_as_far_as_they_are_known(texts):
    run = Forecast((10, 20, 30), 2, 4.0, 0, 0, 0, 0, 0)
    gib = 2**30
    known = texts.forecastText(run, 2 * gib, 8 * gib, 10.0)
    assert known == "Forecast: grid 10 × 20 × 30, 2 windows, about 2.0 GiB of 8.0 GiB free memory, about 40 s."
    one = texts.forecastText(replace(run, windows=1), 2 * gib, 0, None)
    assert one == "Forecast: grid 10 × 20 × 30, 1 window, about 2.0 GiB of memory, time unknown until the first run."
    assert texts.forecastText(run, 0, 0, 1.0, "a:1") == "Forecast: grid 10 × 20 × 30, 2 windows, on the server a:1."


def test_the_time_of_a_window_is_that_of_all_work_flips_and_the_fine_stage_included(texts):
    run = {"windows": 3, "work": 4.0, "tta_axes": [2]}
    assert texts.secondsPerWindow({"run": run, "timings_s": {"predict": 16.0}}) == 2
    assert texts.secondsPerWindow({"run": {"windows": 4, "tta_axes": []}, "timings_s": {"predict": 8.0}}) == 2
    both = {**run, "fine": {"work": 8 / FINE_TIME}}
    assert texts.secondsPerWindow({"run": both, "timings_s": {"predict": 16.0}}) == 1


def test_levels_that_a_person_has_set_are_listed(texts):
    assert texts.anchorsText([]) == ""
    assert texts.anchorsText(["L5"]) == "L5 was set by you: this holds when you segment again."
    assert texts.anchorsText(["T1", "T2", "L5"]).startswith("T1, T2 and L5 were set by you")


def test_gpus_are_read_from_nvidia_smi_and_nonsense_is_not(the_module):
    from SegMambaSlicerLib.sections.device import Gpu, gpus

    lines = ["0, NVIDIA A100, 40000", "1, NVIDIA T4, [N/A]", "No devices were found"]
    assert gpus(lines) == [Gpu("cuda:0", "NVIDIA A100", 40000 * 2**20)]
