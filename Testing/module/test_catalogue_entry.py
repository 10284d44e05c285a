"""The entry for Slicer's Extensions Index and what the index checks of it, as far as that needs no network."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
from helpers.repository import REPOSITORY

from segmamba.models.manifest import Manifest

ENTRY = REPOSITORY / "Resources" / "ExtensionsIndex" / "SegMambaSlicer.json"
SCHEMA = (
    "https://raw.githubusercontent.com/Slicer/Slicer/main/Schemas/slicer-extension-catalog-entry-schema-v1.0.2.json#"
)
# What the schema knows, with the keys that it requires first.
KEYS = {
    "$schema": str,
    "category": str,
    "scm_url": str,
    "scm_revision": str,
    "scm_type": str,
    "build_dependencies": list,
    "build_subdirectory": str,
    "dicom_support_rule": str,
    "enabled": bool,
    "tier": int,
}
REQUIRED = ("$schema", "category", "scm_url")
SIZE_LIMIT = 100 * 2**20


@pytest.fixture(scope="module")
def entry() -> dict:
    return json.loads(ENTRY.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def cmake_lists() -> str:
    return (REPOSITORY / "CMakeLists.txt").read_text(encoding="utf-8")


def _setting(cmake_lists: str, name: str) -> str:
    """A quoted setting, in the one form that the index reads."""
    match = re.search(rf'set\({name} "([^"]+)"\)', cmake_lists)
    assert match, f'CMakeLists.txt has no line set({name} "...")'
    return match.group(1)


def _git(*arguments: str) -> str:
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "-c", "safe.directory=*", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout


def test_entry_has_the_keys_that_the_schema_requires_and_no_unknown_one(entry: dict) -> None:
    assert entry["$schema"] == SCHEMA
    assert set(REQUIRED) <= set(entry) <= set(KEYS)
    assert all(isinstance(value, KEYS[key]) for key, value in entry.items())
    assert 1 <= entry["tier"] <= 5


def test_entry_is_a_text_file_as_the_index_wants_it() -> None:
    data = ENTRY.read_bytes()
    assert b"\r" not in data
    assert b"\t" not in data
    assert data.endswith(b"}\n")


def test_entry_is_named_as_the_cmake_project_and_not_after_slicer(cmake_lists: str) -> None:
    assert re.findall(r"project\(([^\s)]+)", cmake_lists) == [ENTRY.stem]
    assert not ENTRY.stem.lower().startswith("slicer")


def test_category_is_the_one_that_slicer_shows_the_module_in(entry: dict, the_module) -> None:
    assert [entry["category"]] == the_module.module.categories == ["Segmentation"]


def test_repository_has_the_name_that_the_index_asks_for(entry: dict) -> None:
    assert re.fullmatch(rf"https://github\.com/[\w-]+/Slicer{ENTRY.stem}", entry["scm_url"])


def test_cmake_and_the_module_name_the_repository_of_the_entry(entry: dict, cmake_lists: str, the_module) -> None:
    assert _setting(cmake_lists, "EXTENSION_HOMEPAGE") == entry["scm_url"]
    assert f'"{entry["scm_url"]}"' in the_module.module.helpText


def test_build_dependencies_are_those_of_cmake(entry: dict, cmake_lists: str) -> None:
    depends = _setting(cmake_lists, "EXTENSION_DEPENDS").split()
    assert entry["build_dependencies"] == [name for name in depends if name != "NA"]


def test_pytorch_comes_with_the_extension(entry: dict) -> None:
    # The index's review asks this of extensions that install torch with pip.
    assert entry["build_dependencies"] == ["PyTorch"]


def test_dicom_rule_is_that_of_cmake_and_takes_the_modalities_of_the_models(
    entry: dict, cmake_lists: str, manifest: Manifest
) -> None:
    rule = entry["dicom_support_rule"]
    assert rule == _setting(cmake_lists, "EXTENSION_DICOM_SUPPORT_RULE")
    # What it is made of reads alike in Python.
    taken = {one for one in ("CT", "MR", "PT", "SEG", "US") if eval(rule, {}, {"Modality": one})}
    assert taken == {one for model in manifest.models for one in model.modalities}


def test_description_names_the_licences_of_code_and_bundled_weights(cmake_lists: str) -> None:
    said = _setting(cmake_lists, "EXTENSION_DESCRIPTION")
    assert "Apache-2.0" in said
    models = json.loads((REPOSITORY / "weights_manifest.json").read_text(encoding="utf-8"))["models"]
    licences = {model["licence"] for model in models if model["file"]["bundled"]}
    assert {found.replace(" ", "-") for found in re.findall(r"CC BY(?:-SA)? 4\.0", said)} == licences


@pytest.mark.parametrize("name", ["EXTENSION_ICONURL", "EXTENSION_SCREENSHOTURLS"])
def test_pictures_of_the_catalogue_are_in_the_repository_at_their_addresses(
    name: str, entry: dict, cmake_lists: str
) -> None:
    raw = entry["scm_url"].replace("https://github.com/", "https://raw.githubusercontent.com/")
    start = f"{raw}/main/"
    for address in _setting(cmake_lists, name).split():
        assert address.startswith(start)
        path = address.removeprefix(start)
        assert (REPOSITORY / path).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_licence_is_in_the_top_folder_and_named_in_the_readme() -> None:
    assert "Apache License" in (REPOSITORY / "LICENSE").read_text(encoding="utf-8")
    assert "[Apache-2.0](LICENSE)" in (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_readme_shows_pictures_that_are_in_the_repository() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (REPOSITORY / "README.md").read_text(encoding="utf-8"))
    assert pictures
    assert all((REPOSITORY / picture).is_file() for picture in pictures)


def test_clone_is_smaller_than_the_index_allows(entry: dict) -> None:
    # The index's check_description_files.py adds up the files and what git keeps of them in a clone without history,
    # which it makes of every entry that names no revision.
    assert "scm_revision" not in entry
    files = [REPOSITORY / name for name in _git("ls-files", "-z").split("\0") if name]
    kept = int(_git("rev-list", "--disk-usage", "--objects", "--max-count=1", "HEAD"))
    assert sum(path.stat().st_size for path in files if path.is_file()) + kept < SIZE_LIMIT
