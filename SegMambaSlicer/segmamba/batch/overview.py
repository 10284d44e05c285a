"""The overview of a run: one page to flip through, which needs no network and no other program than a browser."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from segmamba.batch.layout import OVERVIEW, PAGE, PREVIEW, REPORT, THUMBNAIL
from segmamba.batch.outcome import DONE, FAILED, SKIPPED, Row, rank
from segmamba.batch.plan import Plan
from segmamba.batch.table import UNPRINTABLE, read_rows
from segmamba.reporting import DISCLAIMER
from segmamba.utils.atomic import atomic_write

# With overview.css and overview.js in the same folder.
TEMPLATE = "overview.html.j2"


def write_overview(rows: Path, folder: Path, plan: Plan) -> None:
    """Write the overview, whole or not at all; it contains the thumbnails and links to the large pictures and pages.

    Parameters
    ----------
    rows : Path
        As for `segmamba.batch.table.read_rows`.
    folder : Path
        Of the run.
    plan : Plan

    Raises
    ------
    OutputError
        It cannot be written.
    """
    statuses: Counter[str] = Counter()
    flags: Counter[str] = Counter()
    for row in read_rows(rows):
        statuses[row["status"]] += 1
        flags.update(row["flags"])
    page = _template().stream(
        name=folder.absolute().name,
        counts=", ".join(f"{statuses[status]} {status}" for status in (DONE, FAILED, SKIPPED) if statuses[status]),
        model=f"{plan.model['id']} {plan.model['version']}, checkpoint {plan.model['checkpoint_sha256'][:12]}",
        notice=DISCLAIMER,
        statuses=sorted(statuses.items()),
        flags=sorted(flags.items()),
        cards=_cards(rows, folder),
        preview=PREVIEW,
        report=REPORT,
        rank=rank,
    )
    with atomic_write(folder / OVERVIEW, (".html",)) as temporary:
        # Piece by piece: thousands of pictures are never in memory together.
        page.dump(str(temporary), encoding="utf-8", errors=UNPRINTABLE)


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("segmamba.batch"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE)


def _cards(rows: Path, folder: Path) -> Iterator[tuple[Row, str, str]]:
    """Give each row with its thumbnail in base64 and the name of its page; empty where there is none."""
    for row in read_rows(rows):
        thumbnail = folder / row["folder"] / THUMBNAIL
        there = row["folder"] and thumbnail.is_file()
        page = PAGE if row["folder"] and (folder / row["folder"] / PAGE).is_file() else ""
        yield row, base64.b64encode(thumbnail.read_bytes()).decode("ascii") if there else "", page
