"""The part of the panel that installs what runs in the child process, repairs it and checks it.

torch is never imported here: the extension PyTorch's own `installTorch` imports it into Slicer at its end, so its
installer (light-the-torch, which finds the build for the GPU) is run in a child process instead, as it does itself.
"""

from __future__ import annotations

import logging
import shutil
import sys
import sysconfig
from collections.abc import Callable
from importlib import invalidate_caches, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from segmamba.errors import InstallationError
from segmamba.utils.memory import gibibytes
from SegMambaSlicerLib.cli_process import Program, startCommand

# What to do: it is given a log and what to call with its exit status at its end.
Step = Callable[[Callable[[str], None], Callable[[int], None]], None]

REQUESTER = "SegMambaSlicer"
# What only the console's segmentFolder needs is in a file beside the other requirements.
FOLDER_REQUIREMENTS = "requirements-batch.txt"
# Rough sizes of the downloads, for whoever waits for them.
SIZES = {"torch": "about 0.2 GB for the CPU, about 3 GB with CUDA", "pyarrow": "about 55 MB"}
LIGHT_THE_TORCH = "light-the-torch>=0.5"
# What pip leaves of torch when it is stopped or a file is in use: the packages, and folders renamed with a tilde.
LEFTOVERS = ("torch", "torchgen", "functorch", "torch-*.dist-info", "~orch*", "~unctorch*")
DISK_WANTED = 6 * 2**30
# Windows allows paths of 260 characters; below the packages' folder torch 2.13 has some of 119, pip's are longer.
LONGEST_WINDOWS_FOLDER = 120
FAILURE_LINES = 12


class DependencySection:
    """Says what is missing, and installs, repairs and checks it without blocking Slicer.

    Parameters
    ----------
    ui : object
        The panel's widgets by name.
    requirements : Path
        The requirements file.
    stopWorker : callable
        Ends the worker before its packages change: on Windows, files that are in use cannot be replaced.
    """

    def __init__(self, ui: Any, requirements: Path, stopWorker: Callable[[], None]) -> None:
        self._ui = ui
        self._requirements = requirements
        self._stopWorker = stopWorker
        self._lines: list[str] = []
        self._check: Program | None = None
        self._stopped = False
        ui.installButton.connect("clicked(bool)", self._onInstall)
        ui.cleanButton.connect("clicked(bool)", self._onClean)
        ui.checkButton.connect("clicked(bool)", self._onCheck)
        self.refresh()

    @property
    def missing(self) -> list[str]:
        """The requirements that are not met."""
        return missingRequirements(self._requirements)

    @property
    def missingForFolders(self) -> list[str]:
        """What folders of volumes need besides."""
        return missingForFolders(self._requirements)

    def refresh(self) -> None:
        """Show what is there and what is not."""
        missing, forFolders = self.missing, self.missingForFolders
        self._ui.dependenciesLabel.text = installationText(missing, forFolders)
        self._ui.installButton.enabled = bool(missing or forFolders)
        self._ui.cleanButton.enabled = bool(missing) and bool(leftovers(packagesFolder()))
        if missing:
            self._ui.dependenciesSection.collapsed = False

    def stop(self) -> None:
        """Follow no more what runs: pip itself goes on, for what it leaves half done is worse."""
        self._stopped = True
        if self._check is not None:
            self._check.end()

    def _onInstall(self, _checked: bool = False) -> None:
        if self._pipIsBusy():
            return
        self._lines = []
        self._stopWorker()
        self._install()

    def _onClean(self, _checked: bool = False) -> None:
        if self._pipIsBusy():
            return
        self._lines = []
        self._stopWorker()
        for path in leftovers(packagesFolder()):
            self._show(_("Removing {path}").format(path=path))
            shutil.rmtree(path, ignore_errors=True)
        self._install()

    def _pipIsBusy(self) -> bool:
        """Tell whether pip runs, for this panel before it was loaded again or for another module, and say so."""
        import slicer.packaging

        busy = slicer.packaging.isPipInstallInProgress()
        if busy:
            self._show(_("Packages are being installed already: wait a few minutes, then try again."))
        return bool(busy)

    def _install(self) -> None:
        # What folders need comes last: if it fails, the networks run all the same.
        self._run([*installSteps(self.missing), *installSteps(self.missingForFolders)])

    def _onCheck(self, _checked: bool = False) -> None:
        self._lines = []
        try:
            self._check = startCommand(["doctor"], self._show, self._onChecked)
        except InstallationError as error:
            self._show(str(error))
            return
        self._show(_("Checking..."))
        self._setBusy(True)

    def _onChecked(self, status: int) -> None:
        self._setBusy(False)
        self.refresh()
        if status == 0:
            self._show(_("Everything works."))
        else:
            self._show(_("Something does not work: see the lines with FAIL."))
            self._ui.cleanButton.enabled = any(line.startswith("FAIL  torch") for line in self._lines)

    def _run(self, steps: list[Step]) -> None:
        """Do one step after another; stop at the first that fails and show its last lines."""
        if not steps:
            self._setBusy(False)
            self.refresh()
            missing = [*self.missing, *self.missingForFolders]
            if missing:
                self._show(
                    _("pip reported no error, but these packages are still missing: {names}.").format(
                        names=", ".join(missing)
                    )
                )
            else:
                self._show(_("Done. Press 'Check installation' to be sure."))
            return
        self._setBusy(True)
        begin = len(self._lines)

        def onCompleted(status: int) -> None:
            if self._stopped:
                return
            if status == 0:
                self._run(steps[1:])
                return
            self._setBusy(False)
            self.refresh()
            # What is half there makes pip say "already satisfied" at the next try.
            self._ui.cleanButton.enabled = bool(leftovers(packagesFolder()))
            self._show(installationFailure(self._lines[begin:]))

        try:
            steps[0](self._show, onCompleted)
        except Exception as error:
            # Whatever pip or the child process raises is for the user to read.
            self._show(str(error))
            onCompleted(1)

    def _show(self, line: str) -> None:
        if self._stopped:
            return
        self._lines.append(line)
        self._ui.dependenciesLog.appendPlainText(line)

    def _setBusy(self, busy: bool) -> None:
        for button in (self._ui.installButton, self._ui.cleanButton, self._ui.checkButton):
            button.enabled = not busy


