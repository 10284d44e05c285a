"""A web server on loopback that gives files, and misbehaves in the ways that real ones do."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Served:
    """What the server does at one address.

    ``cuts`` are the bytes after which the connection breaks, one for each request in turn. ``piece`` and ``pause``
    (seconds) make it slow. After ``stop`` bytes it sends nothing until ``go_on`` is set.
    """

    content: bytes = b""
    status: int = 200
    redirect: str | None = None
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    piece: int = 1 << 16
    pause: float = 0.0
    stop: int | None = None
    go_on: threading.Event = field(default_factory=threading.Event)


@dataclass
class FileServer:
    """What is served by path, and the requests so far as (path, range)."""

    url: str
    files: dict[str, Served] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: FileServer

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.state.requests.append((self.path, wanted))
        served = self.state.files.get(self.path, Served(status=404))
        if served.redirect or served.status != 200:
            self.send_response(302 if served.redirect else served.status)
            if served.redirect:
                self.send_header("Location", served.redirect)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted and served.ranges else 0
        whole, body = len(served.content), served.content[start:]
        self.send_response(206 if wanted and served.ranges else 200)
        if wanted and served.ranges:
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if served.cuts:
            body = body[: served.cuts.pop(0)]
            self.close_connection = True
        try:
            for offset in range(0, len(body), served.piece):
                if served.stop is not None and start + offset >= served.stop:
                    served.go_on.wait()
                self.wfile.write(body[offset : offset + served.piece])
                time.sleep(served.pause)
        except OSError:
            # The client has gone.
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def file_server(certificate: Path | None = None) -> Iterator[FileServer]:
    """Serve on a free port of this computer; ``certificate`` (PEM, with its key) makes it HTTPS."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    # A refused handshake is no news.
    server.handle_error = lambda request, address: None  # type: ignore[method-assign]
    state = FileServer(f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}")
    handler.state = state  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
