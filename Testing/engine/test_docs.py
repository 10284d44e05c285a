"""What the documents say can be done and is there."""

from __future__ import annotations

import ast
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
from helpers import tiny
from helpers.many_cases import write
from helpers.phantoms import grid_around_patient, phantom, rotation
from helpers.repository import REPOSITORY

from segmamba import api
from segmamba.cli.main import make_parser
from segmamba.models import manifest, store

DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "Docs").rglob("*.md")])
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
NAMING_TESTS = ("contributing/troubleshooting-tests.md", "contributing/panel-controls.md")
# What stands for numbers in commands.
NUMBERS = ("LOW", "HIGH", "M", "S")
LOGIC = REPOSITORY / "SegMambaSlicer" / "SegMambaSlicer.py"


def blocks(text: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", NAMING_TESTS)
def test_every_test_that_a_document_names_is_there(name: str) -> None:
    named = set(re.findall(r"\btest_\w+\b(?!\.py)", (REPOSITORY / "Docs" / name).read_text(encoding="utf-8")))
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "Testing").rglob("test_*.py"))
    assert named
    assert named - set(re.findall(r"^def (test_\w+)", sources, re.MULTILINE)) == set()


def headings(text: str) -> set[str]:
    """Return the anchors of a Markdown document: its headings, as GitHub names them, and explicit ids."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    names: Counter[str] = Counter()
    found = set()
    for title in re.findall(r"^#+ +(.+?) *$", prose, re.MULTILINE):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title)
        name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        found.add(f"{name}-{names[name]}" if names[name] else name)
        names[name] += 1
    return found | set(re.findall(r'<a id="([^"]+)">', prose))


def test_headings_are_named_as_on_github() -> None:
    text = (
        '# A `b_c` & d\n# Twice\n# Twice\n# Twice\n## [Linked](x.md), twice\n```sh\n# comment\n```\n<a id="own"></a>\n'
    )
    assert headings(text) == {"a-b_c--d", "twice", "twice-1", "twice-2", "linked-twice", "own"}


def test_every_file_and_heading_that_a_document_links_to_is_there() -> None:
    gone, seen = [], 0
    for document in DOCUMENTS:
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?", document.read_text(encoding="utf-8")):
            if ":" in target:
                continue
            seen += 1
            path = document.parent / target if target else document
            if not path.exists():
                gone.append(f"{document.name}: {target}")
            elif anchor and path.suffix == ".md" and anchor not in headings(path.read_text(encoding="utf-8")):
                gone.append(f"{document.name}: {target}#{anchor}")
    assert seen > 100
    assert gone == []


def commands(document: Path) -> list[list[str]]:
    """Return the commands in a document's blocks of shell, in words."""
    found = blocks(document.read_text(encoding="utf-8"), "sh[^\n]*")
    lines = [line for block in found for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(part, comments=True) for line in lines for part in line.split(" && ")]


def test_every_command_of_the_documents_is_one() -> None:
    given = [(document, words) for document in DOCUMENTS for words in commands(document)]
    ours = [
        (document.name, words[words.index(word) + 1 :])
        for document, words in given
        for word in words
        if Path(word).name == "segmamba" and words[0] not in ("podman", "docker")
    ]
    assert len(ours) > 50
    for name, words in ours:
        try:
            assert make_parser().parse_args(["1" if word in NUMBERS else word for word in words]).run
        except SystemExit:
            pytest.fail(f"{name}: segmamba {shlex.join(words)}")


def test_every_script_that_a_document_names_is_there_and_has_its_options() -> None:
    scripts = 0
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"python (?:-m segmamba\.|benchmarks/)[^`\n]+", text):
            words = shlex.split(line, comments=True)
            module = words[2].replace(".", "/") if words[1] == "-m" else None
            script = REPOSITORY / (f"SegMambaSlicer/{module}.py" if module else words[1])
            if module and script.with_suffix("").is_dir():
                script = script.with_suffix("") / "__main__.py"
            assert script.is_file(), f"{document.name}: {line}"
            source = script.read_text(encoding="utf-8")
            for word in words:
                # One that a parser makes of a dataclass's field has no dashes in the source.
                if word.startswith("--"):
                    assert f'"{word}"' in source, f"{document.name}: {line} has {word}"
            scripts += 1
    assert scripts > 30


def test_the_readmes_python_segments_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    volume = phantom(grid_around_patient((6.0, 6.0, 8.0), rotation(0, 0)))
    write(volume, tmp_path / "CT.nii.gz")
    small = manifest.load_manifest(tiny.write_model(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api, "load_models", lambda: small)
    monkeypatch.setattr(store, "resource_root", lambda: tmp_path)
    (code,) = [block for block in blocks(README, "python") if "from segmamba import" in block]
    exec(compile(code, "README.md", "exec"), {})
    assert str(volume.array.shape) in capsys.readouterr().out
    assert (tmp_path / "spine.seg.nrrd").is_file()


@pytest.mark.parametrize("document", ["README.md", "Docs/panel.md"])
def test_every_console_call_of_the_documents_is_one_of_the_logics(document: str) -> None:
    (logic,) = [
        node
        for node in ast.parse(LOGIC.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name.endswith("Logic")
    ]
    methods = {node.name: node.args for node in logic.body if isinstance(node, ast.FunctionDef)}
    calls = []
    for block in blocks((REPOSITORY / document).read_text(encoding="utf-8"), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("logic."):
                calls.append(node)
    assert len(calls) >= 5
    for call in calls:
        arguments = methods[ast.unparse(call.func).removeprefix("logic.")]
        known = {argument.arg for argument in arguments.args + arguments.kwonlyargs}
        assert len(call.args) < len(arguments.args)
        assert arguments.kwarg is not None or {keyword.arg for keyword in call.keywords} <= known
