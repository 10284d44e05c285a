"""Which of a case's co-registered volumes a file is: told by the end of its name."""

from __future__ import annotations

import re
from collections.abc import Sequence

# nnU-Net's: CASE_0000, CASE_0001, ...
NUMBERED = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


def channel_of_name(name: str, channels: Sequence[str]) -> tuple[str, str] | None:
    """Return what a file's name shares with those of its case's other files, and its channel.

    Parameters
    ----------
    name : str
        Without the extension.
    channels : sequence of str
        Names of the model's channels, in its order.

    Returns
    -------
    tuple of str, or None
        None where the name ends neither in nnU-Net's number nor in the name of a channel.

    Examples
    --------
    >>> channel_of_name("case_0001", ["t1c", "t1n"])
    ('case', 't1n')
    >>> channel_of_name("case-T1C", ["t1c", "t1n"])
    ('case', 't1c')
    >>> channel_of_name("t1n", ["t1c", "t1n"])
    ('', 't1n')
    """
    numbered = NUMBERED.fullmatch(name)
    if numbered and int(numbered["channel"]) < len(channels):
        return numbered["case"], channels[int(numbered["channel"])]
    # The longest first: one may end in another's name.
    for channel in sorted(channels, key=len, reverse=True):
        if name.casefold() == channel.casefold():
            return "", channel
        named = re.fullmatch(rf"(.+)[-_. ]{re.escape(channel)}", name, re.IGNORECASE)
        if named:
            return named[1], channel
    return None


def missing_channels(case: str, files: Sequence[str], channels: Sequence[str]) -> str:
    """Return which channels a case lacks and how their files would be named, in words; "" where it has all.

    Parameters
    ----------
    case : str
        What the names of its files share.
    files : sequence of str
        The channels of which it has a file.
    channels : sequence of str
        All of the model, in its order.

    Examples
    --------
    >>> missing_channels("case", ["t1c"], ["t1c", "t1n"])
    "'t1n' (case_0001 or case-t1n)"
    """
    return " and ".join(
        f"'{channel}' ({case}_{number:04} or {case}-{channel})"
        for number, channel in enumerate(channels)
        if channel not in files
    )
