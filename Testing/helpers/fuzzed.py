"""Random and damaged input for what strangers reach: requests, uploads, DICOM files, answers of a PACS and a server.

Everything is drawn from a seed. What must come of each is an answer, a result or one typed sentence, soon.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import socket
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import SimpleITK as sitk

from helpers.damage import SOON, Tally, damaged, quietly
from helpers.dicom_files import write_slices
from helpers.phantoms import grid_around_patient, phantom, rotation
from helpers.running_server import TOKEN, RunningServer
from segmamba.errors import ERRORS_BY_NAME
from segmamba.io.read import read_volume
from segmamba.io.volume import to_image
from segmamba.pacs.archive import Access, Archive
from segmamba.remote.client import Body, Client
from segmamba.request import Options
from segmamba.server.uploads import CHECKS

# Seconds in which an answer to a whole request is expected; to a part of one there may be none.
BRIEFLY = 1.0
LIMIT = 1 << 24
# Statuses with which a server may say no; 500 is an error that nobody thought of.
REFUSALS = {400, 401, 404, 405, 408, 409, 411, 413, 422, 429, 503, 507}


class Samples:
    """Good files of each kind that a server takes, and the files of a DICOM series."""

    def __init__(self, folder: Path) -> None:
        volume = phantom(grid_around_patient((14.0, 14.0, 16.0), rotation(4, -3)))
        image = to_image(volume.array, volume.geometry)
        self.series = [path.read_bytes() for path in write_slices(folder / "dicom", volume.array, volume.geometry)]
        self.uploads: dict[str, bytes] = {"json": b'[{"direction": ["L", "P", "S"]}, {"label": 20, "X": 1.0}]'}
        for kind in ("nii", "nii.gz", "nrrd", "seg.nrrd"):
            sitk.WriteImage(image, str(folder / f"a.{kind}"))
            self.uploads[kind] = (folder / f"a.{kind}").read_bytes()
        with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for number, content in enumerate(self.series):
                archive.writestr(f"{number}.dcm", content)
        self.uploads["dicom.zip"] = (folder / "a.zip").read_bytes()
        assert self.uploads.keys() == CHECKS.keys()


def fuzz_uploads(samples: Samples, folder: Path, draw: random.Random, count: int, tally: Tally) -> None:
    """Check damaged uploads, and read those that are let through."""
    kinds = sorted(samples.uploads)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        content = damaged(samples.uploads[kind], draw)
        if kind.endswith(".gz") and draw.random() < 0.7:
            content = gzip.compress(damaged(gzip.decompress(samples.uploads[kind]), draw))
        with tempfile.TemporaryDirectory(dir=folder) as place:
            path = Path(place) / f"input.{kind}"
            path.write_bytes(content)
            tally.call(f"upload {kind}", content, lambda kind=kind, path=path: _take(kind, path))


def _take(kind: str, path: Path) -> None:
    checked = CHECKS[kind](path, LIMIT)
    if kind != "json":
        read_volume(checked)


def fuzz_dicom(samples: Samples, folder: Path, draw: random.Random, count: int, tally: Tally) -> None:
    """Read series with damaged files."""
    for _number in range(count):
        files = list(samples.series)
        for _file in range(draw.choice((1, 1, len(files)))):
            place = draw.randrange(len(files))
            files[place] = damaged(files[place], draw)
        with tempfile.TemporaryDirectory(dir=folder) as name:
            for number, content in enumerate(files):
                Path(name, f"{number:03d}.dcm").write_bytes(content)
            tally.call("DICOM", b"".join(files), lambda name=name: quietly(read_volume, name))


def fuzz_service(server: RunningServer, samples: Samples, draw: random.Random, count: int, tally: Tally) -> None:
    """Send damaged requests over connections of their own; each is refused or answered, and the server lives."""
    where = urlsplit(server.address)
    jobs: list[str] = []
    for _number in range(count):
        request = _request(samples, draw, jobs)
        tally.call("HTTP", request, lambda request=request: _ask(where.hostname, where.port, request, draw))
    for job in jobs:
        _ask(where.hostname, where.port, _message("DELETE", f"/jobs/{job}", b""), draw, SOON)
    health = _ask(where.hostname, where.port, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", draw, SOON)
    if not health.startswith(b"HTTP/1.1 200"):
        tally.wrong.append(f"the server does not answer any more: {health[:80]!r}")
    if server.files():
        tally.wrong.append(f"files stay: {server.files()}")


def _request(samples: Samples, draw: random.Random, jobs: list[str]) -> bytes:
    """Return one request, sound or not: of bytes, of JSON, or of values."""
    job = draw.choice([*jobs, f"{draw.getrandbits(128):032x}", "../../etc/passwd", "0" * 32])
    kind, content = draw.choice(list(samples.uploads.items()))
    file = {"kind": kind, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    description: dict[str, Any] = {"task": "vertebrae", "files": {"input": file}}
    step = draw.randrange(6)
    if step == 0:
        sent = _message(draw.choice(("GET", "DELETE", "PUT", "POST", "OPTIONS", "\x00")), f"/jobs/{job}", b"")
    elif step == 1:
        sent = _message("GET", draw.choice(ROUTES), b"")
    elif step == 2:
        sent = _message("PUT", f"/jobs/{job}/files/{draw.choice(('input', 'levels', '%2e%2e', 'a' * 99))}", content)
    else:
        if draw.random() < 0.7:
            _change(description, draw)
        if len(job) == 32 and job not in jobs:
            jobs.append(job)
        sent = _message("PUT", f"/jobs/{job}", json.dumps(description).encode())
    return damaged(sent, draw) if draw.random() < 0.5 else sent


VALUES: list[Any] = [None, True, -1, 0, 2**63, 1e308, "", "x", "NaN", "\ud83d", "a" * 200]
VALUES += [[], [[]], [None], [1e9] * 6, {}, {"a": 1}]
ROUTES = ("/health", "/models", "/openapi.json", "/jobs/x/results/a", "//", "*")
DICOM_JSON, DICOM_PARTS = "application/dicom+json", 'multipart/related; type="application/dicom"; boundary=x'


def _change(description: dict[str, Any], draw: random.Random) -> None:
    """Give a description of a job values that it must not have, or may have."""
    for _number in range(draw.choice((1, 2))):
        kind = draw.randrange(4)
        if kind == 0:
            names = ("task", "model", "model_version", "output", "also", "preview", "files", "channels", "more")
            description[draw.choice(names)] = draw.choice(VALUES)
        elif kind == 1:
            options = description.setdefault("options", {})
            if isinstance(options, dict):
                options[draw.choice([*Options.__dataclass_fields__, "x"])] = draw.choice(VALUES)
        elif kind == 2 and isinstance(description.get("files"), dict):
            file = description["files"].setdefault("input", {})
            if isinstance(file, dict):
                file[draw.choice(("kind", "size", "sha256", "x"))] = draw.choice(VALUES)
        else:
            description["channels"] = {draw.choice(("a", "", "input")): draw.choice(("input", "levels", "b", 1))}


def _message(method: str, path: str, body: bytes) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
    return (head + f"Content-Length: {len(body)}\r\n\r\n").encode("latin-1", "replace") + body


def _ask(host: str | None, port: int | None, request: bytes, draw: random.Random, seconds: float = BRIEFLY) -> bytes:
    """Send a request, in pieces, and return the answer; AssertionError if it is none that a server may give."""
    with socket.create_connection((host, port), SOON) as connection:
        connection.settimeout(seconds)
        try:
            half = draw.randrange(len(request) + 1)
            for piece in (request[:half], request[half:]):
                connection.sendall(piece)
        except OSError:
            # Refused by its headers.
            pass
        answer = b""
        try:
            while chunk := connection.recv(1 << 16):
                answer += chunk
        except (ConnectionError, TimeoutError):
            # A part of a request is waited for.
            pass
    if answer:
        head, _, body = answer.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        assert status < 400 or status in REFUSALS, f"status {status}: {body[:200]!r}"
        if status >= 400 and body.startswith(b'{"error"'):
            told = json.loads(body)
            assert told["error"] in ERRORS_BY_NAME and told["message"].endswith("."), body[:200]
    return answer


@contextmanager
def answering(answer: Callable[[BaseHTTPRequestHandler], tuple[int, str, bytes]]) -> Iterator[str]:
    """Run a server whose answers (status, type, body) are made for each request; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            length = self.headers.get("Content-Length", "0")
            self.rfile.read(int(length))
            status, kind, body = answer(self)
            self.close_connection = True
            self.wfile.write(f"HTTP/1.1 {status} x\r\n".encode())
            self.wfile.write(f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode("latin-1") + body)

        do_GET = do_PUT = do_POST = do_DELETE = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda request, address: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def fuzz_pacs(samples: Samples, folder: Path, draw: random.Random, count: int, tally: Tally) -> None:
    """Ask a PACS whose answers are damaged for everything that a batch asks it for."""
    now = b""

    def answer(handler: BaseHTTPRequestHandler) -> tuple[int, str, bytes]:
        nonlocal now
        if "offset=0" not in handler.path and "offset=" in handler.path:
            return 204, "text/plain", b""
        now = _answer_of_pacs(samples, draw)
        kind = draw.choice((DICOM_JSON, DICOM_PARTS, "text/html", "multipart/x"))
        if draw.random() < 0.7:
            kind = DICOM_JSON if now[:1] == b"[" else DICOM_PARTS
        return draw.choice((200, 200, 200, 200, 204, 302, 403, 404, 409, 500)), kind, now

    with answering(answer) as address:
        archive = Archive(address, Access())
        archive._client.set_http_retry_params(retry=False)
        dataset = quietly(_read, samples.series[0])
        for number in range(count):
            with tempfile.TemporaryDirectory(dir=folder) as name:
                place = Path(name)
                asked: list[tuple[str, Callable[[], Any]]] = [
                    ("series", lambda: list(archive.series({"Modality": "CT"}))),
                    ("headers", lambda: archive.headers("1.2", "1.3")),
                    ("fetch", lambda place=place: _fetch(archive, place)),
                    ("has", lambda: archive.has(dataset)),
                    ("store", lambda: archive.store(dataset)),
                ]
                kind, function = asked[number % len(asked)]
                tally.call(f"PACS {kind}", now, lambda function=function: quietly(function))


