"""Faults of every kind: each ends in one sentence, loses nothing, and the next run is fine.

``python benchmarks/faults.py --count 500`` injects more of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from segmamba.errors import DeviceError, DeviceLost, SegMambaError, WorkerError
from segmamba.inference.file_to_file import _typed

if sys.platform == "win32":
    pytest.skip("signals and memory limits of POSIX", allow_module_level=True)

from helpers.random_faults import KINDS, Laboratory, inject
from launcher import make_launcher


@pytest.mark.slow
def test_random_faults_leave_no_process_no_half_result_no_lock_and_no_unclear_error(tmp_path: Path) -> None:
    tally = inject(tmp_path, len(KINDS), seed=3)
    assert set(tally["faults"]) == set(KINDS)
    assert tally["orphans"] == tally["stuck_locks"] == 0
    assert tally["half_written"] == tally["unclear_errors"] == []
    assert tally["next_runs_failed"] == []


@pytest.fixture(scope="module")
def ending(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], SegMambaError]]:
    """A function that gives the error of a job with a fault of some kind."""
    with Laboratory(tmp_path_factory.mktemp("faults"), 0) as laboratory:
        yield laboratory.error_of


@pytest.mark.parametrize(
    ("kind", "error", "sentence"),
    [
        ("hang", WorkerError, "silent for 4 seconds and was ended, so it hung: try again"),
        ("memory", DeviceError, "not enough memory: close other programs"),
        ("gpu memory", DeviceError, "not enough memory: close other programs"),
        ("gpu lost", DeviceLost, r"The GPU failed \(CUDA error.*try again"),
        ("crash", WorkerError, "The worker crashed .SIGSEGV.*segmamba doctor"),
    ],
)
def test_a_fault_of_the_worker_is_told_and_what_to_do(
    kind: str, error: type[SegMambaError], sentence: str, ending: Callable[[str], SegMambaError]
) -> None:
    with pytest.raises(error, match=sentence):
        raise ending(kind)


def test_a_fault_behind_the_launcher_of_slicer_is_told_alike(tmp_path: Path) -> None:
    launcher = make_launcher(tmp_path / "bin")
    with Laboratory(tmp_path, 0, str(launcher)) as laboratory:
        hung, crashed = laboratory.error_of("hang"), laboratory.error_of("crash")
    assert "silent for 4 seconds and was ended, so it hung: try again" in str(hung)
    assert "The worker crashed (Segmentation fault)" in str(crashed)
    assert "segmamba doctor" in str(crashed)


def test_after_the_gpu_was_lost_the_next_job_gets_a_new_process(tmp_path: Path) -> None:
    with Laboratory(tmp_path, 0) as laboratory:
        first = laboratory.pid_after("none")
        assert laboratory.pid_after("none") == first
        assert isinstance(laboratory.error_of("gpu lost"), DeviceLost)
        assert laboratory.pid_after("none") != first


def test_an_overfull_gpu_is_not_a_lost_one() -> None:
    assert type(_typed(RuntimeError("CUDA error: out of memory"))) is DeviceError
