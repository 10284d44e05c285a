"""The lists of files in the module's CMakeLists.txt, made from the tree: ``make lists``.

What is not in them is missing from the installed extension.
"""

from __future__ import annotations

import re
from pathlib import Path

from helpers.repository import PACKAGES, REPOSITORY

LISTS = PACKAGES / "CMakeLists.txt"
# Of each list the folder that its names start from, and what belongs to it.
CONTENTS: dict[str, tuple[Path, tuple[str, ...]]] = {
    "MODULE_PYTHON_SCRIPTS": (
        PACKAGES,
        ("*.py", "segmamba/**/*.py", "segmamba_mrml/**/*.py", "SegMambaSlicerLib/**/*.py"),
    ),
    "MODULE_PYTHON_RESOURCES": (PACKAGES, ("Resources/**/*", "segmamba/**/templates/*", "segmamba/py.typed")),
    "MODULE_SHARED_FILES": (
        REPOSITORY,
        ("weights_manifest.json", "Resources/Models/*", "Resources/Terminology/*.json"),
    ),
}


def files_of(name: str) -> list[str]:
    """Return what a list has to hold, sorted."""
    root, patterns = CONTENTS[name]
    found = (path for pattern in patterns for path in root.glob(pattern))
    kept = (path for path in found if path.is_file() and "__pycache__" not in path.parts)
    return sorted({path.relative_to(root).as_posix() for path in kept if not path.name.startswith(".")})


def with_lists(text: str) -> str:
    """Return the text of CMakeLists.txt with all lists rebuilt."""
    for name in CONTENTS:
        lines = "".join(f"\n  {file}" for file in files_of(name))
        text, count = re.subn(rf"set\({name}\s.*?\)", f"set({name}{lines}\n  )", text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"{LISTS} has {count} lists {name}")
    return text


if __name__ == "__main__":
    LISTS.write_text(with_lists(LISTS.read_text(encoding="utf-8")), encoding="utf-8")
