"""What all tests share."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from segmamba.models.manifest import Manifest, load_manifest
from segmamba.utils.memory import ENVIRONMENT

# Helpers with fixtures: their assertions are explained too.
pytest.register_assert_rewrite("helpers")

# What is imported and collected stays: looking for garbage in it takes seconds.
gc.disable()
# As workers have them, and before anything imports PyTorch.
os.environ.update(ENVIRONMENT | os.environ)

REPOSITORY = Path(__file__).resolve().parents[1]

# The same examples in every run of the suite; "many" tries others, and far more.
# How long one takes depends on what else the machine does.
LIMITS = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "database": None, "print_blob": True}
settings.register_profile("suite", max_examples=15, derandomize=True, **LIMITS)
settings.register_profile("many", max_examples=500, **LIMITS)
settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests: no process is left with one of them alone at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Look for garbage from now on, among what is made from now on."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def no_settings_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder for settings of the tests' own, which child processes inherit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="session", autouse=True)
def children_are_warm() -> Iterator[None]:
    """Workers and commands are forked from a process that has imported torch; few tests are of how they start."""
    from helpers.warm_child import warm_children

    with warm_children():
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference data beside the repository; a test that needs them is skipped where they are not."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the reference data are not here")
    return folder


@pytest.fixture(scope="session")
def manifest() -> Manifest:
    """The list of models that comes with the software."""
    return load_manifest()