def _fetch(archive: Archive, place: Path) -> None:
    files = archive.fetch("1.2", "1.3", place, LIMIT, lambda: False)
    assert all(Path(file).parent == place for file in files), files
    read_volume(place)


def _read(content: bytes) -> Any:
    import io

    import pydicom

    return pydicom.dcmread(io.BytesIO(content))


def _answer_of_pacs(samples: Samples, draw: random.Random) -> bytes:
    if draw.random() < 0.5:
        found = [{"0020000D": {"vr": "UI", "Value": ["1.2"]}, "0020000E": {"vr": "UI", "Value": ["1.3"]}}]
        if draw.random() < 0.6:
            found[0][draw.choice(("0020000D", "00080060", "x"))] = draw.choice([*VALUES, {"vr": "XX", "Value": [7]}])
        body = json.dumps(draw.choice([found, found, VALUES])).encode()
    else:
        parts = [damaged(part, draw) if draw.random() < 0.3 else part for part in samples.series[:3]]
        heads = (b"--x\r\nContent-Type: application/dicom\r\n\r\n" + part + b"\r\n" for part in parts)
        body = b"".join((*heads, b"--x--\r\n"))
    return damaged(body, draw) if draw.random() < 0.4 else body


def fuzz_client(draw: random.Random, folder: Path, count: int, tally: Tally) -> None:
    """Ask a server whose answers are damaged, as the panel and ``segmamba segment --server`` do."""
    state = {"id": "0", "state": "running", "ahead": 0, "stage": "", "fraction": 0.5, "missing": [], "error": None}
    state |= {"report": None, "results": {}}
    now = b""

    def answer(handler: BaseHTTPRequestHandler) -> tuple[int, str, bytes]:
        nonlocal now
        content: Any = dict(state)
        if draw.random() < 0.5:
            content[draw.choice(list(content))] = draw.choice(VALUES)
        if draw.random() < 0.3:
            content = draw.choice([*VALUES, {"error": draw.choice(VALUES), "message": draw.choice(VALUES)}])
        now = json.dumps(content).encode()
        if handler.path.endswith("events"):
            now = b"event: state\ndata: " + now + b"\n\n"
        if draw.random() < 0.4:
            now = damaged(now, draw)
        return draw.choice((200, 200, 200, 302, 401, 404, 422, 500)), "application/json", now

    with answering(answer) as address:
        client = Client(address, TOKEN)
        for number in range(count):
            asked: list[tuple[str, Callable[[], Any]]] = [
                ("models", client.models),
                ("announce", lambda: client.announce("0" * 32, {})),
                ("follow", lambda: list(client.follow("0" * 32))),
                ("fetch", lambda: client.fetch("0" * 32, "a", folder / "fetched", "0" * 64)),
                ("forget", lambda: client.forget("0" * 32)),
                ("send", lambda: client.send("0" * 32, "input", _body())),
            ]
            kind, function = asked[number % len(asked)]
            tally.call(f"server's answer to {kind}", now, function)
        if (folder / "fetched").exists():
            tally.wrong.append("a result that is another one was kept")


def _body() -> Body:
    import io

    return Body(io.BytesIO(b"abc"), 3, lambda fraction: None, lambda: False)


def fuzz(server: RunningServer, folder: Path, count: int, seed: int) -> Tally:
    """Try ``count`` inputs of each kind.

    Parameters
    ----------
    server : RunningServer
    folder : Path
        For files.
    count : int
    seed : int
    """
    tally = Tally()
    samples = Samples(folder)
    draw = random.Random(seed)
    fuzz_uploads(samples, folder, draw, count, tally)
    fuzz_dicom(samples, folder, draw, count, tally)
    fuzz_service(server, samples, draw, count, tally)
    fuzz_pacs(samples, folder, draw, count, tally)
    fuzz_client(draw, folder, count, tally)
    return tally
