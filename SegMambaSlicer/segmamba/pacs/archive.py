"""A PACS as values and typed errors: what it has, a series in a folder, a result stored. Speaks DICOMweb."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import stat
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import requests

from segmamba.errors import InputError, InstallationError, OutputError, WorkerError
from segmamba.io.dicom_headers import pydicom
from segmamba.remote.servers import checked_address

# `dicomweb+http` is for a PACS on this computer.
SCHEMES = {"dicomweb": "https", "dicomweb+http": "http"}
TOKEN, USER, PASSWORD = "SEGMAMBA_PACS_TOKEN", "SEGMAMBA_PACS_USER", "SEGMAMBA_PACS_PASSWORD"
NEEDED = "A PACS needs dicomweb-client: install it with 'pip install dicomweb-client'."
# Seconds to connect, and between two pieces of an answer.
TIMEOUT = (10.0, 120.0)
# Series that are asked for at a time; archives limit the answer.
PAGE = 200
# The attributes that a query may name, besides those by their tags.
KEYWORD = re.compile(r"[A-Za-z]{3,60}|[0-9A-Fa-f]{8}")
# Archives warn with the first: they have stored it, but not as it was sent.
STORED_OTHERWISE, DUPLICATE = 0xB000, 0x0111


@dataclass(frozen=True)
class Found:
    """A series of a PACS: its identifiers and what a person calls it."""

    study: str
    series: str
    modality: str
    description: str


@dataclass(frozen=True)
class Access:
    """How to get in: a token, or a user and a password, or neither; and the file of an authority of one's own."""

    token: str = ""
    user: str = ""
    password: str = ""
    authority: str | None = None

    def __repr__(self) -> str:
        # It may be in a traceback.
        return "Access(...)"


def is_pacs(given: str) -> bool:
    """Say whether an input of a batch is the address of a PACS."""
    return given.partition("://")[0] in SCHEMES


def web_address(given: str) -> str:
    """Return the address of a PACS as HTTP has it.

    Raises
    ------
    InputError
        It is not one, or not encrypted and elsewhere, or has a password in it.

    Examples
    --------
    >>> web_address("dicomweb://pacs.hospital.example/dicom-web")
    'https://pacs.hospital.example/dicom-web'
    """
    scheme, _, rest = given.partition("://")
    try:
        return checked_address(f"{SCHEMES[scheme]}://{rest}")
    except InputError as error:
        raise InputError(
            "The address of the PACS is not one: give dicomweb://HOST/PATH, which is HTTPS, without a password; only "
            "for a PACS on this computer dicomweb+http://localhost:PORT/PATH."
        ) from error


def access_of(file: Path | None, authority: Path | None) -> Access:
    """Return how to get in, from the environment or else from a private file with a JSON object.

    Raises
    ------
    InputError
        The file cannot be read, or others can read it, or the file of the authority is not there.
    """
    if authority is not None and not authority.is_file():
        raise InputError(f"{authority} does not exist: give the authority's certificates (PEM) with --ca.")
    given = {name: os.environ.get(variable, "") for name, variable in _VARIABLES.items()}
    if file is not None and not any(given.values()):
        given |= _private(file)
    return Access(**given, authority=None if authority is None else str(authority))


_VARIABLES = {"token": TOKEN, "user": USER, "password": PASSWORD}


def _private(file: Path) -> dict[str, str]:
    problem = f"The credentials {file} cannot be read: give a JSON object with 'token', or 'user' and 'password'."
    try:
        if sys.platform != "win32" and stat.S_IMODE(file.stat().st_mode) & 0o077:
            raise InputError(f"Others can read the credentials {file}: run 'chmod 600' on it.")
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        # Not the error itself, which may quote the file.
        raise InputError(problem) from (error if isinstance(error, OSError) else None)
    if not isinstance(content, dict) or set(content) - set(_VARIABLES) or not all(map(_is_text, content.values())):
        raise InputError(problem)
    return content


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def parse_query(words: list[str]) -> dict[str, str]:
    """Return the filters that ``NAME=VALUE`` words ask for.

    Raises
    ------
    InputError
        A word is not of this kind.

    Examples
    --------
    >>> parse_query(["Modality=CT", "StudyDate=20260101-"])
    {'Modality': 'CT', 'StudyDate': '20260101-'}
    """
    filters = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or not value or not KEYWORD.fullmatch(name) or name in filters:
            raise InputError(f"The query '{word}' is not one: give an attribute's keyword once, such as Modality=CT.")
        filters[name] = value
    return filters


