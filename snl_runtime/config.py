"""Frozen dataclasses <-> plain values, YAML and strict JSON: the one codec of settings, protocols and manifests.

A key that is unknown, missing or of another type than declared is named by its dotted path. Supported field types: ``bool``, ``int``, ``float``,
``str``, ``int | str``, ``Any``, ``Literal`` of strings, ``Enum`` by value, ``X | None``, ``list[X]``, ``tuple[X, Y]``, ``tuple[X, ...]``,
``dict[str, X]`` and nested dataclasses.
"""

import dataclasses
import difflib
import enum
import functools
import json
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal, TypeVar

import numpy as np
import yaml

from snl_runtime.errors import ConfigError, SnlError

T = TypeVar("T")

ADDED_LATER: Mapping[str, bool] = types.MappingProxyType({"omit_default": True})
"""Metadata of a field that the first files of a schema do not have: its default is not written, so that their signatures hold."""

_NAMES: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_EXACT_BELOW = 2**53
"""Whole numbers from here on are not all floats."""
_SHOWN_CHARACTERS = 60


def load_config(cls: type[T], path: Path | None = None, overrides: Mapping[str, object] | None = None, *, base: T | None = None) -> T:
    """Return the configuration that a base, a YAML file and dotted overrides give, the later ones winning.

    Args:
        cls: Dataclass to build.
        path: YAML file with any part of the keys; None for no file.
        overrides: Values by dotted name, e.g. ``{"optim.learning_rate": 1e-3}``.
        base: Values for the keys that neither the file nor the overrides name; None for the dataclass's defaults.

    Raises:
        ConfigError: If the file cannot be read, or a key is unknown, of another type or out of range.
    """
    plain: dict[str, Any] = {} if base is None else to_plain(base)
    if path is not None:
        plain = merge(plain, read_yaml(path))
    for name, value in (overrides or {}).items():
        plain = merge(plain, nested(name, value))
    return from_plain(cls, plain)


def from_plain(cls: type[T], plain: object, *, prefix: str = "", error: type[SnlError] = ConfigError, strict: bool = False) -> T:
    """Build a dataclass from plain values, checking every key and type.

    Args:
        cls: Dataclass to build; fields that ``plain`` does not name keep their defaults.
        plain: Mappings, sequences, text, numbers, booleans and None only.
        prefix: Dotted name of the section that ``plain`` is, for messages.
        error: What to raise.
        strict: Take JSON's types as they are. Otherwise what people write in YAML is taken too: a number as text (YAML reads 1e-3 so), an empty
            section as None.

    Raises:
        SnlError: An ``error`` if a key is unknown or missing or a value has another type, and what the dataclass itself raises.
    """
    return _Decoder(error, strict).dataclass(cls, plain, prefix)


def to_plain(value: object, *, prefix: str = "", error: type[SnlError] = ConfigError) -> Any:
    """Return a dataclass, mapping, sequence, path or (NumPy) number as plain values, fit for JSON, YAML and ``from_plain``.

    A number gets the declared type, so that 1 and 1.0 in a float field give one text.

    Raises:
        SnlError: An ``error`` that names the key of a value that strict JSON cannot hold.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = _hints(type(value))
        kept = [one.name for one in dataclasses.fields(value) if not (one.metadata.get("omit_default") and getattr(value, one.name) == one.default)]
        return {name: _as_declared(to_plain(getattr(value, name), prefix=_dotted(prefix, name), error=error), hints[name]) for name in kept}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item, prefix=_dotted(prefix, key), error=error) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item, prefix=f"{prefix}[{index}]", error=error) for index, item in enumerate(value)]
    if isinstance(value, np.generic):
        return to_plain(value.item(), prefix=prefix, error=error)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, PurePath):
        return value.as_posix()
    if isinstance(value, float) and not math.isfinite(value):
        raise error(f"{prefix} must be finite, got {value}")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise error(f"{prefix} must be a plain value, got {type(value).__name__}")


def parse_json(text: str, *, error: type[SnlError] = ConfigError) -> dict[str, Any]:
    """Return one JSON object, read strictly: no NaN, no Infinity, no key twice.

    Raises:
        SnlError: An ``error`` if ``text`` is anything else; the message is the end of a sentence about the file.
    """

    def refuse_constant(name: str) -> None:
        raise error(f"holds {name}, which is no JSON number")

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(pairs)
        if len(document) != len(pairs):
            keys = [key for key, _ in pairs]
            raise error(f"has the key '{next(key for key in keys if keys.count(key) > 1)}' twice")
        return document

    try:
        document = json.loads(text, parse_constant=refuse_constant, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as caught:
        raise error(f"is not JSON ({caught})") from caught
    if not isinstance(document, dict):
        raise error(f"must be a section of keys, got {_describe(document)}")
    return document


def canonical_json(document: Mapping[str, Any], *, error: type[SnlError] = ConfigError) -> str:
    """Return the one text that hashes and signatures are taken of: sorted keys, no spaces, UTF-8 letters as they are.

    What Python keeps of a name that is not UTF-8 is escaped, so that it comes back as it was and the file can be found again.

    Raises:
        SnlError: An ``error`` if a value is not finite or no JSON value.
    """
    try:
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as caught:
        raise error(f"holds a value that strict JSON cannot carry ({caught})") from caught
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def merge(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``lower`` with the values of ``upper`` over it, section by section; an empty section changes nothing."""
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and value is None:
            continue  # "optim:" with nothing below it
        is_section = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(below, value) if is_section else value  # type: ignore[arg-type]
    return merged


