"""Cases of several files, for models that take several volumes: told by the ends of the files' names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from segmamba.batch.batch_case import BatchCase, channels_case, stem
from segmamba.errors import InputError
from segmamba.io.channel_names import channel_of_name, missing_channels

SERIES = (
    "It is a DICOM series, and a batch does not tell which channel of the model it is: convert it to NIfTI and end the "
    "file's name in that of the channel."
)


def cases_of_channels(cases: Iterable[BatchCase], channels: Sequence[str]) -> list[BatchCase]:
    """Return one case for all files of an examination, in place of one for each.

    Files of one folder belong together if their names differ in the end alone: nnU-Net's number (``CASE_0000`` is the
    model's first channel) or the channel's name (``CASE-t1c``, or just ``t1c`` in a folder of its own).

    Parameters
    ----------
    cases : iterable of BatchCase
    channels : sequence of str
        Names of the model's channels, in its order.

    Raises
    ------
    InputError
        No file's name ends so.
    """
    groups: dict[tuple[str, str], dict[str, str]] = {}
    found: list[BatchCase] = []
    for case in cases:
        if case.skipped or case.error:
            found.append(case)
            continue
        if case.listing:
            found.append(replace(case, skipped=SERIES))
            continue
        named = channel_of_name(stem(case.path), channels)
        if named is None:
            ends = f"_0000 to _{len(channels) - 1:04} or in {', '.join(channels)}"
            text = f"Its name does not tell which channel of the model it is: end it in {ends}."
            found.append(replace(case, skipped=text))
            continue
        own, channel = named
        group = groups.setdefault((str(Path(case.path).parent), own), {})
        if channel in group:
            both = f"{case.path} and {group[channel]} both"
            text = f"{both} are '{channel}' of one case: remove one of the two."
            found.append(replace(case, error=text))
        else:
            group[channel] = case.path
    if not groups:
        raise InputError(
            f"No file's name tells which channel of the model it is ({', '.join(channels)}): end names in _0000, "
            f"_0001, ... as nnU-Net does, or in those of the channels, such as CASE-{channels[0]}.nii.gz."
        )
    whole = [_case(own, group, channels) for (_, own), group in groups.items()]
    return sorted(found + whole, key=lambda case: (case.path, case.name))


def _case(own: str, files: dict[str, str], channels: Sequence[str]) -> BatchCase:
    case = channels_case(own, {channel: files[channel] for channel in channels if channel in files})
    missing = missing_channels(own, list(files), channels)
    return replace(case, error=f"{own or case.path} has no file of channel {missing}: add it.") if missing else case
