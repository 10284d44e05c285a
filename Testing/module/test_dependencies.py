"""The section that installs, repairs and checks what runs in the child process. Nothing is really installed."""

from __future__ import annotations

import ast
import sys
from types import SimpleNamespace

import pytest
import slicer
from helpers.repository import PACKAGES
from packaging.requirements import Requirement

from segmamba.errors import InstallationError

# In Slicer 5.12's SuperBuild (External_python-*.cmake).
OF_SLICER = {"numpy", "pydicom", "scipy", "SimpleITK", "requests", "urllib3"}
# A bar in a terminal, a picture on the command line, DICOM SEG, batches, faster scans where they are installed: the
# panel needs none.
BATCHES = {"contourpy", "dask", "distributed", "highdicom", "jinja2", "PIL", "pyarrow"}
# A batch on a cluster, which Slicer does not start.
CLUSTERS = {"dask", "distributed"}
# A server, and batches from a PACS: Slicer is a client of the one and starts neither.
SERVICES = {"dicomweb_client", "fastapi", "pydantic", "starlette", "uvicorn"}
OPTIONAL = {"tqdm", "isal", "matplotlib", "triton", "mamba_ssm", *SERVICES, *BATCHES}


@pytest.fixture
def install(the_module):
    """The module behind the section."""
    from SegMambaSlicerLib.sections import dependency as install

    return install


