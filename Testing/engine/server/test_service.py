"""The service over real connections, with real workers: results as on this computer, and nothing kept."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nibabel
import numpy as np
import pytest
import requests
from helpers import tiny
from helpers.dicom_files import write_slices
from helpers.flaky_link import flaky_link
from helpers.many_cases import write
from helpers.own_time import PATIENCE
from helpers.phantoms import grid_around_patient, phantom, rotation

pytest.importorskip("fastapi", reason="the server's packages are not installed")

from helpers.running_server import TOKEN, RunningServer, running_server

from segmamba.errors import Cancelled, InputError, ModelError, OutputError, SegMambaError, WorkerError
from segmamba.io.read import read_volume
from segmamba.remote.client import Body, Client, Interrupted
from segmamba.remote.job import segment_on_server
from segmamba.request import Request
from segmamba.server.jobs import PREFIX, Jobs, private_folder
from segmamba.server.settings import ServerSettings, server_token
from segmamba.worker.client import worker_environment

VOLUME = phantom(grid_around_patient((6.0, 6.0, 8.0), rotation(4, -3)))
JOB = "0123456789abcdef" * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("service")
    tiny.write_model(folder)
    write(VOLUME, folder / "ct.nii.gz")
    write(VOLUME, folder / "ct.nii")
    (folder / "server").mkdir()
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    settings = {"patience": 1.0, "upload_bytes": 1 << 24}
    with running_server(folder / "server", folder / "manifest.json", **settings) as server:
        yield server


@pytest.fixture
def request_of(folder: Path, tmp_path: Path) -> Any:
    def request_of(name: str = "out.nii.gz", source: str = "ct.nii.gz", **more: Any) -> Request:
        more = {"task": "vertebrae", "manifest": str(folder / "manifest.json"), "device": "cpu"} | more
        return Request.of(str(folder / source), str(tmp_path / name), **more)

    return request_of


def remotely(request: Request, client: Client, stages: list[str] | None = None, stop: Any = None) -> dict[str, Any]:
    def progress(stage: str, fraction: float) -> None:
        if stages is not None:
            stages.append(stage)

    return segment_on_server(request, client, progress, stop or (lambda: False), patience=30.0)


def wait_for(condition: Any) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def description(content: bytes = b"x", **changes: Any) -> dict[str, Any]:
    file = {"kind": "nrrd", "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return {"task": "vertebrae", "files": {"input": file}} | changes


def test_a_server_gives_what_this_computer_gives_and_keeps_nothing(
    server: RunningServer, request_of: Any, tmp_path: Path
) -> None:
    stages: list[str] = []
    files = {"preview": str(tmp_path / "p.png"), "report": str(tmp_path / "r.json")}
    report = remotely(request_of(structures="L1,L2", **files), server.client, stages)
    # Not through the service; starting another one takes seconds.
    own = server.jobs._workers[0].run(request_of("own.nii.gz", structures="L1,L2"))
    arrays = [np.asarray(nibabel.load(tmp_path / name).dataobj) for name in ("out.nii.gz", "own.nii.gz")]
    assert arrays[0].any()
    assert np.array_equal(*arrays)
    assert report["segments"] == own["segments"]
    assert (report["input"], report["output"]) == (own["input"], str(tmp_path / "out.nii.gz"))
    assert report["run"]["server"] == server.address
    assert (tmp_path / "p.png").stat().st_size > 1000
    assert (tmp_path / "r.json").is_file()
    assert stages[0] == "send"
    assert {"read", "predict", "write"} <= set(stages)
    assert stages[-1] == "fetch"
    assert str(server.folder) not in (tmp_path / "r.json").read_text()
    assert server.files() == []
    assert sum(server.jobs.count().values()) == 0


def test_a_dicom_series_goes_there_and_a_rtstruct_of_it_comes_back(
    server: RunningServer, request_of: Any, folder: Path, tmp_path: Path
) -> None:
    pydicom = pytest.importorskip("pydicom")
    write_slices(folder / "series", VOLUME.array, VOLUME.geometry, PatientName="Müller^Jörg", PatientID="7")
    remotely(request_of("out.rtstruct.dcm", "series"), server.client)
    found = pydicom.dcmread(tmp_path / "out.rtstruct.dcm")
    assert (found.Modality, str(found.PatientName)) == ("RTSTRUCT", "Müller^Jörg")
    assert server.files() == []


def test_a_connection_that_breaks_loses_nothing(server: RunningServer, request_of: Any, tmp_path: Path) -> None:
    """Broken while the description, the volume, the events and the result are on their way."""
    with flaky_link(server.address) as link:
        link.cuts = [300, None, 3000, None, None, 600, None, None, 700]
        remotely(request_of(source="ct.nii", seed=1), Client(link.address, TOKEN))
    assert link.broken == 4
    assert read_volume(tmp_path / "out.nii.gz").array.any()
    wait_for(lambda: not server.files())


def test_a_job_is_taken_up_where_the_last_run_left_it(server: RunningServer, request_of: Any, tmp_path: Path) -> None:
    """A client without patience gives up; the next run finds the job of the same input and options there."""
    before = len(server.log)
    with flaky_link(server.address) as link:
        # The third connection has the events.
        link.cuts = [None, None, 400, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        with pytest.raises(WorkerError, match="cannot be reached.*start again"):
            segment_on_server(request_of(), Client(link.address, TOKEN), lambda *_: None, lambda: False, patience=0.3)
    remotely(request_of(), server.client)
    assert len(server.log) == before + 1
    assert read_volume(tmp_path / "out.nii.gz").array.any()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_worker_that_is_killed_is_replaced_and_the_job_done(
    server: RunningServer, request_of: Any, tmp_path: Path
) -> None:
    killed: list[int] = []

    def progress(stage: str, fraction: float) -> None:
        pid = server.jobs._workers[0].pid
        if stage == "predict" and not killed and pid is not None:
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)

    segment_on_server(request_of(overlap=0.6), server.client, progress, lambda: False)
    assert killed
    assert read_volume(tmp_path / "out.nii.gz").array.any()


def test_a_cancelled_job_stops_and_leaves_nothing_here_and_there(
    server: RunningServer, request_of: Any, tmp_path: Path
) -> None:
    stages: list[str] = []
    with pytest.raises(Cancelled):
        remotely(request_of(overlap=0.9, tta=True), server.client, stages, lambda: "predict" in stages)
    assert not (tmp_path / "out.nii.gz").exists()
    wait_for(lambda: not server.files())
    wait_for(lambda: any(": cancelled after" in line for line in server.log))


def test_a_result_that_was_deleted_on_the_server_is_told_and_can_be_made_again(
    server: RunningServer, folder: Path, tmp_path: Path
) -> None:
    content = (folder / "ct.nii.gz").read_bytes()
    described = description(content)
    described["files"]["input"]["kind"] = "nii.gz"
    server.client.announce(JOB, described)
    server.client.send(JOB, "input", Body(io.BytesIO(content), len(content), lambda fraction: None, lambda: False))
    *_, last = server.client.follow(JOB)
    ((name, sha256),) = last["results"].items()
    for path in server.files():
        path.unlink()
    with pytest.raises(Interrupted, match="has lost this result: start again"):
        server.client.fetch(JOB, name, tmp_path / "out.nrrd", sha256)
    assert sum(server.jobs.count().values()) == 0
    assert server.client.announce(JOB, described)["missing"] == ["input"]
    server.client.forget(JOB)


def test_an_error_of_a_job_comes_as_it_would_here_and_nothing_is_kept(
    server: RunningServer, request_of: Any, folder: Path, tmp_path: Path
) -> None:
    flat = VOLUME.array * 0 + 7
    nibabel.save(nibabel.Nifti1Image(flat.T, np.eye(4)), folder / "flat.nii.gz")
    with pytest.raises(InputError) as caught:
        remotely(request_of(source="flat.nii.gz"), server.client)
    assert str(caught.value).startswith(f"{folder / 'flat.nii.gz'} has the value 7 everywhere")
    assert server.files() == []
    with pytest.raises(ModelError, match="leave out the checkpoint"):
        remotely(request_of(checkpoint="x.pt"), server.client)
    with pytest.raises(OutputError, match="leave out --page"):
        remotely(request_of(page=str(tmp_path / "page.html")), server.client)
    with pytest.raises(OutputError, match="does not exist"):
        remotely(request_of("nowhere/out.nii.gz"), server.client)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_version": "99"}, "not 99: install the same version"),
        ({"task": "knitting"}, "knitting"),
        ({"output": ".exe"}, "no output '.exe'"),
        ({"options": {"levels_from": "/etc/passwd"}}, "'levels_from' is the server's own"),
        ({"options": {"overlap": 7}}, "overlap is 7"),
        ({"options": {"manifest": "/etc/passwd"}}, "no option 'manifest'"),
        ({"checkpoint": "/etc/passwd"}, "description of the job is not valid"),
        ({"files": {}}, "announce these"),
        ({"files": {"input": {"kind": "exe", "size": 1, "sha256": "0" * 64}}}, "no kind of file 'exe'"),
        ({"files": {"../x": {"kind": "nii", "size": 1, "sha256": "0" * 64}}}, "not valid"),
        ({"channels": {"t1c": "levels"}}, "announce these"),
    ],
)
def test_a_description_that_cannot_be_done_is_refused(
    changes: dict[str, Any], sentence: str, server: RunningServer
) -> None:
    with pytest.raises(SegMambaError, match=sentence):
        server.client.announce(JOB, description(**changes))


def test_a_stranger_gets_nothing(server: RunningServer) -> None:
    for token in ("", "another-token-that-nobody-knows"):
        with pytest.raises(WorkerError, match="does not know this token"):
            Client(server.address, token).models()
    answer = requests.get(f"{server.address}/health", timeout=10)
    assert answer.json()["status"] == "ok"
    assert "server" not in answer.headers
    paths = requests.get(f"{server.address}/openapi.json", timeout=10).json()["paths"]
    assert {"/health", "/models", "/jobs/{identifier}", "/jobs/{identifier}/events"} <= set(paths)
    assert requests.get(f"{server.address}/docs", timeout=10).status_code == 401
    assert [each["id"] for each in server.client.models()] == ["tiny-spine", "tiny-missing"]


def answer_to(server: RunningServer, head: str, body: bytes = b"", end: bool = False) -> bytes:
    """Return what the server answers to bytes, until it closes the connection."""
    place = urlsplit(server.address)
    with socket.create_connection((place.hostname, place.port), timeout=PATIENCE) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + body)
        if end:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(4096):
                answer += part
    return answer


AUTHORIZED = f"Authorization: Bearer {TOKEN}\nHost: x\n"
FILE = f"PUT /jobs/{JOB}/files/input HTTP/1.1\n{AUTHORIZED}"


def test_wrong_lengths_and_huge_or_slow_requests_are_refused_and_leave_nothing(server: RunningServer) -> None:
    client = server.client
    client.announce(JOB, description(b"x" * 1000))
    announce = f"PUT /jobs/{JOB} HTTP/1.1\n{AUTHORIZED}"
    assert b" 411 " in answer_to(server, f"{FILE}Transfer-Encoding: chunked\n\n", b"5\r\nhello\r\n0\r\n\r\n")
    assert b" 413 " in answer_to(server, f"{FILE}Content-Length: 99999999999\n\n")
    assert b" 413 " in answer_to(server, f"{announce}Content-Length: 100000\n\n")
    assert b" 400 " in answer_to(server, f"{FILE}Content-Length: 999\n\n", b"x" * 999)
    assert b"did not arrive" in answer_to(server, f"{FILE}Content-Length: 1000\n\n", b"y" * 1000)
    assert b" 400 " in answer_to(server, f"GET /health HTTP/1.1\nX-Long: {'x' * 70_000}\n\n")
    # Shorter than it says, and then silent, or gone.
    assert b" 408 " in answer_to(server, f"{FILE}Content-Length: 1000\n\n", b"x" * 10)
    answer_to(server, f"{FILE}Content-Length: 1000\n\n", b"x" * 10, end=True)
    assert client.announce(JOB, description(b"x" * 1000))["missing"] == ["input"]
    wait_for(lambda: not server.files())
    client.forget(JOB)


def test_whoever_says_nothing_is_not_waited_for(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from segmamba.server import run

    monkeypatch.setattr(run, "PATIENCE", 0.2)
    assert answer_to(server, "GET /health HTT") == b""


def test_a_full_queue_and_a_full_disk_say_so(folder: Path, tmp_path: Path) -> None:
    jobs = Jobs(ServerSettings(waiting=2, disk_bytes=100), tmp_path, [], lambda line: None)
    try:
        from segmamba.server.jobs import Refused, Upload

        def create(number: int, size: int) -> None:
            jobs.create(f"{number:032x}", lambda *_: Request("", ""), {"input": Upload("nii", size, "")})

        create(1, 60)
        with pytest.raises(Refused, match="no space left"):
            create(2, 60)
        create(3, 30)
        with pytest.raises(Refused, match="busy .2 jobs wait"):
            create(4, 1)
        # A job that is known counts once.
        create(3, 30)
    finally:
        jobs.close()


def test_what_nobody_fetches_is_deleted_after_a_time(folder: Path, tmp_path: Path) -> None:
    jobs = Jobs(ServerSettings(kept_s=0.2), tmp_path, [], lambda line: None)
    try:
        from segmamba.server.jobs import Upload

        job = jobs.create(JOB, lambda *_: Request("", ""), {"input": Upload("nii", 1, "")})
        job.path("input").write_bytes(b"x")
        wait_for(lambda: not job.folder.exists())
        wait_for(lambda: sum(jobs.count().values()) == 0)
    finally:
        jobs.close()


def test_a_server_deletes_its_files_at_its_end_and_those_of_one_that_was_killed(tmp_path: Path) -> None:
    with private_folder(tmp_path) as first:
        (first / "patient").write_text("x")
        assert first.parent.name.startswith(PREFIX)
        if sys.platform != "win32":
            assert stat.S_IMODE(first.parent.stat().st_mode) == 0o700
        left = tmp_path / f"{PREFIX}dead"
        left.mkdir()
        (left / "patient").write_text("x")
        with private_folder(tmp_path) as second:
            assert not left.exists()
            assert (first / "patient").is_file()
            assert second != first
    assert list(tmp_path.iterdir()) == []


def test_a_server_makes_the_folder_it_is_given_or_says_why_not(tmp_path: Path) -> None:
    with private_folder(tmp_path / "new" / "jobs") as folder:
        assert folder.is_dir()
    assert list((tmp_path / "new" / "jobs").iterdir()) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="choose one with --folder"), private_folder(tmp_path / "file" / "jobs"):
        pass


def test_the_token_is_made_once_and_is_for_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEGMAMBA_SERVER_TOKEN", raising=False)
    file = tmp_path / "deep" / "token"
    token = server_token(file)
    assert len(token) > 40
    assert server_token(file) == token
    if sys.platform != "win32":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        file.chmod(0o644)
        with pytest.raises(InputError, match="chmod 600"):
            server_token(file)
    monkeypatch.setenv("SEGMAMBA_SERVER_TOKEN", "short")
    with pytest.raises(InputError, match="at least 20"):
        server_token(file)


def test_no_thread_of_a_server_outlives_it(folder: Path, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with running_server(tmp_path, folder / "manifest.json"):
        pass
    assert [thread.name for thread in set(threading.enumerate()) - before if thread.name in ("jobs", "sweeper")] == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_the_command_serves_until_it_is_told_to_stop_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "segmamba", "serve", "--port", "0", "--folder", str(tmp_path), "--device", "cpu"]
    environment = worker_environment() | {"SEGMAMBA_SERVER_TOKEN": TOKEN}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        assert TOKEN not in first
        address = re.search(r"http://127.0.0.1:\d+", first)
        assert address is not None, first
        wait_for(lambda: _is_up(address[0]))
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    assert (process.returncode, list(tmp_path.iterdir())) == (0, []), said
    assert TOKEN not in said


def _is_up(address: str) -> bool:
    with contextlib.suppress(requests.ConnectionError):
        return requests.get(f"{address}/health", timeout=10).status_code == 200
    return False
