"""A connection between a client and a server that breaks, as those of real networks do."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class Link:
    """A port that passes everything on to another one; ``cuts`` are the bytes, either way, after which a connection
    breaks, one for each connection in turn, None for one that lasts.
    """

    address: str
    cuts: list[int | None] = field(default_factory=list)
    connections: int = 0
    broken: int = 0


@contextmanager
def flaky_link(address: str) -> Iterator[Link]:
    """Give a link to a server at an address."""
    target = urlsplit(address)
    assert target.hostname is not None and target.port is not None
    place = target.hostname, target.port
    listening = socket.create_server(("127.0.0.1", 0))
    link = Link(f"http://127.0.0.1:{listening.getsockname()[1]}")

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listening.accept()
                cut = link.cuts.pop(0) if link.cuts else None
                link.connections += 1
                far = socket.create_connection(place)
                left = [float("inf") if cut is None else cut]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=_pass_on, args=(*ends, left, link), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield link
    finally:
        listening.close()


def _pass_on(source: socket.socket, target: socket.socket, left: list[float], link: Link) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(4096):
            left[0] -= len(data)
            if left[0] < 0:
                link.broken += 1
                break
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
