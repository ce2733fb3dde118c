"""Text that every encoder takes: file names that are not UTF-8 shown with escapes, JSON in ASCII."""

import json
from collections.abc import Mapping
from typing import Any


def printable(text: str) -> str:
    r"""Return text that UTF-8 can hold: bytes of a file name that are not UTF-8 become ``\xNN``, as a shell shows them.

    Example:
        >>> printable("part_\udcff.png")
        'part_\\xff.png'
    """
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a pair, from a name on Windows
        data = text.encode("utf-8", "backslashreplace")
    return data.decode("utf-8", "backslashreplace")


def to_json(value: object) -> str:
    """Return one line of strict JSON in ASCII, which survives every code page and every reader: printable text, no NaN.

    Args:
        value: Plain values: mappings, sequences, text, numbers, booleans, None.

    Raises:
        ValueError: If a number is not finite.
    """
    return json.dumps(_printable_values(value), allow_nan=False, ensure_ascii=True)


def _printable_values(value: object) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable(key) if isinstance(key, str) else key: _printable_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_printable_values(item) for item in value]
    return value
