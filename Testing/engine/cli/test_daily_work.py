"""The commands of Docs/daily-work.md are commands, and its table counts them."""

from __future__ import annotations

import re
import shlex

import pytest
from helpers.repository import REPOSITORY

from segmamba.cli.main import make_parser
from segmamba.cli.options import read_request

PAGE = (REPOSITORY / "Docs" / "daily-work.md").read_text(encoding="utf-8")
TASKS = re.split(r"^## (?=\d)", PAGE.partition("## How this was checked")[0], flags=re.MULTILINE)[1:]


def commands(task: str) -> list[list[str]]:
    """Return the arguments of each command in a section."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", task, re.DOTALL | re.MULTILINE)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("task", TASKS, ids=[task.split("\n")[0] for task in TASKS])
def test_each_command_of_a_task_can_be_given(task: str) -> None:
    for given in commands(task):
        options = make_parser().parse_args(given)
        if given[0] == "segment":
            assert read_request(options).input == given[1]


def test_the_table_has_all_tasks_and_counts_their_commands() -> None:
    rows = re.findall(r"^\| \[(\d+\. .*?)\]\(#.*?\) \|.*\| (.*?) ?\|$", PAGE, re.MULTILINE)
    assert [title for title, _ in rows] == [task.split("\n")[0] for task in TASKS]
    assert len(rows) == 10
    for (title, said), task in zip(rows, TASKS, strict=True):
        counted = sum(map(int, re.findall(r"\d+", said.replace("1 command for each exam", "2 commands"))))
        assert counted == len(commands(task)), title
