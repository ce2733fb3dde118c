"""Text that every encoder takes: file names that are not UTF-8 shown with escapes, JSON in ASCII."""

import json
import re
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


def redact_credentials(address: str) -> str:
    """Return an address without user, password and secret query values, fit for records and logs.

    A password may hold ``/`` or ``@`` unescaped, so everything up to the last ``@`` before the query goes.

    Example:
        >>> redact_credentials("rtsp://admin:p@ss/word@10.0.0.7/stream?channel=1&token=abc")
        'rtsp://***@10.0.0.7/stream?channel=1&token=***'
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        return address
    location, question_mark, query = rest.partition("?")
    if "@" in query:  # an unescaped password with a question mark in it
        location, question_mark, query = rest, "", ""
    if "@" in location:
        location = "***@" + location.rpartition("@")[2]
    query = re.sub(r"(?i)([^&=]*(?:pass|pwd|user|login|token|key|secret|auth|sig)[^&=]*)=[^&]*", r"\1=***", query)
    return scheme + separator + location + question_mark + query
