"""Download checkpoints, robust to a broken network, a killed process and a wrong file."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segmamba.errors import Cancelled, InstallationError, ModelError
from segmamba.models import store
from segmamba.models.install import PARTIAL, add, changing, check_space, file_name
from segmamba.models.manifest import ListedModel, ModelFile
from segmamba.models.record import Record
from segmamba.models.settings import MIRROR, VARIABLES, setting

# Consecutive tries of one address without new data, and the pause between them.
TRIES = 3
PAUSE_SECONDS = 1.0
# To connect, and between two chunks of data; while nothing arrives, cancelling can take as long.
TIMEOUT_SECONDS = (10.0, 20.0)
PIECE = 1 << 18

Progress = Callable[[str, float], None]


class _Interrupted(Exception):
    """The transfer was interrupted and can be resumed."""


class _Refused(Exception):
    """The address does not provide the file; the next one may."""


def fetch(
    model: ListedModel,
    root: Path | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> store.Installed:
    """Download a model's checkpoint into the user's models folder, unless the right one is there.

    An interrupted download leaves a partial file, which the next call resumes. Proxies and certificates are those of
    the environment (HTTPS_PROXY, NO_PROXY, REQUESTS_CA_BUNDLE).

    Parameters
    ----------
    model : ListedModel
    root : Path, optional
        As for `segmamba.models.store.find`.
    progress : callable, optional
        Called with "download" or "verify" and the finished fraction of it.
    cancelled : callable, optional
        Called for each chunk of data, and while another process downloads the same model.

    Raises
    ------
    ModelError
        The model cannot be downloaded, or no address provides the right file.
    OutputError
        The models folder cannot be written or has too little room.
    Cancelled
    """
    progress, cancelled = progress or (lambda stage, fraction: None), cancelled or (lambda: False)
    found = _right_one(model, root)
    if found is not None:
        return found
    urls = _addresses(model)
    with changing(model, cancelled) as folder:
        # Another process may have downloaded it meanwhile.
        found = _right_one(model, root)
        if found is None:
            _fetch(model, urls, folder, progress, cancelled)
            found = store.in_folder(model, folder, store.USER)
    assert found is not None
    return found


def _right_one(model: ListedModel, root: Path | None) -> store.Installed | None:
    """Return the checkpoint if it is installed and right; a wrong one in the user's folder will be replaced."""
    try:
        found = store.find(model, root)
    except ModelError:
        return None
    if found is None:
        return None
    try:
        store.verify(found)
    except ModelError:
        if found.place == store.SOFTWARE:
            raise
        return None
    return found


def _addresses(model: ListedModel) -> tuple[str, ...]:
    file = model.file
    mirror = setting(MIRROR).value
    urls = (f"{mirror.rstrip('/')}/{model.id}/{file.name}", *file.urls) if mirror else file.urls
    note = f" {file.note}" if file.note else ""
    if file.size is None or file.sha256 is None:
        raise ModelError(
            f"'{model.id}' cannot be downloaded, because its size and hash are unknown: get the file yourself and "
            f"import it with 'segmamba models import FILE'.{note}"
        )
    if not urls:
        raise ModelError(
            f"The manifest has no address for '{model.id}': set {VARIABLES[MIRROR]} to a server that has it, or "
            f"import the file with 'segmamba models import FILE'.{note}"
        )
    return urls


def _fetch(
    model: ListedModel, urls: tuple[str, ...], folder: Path, progress: Progress, cancelled: Callable[[], bool]
) -> None:
    file = model.file
    assert file.size is not None and file.sha256 is not None
    name = file_name(model, Path(file.name).suffix, file.sha256)
    part = folder / f"{name}{PARTIAL}"
    check_space(folder, file.size - _size(part))
    failures = []
    for url in urls:
        try:
            _transfer(url, part, file, progress, cancelled)
        except _Refused as reason:
            failures.append(f"{url}: {reason}")
            continue
        add(folder, part, Record(name, file.size, file.sha256, f"downloaded from {url}"))
        return
    raise ModelError(
        f"'{model.id}' could not be downloaded ({'; '.join(failures)}): check the network, its proxy (HTTPS_PROXY) and "
        "certificates (REQUESTS_CA_BUNDLE), or import the file with 'segmamba models import FILE'."
    )


