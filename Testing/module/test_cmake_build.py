"""The extension's real CMakeLists.txt, built and installed with a stand-in for Slicer's macros (``Testing/cmake``)."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import cmake
import ninja
import pytest
from helpers.repository import REPOSITORY

MODULE = REPOSITORY / "SegMambaSlicer"
STAND_IN = REPOSITORY / "Testing" / "cmake"
MODULES_FOLDER = "lib/Slicer-5.12/qt-scripted-modules"
OWN_PACKAGES = ("segmamba", "segmamba_mrml", "SegMambaSlicerLib")

# Imports every module of the three packages where Slicer and torch are not; says what it found as JSON.
IMPORT_ALL = """
import json, pkgutil, sys
from importlib import import_module

ABSENT = {"ctk", "qt", "slicer", "torch", "vtk"}
sys.modules.update(dict.fromkeys(ABSENT))
needs = {}
for package in sys.argv[1:]:
    module = import_module(package)
    for found in pkgutil.walk_packages(module.__path__, package + "."):
        try:
            import_module(found.name)
        except ModuleNotFoundError as error:
            name = error.name.partition(".")[0]
            if name not in ABSENT:
                raise
            needs[found.name] = name
from segmamba.models.manifest import load_manifest
from segmamba.models.resources import resource_root
files = {name: module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] in sys.argv[1:]}
bundled = [[model.file.bundled, model.file.sha256] for model in load_manifest().models if model.file.bundled]
print(json.dumps({"files": files, "needs": needs, "root": str(resource_root()), "bundled": bundled}))
"""


def _run(*command: object, **environment: str) -> str:
    texts = [str(part) for part in command]
    done = subprocess.run(texts, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _program(folder: str, name: str) -> Path:
    return Path(folder) / (f"{name}.exe" if sys.platform == "win32" else name)


CMAKE, CTEST = (_program(cmake.CMAKE_BIN_DIR, name) for name in ("cmake", "ctest"))


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build folder, with everything built."""
    folder = tmp_path_factory.mktemp("build")
    settings = {
        "Slicer_DIR": STAND_IN,
        "CMAKE_TOOLCHAIN_FILE": STAND_IN / "NoCompiler.cmake",
        "CMAKE_MAKE_PROGRAM": _program(ninja.BIN_DIR, "ninja"),
        "BUILD_TESTING": "ON",
    }
    definitions = [f"-D{name}={value}" for name, value in settings.items()]
    _run(CMAKE, "-S", REPOSITORY, "-B", folder, "-G", "Ninja", *definitions)
    _run(CMAKE, "--build", folder)
    return folder


@pytest.fixture(scope="module")
def installed(build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The module's folder below the place that it was installed to."""
    prefix = tmp_path_factory.mktemp("installed")
    _run(CMAKE, "--install", build, "--prefix", prefix)
    return prefix / MODULES_FOLDER


@pytest.fixture(scope="module")
def imported(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What `IMPORT_ALL` says of the installed packages, run outside the repository."""
    script = tmp_path_factory.mktemp("elsewhere") / "import_all.py"
    script.write_text(IMPORT_ALL, encoding="utf-8")
    environment = {"PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    return json.loads(_run(sys.executable, script, *OWN_PACKAGES, **environment))


def _files(folder: Path) -> dict[str, Path]:
    """The files below a folder by their path in it, without hidden ones and what Python and pip leave there."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    left_behind = re.compile(r"\..*|__pycache__|.*\.egg-info")
    return {
        relative.as_posix(): path
        for relative, path in found.items()
        if not any(left_behind.fullmatch(part) for part in relative.parts)
    }


def test_what_is_installed_is_the_module_and_the_files_it_shares_byte_for_byte(installed: Path) -> None:
    expected = {name: path for name, path in _files(MODULE).items() if name != "CMakeLists.txt"}
    for folder in ("Resources/Models", "Resources/Terminology"):
        found = _files(REPOSITORY / folder)
        expected |= {f"Resources/SegMamba/{folder}/{name}": path for name, path in found.items()}
    expected["Resources/SegMamba/weights_manifest.json"] = REPOSITORY / "weights_manifest.json"
    there = _files(installed)
    assert sorted(there) == sorted(expected)
    assert not [name for name, path in there.items() if path.read_bytes() != expected[name].read_bytes()]


def test_installed_packages_import_without_slicer_and_torch_from_the_install_tree_alone(
    installed: Path, imported: dict
) -> None:
    outside = {name: file for name, file in imported["files"].items() if not Path(file).is_relative_to(installed)}
    assert not outside
    free = {"segmamba.cli.main", "segmamba.worker.client", "segmamba.io.volume", "segmamba_mrml.terminology"}
    assert free <= set(imported["files"])
    assert {missing for name, missing in imported["needs"].items() if name.startswith("segmamba.")} == {"torch"}


def test_installed_engine_finds_its_manifest_and_terminology_beside_it(installed: Path, imported: dict) -> None:
    root = Path(imported["root"])
    assert root == installed / "Resources" / "SegMamba"
    for name in ("SegMambaSlicer-Terminology.json", "SegMambaSlicer-AnatomicRegions.json"):
        assert "@schema" in json.loads((root / "Resources" / "Terminology" / name).read_text(encoding="utf-8"))


def test_installed_checkpoints_are_those_of_the_manifest(imported: dict) -> None:
    assert imported["bundled"]
    for path, sha256 in imported["bundled"]:
        data = (Path(imported["root"]) / path).read_bytes()
        assert hashlib.sha256(data).hexdigest() == sha256


def test_installed_panel_and_icon_are_where_slicer_looks_for_them(installed: Path) -> None:
    assert ElementTree.parse(installed / "Resources/UI/SegMambaSlicer.ui").getroot().tag == "ui"
    assert (installed / "Resources/Icons/SegMambaSlicer.png").read_bytes().startswith(b"\x89PNG")


def test_module_and_scene_tests_are_registered_in_slicer(build: Path) -> None:
    names = re.findall(r"Test +#\d+: (\S+)", _run(CTEST, "--test-dir", build, "-N"))
    assert sorted(names) == [
        "py_SegMambaSlicer",
        "py_SegMambaSlicerSceneTest",
        "py_nomainwindow_qSlicerSegMambaSlicerModuleGenericTest",
    ]
