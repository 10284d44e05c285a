"""What every request has to pass before the service reads anything of it: token, length and speed."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from segmamba.errors import InputError, SegMambaError, WorkerError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Service = Callable[[Message, Receive, Send], Awaitable[None]]

# For whoever looks whether the server is up, and for programs that are made from its description.
OPEN = ("/health", "/openapi.json")
# Bytes of a body that is no file.
MOST_JSON = 1 << 16
# A sender gets so many seconds for anything, and must send this many bytes a second on average after these.
PATIENCE, SLOWEST = 20.0, 16_384


class Guard:
    """ASGI middleware that refuses requests by their headers, and bodies that come too slowly.

    Parameters
    ----------
    service : ASGI application
    token : str
    most : int
        Bytes of the largest file.
    patience : float
        Seconds that a sender may be silent.
    """

    def __init__(self, service: Service, token: str, most: int, patience: float = PATIENCE) -> None:
        self._service, self._most, self._patience = service, most, patience
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        # A connection for each request: none is kept open for nothing.
        closing = _closing(send)
        refusal = self._refusal(scope)
        if refusal is not None:
            await refuse(closing, *refusal)
            return
        await self._service(scope, _paced(receive, self._patience), closing)

    def _refusal(self, scope: Message) -> tuple[int, SegMambaError] | None:
        headers = dict(scope["headers"])
        if scope["path"] not in OPEN and not hmac.compare_digest(headers.get(b"authorization", b""), self._expected):
            return 401, WorkerError("The server does not know this token: ask for the one that it runs with.")
        if b"transfer-encoding" in headers:
            return 411, InputError("A body without a length is not taken: send Content-Length.")
        length = headers.get(b"content-length", b"0")
        is_file = scope["method"] == "PUT" and "/files/" in scope["path"]
        if not length.isdigit() or len(length) > 15 or int(length) > (self._most if is_file else MOST_JSON):
            return 413, InputError("The body is larger than this server takes: send a part of the volume.")
        return None


async def refuse(send: Send, status: int, error: SegMambaError) -> None:
    """Answer with an error as JSON."""
    body = error_body(error)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def error_body(error: SegMambaError) -> bytes:
    """Return an error as clients get it: the name of its class in `segmamba.errors`, and its sentence."""
    return json.dumps({"error": type(error).__name__, "message": str(error)}).encode()


def _closing(send: Send) -> Send:
    async def closing(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
        await send(message)

    return closing


def _paced(receive: Receive, patience: float) -> Receive:
    """Return a ``receive`` after which a body that comes too slowly counts as one whose sender is gone."""
    begun = time.monotonic()
    taken = 0
    complete = False

    async def paced() -> Message:
        nonlocal taken, complete
        if complete:
            # What comes now is the end of the connection, which may take as long as it likes.
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), patience)
        except TimeoutError:
            return {"type": "http.disconnect"}
        taken += len(message.get("body", b""))
        complete = not message.get("more_body", False)
        if not complete and time.monotonic() - begun > patience + taken / SLOWEST:
            return {"type": "http.disconnect"}
        return message

    return paced