def _transfer(url: str, part: Path, file: ModelFile, progress: Progress, cancelled: Callable[[], bool]) -> None:
    """Complete ``part`` from one address, with as many requests as needed, and verify it."""
    reached, idle, mixed = _size(part), 0, _size(part) > 0
    while True:
        try:
            _receive(url, part, file, progress, cancelled)
        except _Interrupted as reason:
            reached, idle = max(reached, _size(part)), 0 if _size(part) > reached else idle + 1
            if idle >= TRIES:
                raise _Refused(str(reason)) from reason
            _pause(cancelled)
            continue
        progress("verify", 0.0)
        if store.sha256(part) == file.sha256:
            progress("verify", 1.0)
            return
        part.unlink()
        if not mixed:
            raise _Refused("it has another file (the SHA-256 differs)")
        # The beginning may be from another address: try once more, from zero.
        reached, idle, mixed = 0, 0, False


def _receive(url: str, part: Path, file: ModelFile, progress: Progress, cancelled: Callable[[], bool]) -> None:
    """Make one request and append its data to ``part``."""
    requests, urllib3 = _libraries()
    assert file.size is not None
    have = _size(part)
    if have > file.size:
        part.unlink()
        have = 0
    if have == file.size:
        return
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
            have = _start(response, part, have, file.size)
            with part.open("ab" if have else "wb") as stream:
                while True:
                    if cancelled():
                        raise Cancelled(
                            "The download was cancelled; what has arrived is kept, and the next download resumes."
                        )
                    piece = response.raw.read1(PIECE, decode_content=False)
                    if not piece:
                        break
                    stream.write(piece)
                    have += len(piece)
                    if have > file.size:
                        break
                    progress("download", have / file.size)
    except requests.exceptions.SSLError as error:
        raise _Refused("its certificate is not trusted") from error
    except requests.exceptions.ProxyError as error:
        raise _Refused("the proxy does not answer") from error
    except requests.exceptions.Timeout as error:
        raise _Interrupted("it does not answer in time") from error
    except (requests.exceptions.ConnectionError, urllib3.exceptions.HTTPError) as error:
        raise _Interrupted("the connection fails or is interrupted") from error
    except requests.exceptions.RequestException as error:
        raise _Refused(f"the address does not work ({type(error).__name__})") from error
    if have > file.size:
        part.unlink()
        raise _Refused(f"it has more than the {file.size} bytes of the file")
    if have < file.size:
        raise _Interrupted("it ends too early")


def _start(response: Any, part: Path, have: int, size: int) -> int:
    """Return the first byte of the response: ``have``, or 0 if the server sends the whole file."""
    status = response.status_code
    if status == 416:
        part.unlink(missing_ok=True)
        raise _Interrupted("it refuses to resume the download")
    if status == 429 or status >= 500:
        raise _Interrupted(f"status {status} {response.reason}")
    if status not in (200, 206):
        raise _Refused(f"status {status} {response.reason}")
    content = response.headers.get("Content-Range", "")
    start, _, total = content.removeprefix("bytes ").partition("/")
    if status == 206 and not start.startswith(f"{have}-"):
        part.unlink(missing_ok=True)
        raise _Interrupted("it sends another range than requested")
    if status == 200:
        have, total = 0, response.headers.get("Content-Length", "")
    if total.isdigit() and int(total) != size:
        raise _Refused(f"it has {total} bytes instead of {size}")
    return have


def _pause(cancelled: Callable[[], bool]) -> None:
    end = time.monotonic() + PAUSE_SECONDS
    while time.monotonic() < end:
        if cancelled():
            raise Cancelled()
        time.sleep(min(0.1, PAUSE_SECONDS))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _libraries() -> tuple[Any, Any]:
    try:
        import requests
        import urllib3
    except ImportError as error:
        raise InstallationError("The package requests is missing: install it (pip install requests).") from error
    return requests, urllib3
