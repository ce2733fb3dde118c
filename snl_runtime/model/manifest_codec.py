"""Plain JSON values <-> frozen dataclasses, checked by the declared types: nothing unknown, nothing missing, nothing of another type."""

import dataclasses
import difflib
import functools
import json
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, TypeVar, cast

import numpy as np

from snl_runtime.errors import ManifestError

_T = TypeVar("_T")

ADDED_LATER: Mapping[str, bool] = types.MappingProxyType({"omit_none": True})
"""Metadata of an optional field that the first manifests of a schema do not have: None is not written, so that their signatures hold."""


def parse_json(text: str) -> dict[str, Any]:
    """Return one JSON object, read strictly: no NaN, no Infinity, no key twice.

    Raises:
        ManifestError: If ``text`` is anything else; the message is the end of a sentence about the file.
    """
    try:
        document = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except ManifestError:
        raise
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise ManifestError(f"holds {_json_type(document)} where an object was expected")
    return document


def canonical_json(document: Mapping[str, Any]) -> str:
    """Return the one text that hashes and signatures are taken of: sorted keys, no spaces, UTF-8 letters as they are.

    What Python keeps of a name that is not UTF-8 is escaped, so that it comes back as it was and the file can be found again.

    Raises:
        ManifestError: If a value is not finite or no JSON value.
    """
    try:
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ManifestError(f"holds a value that strict JSON cannot carry ({error})") from error
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def to_plain(value: object, where: str = "") -> Any:
    """Return JSON values for a dataclass, mapping, sequence, path or (NumPy) number; a number gets the declared type, so 1 and 1.0 give one text.

    Raises:
        ManifestError: If a value cannot be written as JSON; the message names its key.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = _hints(type(value))
        omitted = {item.name for item in dataclasses.fields(value) if item.metadata.get("omit_none") and getattr(value, item.name) is None}
        return {name: _as_declared(to_plain(getattr(value, name), _join(where, name)), hint) for name, hint in hints.items() if name not in omitted}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item, _join(where, str(key))) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, np.generic):
        return to_plain(value.item(), where)
    if isinstance(value, PurePath):
        return value.as_posix()
    if isinstance(value, float) and not math.isfinite(value):
        raise ManifestError(f"'{where}' must be finite, got {value}")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ManifestError(f"'{where}' holds {type(value).__name__}, expected a plain value")


def from_plain(kind: type[_T], document: object, where: str = "") -> _T:
    """Return the dataclass ``kind`` for a JSON object.

    Raises:
        ManifestError: If a key is unknown or missing, or a value has another type than declared; the message names the key.
    """
    if not isinstance(document, dict):
        raise ManifestError(f"'{where}' must be an object, got {_json_type(document)}")
    hints = _hints(cast(Any, kind))
    for key in document:
        if key not in hints:
            guess = difflib.get_close_matches(key, hints, n=1)
            hint = f"; did you mean '{guess[0]}'?" if guess else ""
            raise ManifestError(f"has an unknown key '{_join(where, key)}'{hint}")
    fields = {field.name: field for field in dataclasses.fields(cast(Any, kind))}
    values = {}
    for name, declared in hints.items():
        if name in document:
            values[name] = _decode(declared, document[name], _join(where, name))
        elif fields[name].default is dataclasses.MISSING and fields[name].default_factory is dataclasses.MISSING:
            raise ManifestError(f"lacks the key '{_join(where, name)}'")
    return kind(**values)


def _decode(declared: Any, value: Any, where: str) -> Any:
    if declared is Any:
        return value
    if dataclasses.is_dataclass(declared):
        return from_plain(cast(type[Any], declared), value, where)
    origin, arguments = typing.get_origin(declared), typing.get_args(declared)
    if origin in (types.UnionType, typing.Union):
        return _decode_optional(arguments, value, where)
    if origin is list:
        items = _expect(list, value, where)
        return [_decode(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(items)]
    if origin is tuple:
        items = _expect(list, value, where)
        if len(items) != len(arguments):
            raise ManifestError(f"'{where}' must have {len(arguments)} values, got {len(items)}")
        return tuple(_decode(kind, item, f"{where}[{index}]") for index, (kind, item) in enumerate(zip(arguments, items, strict=True)))
    if origin is dict:
        return {key: _decode(arguments[1], item, _join(where, key)) for key, item in _expect(dict, value, where).items()}
    if declared is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    return _expect(declared, value, where)


def _decode_optional(arguments: Sequence[Any], value: Any, where: str) -> Any:
    if value is None:
        return None
    (declared,) = [argument for argument in arguments if argument is not type(None)]
    return _decode(declared, value, where)


def _expect(kind: type[_T], value: Any, where: str) -> _T:
    if type(value) is not kind:  # bool is an int for isinstance
        raise ManifestError(f"'{where}' must be {kind.__name__}, got {_json_type(value)}")
    return value


def _as_declared(plain: Any, declared: Any) -> Any:
    """Turn the whole numbers of a float field into floats, as ``from_plain`` does."""
    arguments = typing.get_args(declared)
    if type(plain) is int and (declared is float or (float in arguments and int not in arguments)):
        return float(plain)
    if isinstance(plain, list) and typing.get_origin(declared) is tuple:
        return [_as_declared(item, kind) for item, kind in zip(plain, arguments, strict=False)]
    return plain


@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _refuse_constant(name: str) -> None:
    raise ManifestError(f"holds {name}, which is no JSON number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ManifestError(f"has the key '{next(key for key in keys if keys.count(key) > 1)}' twice")
    return document


def _json_type(value: object) -> str:
    return "null" if value is None else type(value).__name__


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
