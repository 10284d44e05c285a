"""The overview of a run: one page to flip through, which needs no network and no other program than a browser."""

from __future__ import annotations

import base64
import html
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segmamba.batch.layout import OVERVIEW, PREVIEW, REPORT, THUMBNAIL
from segmamba.batch.outcome import DONE, FAILED, LEFT_OUT
from segmamba.batch.page import HEAD, SCRIPT, STYLE, TAIL
from segmamba.batch.plan import Plan
from segmamba.batch.table import UNPRINTABLE, read_rows
from segmamba.reporting.disclaimer import NOTICE
from segmamba.utils.atomic import atomic_write

Row = dict[str, Any]


def write_overview(rows: Path, folder: Path, plan: Plan) -> None:
    """Write the overview, whole or not at all; thumbnails are in it, the large pictures beside it.

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
    counts = ", ".join(f"{statuses[status]} {status}" for status in (DONE, FAILED, LEFT_OUT) if statuses[status])
    model = f"{plan.model['id']} {plan.model['version']}, checkpoint {plan.model['checkpoint_sha256'][:12]}"
    head = HEAD.format(
        title=html.escape(f"{folder.absolute().name}: {counts}"),
        style=STYLE,
        counts=counts,
        model=html.escape(model),
        notice=html.escape(NOTICE),
        statuses=_choices(statuses),
        flags=_choices(flags),
    )
    with (
        atomic_write(folder / OVERVIEW, (".html",)) as temporary,
        temporary.open("w", encoding="utf-8", errors=UNPRINTABLE) as stream,
    ):
        stream.write(head)
        # Card by card: thousands of pictures are never in memory together.
        stream.writelines(_cards(rows, folder))
        stream.write(TAIL.format(script=SCRIPT))


def _choices(counted: Counter[str]) -> str:
    return "".join(
        f'<option value="{html.escape(name)}">{html.escape(name)} ({count})</option>'
        for name, count in sorted(counted.items())
    )


def _cards(rows: Path, folder: Path) -> Iterator[str]:
    for row in read_rows(rows):
        yield _card(row, folder)


def _card(row: Row, folder: Path) -> str:
    place = html.escape(row["folder"])
    thumbnail = folder / row["folder"] / THUMBNAIL
    if row["folder"] and thumbnail.is_file():
        data = base64.b64encode(thumbnail.read_bytes()).decode("ascii")
        picture = f'<a class="picture" href="{place}/{PREVIEW}"><img alt="" src="data:image/jpeg;base64,{data}"></a>'
        links = f'<a href="{place}/{REPORT}">report</a> <a href="{place}/">files</a>'
    else:
        picture, links = '<div class="picture none">no picture</div>', ""
    badges = "".join(f'<span class="flag">{html.escape(flag)}</span>' for flag in row["flags"])
    text = row["error"] or row["summary"]
    took = f"{row['seconds']:.1f} s" if row["seconds"] is not None else ""
    return (
        f'<article data-status="{row["status"]}" data-flags="{html.escape(json.dumps(row["flags"]))}">{picture}'
        f"<h2>{html.escape(row['case'])}</h2>"
        f'<p><span class="status {row["status"].replace(" ", "-")}">{row["status"]}</span>{badges}</p>'
        f"<p>{html.escape(text)}</p>"
        f'<p class="faint" title="{html.escape(row["input"])}">{html.escape(row["input"])}</p>'
        f'<p class="faint">{took} {links}</p></article>\n'
    )
