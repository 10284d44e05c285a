"""One request after another to a server, and its answers as values or typed errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import requests

from segmamba.errors import ERRORS_BY_NAME, SegMambaError, WorkerError
from segmamba.utils.atomic import replacing
from segmamba.utils.hashing import file_sha256

# Seconds to connect, and between two pieces of an answer; a server says every few seconds that it is still there.
TIMEOUT = (10.0, 30.0)
CHUNK = 1 << 18
# It is too busy for another connection, or something came too slowly or not whole; or what is between is.
TRANSIENT = (400, 408, 429, 500, 502, 503, 504)


class Interrupted(Exception):
    """The connection broke, or the server does not know the job any more: what was asked may be asked again."""


class Body:
    """A file on its way: tells how far it is, and stops when nobody wants it any more.

    Parameters
    ----------
    stream : binary file
    size : int
        Bytes.
    progress : callable
        Called with the fraction that is sent.
    cancelled : callable
    """

    def __init__(
        self, stream: BinaryIO, size: int, progress: Callable[[float], None], cancelled: Callable[[], bool]
    ) -> None:
        self._stream, self._size, self._progress, self._cancelled = stream, size, progress, cancelled
        self._sent = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        while chunk := self.read(CHUNK):
            yield chunk

    def read(self, _size: int = -1) -> bytes:
        """Return the next part, of a size of our own: that of HTTP libraries is small."""
        if self._cancelled():
            raise Interrupted("cancelled")
        chunk = self._stream.read(CHUNK)
        self._sent += len(chunk)
        self._progress(self._sent / max(1, self._size))
        return chunk


class Client:
    """What can be asked of a server.

    Parameters
    ----------
    address : str
        As `segmamba.remote.servers.checked_address` gives it.
    token : str
    """

    def __init__(self, address: str, token: str) -> None:
        self.address = address
        self._headers = {"Authorization": f"Bearer {token}"}
        self._session = requests.Session()
        # The user's own .netrc would replace the token.
        self._session.auth = _no_auth

    def models(self) -> list[dict[str, Any]]:
        """Return the server's models; `Interrupted` where it cannot be reached, `SegMambaError` if it refuses."""
        found: list[dict[str, Any]] = self._json("GET", "/models")
        return found

    def announce(self, job: str, description: Mapping[str, Any]) -> dict[str, Any]:
        """Announce a job and return its state; errors as of `models`."""
        return self._state("PUT", f"/jobs/{job}", json=description)

    def send(self, job: str, name: str, body: Body) -> dict[str, Any]:
        """Send a file of a job and return its state; errors as of `models`."""
        headers = {"Content-Type": "application/octet-stream"}
        return self._state("PUT", f"/jobs/{job}/files/{name}", data=body, headers=headers)

    def follow(self, job: str) -> Iterator[dict[str, Any]]:
        """Give the states of a job until it is over, the same again at a sign of life; errors as of `models`."""
        state: dict[str, Any] | None = None
        with self._ask("GET", f"/jobs/{job}/events", stream=True) as answer:
            try:
                # As they come: larger pieces would be waited for.
                for line in answer.iter_lines(None):
                    if line.startswith(b"data: "):
                        state = _state_of(json.loads(line[6:]))
                    if state is not None and line.startswith((b"data: ", b":")):
                        yield state
            except (requests.RequestException, ValueError) as error:
                raise Interrupted(type(error).__name__) from error

    def fetch(self, job: str, name: str, path: Path, sha256: str) -> None:
        """Write a file of the result, whole or not at all; errors as of `models`, and OSError."""
        with self._ask("GET", f"/jobs/{job}/results/{name}", stream=True) as answer, replacing(path) as draft:
            try:
                with draft.open("xb") as stream:
                    for chunk in answer.iter_content(CHUNK):
                        stream.write(chunk)
            except requests.RequestException as error:
                raise Interrupted(type(error).__name__) from error
            if file_sha256(draft) != sha256:
                raise Interrupted("the result did not come whole")

    def forget(self, job: str) -> None:
        """Cancel a job, or let its result be deleted; errors as of `models`."""
        self._json("DELETE", f"/jobs/{job}")

    def _state(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        return _state_of(self._json(method, path, **more))

    def _json(self, method: str, path: str, **more: Any) -> Any:
        try:
            return self._ask(method, path, **more).json()
        except requests.exceptions.JSONDecodeError as error:
            raise WorkerError(f"{self.address} does not answer as a SegMamba server: check its address.") from error

    def _ask(self, method: str, path: str, **more: Any) -> requests.Response:
        headers = self._headers | more.pop("headers", {})
        try:
            # Not to another address, which would get token and images.
            answer = self._session.request(
                method, self.address + path, headers=headers, timeout=TIMEOUT, allow_redirects=False, **more
            )
        except requests.exceptions.SSLError as error:
            raise WorkerError(
                f"The certificate of {self.address} cannot be trusted: ask who runs it, or name its authority's file "
                "in REQUESTS_CA_BUNDLE."
            ) from error
        except (requests.RequestException, OSError) as error:
            raise Interrupted(type(error).__name__) from error
        if answer.status_code == 200:
            return answer
        raise _refusal(answer, self.address)


def _refusal(answer: requests.Response, address: str) -> Exception:
    """Return what an answer means that is not the one that was hoped for."""
    try:
        content = answer.json()
        kind, message = ERRORS_BY_NAME[content["error"]], str(content["message"])
    except (ValueError, KeyError, TypeError):
        if answer.status_code in TRANSIENT:
            return Interrupted(f"status {answer.status_code}")
        return WorkerError(f"{address} does not answer as a SegMamba server ({answer.status_code}): check its address.")
    if answer.status_code in (400, 404, 408, 507):
        return Interrupted(message)
    error: SegMambaError = kind(message)
    return error


def _state_of(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict) or not {"state", "missing", "results"} <= set(content):
        raise WorkerError("The server does not answer as a SegMamba server: check its address.")
    return content


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request
