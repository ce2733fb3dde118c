"""YAML to frozen dataclasses and back: one dataclass per concern, unknown keys refused, errors name the dotted key.

Supported field types: ``bool``, ``int``, ``float``, ``str``, ``Literal`` of strings, ``X | None``, ``tuple[X, Y]``, ``tuple[X, ...]``,
``dict[str, X]`` and nested dataclasses.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from snl_runtime.errors import ConfigError

T = TypeVar("T")

_NAMES: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


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
        plain = merge(plain, _nested(name, value))
    return from_plain(cls, plain)


def from_plain(cls: type[T], plain: Mapping[str, object], *, prefix: str = "") -> T:
    """Build a dataclass from plain values, checking every key and type.

    Args:
        cls: Dataclass to build; fields that ``plain`` does not name keep their defaults.
        plain: Mappings, sequences, text, numbers, booleans and None only.
        prefix: Dotted name of the section that ``plain`` is, for messages.

    Raises:
        ConfigError: If a key is unknown or missing, or a value has another type or is out of range.
    """
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    values: dict[str, object] = {}
    for key, value in plain.items():
        if key not in fields:
            raise ConfigError(_unknown_key(_dotted(prefix, key), str(key), list(fields)))
        values[key] = _convert(hints[key], value, _dotted(prefix, key))
    for name, field in fields.items():
        is_required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if is_required and name not in values:
            raise ConfigError(f"key '{_dotted(prefix, name)}' is missing; it has no default")
    return cls(**values)


def to_plain(config: object) -> dict[str, Any]:
    """Return a dataclass as nested dicts, lists, text, numbers, booleans and None, fit for JSON, YAML and ``from_plain``."""
    if not dataclasses.is_dataclass(config):
        raise TypeError(f"config must be a dataclass, got {type(config).__name__}")
    return {field.name: _plain_value(getattr(config, field.name)) for field in dataclasses.fields(config) if field.init}


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


def _convert(hint: Any, value: object, name: str) -> object:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_optional(hint, value, name)
    if origin is Literal:
        return _convert_choice(typing.get_args(hint), value, name)
    if origin is tuple:
        return _convert_tuple(typing.get_args(hint), value, name)
    if origin is dict:
        mapping = _section(value, name)
        return {str(key): _convert(typing.get_args(hint)[1], item, _dotted(name, key)) for key, item in mapping.items()}
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        return from_plain(hint, _section(value, name), prefix=name)  # type: ignore[arg-type]
    return _convert_scalar(hint, value, name)


def _convert_optional(hint: Any, value: object, name: str) -> object:
    if value is None:
        return None
    inner = [option for option in typing.get_args(hint) if option is not type(None)]
    if len(inner) != 1:
        raise TypeError(f"{name}: a configuration field may be one type or None, got {hint}")
    return _convert(inner[0], value, name)


def _convert_choice(choices: tuple[Any, ...], value: object, name: str) -> object:
    if value in choices and not isinstance(value, bool):
        return value
    close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    raise ConfigError(f"{name} must be one of {', '.join(map(str, choices))}, got {_describe(value)}{hint}")


def _convert_tuple(items: tuple[Any, ...], value: object, name: str) -> tuple[object, ...]:
    is_sequence = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    if not is_sequence:
        raise ConfigError(f"{name} must be a list, got {_describe(value)}")
    values = list(value)  # type: ignore[call-overload]
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(values)
    if len(items) != len(values):
        raise ConfigError(f"{name} must have {len(items)} values, got {len(values)}")
    return tuple(_convert(item, entry, f"{name}[{index}]") for index, (item, entry) in enumerate(zip(items, values, strict=True)))


def _convert_scalar(kind: type, value: object, name: str) -> object:
    if kind not in _NAMES:
        raise TypeError(f"{name}: a configuration field cannot be of type {kind}")
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-3 as text because it has no dot
        except ValueError:
            pass
    raise ConfigError(f"{name} must be {_NAMES[kind]}, got {_describe(value)}")


def _section(value: object, name: str) -> Mapping[str, object]:
    if value is None:
        return {}  # "optim:" with nothing below it
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be a section of keys, got {_describe(value)}")
    return value


def _nested(name: str, value: object) -> dict[str, Any]:
    *sections, last = name.split(".")
    nested: dict[str, Any] = {last: value}
    for section in reversed(sections):
        nested = {section: nested}
    return nested


def _plain_value(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_plain(value)
    if isinstance(value, Mapping):
        return {key: _plain_value(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain_value(item) for item in value]
    return value


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
    return f"'{value}'"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
