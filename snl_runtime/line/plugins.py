"""Frame sources and sinks of third parties, found through entry points."""

import importlib.metadata
from collections.abc import Callable
from typing import Any, cast

from snl_runtime.errors import ConfigError, SnlError
from snl_runtime.line.sinks import Sink
from snl_runtime.line.sources.base import FrameSource
from snl_runtime.text import redact_credentials

SOURCE_GROUP = "snl_edge.sources"
"""Entry points of this group name a callable ``(address, *, product) -> FrameSource``; the name is the scheme of the address: ``pylon://0``."""
SINK_GROUP = "snl_edge.sinks"
"""Entry points of this group name a callable ``(argument) -> Sink``; ``snl-run --sink name:argument`` opens it."""


def provides_source(address: str) -> bool:
    """Return whether an installed plug-in names the scheme of an address; imports nothing of it."""
    scheme, separator, _ = address.partition("://")
    return bool(separator) and any(point.name == scheme for point in importlib.metadata.entry_points(group=SOURCE_GROUP))


def find_source(address: str, *, product: str | None) -> FrameSource | None:
    """Return the source that a plug-in provides for the scheme of an address, None if no plug-in does.

    Raises:
        ConfigError: If the plug-in cannot be imported or refuses the address.
    """
    scheme, separator, _ = address.partition("://")
    factory = _load(SOURCE_GROUP, scheme) if separator else None
    if factory is None:
        return None
    return cast(FrameSource, _make(lambda: factory(address, product=product), f"source '{redact_credentials(address)}'"))


def open_sink(text: str) -> Sink:
    """Return the sink that ``name:argument`` describes.

    Raises:
        ConfigError: If no plug-in has that name, or it cannot be imported or refuses the argument.
    """
    name, _, argument = text.partition(":")
    factory = _load(SINK_GROUP, name)
    if factory is None:
        installed = sorted(point.name for point in importlib.metadata.entry_points(group=SINK_GROUP))
        raise ConfigError(f"no plug-in provides the sink '{name}'; installed: {', '.join(installed) or 'none'}")
    return cast(Sink, _make(lambda: factory(argument), f"sink '{name}'"))


def _load(group: str, name: str) -> Callable[..., Any] | None:
    points = {point.name: point for point in importlib.metadata.entry_points(group=group)}
    if name not in points:
        return None
    return cast(Callable[..., Any], _make(points[name].load, f"plug-in '{name}' ({points[name].value})"))


def _make(call: Callable[[], Any], what: str) -> Any:
    try:
        return call()
    except SnlError:
        raise
    except Exception as error:  # a third party's code may raise anything, and it is theirs to fix
        raise ConfigError(f"{what} failed: {type(error).__name__}: {error}") from error
