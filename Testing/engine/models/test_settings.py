"""The settings file: found where it belongs, weaker than the environment, and one sentence where it is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from segmamba.cli.main import main
from segmamba.errors import ModelError, OutputError
from segmamba.models import settings, store
from segmamba.models.manifest import load_manifest
from segmamba.models.settings import MIRROR, MODELS, SHARED_MODELS, VARIABLES, read_settings, setting, write_setting


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The settings file, which is not there yet."""
    for variable in VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return settings.settings_file()


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "XDG_CONFIG_HOME", "segmamba/settings.json"),
        ("linux", "HOME", ".config/segmamba/settings.json"),
        ("darwin", "HOME", "Library/Application Support/segmamba/settings.json"),
        ("win32", "LOCALAPPDATA", "segmamba/settings.json"),
    ],
)
def test_settings_are_in_the_users_configuration_folder(
    platform: str, variable: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv(variable, str(tmp_path))
    assert settings.settings_file() == tmp_path / expected


def test_settings_file_names_the_folders_and_the_environment_wins(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert setting(MODELS) == settings.Setting()
    assert store.models_folder() == store.default_models_folder()
    write_setting(MODELS, str(tmp_path / "mine"))
    write_setting(SHARED_MODELS, str(tmp_path / "ours"))
    assert store.models_folder() == tmp_path / "mine"
    assert store.shared_folder() == tmp_path / "ours"
    assert setting(MODELS).source == f"the settings file {config}"
    monkeypatch.setenv("SEGMAMBA_MODELS", str(tmp_path / "other"))
    assert store.models_folder() == tmp_path / "other"
    assert setting(MODELS).fixed and not setting(SHARED_MODELS).fixed
    write_setting(SHARED_MODELS, "")
    assert store.shared_folder() is None
    assert json.loads(config.read_text()) == {"models": str(tmp_path / "mine")}
    assert [path.name for path in config.parent.iterdir()] == [config.name]


def test_command_line_tells_which_folders_are_used_and_why(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "path"]) == 0
    folder, shared, mirror, file = capsys.readouterr().out.splitlines()
    assert folder.startswith(f"Models folder: {store.default_models_folder()};")
    assert shared.startswith("Shared models folder: none;") and mirror.startswith("Mirror: none;")
    assert file == f"Settings file: {config}, which does not exist"
    write_setting(MIRROR, "https://models.hospital.example/segmamba")
    monkeypatch.setenv("SEGMAMBA_MODELS", str(tmp_path))
    assert main(["models", "path"]) == 0
    folder, _, mirror, file = capsys.readouterr().out.splitlines()
    assert folder == f"Models folder: {tmp_path}, from the environment variable SEGMAMBA_MODELS"
    assert mirror == f"Mirror: https://models.hospital.example/segmamba, from the settings file {config}"
    assert file == f"Settings file: {config}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read"),
        ("[]", "not a JSON object"),
        ('{"folder": "/a"}', "no setting 'folder': choose from models, shared_models, mirror"),
        ('{"models": 3}', "quotation marks"),
        ('{"models": "here/there"}', "must be an absolute path"),
        ('{"mirror": "models.hospital.example"}', "must begin with https://"),
    ],
)
def test_broken_settings_file_is_one_sentence_and_keeps_nobody_from_the_bundled_model(
    config: Path, text: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config.parent.mkdir(parents=True)
    config.write_text(text)
    assert main(["models", "path"]) == ModelError.exit_code
    said = capsys.readouterr().err
    assert says in said and str(config) in said and said.count("\n") == 1
    assert main(["models", "verify"]) == ModelError.exit_code
    assert "OK    spinemamba" in capsys.readouterr().out
    with pytest.raises(ModelError):
        write_setting(MIRROR, "http://other")
    assert config.read_text() == text


def test_settings_file_that_is_no_text_is_one_sentence(config: Path) -> None:
    config.parent.mkdir(parents=True)
    config.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match="cannot be read"):
        read_settings(config)


def test_settings_that_cannot_be_right_or_written_are_refused(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ((MODELS, "mine"), (MIRROR, "ftp://server"), (MIRROR, "https://"), ("colour", "red")):
        with pytest.raises(ModelError):
            write_setting(name, value)
    assert not config.parent.exists()
    (tmp_path / "config").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written.*SEGMAMBA_MODELS"):
        write_setting(MODELS, str(tmp_path))


def test_mirror_of_the_settings_file_is_asked(tmp_path: Path) -> None:
    from segmamba.models import download

    model = load_manifest().models[0]
    write_setting(MIRROR, "http://mirror.example/")
    assert download._addresses(model) == (f"http://mirror.example/{model.id}/{model.file.name}",)
