"""Child processes behind a launcher, as all of them are in Slicer: ended as a whole, and heard of when they end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable

import psutil
import pytest
from helpers.own_time import PATIENCE
from helpers.repository import PACKAGES
from launcher import PYTHON, make_launcher

from segmamba.utils import child as module
from segmamba.utils.child import Child, how_it_ended
from segmamba.worker.client import describe_end

if sys.platform == "win32":
    pytest.skip("signals of POSIX", allow_module_level=True)

SLEEPING = "import time; print('ready', flush=True); time.sleep(3600)"


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_launcher(tmp_path_factory.mktemp("bin")))


@pytest.fixture
def start(launcher: str) -> Callable[..., tuple[Child, psutil.Process]]:
    """Start a program behind the launcher, and give the child and its Python once that has said "ready"."""

    def start(program: str = SLEEPING, **more: bool) -> tuple[Child, psutil.Process]:
        child = Child([launcher, "-IS", "-c", program], **more)
        assert child.output.readline() == b"ready\n"
        (python,) = psutil.Process(child.pid).children(recursive=True)
        return child, python

    return start


def is_gone(process: psutil.Process) -> bool:
    try:
        process.wait(PATIENCE)
    except psutil.NoSuchProcess:
        return True
    return not process.is_running()


def test_ending_a_launcher_alone_leaves_python_running(launcher: str) -> None:
    # The fault that all of this is for.
    process = subprocess.Popen([launcher, "-IS", "-c", SLEEPING], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    (python,) = psutil.Process(process.pid).children()
    process.terminate()
    process.wait()
    assert python.is_running()
    python.kill()
    assert process.stdout.read() == b""
    process.stdout.close()


def test_end_reaches_the_python_behind_a_launcher_and_frees_a_reader(start) -> None:
    child, python = start()
    child.end()
    assert child.output.read() == b""
    assert is_gone(python) and not child.running
    child.end()


def test_end_frees_a_writer_that_waits_for_a_child_that_does_not_read(start) -> None:
    import threading

    child, _python = start()
    with pytest.raises(BlockingIOError):
        os.set_blocking(child.input.fileno(), False)
        while True:
            os.write(child.input.fileno(), b"x" * 4096)
    os.set_blocking(child.input.fileno(), True)

    def write() -> None:
        with pytest.raises(OSError):
            child.input.write(b"x" * 4096)
            child.input.flush()

    writer = threading.Thread(target=write)
    writer.start()
    child.end()
    writer.join(PATIENCE)
    assert not writer.is_alive()


def test_python_does_not_outlive_a_launcher_that_is_killed(start) -> None:
    child, python = start()
    os.kill(child.pid, signal.SIGKILL)
    assert child.output.read() == b""
    assert is_gone(python)
    assert child.wait() == -signal.SIGKILL


def test_end_of_input_asks_a_child_to_stop(start) -> None:
    child, python = start("import sys; print('ready', flush=True); sys.stdin.read(); print('bye')")
    child.close_input()
    assert child.output.read() == b"bye\n"
    assert child.wait() == 0 and is_gone(python)


FOLLOWING = """
import sys, time
sys.path.insert(0, {packages!r})
from segmamba.utils.child import call_at_end_of_input
call_at_end_of_input(lambda: print("asked", flush=True), 0.01)
print("ready", flush=True)
time.sleep(3600)
"""


def test_child_that_does_not_stop_at_the_end_of_input_is_ended(start) -> None:
    child, _python = start(FOLLOWING.format(packages=str(PACKAGES)))
    child.close_input()
    assert child.output.read() == b"asked\n"
    assert child.wait() == 1


STOPPING = """
import sys, time
sys.path.insert(0, {packages!r})
from segmamba.cli.interrupt import stop_at_end_of_input, stop_signal
stop_at_end_of_input()
{rest}
"""
ASKED = """
with stop_signal() as stopped:
    print("ready", flush=True)
    while not stopped():
        time.sleep(0.01)
print("stopped")
"""
INTERRUPTED = """
try:
    print("ready", flush=True)  # within, as the interruption may come at once
    time.sleep(3600)
except KeyboardInterrupt:
    print("stopped")
"""


@pytest.mark.parametrize("rest", [ASKED, INTERRUPTED])
def test_end_of_input_counts_as_ctrl_c_for_the_command_line(start, rest: str) -> None:
    child, _python = start(STOPPING.format(packages=str(PACKAGES), rest=rest))
    child.close_input()
    assert child.output.read() == b"stopped\n"
    assert child.wait() == 0


GRANDCHILD = """
import subprocess, sys
sys.path.insert(0, {packages!r})
from segmamba.utils.child import take_input
stream = take_input()
child = subprocess.run([sys.executable, "-c", "import sys; print(sys.stdin.read())"], capture_output=True)
print("ready", flush=True)
print(child.stdout, stream.read(), flush=True)
"""


def test_children_of_a_child_do_not_share_its_input(start) -> None:
    child, _python = start(GRANDCHILD.format(packages=str(PACKAGES)))
    child.input.write(b"for the child")
    child.close_input()
    assert child.output.read() == b"b'\\n' b'for the child'\n"


def test_windows_ends_the_tree_of_processes(start, monkeypatch: pytest.MonkeyPatch) -> None:
    child, python = start()
    asked: list[list[str]] = []

    def run(command: list[str], **_options: object) -> None:
        asked.append(command)
        python.kill()

    monkeypatch.setattr(module.sys, "platform", "win32")
    monkeypatch.setattr(module.subprocess, "run", run)
    child.end()
    monkeypatch.undo()
    assert asked == [["taskkill", "/F", "/T", "/PID", str(child.pid)]]
    assert child.output.read() == b""


CRASH = "import faulthandler; faulthandler.enable(); print('ready', flush=True); faulthandler._sigsegv()"
KILLED = "import os, signal; print('some words'); print('ready', flush=True); os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        (CRASH, "The worker crashed .*: run 'segmamba doctor', or choose the device cpu"),
        (KILLED, "The worker was killed.*most likely because memory ran out: close other programs"),
        ("print('ready'); raise SystemExit(9)", "ended with exit status 9 .*ready"),
        ("print('ready'); raise SystemExit(130)", "ended with exit status 130"),
        ("print('ready'); import nowhere", "package nowhere is missing"),
    ],
)
def test_end_is_told_as_what_it_is_with_and_without_a_launcher(
    launcher: str, behind: bool, program: str, sentence: str
) -> None:
    child = Child([launcher if behind else PYTHON, "-ISu", "-c", program], one_stream=True)
    lines = child.output.read().decode().splitlines()
    status = child.wait()
    assert status is not None
    said = describe_end(status, lines)
    assert re.search(sentence, said), said
    assert "exit abnormally" not in said and "most recent call first" not in said


def test_words_before_a_crash_are_kept_and_its_traceback_is_not() -> None:
    lines = ["loading", "terminate called: bad", "Fatal Python error: Aborted", "", "Current thread:", "  File x"]
    end = how_it_ended(1, [*lines, "error: [/opt/python-real] exit abnormally - Report the problem."])
    assert (end.crash, end.killed, end.words) == ("Aborted", "", "terminate called: bad")
    end = how_it_ended(0xC0000005, ["loading", "Windows fatal exception: access violation", "", "Current thread"])
    assert (end.crash, end.words) == ("0xC0000005", "loading")
