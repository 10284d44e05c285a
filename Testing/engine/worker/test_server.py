"""The worker process and its parent: jobs, cancelling, sudden ends. Few tests, as each start imports torch."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import tiny
from helpers.own_time import PATIENCE
from helpers.phantoms import phantom
from helpers.repository import PACKAGES
from helpers.warm_child import cold_children

from segmamba.errors import Cancelled, InputError, ModelError, SegMambaError, WorkerError
from segmamba.io.read import read_volume
from segmamba.io.volume import to_image
from segmamba.request import Options, Request
from segmamba.worker import server as worker_module
from segmamba.worker.client import WorkerProcess, describe_end, worker_environment
from segmamba.worker.protocol import PRELOAD, decode, encode

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import SimpleITK as sitk

    folder = tmp_path_factory.mktemp("case")
    volume = phantom()
    sitk.WriteImage(to_image(volume.array, volume.geometry), str(folder / "ct.nii.gz"))
    tiny.write_model(folder)
    return folder


def request(folder: Path, output: str, **options: object) -> Request:
    return Request(
        input=str(folder / "ct.nii.gz"),
        output=str(folder / output),
        task="vertebrae",
        manifest=str(folder / "manifest.json"),
        overwrite=True,
        options=Options(device="cpu", **options),  # type: ignore[arg-type]
    )


def long_request(folder: Path) -> Request:
    """A job of thousands of windows."""
    return request(folder, "long.nii.gz", overlap=0.9, tta=True)


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerProcess]:
    with WorkerProcess() as worker:
        # As for the user, once.
        with cold_children():
            worker.start()
        yield worker


def leftovers(folder: Path, known: set[str]) -> set[str]:
    return {path.name for path in folder.iterdir()} - known


def test_two_jobs_in_a_row_are_done_by_one_process_with_progress(worker: WorkerProcess, folder: Path) -> None:
    stages: list[str] = []
    first = worker.run(request(folder, "first.nii.gz"), lambda stage, fraction: stages.append(stage))
    pid = worker.pid
    second = worker.run(request(folder, "second.seg.nrrd"))
    assert pid is not None
    assert worker.pid == pid
    assert pid != os.getpid()
    assert list(dict.fromkeys(stages)) == ["read", "load", "preprocess", "predict", "postprocess", "write"]
    assert first["segments"] == second["segments"]
    assert read_volume(folder / "first.nii.gz").array.any()
    assert (folder / "second.seg.nrrd").is_file()


def test_an_error_of_the_job_arrives_with_its_type_and_the_worker_goes_on(worker: WorkerProcess, folder: Path) -> None:
    worker.start()
    pid = worker.pid
    missing = Request(input=str(folder / "no.nii"), output=str(folder / "o.nii"), task="vertebrae")
    with pytest.raises(InputError, match="does not exist"):
        worker.run(missing)
    with pytest.raises(ModelError, match="no model 'x'"):
        worker.run(Request(input=str(folder / "ct.nii.gz"), output=str(folder / "o.nii"), model="x"))
    assert worker.pid == pid
    assert not (folder / "o.nii").exists()


def test_cancelling_in_mid_run_ends_the_job_and_leaves_no_file(worker: WorkerProcess, folder: Path) -> None:
    known = {path.name for path in folder.iterdir()}
    seen: list[float] = []

    def on_progress(stage: str, fraction: float) -> None:
        if stage == "predict":
            seen.append(fraction)

    with pytest.raises(Cancelled):
        worker.run(long_request(folder), on_progress, lambda: bool(seen))
    assert max(seen) < 1
    assert leftovers(folder, known) == set()


def test_a_window_can_poll_instead_of_waiting(worker: WorkerProcess, folder: Path) -> None:
    job = worker.submit(request(folder, "polled.mha"))
    kinds = set()
    while "result" not in kinds:
        message = worker.poll()
        if message is None:
            assert worker.pid is not None
            time.sleep(0.02)
        elif message.get("id") == job:
            kinds.add(message["type"])
    assert kinds == {"progress", "result"}


@posix
def test_a_killed_worker_is_a_clear_error_and_the_next_job_gets_a_new_one(worker: WorkerProcess, folder: Path) -> None:
    def kill(stage: str, fraction: float) -> None:
        if (stage, fraction) == ("read", 0.0) and worker.pid is not None:
            os.kill(worker.pid, signal.SIGKILL)

    with pytest.raises(WorkerError, match=r"SIGKILL.*memory"):
        worker.run(long_request(folder), kill)
    assert worker.pid is None
    with pytest.raises(InputError):
        worker.run(Request(input=str(folder / "no.nii"), output=str(folder / "o.nii"), task="vertebrae"))


def test_the_worker_ends_by_itself_when_its_parent_is_gone_even_in_mid_job(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "segmamba.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(PACKAGES)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(encode({"type": "job", "id": "1", "request": long_request(folder).to_dict()}))
        process.stdin.flush()
        while b'"predict"' not in process.stdout.readline():
            assert process.poll() is None
        process.stdin.close()
        process.stdout.close()
        status = process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert status == 0
    assert not (folder / "long.nii.gz").exists()


@pytest.mark.parametrize("name", ["THP_MEM_ALLOC_ENABLE", "OPENBLAS_NUM_THREADS"])
def test_a_worker_has_large_pages_and_one_thread_for_small_products_unless_the_user_says_otherwise(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(name, raising=False)
    assert worker_environment()[name] == "1"
    monkeypatch.setenv(name, "0")
    assert worker_environment()[name] == "0"


def test_what_libraries_print_does_not_break_the_protocol(tmp_path: Path) -> None:
    program = tmp_path / "noisy.py"
    program.write_text(
        "import os, sys\n"
        "from segmamba.worker import server\n"
        "def segment(request, progress, cancelled):\n"
        "    print('noise from Python')\n"
        "    os.write(1, b'noise from C')\n"
        "    progress('read', 0.5)\n"
        "    return {'input': request.input}\n"
        "server.main(segment)\n"
    )
    lines: list[str] = []
    worker = WorkerProcess(log=lines.append)
    worker._command = [sys.executable, str(program)]
    with worker:
        report = worker.run(Request(input="in.nii", output="out.nii"))
    assert report["input"].endswith("in.nii")
    assert any("noise from Python" in line for line in lines)


def test_a_python_that_cannot_be_started_is_a_worker_error() -> None:
    with WorkerProcess(python="/nowhere/python") as worker, pytest.raises(WorkerError, match="cannot be started"):
        worker.start()


def test_a_worker_that_ends_at_once_gives_its_last_words() -> None:
    worker = WorkerProcess()
    worker._command = [sys.executable, "-c", "import sys; sys.exit('no torch here')"]
    with worker, pytest.raises(WorkerError, match="exit status 1.*no torch here"):
        worker.run(Request(input="in.nii", output="out.nii"))


@posix
def test_the_end_of_a_process_is_told_in_words() -> None:
    assert "SIGSEGV" in describe_end(-signal.SIGSEGV, [])
    assert "0xC0000005" in describe_end(0xC0000005, [])


def serve(lines: list[bytes], segment: worker_module.Segment) -> list[dict[str, object]]:
    sent: list[dict[str, object]] = []
    inbox = worker_module.Inbox(io.BytesIO(b"".join(lines)), last_seconds=60)
    while not inbox.closed:
        time.sleep(0.001)
    worker_module.serve(inbox, sent.append, segment)
    return sent


def test_an_idle_worker_gives_memory_back_once_and_does_the_next_job(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[object] = []
    monkeypatch.setattr(worker_module, "free_gpu", lambda: happened.append("freed"))
    monkeypatch.setattr(worker_module.helper_processes, "end", lambda: happened.append("ended"))
    reading, writing = os.pipe()
    inbox = worker_module.Inbox(os.fdopen(reading, "rb"), last_seconds=60)

    def segment(request: Request, *rest: object) -> dict[str, object]:
        return {"input": request.input}

    def send(message: dict[str, object]) -> None:
        happened.append(message["type"])

    serving = threading.Thread(target=worker_module.serve, args=(inbox, send, segment, 0.05))
    serving.start()
    while "ended" not in happened:
        time.sleep(0.01)
    # Time enough to do it again.
    time.sleep(0.5)
    os.write(writing, encode({"type": "job", "id": "1", "request": {"input": "a", "output": "b"}}))
    while "result" not in happened and "error" not in happened:
        time.sleep(0.01)
    os.close(writing)
    serving.join()
    assert happened[:4] == ["ready", "freed", "ended", "result"]


@pytest.mark.parametrize("arguments", [[], [PRELOAD]])
def test_a_worker_may_have_helpers_and_loads_the_pipeline_ahead_where_it_is_asked(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, loaded, ended = io.BytesIO(), [], []
    for name, value in (
        ("take_output", lambda: answers),
        ("take_input", lambda: io.BytesIO(encode({"type": "quit"}))),
    ):
        monkeypatch.setattr(worker_module, name, value)
    monkeypatch.setattr(worker_module.helper_processes, "allowed", False)
    monkeypatch.setattr(worker_module.importlib, "import_module", loaded.append)
    monkeypatch.setattr(worker_module.os, "_exit", ended.append)
    monkeypatch.setattr(worker_module.faulthandler, "enable", lambda: None)
    monkeypatch.setattr(worker_module.sys, "setswitchinterval", lambda seconds: None)
    monkeypatch.setattr(worker_module.sys, "argv", ["worker", *arguments])
    worker_module.main()
    assert worker_module.helper_processes.allowed
    assert loaded == ["segmamba.inference.pipeline"] * len(arguments)
    assert ended == [0]
    assert [decode(line)["type"] for line in answers.getvalue().splitlines()] == ["ready"]


def test_jobs_that_nobody_waits_for_any_more_are_not_begun() -> None:
    def refuse(request: Request, *rest: object) -> dict[str, object]:
        raise AssertionError("begun")

    job = encode({"type": "job", "id": "1", "request": {"input": "a", "output": "b"}})
    sent = serve([job], refuse)
    assert [message["type"] for message in sent] == ["ready", "error"]
    assert sent[1]["error"] == "Cancelled"


def test_a_request_that_is_none_is_an_input_error() -> None:
    with pytest.raises(InputError, match="input, output"):
        Request.from_dict({"input": "a", "outputs": "b"})
    with pytest.raises(InputError):
        Request.from_dict({"input": "a", "output": "b", "options": {"roi": [[0, 0], [1, 1]]}})


def test_a_request_survives_the_way_through_json() -> None:
    options = Options(roi=((0.0, 1.0, 2.0), (3.0, 4.0, 5.0)), structures=("L1 vertebra",), overlap=0.25)
    original = Request(input="/a b/\u00e9.nii", output="/o.nii", options=options)
    message = decode(encode(original.to_dict() | {"type": "x"}))
    assert message is not None
    del message["type"]
    assert Request.from_dict(message) == original


def test_an_unexpected_exception_becomes_one_sentence(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    from segmamba.inference import file_to_file as files

    def fail(path: str) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(files, "read_volume", fail)
    with pytest.raises(SegMambaError, match="unexpected error .*surprise"):
        files.segment_file(request(folder, "never.nii"))
