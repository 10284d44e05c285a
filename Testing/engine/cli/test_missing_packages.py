"""Packages that are missing: what still works without them, and what is said."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import tiny
from helpers.many_cases import write
from helpers.phantoms import grid_around_patient, phantom, rotation
from helpers.repository import PACKAGES, REPOSITORY

from segmamba.errors import InstallationError, package_problem
from segmamba.models import download
from segmamba.models import install as installing
from segmamba.worker.client import describe_end

# Makes packages look as if they were not installed.
BLOCKER = """
import importlib.util, os, sys
blocked = set(os.environ["BLOCKED"].split(","))
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in blocked else find_spec(name, package)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("supply")
    (folder / "sitecustomize.py").write_text(BLOCKER)
    tiny.write_model(folder)
    write(phantom(grid_around_patient((6.0, 6.0, 8.0), rotation(0, 0))), folder / "ct.nii.gz")
    return folder


def run(folder: Path, blocked: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(folder), str(PACKAGES)])
    environment = {**os.environ, "PYTHONPATH": paths, "BLOCKED": blocked}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


def runtime_dependencies() -> list[str]:
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^dependencies = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    assert listed is not None
    return re.findall(r'^  "([\w-]+)', listed[1], re.MULTILINE)


def test_everything_but_the_networks_can_be_imported_without_torch(folder: Path) -> None:
    modules = (
        "api cli.main cli.doctor worker.client worker.server inference.file_to_file inference.forecast io.read "
        "io.labelmap io.dicom io.convert models.store models.download batch.run evaluation.run"
    )
    code = "; ".join(f"import segmamba.{name}" for name in modules.split())
    done = run(folder, "torch", "-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["numpy", "scipy", "SimpleITK", "nibabel", "torch", "safetensors", "matplotlib"])
def test_a_run_without_a_package_says_which_one_to_install(package: str, folder: Path) -> None:
    out = str(folder / "out.nii.gz")
    request = [str(folder / "ct.nii.gz"), "--output", out, "--task", "vertebrae", "--device", "cpu"]
    more = ["--manifest", str(folder / "manifest.json"), "--preview", str(folder / "p.png"), "--quiet"]
    done = run(folder, package, "-m", "segmamba", "segment", *request, *more)
    assert done.returncode != 0
    assert f"pip install {package}" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not Path(out).exists()


def test_the_doctor_names_each_package_that_is_missing_and_looks_further(folder: Path) -> None:
    listed = sorted({*runtime_dependencies()} - {"urllib3"})
    done = run(folder, ",".join(listed), "-m", "segmamba", "doctor")
    assert done.returncode == InstallationError.exit_code
    assert "Traceback" not in done.stderr
    for package in listed:
        assert re.search(rf"(FAIL|WARN)  {package}: .*pip install [\w -]*{package}", done.stdout), package
    assert "disk: " in done.stdout


@pytest.mark.parametrize("package", ["requests", "urllib3"])
def test_downloads_without_their_packages_say_so(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InstallationError, match="pip install requests"):
        download._libraries()


def test_installing_without_filelock_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "filelock", None)
    with pytest.raises(InstallationError, match="pip install filelock"):
        installing._lock(tmp_path / "a.lock")


def test_searching_for_series_without_pydicom_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from segmamba.io import dicom_headers

    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InstallationError, match="need pydicom .*pip install highdicom"):
        dicom_headers.pydicom()


def test_a_progress_bar_needs_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from segmamba.cli.progress import ProgressBar

    monkeypatch.setitem(sys.modules, "tqdm", None)
    with ProgressBar(sys.stderr, shown=True) as bar:
        bar.update("read", 0.5)


def test_a_package_that_does_not_load_is_told_apart_from_a_missing_one() -> None:
    assert "pip install torch'" in str(package_problem("ModuleNotFoundError: No module named 'torch.cuda'"))
    assert "does not load (DLL" in str(package_problem(ImportError("DLL load failed")))
    assert package_problem("KeyError: 'x'") is None
    assert "pip install scipy'" in describe_end(1, ["ModuleNotFoundError: No module named 'scipy'"])
