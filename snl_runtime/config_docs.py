"""What the docstring under each field of a configuration says, and the YAML that shows it beside its key."""

import ast
import dataclasses
import enum
import functools
import inspect
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import yaml

from snl_runtime.config import to_plain
from snl_runtime.errors import SnlError

_WIDTH = 120
"""Most characters of a line with a comment."""


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """Return the docstring of each field in one line; empty where the source of the class is not at hand, as in a frozen program."""
    try:
        (definition,) = ast.parse(inspect.cleandoc(inspect.getsource(cls))).body
    except (OSError, TypeError):
        return {}
    if not isinstance(definition, ast.ClassDef):
        return {}
    docs: dict[str, str] = {}
    for statement, after in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
            docs[statement.target.id] = " ".join(str(after.value.value).split()) if is_text else ""  # type: ignore[attr-defined]
    return docs


def section_of(cls: type, name: str) -> tuple[type | None, bool]:
    """Return the dataclass that a field holds, None if it holds plain values, and whether it is by name (``dict[str, X]``)."""
    hint = typing.get_type_hints(cls)[name]
    arguments = [one for one in typing.get_args(hint) if one is not type(None)]
    if typing.get_origin(hint) is dict and dataclasses.is_dataclass(arguments[1]):
        return typing.cast(type, arguments[1]), True
    inner = arguments[0] if arguments and typing.get_origin(hint) not in (tuple, list, dict, Literal) else hint
    return (inner if isinstance(inner, type) and dataclasses.is_dataclass(inner) else None), False


def type_name(cls: type, name: str) -> str:
    """Return what a field takes, for a person: the choices themselves, ``or None`` where it may be left out."""
    hint = typing.get_type_hints(cls)[name]
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return " or ".join(_option_name(one) for one in options)


def _option_name(option: Any) -> str:
    if option is type(None):
        return "None"
    if typing.get_origin(option) is Literal:
        return ", ".join(map(str, typing.get_args(option)))
    if isinstance(option, type) and issubclass(option, enum.Enum):
        return ", ".join(str(member.value) for member in option)
    return option.__name__ if isinstance(option, type) and not typing.get_args(option) else str(option)


def commented_yaml(config: object) -> str:
    """Return a configuration as commented YAML that gives the same configuration.

    The meaning of a key stands above it as ``# text``. A key or a section that is left at its default has ``#`` in front of its lines; without these
    marks it is YAML of the same section.
    """
    return "\n".join(_lines(type(config), to_plain(config), "", "")) + "\n"


def _lines(cls: type, given: Mapping[str, Any] | None, mark: str, indent: str) -> Iterator[str]:
    """Yield the lines of one section.

    Args:
        cls: Its class.
        given: Its values; None shows the defaults.
        mark: In front of the indent of every line; ``#`` takes the section out of force.
        indent: Spaces.
    """
    docs = field_docs(cls)
    for one in dataclasses.fields(cls):
        section, is_by_name = section_of(cls, one.name)
        default = _default(one)
        value = default if given is None else given.get(one.name)
        yield from _comment(docs.get(one.name, ""), mark + indent)
        own_mark = mark or ("#" if value == default else "")
        before = f"{indent}#" if own_mark and not mark else mark + indent
        if section is None:
            yield f"{before}{one.name}: {'...' if value is dataclasses.MISSING else _scalar(value)}"
            continue
        is_empty = not own_mark and isinstance(value, Mapping) and not is_by_name and value == _defaults_of(section)
        yield f"{before}{one.name}:{' {}' if is_empty else ''}"  # nothing below it would be none
        inner_mark, inner_indent = (before, "  ") if own_mark else (f"{indent}#", "  ") if is_empty else ("", indent + "  ")
        for name, item in value.items() if is_by_name and isinstance(value, Mapping) else [("", value)]:
            if name:
                yield f"{inner_mark}{inner_indent}{name}:"
            inner = None if own_mark or is_empty else item
            yield from _lines(section, inner, inner_mark, inner_indent + ("  " if name else ""))


def _defaults_of(section: type) -> dict[str, Any]:
    return {one.name: _default(one) for one in dataclasses.fields(section)}


def _default(one: "dataclasses.Field[Any]") -> Any:
    """Return the plain default of a field; MISSING if it has none, or its section has a key without one."""
    if one.default_factory is not dataclasses.MISSING:
        try:
            return to_plain(one.default_factory())
        except SnlError:
            return dataclasses.MISSING
    return one.default if one.default is dataclasses.MISSING else to_plain(one.default)


def _comment(text: str, indent: str) -> Iterator[str]:
    line = ""
    for word in text.replace("``", "").split():
        if line and len(indent) + 2 + len(line) + 1 + len(word) > _WIDTH:
            yield f"{indent}# {line}"
            line = ""
        line = f"{line} {word}" if line else word
    if line:
        yield f"{indent}# {line}"


def _scalar(value: object) -> str:
    """Return a value as YAML in one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
