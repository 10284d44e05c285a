"""Downloads from a real server on loopback, and everything that goes wrong on the way."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import filelock
import pytest
from helpers.file_server import FileServer, Served, file_server
from helpers.own_time import PATIENCE
from helpers.repository import PACKAGES
from helpers.served_model import CONTENT, HALF, NAME, PART, files_of, folder_of, start_fetch, write_manifest

from segmamba.errors import Cancelled, ModelError, OutputError
from segmamba.models import download, store
from segmamba.models import install as installing
from segmamba.models.download import fetch
from segmamba.models.manifest import Model, load_manifest
from segmamba.models.record import RECORD_NAME

pytestmark = pytest.mark.usefixtures("surroundings")


def test_fetched_model_is_verified_recorded_and_not_fetched_again(a_model: Model, server: FileServer) -> None:
    steps: list[tuple[str, float]] = []
    found = fetch(a_model, progress=lambda stage, fraction: steps.append((stage, fraction)))
    assert found.path.read_bytes() == CONTENT
    assert found.origin == f"downloaded from {server.url}/a"
    assert files_of(a_model) == {NAME, RECORD_NAME}
    assert steps[-1] == ("verify", 1.0)
    assert ("download", 1.0) in steps
    assert fetch(a_model) == found
    assert server.requests == [("/a", None)]


def test_truncated_transfer_goes_on_where_it_broke_off(a_model: Model, server: FileServer) -> None:
    server.files["/a"].cuts = [HALF, 1000]
    assert fetch(a_model).path.read_bytes() == CONTENT
    assert server.requests == [("/a", None), ("/a", f"bytes={HALF}-"), ("/a", f"bytes={HALF + 1000}-")]


def test_server_without_ranges_gives_the_whole_file_again(a_model: Model, server: FileServer) -> None:
    server.files["/a"] = Served(CONTENT, cuts=[HALF], ranges=False)
    assert fetch(a_model).path.read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_server_that_always_breaks_off_gives_way_to_the_next_address(a_model: Model, server: FileServer) -> None:
    server.files["/a"] = Served(CONTENT, cuts=[100] * 50, ranges=False)
    assert fetch(a_model).origin.endswith("/b")
    assert len([path for path, _ in server.requests if path == "/a"]) <= download.TRIES + 2


@pytest.mark.parametrize(
    ("first", "says"),
    [
        (Served(CONTENT[::-1]), "another file"),
        (Served(CONTENT + b"more"), f"has {len(CONTENT) + 4} bytes"),
        (Served(CONTENT[:-1]), f"has {len(CONTENT) - 1} bytes"),
        (Served(status=404), "status 404"),
        (Served(status=503), "status 503"),
    ],
    ids=["wrong hash", "too long", "too short", "404", "503"],
)
def test_wrong_answer_leads_to_the_next_address_and_is_named_if_that_fails_too(
    a_model: Model, server: FileServer, first: Served, says: str
) -> None:
    server.files["/a"] = first
    server.files["/b"].status = 404
    with pytest.raises(ModelError, match=f"/a: .*{says}.*; .*/b: status 404") as caught:
        fetch(a_model)
    assert "models import FILE" in str(caught.value)
    assert store.find(a_model) is None
    assert not any(name.endswith("safetensors") for name in files_of(a_model))
    server.files["/b"].status = 200
    assert fetch(a_model).origin.endswith("/b")


def test_no_server_at_all_is_one_sentence(tmp_path: Path) -> None:
    with file_server() as server:
        address = f"{server.url}/a"
    model = load_manifest(write_manifest(tmp_path, address)).models[0]
    with pytest.raises(ModelError, match="the connection fails or is interrupted.*HTTPS_PROXY"):
        fetch(model)
    assert files_of(model) == set()


def test_partial_file_of_something_else_is_thrown_away(a_model: Model, server: FileServer) -> None:
    folder_of(a_model).mkdir(parents=True)
    (folder_of(a_model) / PART).write_bytes(b"x" * 500)
    assert fetch(a_model).path.read_bytes() == CONTENT
    assert server.requests == [("/a", "bytes=500-"), ("/a", None)]


def test_redirect_is_followed(a_model: Model, server: FileServer) -> None:
    server.files["/a"] = Served(redirect=f"{server.url}/b")
    assert fetch(a_model).path.read_bytes() == CONTENT
    assert server.requests == [("/a", None), ("/b", None)]


def test_endless_redirect_is_left_for_the_next_address(a_model: Model, server: FileServer) -> None:
    server.files["/a"] = Served(redirect=f"{server.url}/a")
    assert fetch(a_model).origin.endswith("/b")


def test_slow_drip_is_cancelled_at_once_and_goes_on_later(a_model: Model, server: FileServer) -> None:
    server.files["/a"] = Served(CONTENT, piece=1, pause=0.02)
    told: list[float] = []
    with pytest.raises(Cancelled, match="is kept"):
        fetch(a_model, progress=lambda stage, fraction: told.append(fraction), cancelled=lambda: len(told) == 10)
    assert len(told) == 10
    arrived = (folder_of(a_model) / PART).stat().st_size
    assert 0 < arrived < len(CONTENT)
    assert arrived / len(CONTENT) == told[-1]
    server.files["/a"] = Served(CONTENT)
    fetch(a_model)
    assert server.requests[-1] == ("/a", f"bytes={arrived}-")


def test_old_weights_stay_until_the_new_ones_are_verified(server: FileServer, tmp_path: Path) -> None:
    old_content = CONTENT[::-1]
    server.files["/old"] = Served(old_content)
    old = load_manifest(write_manifest(tmp_path / "old", f"{server.url}/old", content=old_content)).models[0]
    new = load_manifest(write_manifest(tmp_path / "new", f"{server.url}/a")).models[0]
    path = fetch(old).path
    server.files["/a"].status = 404
    with pytest.raises(ModelError):
        fetch(new)
    assert store.verify(store.installed(old))
    with pytest.raises(ModelError, match="is not version"):
        store.verify(store.installed(new))
    server.files["/a"].status = 200
    assert fetch(new).path.read_bytes() == CONTENT
    assert not path.exists()


def test_damaged_weights_are_fetched_again(a_model: Model) -> None:
    path = fetch(a_model).path
    path.write_bytes(b"damaged")
    assert fetch(a_model).path.read_bytes() == CONTENT


def test_mirror_is_asked_first_by_model_and_file(
    a_model: Model, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGMAMBA_MIRROR", f"{server.url}/mirror/")
    address = f"/mirror/{a_model.id}/weights.safetensors"
    server.files[address] = Served(CONTENT)
    assert fetch(a_model).origin.endswith(address)
    assert server.requests == [(address, None)]


def test_proxy_of_the_environment_is_used(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url)
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    server.files["http://models.invalid/a"] = Served(CONTENT)
    model = load_manifest(write_manifest(tmp_path, "http://models.invalid/a")).models[0]
    assert fetch(model).path.read_bytes() == CONTENT


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_certificate_is_refused_until_the_environment_trusts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    making = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subject = ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*making, *subject, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    both = tmp_path / "both.pem"
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    with file_server(both) as server:
        server.files["/a"] = Served(CONTENT)
        model = load_manifest(write_manifest(tmp_path, f"{server.url}/a")).models[0]
        with pytest.raises(ModelError, match="certificate is not trusted.*REQUESTS_CA_BUNDLE"):
            fetch(model)
        assert server.requests == []
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        assert fetch(model).path.read_bytes() == CONTENT


def test_too_little_room_is_found_before_the_start(
    a_model: Model, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installing, "DISK_RESERVE", shutil.disk_usage("/").total)
    with pytest.raises(OutputError, match="free some space"):
        fetch(a_model)
    assert server.requests == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_disk_that_fills_up_meanwhile_is_a_sentence(a_model: Model) -> None:
    folder_of(a_model).mkdir(parents=True)
    (folder_of(a_model) / PART).symlink_to("/dev/full")
    with pytest.raises(OutputError, match="No space left.*SEGMAMBA_MODELS"):
        fetch(a_model)
    assert store.find(a_model) is None


@pytest.mark.skipif(sys.platform == "win32", reason="rights of POSIX")
def test_store_that_may_not_be_written_is_a_sentence(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write everywhere, so it turns into nobody for the moment; pytest's own folders are closed to that user.
    folder, user = Path(tempfile.mkdtemp()), os.geteuid()
    model = load_manifest(write_manifest(folder, f"{server.url}/a")).models[0]
    folder.chmod(0o755)
    (folder / "store").mkdir(mode=0o555)
    monkeypatch.setenv("SEGMAMBA_MODELS", str(folder / "store"))
    # Imported while they can be.
    assert filelock and download._libraries()
    try:
        if user == 0:
            os.seteuid(65534)
        with pytest.raises(OutputError, match=r"cannot be written \(Permission denied\)"):
            fetch(model)
        assert server.requests == []
    finally:
        os.seteuid(user)
        shutil.rmtree(folder)


def test_two_processes_at_once_download_it_once(server: FileServer, tmp_path: Path) -> None:
    server.files["/a"] = Served(CONTENT, pause=0.2)
    manifest = write_manifest(tmp_path, f"{server.url}/a")
    processes = [start_fetch(manifest) for _ in range(2)]
    for process in processes:
        printed, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
        assert "Installed: tiny-spine" in printed
    assert server.requests == [("/a", None)]
    assert store.installed(load_manifest(manifest).models[0]).path.read_bytes() == CONTENT


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("arrived", [1, HALF])
def test_killed_download_is_no_model_and_the_next_one_completes_it(
    server: FileServer, tmp_path: Path, arrived: int
) -> None:
    server.files["/a"] = Served(CONTENT, piece=4096, stop=arrived + 65536)
    manifest = write_manifest(tmp_path, f"{server.url}/a")
    model = load_manifest(manifest).models[0]
    process = start_fetch(manifest)
    part = folder_of(model) / PART
    while not (part.exists() and part.stat().st_size >= arrived):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = part.stat().st_size
    assert store.find(model) is None
    server.files["/a"] = Served(CONTENT)
    # The lock of the dead process does not stand in the way, or this would be cancelled.
    with installing.changing(model, lambda: True):
        pass
    assert fetch(model).path.read_bytes() == CONTENT
    assert server.requests[-1] == ("/a", f"bytes={left}-")


@pytest.mark.parametrize("step", range(4))
def test_death_between_any_two_steps_of_installing_leaves_the_old_or_the_new_model(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    server.files["/old"] = Served(CONTENT[::-1])
    old = load_manifest(write_manifest(tmp_path / "o", f"{server.url}/old", content=CONTENT[::-1])).models[0]
    new = load_manifest(write_manifest(tmp_path / "n", f"{server.url}/a")).models[0]
    fetch(old)

    class Death(BaseException):
        pass

    calls = iter(range(100))

    def dying(original: object) -> object:
        def call(*arguments: object, **options: object) -> object:
            if next(calls) == step:
                raise Death
            return original(*arguments, **options)  # type: ignore[operator]

        return call

    with monkeypatch.context() as patch:
        patch.setattr(installing.os, "replace", dying(os.replace))
        patch.setattr(Path, "write_text", dying(Path.write_text))
        patch.setattr(Path, "unlink", dying(Path.unlink))
        with contextlib.suppress(Death):
            fetch(new)
    found = store.find(new)
    assert found is not None
    assert store.sha256(found.path) in (old.file.sha256, new.file.sha256)
    assert store.sha256(found.path) == found.sha256
    path = fetch(new).path
    assert path.read_bytes() == CONTENT
    # What was left over goes with the next change.
    path.write_bytes(b"damaged")
    fetch(new)
    assert files_of(new) == {NAME, RECORD_NAME}


def test_model_without_known_hash_or_address_says_what_to_do(a_model: Model, tmp_path: Path) -> None:
    unknown = load_manifest().model("segmamba-v2-colorectal-official")
    with pytest.raises(ModelError, match="size and hash are unknown.*models import FILE"):
        fetch(unknown)
    nowhere = load_manifest(write_manifest(tmp_path / "no")).models[0]
    with pytest.raises(ModelError, match="has no address.*SEGMAMBA_MIRROR"):
        fetch(nowhere)


def test_store_and_downloads_need_no_torch() -> None:
    program = (
        "import sys; from segmamba.models import bundle, download, import_checkpoint; import segmamba.cli.main; "
        "print('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGES)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE)
    assert done.stdout.strip() == "False", done.stderr