def nested(name: str, value: object) -> dict[str, Any]:
    """Return sections of keys that give one dotted name a value.

    >>> nested("optim.learning_rate", 1e-3)
    {'optim': {'learning_rate': 0.001}}
    """
    *sections, last = name.split(".")
    plain: dict[str, Any] = {last: value}
    for section in reversed(sections):
        plain = {section: plain}
    return plain


def parse_override(text: str) -> tuple[str, object]:
    """Split ``optim.learning_rate=1e-3`` into its dotted name and its value, read as YAML.

    >>> parse_override("optim.learning_rate=1e-3")
    ('optim.learning_rate', '1e-3')
    >>> parse_override("image_size=[256, 320]")
    ('image_size', [256, 320])

    Raises:
        ConfigError: If there is no ``=`` or the value is not YAML.
    """
    name, separator, value = text.partition("=")
    if not separator or not name.strip():
        raise ConfigError(f"override must read name=value, e.g. optim.learning_rate=0.001, got '{text}'")
    try:
        return name.strip(), yaml.load(value, Loader=_UniqueKeyLoader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"value of override '{name.strip()}' is not YAML: {_one_line(error)}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        ConfigError: If the file cannot be read, is not YAML, names a key twice or is not a mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)  # a SafeLoader
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"configuration {path} is not UTF-8 text") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"configuration {path} is not YAML: {_one_line(error)}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"configuration {path} must be a mapping of keys to values, got {_describe(content)}")
    return content


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where PyYAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(getattr(key_node, "value", ""))
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