@pytest.fixture
def packages(install, monkeypatch, tmp_path):
    """An empty folder in the place of the installed packages."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.setattr(install, "packagesFolder", lambda: folder)
    return folder


@pytest.fixture
def without_torch(install, packages, monkeypatch, the_module):
    """The panel, told that torch is missing until pip was asked for it."""
    missing = ["torch!=2.9.*,>=2.4"]
    monkeypatch.setattr(
        install, "missingRequirements", lambda path: list(missing) if path.name == "requirements.txt" else []
    )
    the_module.widget.sections.dependencies.refresh()
    return missing


def test_missing_packages_open_the_section_and_say_size_and_place(
    without_torch, packages, the_module, a_ct, click, screenshot
):
    ui = the_module.ui
    assert not ui.dependenciesSection.collapsed
    assert "torch" in ui.dependenciesLabel.text and "GB" in ui.dependenciesLabel.text
    assert str(packages) in ui.dependenciesLabel.text
    screenshot("first-run")
    click(ui.segmentButton)
    assert the_module.widget.job is None
    assert "install them in the section Dependencies" in ui.statusLabel.text


def test_install_asks_pip_and_says_when_it_is_done(without_torch, the_module, a_slicer_host, wait_until):
    ui = the_module.ui
    wanted = list(without_torch)
    ui.installButton.click()
    without_torch.clear()
    wait_until(lambda: "Done." in ui.dependenciesLog.plainText)
    assert a_slicer_host.pip.calls == [["pip", "install", *wanted]]
    assert not ui.installButton.enabled and not ui.cleanButton.enabled
    assert "All packages" in ui.dependenciesLabel.text


@pytest.fixture
def without_folders_packages(install, packages, monkeypatch, the_module):
    """The panel, told that what only folders need is missing; torch, too, once it is put into the list."""
    missing = {"requirements.txt": [], "requirements-batch.txt": ["pyarrow>=17"]}
    monkeypatch.setattr(install, "missingRequirements", lambda path: missing[path.name])
    the_module.widget.sections.dependencies.refresh()
    return missing["requirements.txt"]


def test_what_only_folders_need_is_offered_and_holds_nobody_up(
    without_folders_packages, panel, a_slicer_host, click, wait_until
):
    ui = panel.ui
    assert ui.dependenciesSection.collapsed
    assert "All packages" in ui.dependenciesLabel.text
    assert "segmentFolder" in ui.dependenciesLabel.text and "pyarrow>=17" in ui.dependenciesLabel.text
    assert "Packages are missing" not in panel.sections.problem()
    click(ui.dependenciesSection)
    click(ui.installButton)
    wait_until(lambda: "still missing: pyarrow>=17" in ui.dependenciesLog.plainText)
    assert a_slicer_host.pip.calls == [["pip", "install", "pyarrow>=17"]]


def test_what_only_folders_need_is_installed_after_what_the_networks_need(
    without_folders_packages, the_module, a_slicer_host, wait_until
):
    without_folders_packages.append("torch>=2.4")
    the_module.ui.installButton.click()
    wait_until(lambda: "still missing" in the_module.ui.dependenciesLog.plainText)
    assert a_slicer_host.pip.calls == [["pip", "install", "torch>=2.4"], ["pip", "install", "pyarrow>=17"]]


def test_pip_that_ends_well_without_installing_is_not_believed(without_torch, the_module, click, wait_until):
    click(the_module.ui.installButton)
    wait_until(lambda: "still missing: torch" in the_module.ui.dependenciesLog.plainText)
    assert the_module.ui.installButton.enabled


def test_failure_shows_pip_s_own_lines_and_offers_to_clean_up(
    without_torch, packages, the_module, a_slicer_host, click, wait_until, screenshot
):
    ui = the_module.ui
    for name in ("torch", "torch-2.10.0.dist-info", "~orch", "numpy"):
        (packages / name).mkdir()
    a_slicer_host.pip.returncode = 1
    a_slicer_host.pip.lines = ["Collecting torch", "ERROR: No space left on device", "Note: more"]
    click(ui.installButton)
    wait_until(lambda: "failed" in ui.dependenciesLog.plainText)
    assert "failed:\nERROR: No space left on device" in ui.dependenciesLog.plainText
    screenshot("install-failed")
    a_slicer_host.pip.returncode = 0
    ui.cleanButton.click()
    assert [path.name for path in packages.iterdir()] == ["numpy"]
    without_torch.clear()
    wait_until(lambda: "Done." in ui.dependenciesLog.plainText)
    assert len(a_slicer_host.pip.calls) == 2


@pytest.fixture
def the_pytorch_extension(a_slicer_host):
    """The module of the PyTorch extension."""
    slicer.modules.pytorchutils = SimpleNamespace(name="PyTorchUtils")


def test_pytorch_extension_s_installer_is_used_where_it_is(
    without_torch, the_pytorch_extension, the_module, a_slicer_host, click, wait_until
):
    wanted = list(without_torch)
    click(the_module.ui.installButton)
    without_torch.clear()
    wait_until(lambda: "Done." in the_module.ui.dependenciesLog.plainText)
    assert a_slicer_host.pip.calls == [
        ["pip", "install", "light-the-torch>=0.5"],
        ["light_the_torch", "install", *wanted],
    ]


@pytest.mark.parametrize("broken", ["light_the_torch", "pip"])
def test_pip_itself_installs_torch_where_the_extension_s_installer_fails(
    broken, without_torch, the_pytorch_extension, the_module, a_slicer_host, click, wait_until
):
    ui, wanted = the_module.ui, ["pip", "install", *without_torch]
    a_slicer_host.pip.failing = {broken}
    click(ui.installButton)
    wait_until(lambda: wanted in a_slicer_host.pip.calls)
    assert "pip installs PyTorch itself" in ui.dependenciesLog.plainText
    wait_until(lambda: ui.checkButton.enabled)
    end = "failed" if broken == "pip" else "still missing"
    assert end in ui.dependenciesLog.plainText.splitlines()[-2 if broken == "pip" else -1]


def test_reload_in_mid_installation_leaves_no_error_and_pip_is_not_started_twice(
    without_torch, packages, the_module, a_slicer_host, click, wait_until
):
    (packages / "torch").mkdir()
    a_slicer_host.pip.hold.touch()
    click(the_module.ui.installButton)
    wait_until(lambda: "Successfully" in the_module.ui.dependenciesLog.plainText)
    slicer.util.reloadScriptedModule("SegMambaSlicer")
    ui = slicer.modules.SegMambaSlicerWidget.ui
    assert slicer.packaging.isPipInstallInProgress()
    for button in (ui.installButton, ui.cleanButton):
        button.click()
        assert "being installed already" in ui.dependenciesLog.plainText
        ui.dependenciesLog.clear()
    assert (packages / "torch").is_dir() and len(a_slicer_host.pip.calls) == 1
    a_slicer_host.pip.hold.unlink()
    wait_until(lambda: not slicer.packaging.isPipInstallInProgress())
    ui.installButton.click()
    without_torch.clear()
    wait_until(lambda: "Done." in ui.dependenciesLog.plainText)


def test_error_in_the_log_does_not_leave_slicer_believing_that_pip_runs(
    without_torch, the_module, a_slicer_host, click, wait_until, monkeypatch, caplog
):
    section = the_module.widget.sections.dependencies
    monkeypatch.setattr(section, "_show", lambda line: 1 / 0)
    section._run([*section_steps(without_torch)])
    wait_until(lambda: a_slicer_host.pip.calls and not slicer.packaging.isPipInstallInProgress())
    assert "ZeroDivisionError" in caplog.text


def section_steps(missing):
    from SegMambaSlicerLib.sections.dependency import installSteps

    return installSteps(missing)


def test_requirements_are_met_here_and_a_half_installed_package_is_not(install, tmp_path, monkeypatch, the_module):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("# a comment\nnumpy>=1.26\nnumpy>=99\nno-such-package\n")
    assert install.missingRequirements(requirements) == ["numpy>=99", "no-such-package"]
    (tmp_path / "halfway").mkdir()
    (tmp_path / "halfway-1.0.dist-info").mkdir()
    (tmp_path / "halfway-1.0.dist-info" / "METADATA").write_text("Name: halfway\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    requirements.write_text("halfway\n")
    assert install.missingRequirements(requirements) == ["halfway"]


def test_check_runs_the_doctor_in_a_child_process(the_module, click, wait_until, monkeypatch, install, tmp_path):
    doctor = tmp_path / "python"
    doctor.write_text(
        f'#!{sys.executable}\nimport sys\nprint("FAIL  torch: broken")\nprint(sys.argv[1:])\nsys.exit(8)\n'
    )
    doctor.chmod(0o755)
    monkeypatch.setattr("SegMambaSlicerLib.cli_process.worker_python", lambda: str(doctor))
    ui = the_module.ui
    click(ui.dependenciesSection)
    click(ui.checkButton)
    wait_until(lambda: "does not work" in ui.dependenciesLog.plainText)
    assert "FAIL  torch: broken" in ui.dependenciesLog.plainText
    assert "['-m', 'segmamba', '--stop-at-eof', 'doctor']" in ui.dependenciesLog.plainText
    assert ui.cleanButton.enabled


def test_missing_interpreter_is_a_sentence(the_module, click, monkeypatch, install):
    def fail():
        raise InstallationError("PythonSlicer was not found.")

    monkeypatch.setattr("SegMambaSlicerLib.cli_process.worker_python", fail)
    click(the_module.ui.dependenciesSection)
    click(the_module.ui.checkButton)
    assert "PythonSlicer was not found." in the_module.ui.dependenciesLog.plainText


@pytest.mark.slow
def test_doctor_of_this_installation_is_heard_out(the_module, click, wait_until, screenshot):
    ui = the_module.ui
    click(ui.dependenciesSection)
    click(ui.checkButton)
    wait_until(lambda: ui.checkButton.enabled)
    assert "OK    torch" in ui.dependenciesLog.plainText
    screenshot("checked")


def imported_packages(folder):
    """Return the packages other than Python's and our own that files of a folder import anywhere."""
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"segmamba"}


def required(name):
    lines = (PACKAGES / "Resources" / name).read_text(encoding="utf-8").splitlines()
    return {Requirement(line).name for line in lines if not line.startswith("#")}


def test_requirements_name_all_that_the_engine_imports_and_slicer_lacks():
    assert imported_packages(PACKAGES / "segmamba") - OF_SLICER - OPTIONAL == required("requirements.txt")


def test_requirements_of_folders_name_all_that_batches_import_besides():
    # Packages that bring others, which they could not do without.
    brings = {"PIL": "matplotlib"}
    # The command line shows a batch's progress.
    folders = (PACKAGES / "segmamba" / "batch", PACKAGES / "segmamba" / "cli")
    imported = {brings.get(name, name) for folder in folders for name in imported_packages(folder)}
    assert imported - CLUSTERS - OF_SLICER - required("requirements.txt") == required("requirements-batch.txt")
