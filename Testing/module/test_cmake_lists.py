"""The lists of files in the module's CMakeLists.txt, compared with the files that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MODULE = REPOSITORY / "SegMambaSlicer"
SHARED = ["weights_manifest.json", "Resources/Models/*", "Resources/Terminology/*.json"]


def _files(root: Path, patterns: list[str]) -> set[str]:
    found = (path for pattern in patterns for path in root.glob(pattern))
    kept = (path for path in found if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(root).as_posix() for path in kept if not path.name.startswith(".")}


@pytest.mark.parametrize(
    ("name", "root", "patterns"),
    [
        (
            "MODULE_PYTHON_SCRIPTS",
            MODULE,
            ["*.py", "segmamba/**/*.py", "segmamba_mrml/**/*.py", "SegMambaSlicerLib/*.py"],
        ),
        ("MODULE_PYTHON_RESOURCES", MODULE, ["Resources/**/*"]),
        ("MODULE_SHARED_FILES", REPOSITORY, SHARED),
    ],
)
def test_list_has_every_file_and_no_other(name: str, root: Path, patterns: list[str]) -> None:
    text = (MODULE / "CMakeLists.txt").read_text(encoding="utf-8")
    match = re.search(rf"set\({name}\s+(.*?)\)", text, re.DOTALL)
    assert match, f"SegMambaSlicer/CMakeLists.txt has no list {name}"
    listed, expected = match.group(1).split(), sorted(_files(root, patterns))
    advice = "; ".join(
        f"{verb} {', '.join(sorted(files))}"
        for verb, files in (("add", set(expected) - set(listed)), ("remove", set(listed) - set(expected)))
        if files
    )
    assert listed == expected, f"{name} in SegMambaSlicer/CMakeLists.txt: {advice or 'sort it'}"


def test_scripts_registered_for_slicer_are_there() -> None:
    for folder in (MODULE, REPOSITORY / "Testing" / "Python"):
        text = (folder / "CMakeLists.txt").read_text(encoding="utf-8").replace("${MODULE_NAME}", "SegMambaSlicer")
        scripts = re.findall(r"slicer_add_python_unittest\(SCRIPT (\S+)\)", text)
        assert scripts
        assert all((folder / script).is_file() for script in scripts)