@dataclass(frozen=True, slots=True)
class _Decoder:
    error: type[SnlError]
    is_strict: bool

    def dataclass(self, cls: type[T], plain: object, name: str) -> T:
        fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        hints = _hints(typing.cast(Any, cls))
        values: dict[str, object] = {}
        for key, value in self._section(plain, name).items():
            if key not in fields:
                raise self.error(_unknown_key(_dotted(name, key), str(key), list(fields)))
            values[key] = self._value(hints[key], value, _dotted(name, key))
        for key, field in fields.items():
            is_required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if is_required and key not in values:
                raise self.error(f"key '{_dotted(name, key)}' is missing; it has no default")
        return cls(**values)

    def _value(self, hint: Any, value: object, name: str) -> object:
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if hint is Any:
            return value
        if origin in (typing.Union, types.UnionType):
            return self._optional(hint, value, name)
        if origin is Literal:
            return self._choice(arguments, value, name)
        if origin is tuple:
            return self._tuple(arguments, value, name)
        if origin is list:
            return [self._value(arguments[0], item, f"{name}[{index}]") for index, item in enumerate(self._sequence(value, name))]
        if origin is dict:
            return {str(key): self._named(arguments[1], item, _dotted(name, key)) for key, item in self._section(value, name).items()}
        if isinstance(hint, type) and issubclass(hint, enum.Enum):
            return value if isinstance(value, hint) else hint(self._choice(tuple(member.value for member in hint), value, name))
        if dataclasses.is_dataclass(hint):
            return value if isinstance(value, hint) else self.dataclass(hint, value, name)  # type: ignore[arg-type]
        return self._scalar(hint, value, name)

    def _named(self, hint: Any, value: object, name: str) -> object:
        """Return a value of a mapping; what its class refuses gets the name in front, which only the mapping knows."""
        try:
            return self._value(hint, value, name)
        except self.error as refused:
            message = str(refused)
            if name in message:
                raise
            is_key = dataclasses.is_dataclass(hint) and message.partition(" ")[0].partition(".")[0] in _hints(typing.cast(Any, hint))
            raise self.error(f"{name}{'.' if is_key else ': '}{message}") from refused

    def _optional(self, hint: Any, value: object, name: str) -> object:
        if value is None and type(None) in typing.get_args(hint):
            return None
        inner = [option for option in typing.get_args(hint) if option is not type(None)]
        if len(inner) == 1:
            return self._value(inner[0], value, name)
        if set(inner) != {int, str}:
            raise TypeError(f"{name}: a field may be one type, int | str, or one of them or None, got {hint}")
        if isinstance(value, (int, str)) and not isinstance(value, bool):
            return value
        raise self.error(f"{name} must be a whole number or text, got {_describe(value)}")

    def _choice(self, choices: tuple[Any, ...], value: object, name: str) -> object:
        if value in choices and not isinstance(value, bool):
            return value
        close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise self.error(f"{name} must be one of {', '.join(map(str, choices))}, got {_describe(value)}{hint}")

    def _tuple(self, items: tuple[Any, ...], value: object, name: str) -> tuple[object, ...]:
        values = self._sequence(value, name)
        if len(items) == 2 and items[1] is Ellipsis:
            items = (items[0],) * len(values)
        if len(items) != len(values):
            raise self.error(f"{name} must have {len(items)} values, got {len(values)}")
        return tuple(self._value(item, entry, f"{name}[{index}]") for index, (item, entry) in enumerate(zip(items, values, strict=True)))

    def _scalar(self, kind: type, value: object, name: str) -> object:
        if kind not in _NAMES:
            raise TypeError(f"{name}: a field cannot be of type {kind}")
        if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            return value
        if kind is float and type(value) is int and abs(value) < _EXACT_BELOW:
            return float(value)
        if kind is float and isinstance(value, str) and not self.is_strict:
            try:
                return float(value)  # YAML reads 1e-3 as text because it has no dot
            except ValueError:
                pass
        raise self.error(f"{name} must be {_NAMES[kind]}, got {_describe(value)}")

    def _sequence(self, value: object, name: str) -> Sequence[object]:
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise self.error(f"{name} must be a list, got {_describe(value)}")
        return value

    def _section(self, value: object, name: str) -> Mapping[str, object]:
        if value is None and not self.is_strict:
            return {}  # "optim:" with nothing below it
        if not isinstance(value, Mapping):
            raise self.error(f"{name or 'the document'} must be a section of keys, got {_describe(value)}")
        return value


@functools.cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _as_declared(plain: Any, declared: Any) -> Any:
    """Turn the whole numbers of a float field into floats, as ``from_plain`` does."""
    arguments = typing.get_args(declared)
    if type(plain) is int and (declared is float or (float in arguments and int not in arguments)):
        return float(plain)
    if isinstance(plain, list) and typing.get_origin(declared) is tuple:
        kinds = arguments[:1] * len(plain) if arguments[1:] == (Ellipsis,) else arguments
        return [_as_declared(item, kind) for item, kind in zip(plain, kinds, strict=False)]
    return plain


def _unknown_key(dotted: str, key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"known keys here: {', '.join(known)}"
    return f"unknown key '{dotted}'; {hint}"


def _dotted(prefix: str, key: object) -> str:
    return f"{prefix}.{key}" if prefix else str(key)


def _describe(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a section of keys"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "a list"
    text = _one_line(value)
    return f"'{text}'" if len(text) <= _SHOWN_CHARACTERS else f"'{text[:_SHOWN_CHARACTERS]}...'"


def _one_line(value: object) -> str:
    return " ".join(str(value).split())
