"""The station file: read with paths relative to itself, printed resolved, and written as a commented start."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from snl_runtime.config import from_plain, merge, read_yaml, to_plain
from snl_runtime.config_docs import commented_yaml
from snl_runtime.errors import ConfigError, SinkError
from snl_runtime.files import write_new_file
from snl_runtime.station.config import StationConfig
from snl_runtime.text import redact_credentials

_HEAD = """\
# A station: snl-run --config {name}
# Try it without writing anything: snl-run --config {name} --check
# Keys with '#' in front have the value shown; paths are relative to this file.
"""
_PATH_KEYS = ("file", "folder", "path")


def read_station_file(path: Path) -> dict[str, Any]:
    """Return the plain values of a station file, unchecked, its paths made relative to the working folder.

    Raises:
        ConfigError: If it cannot be read or is no YAML mapping.
    """
    folder = path.parent
    plain = read_yaml(path)
    return {key: _with_paths(value, lambda found: str(folder / found)) for key, value in plain.items()}


def layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain values over each other, the later ones winning; a camera's ``source`` of another kind replaces the one below it."""
    plain: dict[str, Any] = {}
    for layer in layers:
        plain = merge(_without_replaced_sources(plain, layer), layer)
    return plain


def station_of(plain: Mapping[str, Any]) -> StationConfig:
    """Return the configuration that plain values give.

    Raises:
        ConfigError: If a key is unknown, missing, of another type or out of range, or two of them contradict each other.
    """
    config = from_plain(StationConfig, plain)
    to_plain(config)  # refuses what cannot be printed: numbers that are not finite, by their key
    return config


def printed(config: StationConfig) -> str:
    """Return a configuration as YAML in ASCII: absolute paths, every default, no credentials. It can be used as a station file."""
    plain = _map_texts(_with_paths(to_plain(config), os.path.abspath), redact_credentials)
    return yaml.safe_dump(plain, sort_keys=False, width=10_000)


def write_station_file(path: Path, config: StationConfig) -> None:
    """Write a configuration as a commented station file.

    Raises:
        ConfigError: If the file is there already.
        SinkError: If it cannot be written.
    """
    folder = path.absolute().parent
    plain = _with_paths(to_plain(config), lambda value: _relative(value, folder))
    text = _HEAD.format(name=path.name) + commented_yaml(from_plain(StationConfig, plain))
    try:
        write_new_file(path, text.encode("ascii", "backslashreplace"), mode=0o666)
    except FileExistsError as error:
        raise ConfigError(f"{path} is there already and is not overwritten; name another file for --init") from error
    except OSError as error:
        raise SinkError(f"cannot write {path}: {error.strerror or error}; check the folder, its permissions and the free space") from error


def _relative(value: str, folder: Path) -> str:
    """Return a path as seen from a folder where it lies below it, else absolute."""
    whole = Path(os.path.abspath(value))  # noqa: PTH100 - resolve() would replace links that a person chose
    return str(whole.relative_to(folder)) if whole.is_relative_to(folder) else str(whole)


def _without_replaced_sources(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Drop sources that the upper layer gives another one for; two sections would contradict each other."""
    cameras = upper.get("cameras")
    below = lower.get("cameras")
    if not isinstance(cameras, Mapping) or not isinstance(below, Mapping):
        return dict(lower)
    kept: dict[str, Any] = {}
    for name, camera in below.items():
        above = cameras.get(name)
        source = above.get("source") if isinstance(above, Mapping) else None
        old = camera.get("source") if isinstance(camera, Mapping) else None
        is_other = isinstance(source, Mapping) and isinstance(old, Mapping) and not _given(source) <= _given(old)
        kept[name] = {key: value for key, value in camera.items() if key != "source"} if is_other else camera
    return {**lower, "cameras": kept}


def _given(section: Mapping[str, Any]) -> set[str]:
    return {key for key, value in section.items() if value is not None}


def _with_paths(plain: Any, change: Callable[[str], str]) -> Any:
    """Return plain values with every path changed."""
    if isinstance(plain, Mapping):
        return {
            key: change(value) if _is_path(key) and isinstance(value, str) and value and "://" not in value else _with_paths(value, change)
            for key, value in plain.items()
        }
    if isinstance(plain, list):
        return [_with_paths(item, change) for item in plain]
    return plain


def _is_path(key: object) -> bool:
    return isinstance(key, str) and (key in _PATH_KEYS or key.endswith(("_file", "_folder")))


def _map_texts(plain: Any, change: Callable[[str], str]) -> Any:
    if isinstance(plain, str):
        return change(plain)
    if isinstance(plain, Mapping):
        return {key: _map_texts(value, change) for key, value in plain.items()}
    if isinstance(plain, list):
        return [_map_texts(item, change) for item in plain]
    return plain
