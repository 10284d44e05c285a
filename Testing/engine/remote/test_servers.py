"""The servers that a user knows: where images may go, and that tokens are nobody else's."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.repository import PACKAGES

from segmamba.errors import InputError, WorkerError
from segmamba.remote.servers import (
    KnownServer,
    checked_address,
    forget_server,
    keep_server,
    known_server,
    known_servers,
    servers_file,
)
from segmamba.remote.worker import RemoteWorker

ADDRESS = "https://gpu.hospital.example"


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("XDG_CONFIG_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.delenv("SEGMAMBA_SERVER_TOKEN", raising=False)


@pytest.mark.parametrize("address", [ADDRESS, "http://127.0.0.1:8765", "http://localhost:1", "https://10.0.0.7/seg"])
def test_an_address_is_kept_as_it_is(address: str) -> None:
    assert checked_address(f" {address}/ ") == address


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("gpu.hospital.example", "not the address"),
        ("ftp://gpu", "not the address"),
        ("https://", "not the address"),
        ("https://gpu:99999", "not the address"),
        ("https://user:secret@gpu", "not the address"),
        ("https://gpu/?x=1", "not the address"),
        ("https://gpu hospital", "not the address"),
        ("", "not the address"),
        ("http://gpu.hospital.example", "unprotected"),
        ("http://10.0.0.7", "unprotected"),
        ("http://127.0.0.1.evil.example", "unprotected"),
    ],
)
def test_an_address_that_is_none_or_unprotected_is_refused(address: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        checked_address(address)


def test_servers_are_kept_with_token_and_consent_in_a_file_of_the_user_s_own() -> None:
    assert known_servers() == []
    assert known_server(ADDRESS) == KnownServer(ADDRESS)
    keep_server(KnownServer(ADDRESS, "secret"))
    keep_server(KnownServer("https://other"))
    keep_server(KnownServer(ADDRESS, "secret", consent=True))
    assert known_server(ADDRESS) == KnownServer(ADDRESS, "secret", consent=True)
    assert len(known_servers()) == 2
    if sys.platform != "win32":
        assert stat.S_IMODE(servers_file().stat().st_mode) == 0o600
    forget_server(ADDRESS)
    assert known_servers() == [KnownServer("https://other")]


def test_a_damaged_list_is_a_sentence_and_consent_is_never_guessed() -> None:
    keep_server(KnownServer(ADDRESS, "secret"))
    servers_file().write_text(servers_file().read_text().replace("false", '"yes"'))
    assert not known_server(ADDRESS).consent
    servers_file().write_text("{")
    with pytest.raises(InputError, match=r"servers\.json cannot be read.*remove it"):
        known_servers()


def test_without_a_token_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WorkerError, match="No token for https://gpu"):
        RemoteWorker(known_server(ADDRESS))
    monkeypatch.setenv("SEGMAMBA_SERVER_TOKEN", "of the environment")
    assert known_server(ADDRESS).token == "of the environment"
    keep_server(KnownServer(ADDRESS, "its own"))
    assert known_server(ADDRESS).token == "its own"


def test_a_server_s_client_needs_only_what_slicer_brings() -> None:
    """A desk without rights to install: no torch, and none of the other packages."""
    absent = ("filelock", "nibabel", "safetensors", "torch", "tqdm", "matplotlib", "highdicom", "fastapi", "pyarrow")
    program = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {absent}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        f"sys.path.insert(0, {str(PACKAGES)!r})\n"
        "import segmamba.remote.job, segmamba.remote.worker, segmamba.worker.server\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