class Archive:
    """A PACS.

    Parameters
    ----------
    address : str
        As `web_address` gives it.
    access : Access

    Raises
    ------
    InstallationError
        A package is missing.
    """

    def __init__(self, address: str, access: Access) -> None:
        if find_spec("dicomweb_client") is None:
            raise InstallationError(NEEDED)
        from dicomweb_client.web import DICOMwebClient

        # It writes what it asks for, patients' names too, and how often.
        logging.getLogger("dicomweb_client").setLevel(logging.ERROR)
        session = _Session()
        session.auth = _Authorization(access)
        if access.authority is not None:
            session.verify = access.authority
        self.address = address
        self._client = DICOMwebClient(address, session=session)
        self._client.set_http_retry_params(
            retry=True,
            max_attempts=4,
            wait_exponential_multiplier=500,
            retriable_error_codes=tuple(map(HTTPStatus, (408, 429, 502, 503, 504))),
        )

    def series(self, filters: Mapping[str, str]) -> Iterator[Found]:
        """Give the series that a query finds, each once.

        Raises
        ------
        WorkerError
            The PACS cannot be reached or refuses.
        """
        known: set[tuple[str, str]] = set()
        offset = 0
        fields = ["Modality", "SeriesDescription", "StudyInstanceUID", "SeriesInstanceUID"]
        while True:
            with _typed(self.address):
                page = self._client.search_for_series(
                    search_filters=dict(filters), fields=fields, limit=PAGE, offset=offset
                )
                found = [_found(each) for each in page]
            fresh = [each for each in found if (each.study, each.series) not in known]
            for each in fresh:
                known.add((each.study, each.series))
                yield each
            offset += len(page)
            # Some archives know no offset, and give the same again.
            if not fresh:
                return

    def headers(self, study: str, series: str) -> list[Any]:
        """Return the headers of a series' images (pydicom's data sets); errors as of `series`."""
        with _typed(self.address), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = self._client.retrieve_series_metadata(study, series)
            return [pydicom().Dataset.from_json(each, bulk_data_uri_handler=lambda *_: b"") for each in found]

    def fetch(self, study: str, series: str, folder: Path, limit: int, stopped: Callable[[], bool]) -> list[str]:
        """Write the images of a series into a folder, and return their paths.

        Parameters
        ----------
        study, series : str
        folder : Path
            Empty.
        limit : int
            The most bytes that may be written.
        stopped : callable
            Asked at each image whether to give up.

        Raises
        ------
        WorkerError
            As of `series`, or ``stopped`` said so.
        OutputError
            There is no room.
        """
        files, taken = [], 0
        with _typed(self.address), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # As they are stored: an archive that unpacks them may change them.
            for image in self._client.iter_series(study, series, media_types=(("application/dicom", "*"),)):
                if stopped():
                    raise WorkerError("The batch was stopped.")
                # The same name in each run, for it counts for the input's fingerprint; and never a path.
                name = hashlib.sha256(str(image.SOPInstanceUID).encode()).hexdigest()[:32]
                path = folder / f"{name}.dcm"
                image.save_as(path, enforce_file_format=True)
                taken += path.stat().st_size
                if taken > limit:
                    raise OutputError(f"The series is larger than --disk-limit ({limit / 2**30:.1f} GiB): allow more.")
                files.append(str(path))
        if not files:
            raise WorkerError("The PACS gave no image of the series: look whether it is still there.")
        return files

    def has(self, dataset: Any) -> bool:
        """Say whether the PACS has a data set already; errors as of `series`."""
        with _typed(self.address):
            found = self._client.search_for_instances(
                dataset.StudyInstanceUID,
                dataset.SeriesInstanceUID,
                search_filters={"SOPInstanceUID": str(dataset.SOPInstanceUID)},
            )
        return bool(found)

    def store(self, dataset: Any) -> None:
        """Store a data set; errors as of `series`, and OutputError if the PACS does not take it."""
        with _typed(self.address), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = self._client.store_instances([dataset], dataset.StudyInstanceUID)
        failed = [each.get("FailureReason", 0) for each in answer.get("FailedSOPSequence", [])]
        if failed and failed != [DUPLICATE]:
            raise OutputError(f"The PACS does not take the result (reason {failed[0]:04X}H): ask who runs it.")


class _Session(requests.Session):
    """A session whose requests wait only so long, and that goes to no other address."""

    def request(self, *given: Any, **more: Any) -> requests.Response:
        more["timeout"] = TIMEOUT
        more["allow_redirects"] = False
        return super().request(*given, **more)


class _Authorization(requests.auth.AuthBase):
    """Puts what lets in into a request. Also where there is nothing: a user's .netrc is not for this."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._access.token:
            request.headers["Authorization"] = f"Bearer {self._access.token}"
            return request
        if self._access.user:
            requests.auth.HTTPBasicAuth(self._access.user, self._access.password)(request)
        return request


def _found(entry: Mapping[str, Any]) -> Found:
    def text(tag: str) -> str:
        values = entry.get(tag, {}).get("Value") or [""]
        return str(values[0]).strip()

    return Found(text("0020000D"), text("0020000E"), text("00080060"), text("0008103E"))


@contextlib.contextmanager
def _typed(address: str) -> Iterator[None]:
    """Make errors of the network sentences, with nothing in them that was sent."""
    try:
        yield
    except (InputError, OutputError, WorkerError, InstallationError):
        raise
    except requests.exceptions.SSLError as error:
        text = f"The certificate of the PACS {address} cannot be trusted: name its authority's file with --ca."
        raise InputError(text) from error
    except requests.HTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        if code in (401, 403):
            text = f"The PACS {address} does not let this user in ({code}): check the token, or user and password."
            raise InputError(text) from None
        raise WorkerError(f"The PACS {address} answers with the error {code}: ask who runs it.") from None
    except requests.RequestException as error:
        text = f"The PACS {address} cannot be reached ({type(error).__name__}): check the address and the network."
        raise WorkerError(text) from None
    except Exception as error:  # dicomweb-client and pydicom raise all kinds at answers that are not as they should be
        text = (
            f"The PACS {address} gives an answer that cannot be understood ({type(error).__name__}): ask who runs it."
        )
        raise WorkerError(text) from error
