"""What a user says of a PACS, and that secrets stay where they are."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

import pytest

from segmamba.cli.main import main
from segmamba.errors import InputError, InstallationError, WorkerError
from segmamba.pacs.archive import Access, Archive, access_of, is_pacs, parse_query, web_address

SECRET = "a-secret-of-the-tests"


@pytest.fixture(autouse=True)
def no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOKEN", "USER", "PASSWORD"):
        monkeypatch.delenv(f"SEGMAMBA_PACS_{name}", raising=False)


@pytest.mark.parametrize(
    "address",
    [
        "dicomweb://",
        "dicomweb://user:secret@pacs/dicom-web",
        "dicomweb+http://pacs.hospital.example/dicom-web",
        "dicomweb://pacs/x?token=secret",
    ],
)
def test_an_address_that_is_none_or_unprotected_or_has_a_secret_is_refused(address: str) -> None:
    assert is_pacs(address)
    with pytest.raises(InputError, match="dicomweb://HOST/PATH") as caught:
        web_address(address)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("word", ["Modality", "=CT", "Modality=", "../x=1", "limit&x=1"])
def test_a_query_that_is_none_is_a_sentence(word: str) -> None:
    with pytest.raises(InputError, match="is not one: give an attribute's keyword"):
        parse_query([word])


def test_secrets_come_from_a_private_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pacs.json"
    file.write_text(json.dumps({"user": "me", "password": SECRET}))
    if sys.platform != "win32":
        with pytest.raises(InputError, match="chmod 600"):
            access_of(file, None)
    file.chmod(0o600)
    access = access_of(file, None)
    assert (access.user, access.password) == ("me", SECRET)
    assert SECRET not in repr(access)
    monkeypatch.setenv("SEGMAMBA_PACS_TOKEN", "from-the-environment")
    assert access_of(file, None).token == "from-the-environment"
    with pytest.raises(InputError, match="does not exist"):
        access_of(None, tmp_path / "ca.pem")


@pytest.mark.parametrize(
    "content", [f'{{"token": {SECRET}', f'["{SECRET}"]', f'{{"tokn": "{SECRET}"}}', '{"token": 7}']
)
def test_a_damaged_file_of_secrets_is_a_sentence_without_them(content: str, tmp_path: Path) -> None:
    file = tmp_path / "pacs.json"
    file.write_text(content)
    file.chmod(0o600)
    with pytest.raises(InputError, match="give a JSON object") as caught:
        access_of(file, None)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["dicomweb://pacs", "more", "OUT"], "the only input"),
        (["dicomweb://pacs", "OUT", "--format", "nii.gz"], "takes DICOM"),
        (["dicomweb://pacs", "OUT", "--disk-limit", "0"], "more than 0"),
        (["dicomweb://pacs", "OUT", "--scheduler", "tcp://x:1"], "leave out --scheduler"),
        (["IN", "OUT", "--query", "Modality=CT"], "--query is for a PACS"),
    ],
)
def test_what_does_not_go_together_is_said_before_any_work(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("dicomweb_client", reason="dicomweb-client is not installed")
    place = [str(tmp_path / word) if word in ("IN", "OUT") else word for word in arguments]
    assert main(["batch", *place, "--task", "vertebrae"]) != 0
    assert sentence in capsys.readouterr().err


def test_a_missing_package_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segmamba.pacs.archive.find_spec", lambda name: None)
    with pytest.raises(InstallationError, match="pip install dicomweb-client"):
        Archive("https://pacs", Access())


def test_a_pacs_that_is_not_there_is_a_sentence_without_secrets() -> None:
    pytest.importorskip("dicomweb_client", reason="dicomweb-client is not installed")
    archive = Archive("http://127.0.0.1:9", Access(token=SECRET))
    archive._client.set_http_retry_params(retry=False)
    with pytest.raises(WorkerError, match="cannot be reached") as caught:
        list(archive.series({"Modality": "CT"}))
    assert SECRET not in "".join(traceback.format_exception(caught.value))
