"""The reference pages, written from the code: commands, Python API, configuration, station file, reason codes, errors, manifest. Needs no torch."""

import ast
import contextlib
import dataclasses
import importlib
import inspect
import io
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest import mock

import snl_runtime
from snl_runtime import errors
from snl_runtime.config_docs import field_docs, section_of, type_name
from snl_runtime.fleet.service import SERVICE_REASON_CODES
from snl_runtime.model import frame_range, manifest, manifest_records
from snl_runtime.station.answers import STATION_REASON_CODES
from snl_runtime.station.config import StationConfig
from snl_runtime.verdict.ruling import REASON_CODES
from snl_train import config

ROOT = Path(__file__).resolve().parents[1]
_SCRIPT = re.compile(r'^(snl-[a-z]+) = "([\w.]+):(\w+)"$', re.MULTILINE)
_HELP_WIDTH = "84"
"""As many columns as the site shows on a window of 1280 px, so that help does not scroll."""
MANIFEST_PARTS = (
    manifest.Manifest,
    manifest.Decision,
    frame_range.FrameSizes,
    frame_range.FrameRange,
    manifest_records.Evidence,
    manifest_records.NormalizationFile,
    manifest_records.IgnoreMaskFile,
    manifest_records.TileGrid,
    manifest_records.ReferenceSample,
    manifest_records.DecisionChange,
    manifest_records.ParityReport,
    manifest_records.EngineEntry,
)
_ATTRIBUTE = re.compile(r"^(\w+): (.*)$")


def pages() -> dict[str, str]:
    """Return the text of every reference page by its file name."""
    return {
        "commands.md": _commands(),
        "python.md": _python(),
        "configuration.md": _configuration(),
        "station.md": _station(),
        "reason-codes.md": _reason_codes(),
        "errors.md": _errors(),
        "manifest.md": _manifest(),
    }


def command_help() -> dict[str, str]:
    """Return what each command of the package prints for ``-h``, by its name."""
    return {name: _help_of(module, function) for name, module, function in _SCRIPT.findall((ROOT / "pyproject.toml").read_text(encoding="utf-8"))}


def command_modules() -> dict[str, str]:
    """Return the module of each command of the package, by the command's name."""
    return {name: module for name, module, _ in _SCRIPT.findall((ROOT / "pyproject.toml").read_text(encoding="utf-8"))}


def config_keys() -> list[tuple[str, str, str, str]]:
    """Return dotted name, type, default and meaning of every key of a training's configuration."""
    return list(_keys_of(config.TrainConfig, ""))


