"""The lists of files in the module's CMakeLists.txt, compared with the files that are there."""

from __future__ import annotations

import re

from helpers.cmake_lists import LISTS, with_lists
from helpers.repository import PACKAGES, REPOSITORY


def test_the_lists_have_every_file_and_no_other() -> None:
    text = LISTS.read_text(encoding="utf-8")
    assert with_lists(text) == text, "run: make lists"


def test_scripts_registered_for_slicer_are_there() -> None:
    for folder in (PACKAGES, REPOSITORY / "Testing" / "Python"):
        text = (folder / "CMakeLists.txt").read_text(encoding="utf-8").replace("${MODULE_NAME}", "SegMambaSlicer")
        scripts = re.findall(r"slicer_add_python_unittest\(SCRIPT (\S+)\)", text)
        assert scripts
        assert all((folder / script).is_file() for script in scripts)