def missingRequirements(path: Path) -> list[str]:
    """Return the lines of a requirements file that are not met, found out without importing any package."""
    from packaging.requirements import Requirement

    # pip may have run in a child process since the last look.
    invalidate_caches()
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return [str(requirement) for requirement in wanted if not _isThere(requirement)]


def missingForFolders(requirements: Path) -> list[str]:
    """Return what folders of volumes need beyond a requirements file, as `missingRequirements` does."""
    return missingRequirements(requirements.with_name(FOLDER_REQUIREMENTS))


def installSteps(missing: list[str]) -> list[Step]:
    """Return what to do, one step after another, to install requirements."""
    if any(requirement.startswith("torch") for requirement in missing) and hasattr(slicer.modules, "pytorchutils"):
        torch = [requirement for requirement in missing if requirement.startswith("torch")]
        rest = [requirement for requirement in missing if requirement not in torch]
        steps = [_either([_pip([LIGHT_THE_TORCH]), _lightTheTorch(torch)], _pip(torch))]
        return steps + ([_pip(rest)] if rest else [])
    return [_pip(missing)] if missing else []


def packagesFolder() -> Path:
    """Return where pip installs packages."""
    return Path(sysconfig.get_path("purelib"))


def leftovers(folder: Path) -> list[Path]:
    """Return the folders of torch in a folder of packages."""
    return sorted(path for pattern in LEFTOVERS for path in folder.glob(pattern) if path.is_dir())


def installationText(missing: list[str], forFolders: list[str]) -> str:
    """Say what is missing, for the networks and for folders of volumes, how large it is and where it goes."""
    complete = "" if missing else _("All packages that the networks need are installed.")
    wanted = [*missing, *forFolders]
    if not wanted:
        return complete
    folder = packagesFolder()
    names = [f"{name} ({SIZES[_base(name)]})" if _base(name) in SIZES else name for name in wanted]
    free = shutil.disk_usage(folder).free
    text = _("To be installed: {names}. Into: {folder}, where {free} are free.").format(
        names=", ".join(names), folder=folder, free=gibibytes(free)
    )
    if complete:
        text = f"{complete} {_('Segmenting folders (segmentFolder in the Python console) needs more packages.')} {text}"
    elif free < DISK_WANTED:
        text += " " + _("This may not be enough: free at least {wanted}.").format(wanted=gibibytes(DISK_WANTED))
    if sys.platform == "win32" and len(str(folder)) > LONGEST_WINDOWS_FOLDER:
        text += " " + _("This folder's path is long: install Slicer in a shorter one, for example C:\\Slicer.")
    return text


def installationFailure(lines: list[str]) -> str:
    """Return the lines of pip that say why it failed, or else its last ones."""
    errors = [line for line in lines if line.lstrip().lower().startswith(("error", "fatal"))]
    said = "\n".join(errors or lines[-FAILURE_LINES:])
    return _("The installation failed:\n{said}").format(said=said)


def _isThere(requirement: Any) -> bool:
    if requirement.marker is not None and not requirement.marker.evaluate():
        return True
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return False
    # A package without its __init__ is half-installed, whatever its metadata says.
    spec = find_spec(requirement.name)
    return spec is not None and spec.origin is not None and requirement.specifier.contains(version, prereleases=True)


def _base(requirement: str) -> str:
    from packaging.requirements import Requirement

    return Requirement(requirement).name


def _pip(requirements: list[str]) -> Step:
    def install(log: Callable[[str], None], completed: Callable[[int], None]) -> None:
        import slicer.packaging

        slicer.packaging.pip_install(
            requirements,
            blocking=False,
            show_progress=False,
            requester=REQUESTER,
            logCallback=_safe(log),
            completedCallback=_safe(completed),
        )

    return install


def _lightTheTorch(requirements: list[str]) -> Step:
    def install(log: Callable[[str], None], completed: Callable[[int], None]) -> None:
        slicer.util.executePythonModule(
            "light_the_torch",
            ["install", *requirements],
            blocking=False,
            logCallback=_safe(log),
            completedCallback=_safe(completed),
        )

    return install


def _either(attempt: list[Step], otherwise: Step) -> Step:
    """Return the steps of an attempt as one, and another step for where one of them fails."""

    def install(log: Callable[[str], None], completed: Callable[[int], None]) -> None:
        def run(steps: list[Step]) -> None:
            def end(status: int) -> None:
                if status:
                    log(
                        _(
                            "The PyTorch extension's installer failed, so pip installs PyTorch itself. If the GPU is "
                            "not used then, install PyTorch in the module PyTorch Util."
                        )
                    )
                    otherwise(log, completed)
                elif steps[1:]:
                    run(steps[1:])
                else:
                    completed(0)

            try:
                steps[0](log, end)
            except Exception as error:
                # Whatever pip or the child process raises is for the user to read.
                log(str(error))
                end(1)

        run(attempt)

    return install


def _safe(callback: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return a callback that does not raise: Slicer would believe until it is restarted that pip still runs."""

    def call(value: Any) -> None:
        try:
            callback(value)
        except Exception:
            logging.exception("SegMambaSlicer")

    return call
