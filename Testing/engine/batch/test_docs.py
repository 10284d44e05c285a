"""The commands of Docs/batches.md do what it says."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import many_cases, tiny
from helpers.phantoms import grid_around_patient, phantom, rotation
from helpers.repository import HELPERS, PACKAGES, REPOSITORY

from segmamba.utils.words import counted

pytestmark = pytest.mark.skipif(os.name == "nt", reason="shell commands")
DOCUMENT = REPOSITORY / "Docs" / "batches.md"
LIMIT = 600
SUBMITTED = "echo Submitted batch job $!"


def blocks(kind: str) -> list[str]:
    """Return the code blocks of the document that are marked so."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def script(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(("#!/bin/bash", *lines)) + "\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scans and studies, where `segmamba` takes a tiny model, and `sbatch` starts jobs on the spot."""
    place = tmp_path_factory.mktemp("docs")
    manifest = tiny.write_model(place)
    volume = phantom(grid_around_patient((6.0, 6.0, 8.0), rotation(0, 0)))
    many_cases.write(volume, place / "scans" / "ct.nii.gz")
    many_cases.write_slices(place / "studies" / "one", volume.array, volume.geometry)
    tools = place / "bin"
    script(
        tools / "segmamba",
        # A network runs on the DICOM studies; elsewhere it is an engine that needs no time.
        '[[ "$*" == *studies* ]] && export TEST_ENGINE=EngineHere || export TEST_ENGINE=QuickEngine',
        f'exec "{sys.executable}" -m helpers.batch_here "$@" --manifest "{manifest}" --device cpu',
    )
    script(tools / "dask", f'exec "{sys.executable}" -m dask "$@"')
    # The script that sbatch is given is gone when it returns.
    script(tools / "sbatch", "job=$(mktemp job.XXXX)", 'cp "$1" $job', "bash $job > $job.log 2>&1 &", SUBMITTED)
    script(tools / "scancel", 'kill "$@"')
    script(place / ".venv" / "bin" / "activate")
    return place


def run(place: Path, *command: str) -> None:
    """Run a command as a user would, and end what it left running."""
    paths = {"PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    sources = os.pathsep.join(map(str, (PACKAGES, HELPERS.parent)))
    environment = {**os.environ, **paths, "PYTHONPATH": sources}
    process = subprocess.Popen(command, cwd=place, env=environment, start_new_session=True)
    try:
        assert process.wait(LIMIT) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("commands", "threads"),
    list(zip(blocks("sh run"), (1, 1, 1, 8), strict=True)),
    ids=("first", "again", "dicom", "cluster"),
)
def test_the_commands_run(place: Path, commands: str, threads: int) -> None:
    run(place, "bash", "-e", "-c", commands)
    names = re.search(r"segmamba batch (\S+) (\S+)", commands)
    assert names is not None
    (row,) = many_cases.rows(place / names[2])
    assert row["status"] == "done"
    assert row["device_title"].endswith(f", {counted(threads, 'thread')}")


def test_the_commands_of_the_document_are_found() -> None:
    assert len(blocks("sh run")) == 4
    assert len(blocks("python slurm")) == len(blocks("python pbs")) == 1


@pytest.mark.slow
def test_the_slurm_script_runs_with_a_stand_in_for_sbatch(place: Path) -> None:
    (program,) = blocks("python slurm")
    (place / "on_slurm.py").write_text(program)
    run(place, sys.executable, "on_slurm.py")
    (row,) = many_cases.rows(place / "results_of_slurm")
    assert row["status"] == "done"
    assert row["device_title"].endswith(", 8 threads")


def test_the_job_scripts_ask_for_what_the_document_says() -> None:
    (slurm,) = blocks("python slurm")
    job = job_script(slurm.split(") as cluster:")[0].replace("with SLURMCluster", "cluster = SLURMCluster") + ")")
    for line in ("-p gpu", "--gres=gpu:1", "-t 08:00:00", "--cpus-per-task=8", "--mem=30G", "-n 1"):
        assert f"#SBATCH {line}\n" in job
    (pbs,) = blocks("python pbs")
    for line in ("-q gpu", "-l select=1:ncpus=8:ngpus=1:mem=32GB", "-l walltime=08:00:00"):
        assert f"#PBS {line}\n" in job_script(pbs)


def job_script(program: str) -> str:
    """Return the job script of a cluster that a program makes."""
    names: dict[str, Any] = {}
    exec(program, names)
    with names["cluster"] as cluster:
        text: str = cluster.job_script()
    assert "source .venv/bin/activate\nexport OMP_NUM_THREADS=8 MKL_NUM_THREADS=8\n" in text
    assert "--lifetime 450m" in text
    assert "--nthreads 1 " in text
    return text