def station_keys(cls: type = StationConfig, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yield dotted name, type, default and meaning of every key of a station file, sections before their keys; NAME stands for a camera's name."""
    docs = field_docs(cls)
    for field in dataclasses.fields(cls):
        section, is_by_name = section_of(cls, field.name)
        name, meaning = prefix + field.name, docs.get(field.name, "")
        if section is None:
            yield name, type_name(cls, field.name), "" if field.default is dataclasses.MISSING else str(config.to_plain(field.default)), meaning
            continue
        yield name, "section", "none" if field.default is None else "", meaning
        yield from station_keys(section, f"{name}.NAME." if is_by_name else f"{name}.")


def error_tree(root: type[errors.SnlError] = errors.SnlError, depth: int = 0) -> Iterator[tuple[int, type[errors.SnlError]]]:
    """Yield every public error below a class with its depth, parents before children."""
    yield depth, root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from error_tree(child, depth + 1)


def described_fields(cls: type) -> dict[str, str]:
    """Return what the ``Attributes:`` section of a class's docstring says of each field."""
    _, _, section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    described: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc(section).splitlines():
        if (found := _ATTRIBUTE.match(line)) is not None:
            name = found[1]
            described[name] = found[2]
        elif line.startswith(" ") and name:
            described[name] += " " + line.strip()
        elif line.strip():
            break
    return described


def _commands() -> str:
    sections = [f"## {name}\n\n```text\n{text.rstrip()}\n```" for name, text in command_help().items()]
    statuses = (
        "| exit status | meaning |\n|---:|---|\n"
        "| 0 | done; also when a service manager stopped the run |\n"
        "| 1 | a bug, with its traceback |\n"
        "| 2 | an error in one line, see [errors](errors.md) |\n"
        "| 3 | a gate or a calibration refused |\n"
        "| 4 | `snl-run --fail-on-reject`: a verdict was not PASS, or no frame was inspected; `snl-replay`: a verdict is not the one on record; "
        "`snl-compare`: more changed than calibration allows |\n"
        "| 130 | Ctrl-C |\n\n"
        "A training that a signal ended exits with 128 plus the signal's number. Files that each command writes: [effects](../effects.md)."
    )
    return "\n\n".join(["# Commands", "Every command answers `-h` with the text below.", statuses, *sections]) + "\n"


def _help_of(module: str, function: str) -> str:
    main = getattr(importlib.import_module(module), function)
    printed = io.StringIO()
    with mock.patch.dict(os.environ, {"COLUMNS": _HELP_WIDTH}), contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main(["-h"])
    return printed.getvalue()


def _python() -> str:
    text = "Everything in `snl_runtime.__all__`: what a host or a plug-in needs. Errors: [errors](errors.md). Other modules may change at any time."
    public = [f"## {name}\n\n::: snl_runtime.{module}.{name}" for name, module in sorted(snl_runtime._MODULES.items())]
    return "\n\n".join(["# Python API", text, *public]) + "\n"


def _configuration() -> str:
    head = (
        "# Configuration of a training\n\n"
        "Give any of these keys in the YAML file of `snl-train --config`, or one by one: `--set optim.schedule=cosine`. The defaults are those of "
        "the preset `paper`. Unknown keys are refused. Every checkpoint holds its resolved configuration.\n\n"
    )
    rows = [f"| `{name}` | {_cell(kind)} | `{default}` | {_cell(meaning)} |" for name, kind, default, meaning in config_keys()]
    best = "\n\n## What the preset `best` changes\n\n| key | `paper` | `best` |\n|---|---|---|\n" + "\n".join(_changed_by_best())
    return head + "| key | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + best + "\n"


def _station() -> str:
    head = (
        "# Station file\n\n"
        "YAML of `snl-run --config`; `snl-run --init station.yaml` writes a commented start, `--set cameras.top.product=bottle` changes one key. "
        "Unknown keys are refused. Keys that name a file or folder are relative to the station file. How to use it: "
        "[station](../guides/station.md).\n\n"
    )
    rows = [
        f"| `{name}` | {_cell(kind)} | {f'`{default}`' if default else ''} | {_cell(meaning)} |" for name, kind, default, meaning in station_keys()
    ]
    return head + "| key | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"


def _changed_by_best() -> Iterator[str]:
    best, paper = config.preset_config("best"), config.preset_config("paper")
    for name, *_ in config_keys():
        before, after = _value_at(paper, name), _value_at(best, name)
        if before != after:
            yield f"| `{name}` | `{before}` | `{after}` |"


def _value_at(value: object, name: str) -> object:
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _keys_of(cls: type, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    (definition,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(definition, ast.ClassDef)
    for statement, after in zip(definition.body, definition.body[1:], strict=False):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        kind, name = ast.unparse(statement.annotation), prefix + statement.target.id
        section = getattr(config, kind, None)
        if dataclasses.is_dataclass(section) and isinstance(section, type):
            yield from _keys_of(section, f"{name}.")
        else:
            meaning = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            default = "" if statement.value is None else ast.unparse(statement.value)
            yield name, _choices(kind), default, " ".join(str(meaning).split())


def _choices(kind: str) -> str:
    """Return the values of a named ``Literal``, or the type as it is written."""
    literal = getattr(config, kind.removesuffix(" | None"), None)
    values = getattr(literal, "__args__", None)
    if not values:
        return kind
    return ", ".join(str(value) for value in values) + (" or None" if kind.endswith("None") else "")


def _reason_codes() -> str:
    head = (
        "# Reason codes\n\n"
        "Every result and every record carries one `reason_code`. Codes are stable across releases; the sentence in `reason` is for people. "
        "What PASS needs, and in which order it is checked: [verdicts](../concepts/verdicts.md).\n\n| code | meaning |\n|---|---|\n"
    )
    station = "\n\n## Given by the line\n\nAll of them are ERROR ([triggered inspection](../concepts/station.md)).\n\n| code | meaning |\n|---|---|\n"
    service = "\n\n## Given by the service\n\nAll of them are ERROR ([scaling](../scaling.md)).\n\n| code | meaning |\n|---|---|\n"
    return head + _code_rows(REASON_CODES) + station + _code_rows(STATION_REASON_CODES) + service + _code_rows(SERVICE_REASON_CODES) + "\n"


def _code_rows(codes: Mapping[str, str]) -> str:
    return "\n".join(f"| `{code}` | {_cell(meaning)} |" for code, meaning in codes.items())


def _errors() -> str:
    head = (
        "# Errors\n\n"
        "Everything that the SDK raises on purpose is an `SnlError` from `snl_runtime.errors`. Commands print it as one line that says what is "
        "wrong, where, what was expected and what to do, and end with its exit status. Anything else is a bug and keeps its traceback (status 1). "
        "A fault of a frame raises nothing: it is a verdict ERROR with a [reason code](reason-codes.md).\n\n"
        "| error | a kind of | exit status | meaning |\n|---|---|---:|---|\n"
    )
    rows = []
    for depth, error in error_tree():
        meaning = inspect.cleandoc(error.__doc__ or "").splitlines()[0]
        parent = "" if depth == 0 else f"`{error.__bases__[0].__name__}`"
        rows.append(f"| {'&nbsp;' * 4 * depth}`{error.__name__}` | {parent} | {error.exit_status} | {_cell(meaning)} |")
    return head + "\n".join(rows) + "\n"


def _manifest() -> str:
    head = f"# Manifest schema\n\nSchema {manifest.SCHEMA} of `x.json`. What it is for: [bundle](../concepts/bundle.md).\n"
    return head + "".join(_manifest_part(cls) for cls in MANIFEST_PARTS)


def _manifest_part(cls: type) -> str:
    described = described_fields(cls)
    summary = inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("\n", " ")
    rows = [f"| `{field.name}` | `{_type_name(field.type)}` | {_cell(described.get(field.name, ''))} |" for field in dataclasses.fields(cls)]
    return f"\n## {cls.__name__}\n\n{_plain(summary)}\n\n| key | type | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def _type_name(kind: object) -> str:
    name = kind.__name__ if isinstance(kind, type) and not getattr(kind, "__args__", None) else str(kind)
    return re.sub(r"\b[a-z_]+(?:\.[a-z_]+)*\.(?=[A-Z])", "", name).replace("|", "\\|")


def _plain(text: str) -> str:
    """Turn reStructuredText literals and roles into Markdown code."""
    return re.sub(r":\w+:`([^`]+)`", r"`\1`", text).replace("``", "`")


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")
