"""Words for sentences."""

from __future__ import annotations


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number and what is counted, in the singular for one.

    Parameters
    ----------
    number : int
    one : str
        Name of a single thing.
    many : str, optional
        Name of several; by default with an s.

    Examples
    --------
    >>> counted(1, "case"), counted(3, "case"), counted(0, "vertebra", "vertebrae")
    ('1 case', '3 cases', '0 vertebrae')
    """
    return f"{number} {one if number == 1 else many or one + 's'}"
