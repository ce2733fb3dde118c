"""Inference backends, chosen by name or by the rule of :mod:`snl_runtime.backends.choice`; third parties add theirs through entry points."""

import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from snl_runtime.backends.base import Backend, one_line
from snl_runtime.backends.choice import choose_backend
from snl_runtime.errors import BackendError, BackendUnavailableError, ConfigError, SnlError

if TYPE_CHECKING:
    from snl_runtime.model.bundle import ModelBundle

ENTRY_POINT_GROUP = "snl_edge.backends"
"""Entry points of this group name a callable ``(model_path, *, device, threads) -> Backend``."""

_BUILT_IN = {
    "onnxruntime": ("snl_runtime.backends.onnxruntime.backend", "OnnxRuntimeBackend", ("onnxruntime",)),
    "openvino": ("snl_runtime.backends.openvino", "OpenVinoBackend", ("openvino",)),
    "tensorrt": ("snl_runtime.backends.tensorrt.backend", "TensorRtBackend", ("tensorrt", "tensorrt_rtx")),
}
_WITH_CUDA_GRAPHS = frozenset({"onnxruntime", "tensorrt"})
"""Backends that take the keyword ``cuda_graphs``."""
_SUFFIXES = {"onnxruntime": (".onnx",), "openvino": (".onnx",), "tensorrt": (".trt",)}


def open_backend(
    bundle_or_path: "ModelBundle | str | os.PathLike[str]",
    name: str | None = None,
    *,
    device: str | None = None,
    threads: int | None = None,
    cuda_graphs: bool = True,
) -> Backend:
    """Return the loaded model, ready for ``infer``; the caller closes it.

    Args:
        bundle_or_path: An opened bundle, or the path of a model file (whose hash nobody checks then).
        name: ``onnxruntime``, ``openvino``, ``tensorrt`` or an entry point; None for the rule, which knows no decision of a path.
        device: What the backend calls its devices; None for its default.
        threads: CPU threads for one call; None for the backend's default.
        cuda_graphs: Whether ONNX Runtime and TensorRT may record their work on a GPU as CUDA graphs; nothing to other backends.

    Raises:
        ConfigError: If no backend has that name or runs that suffix.
        BackendError: If the backend or its device is missing (``BackendUnavailableError``), or the file cannot be loaded.
    """
    if isinstance(bundle_or_path, (str, os.PathLike)):
        path, calibrated_on = Path(bundle_or_path), None
    else:
        path, calibrated_on = bundle_or_path.path, bundle_or_path.calibrated_on
    chosen = name or choose_backend(path, device=device, calibrated_on=calibrated_on, is_installed=_is_backend_installed)
    if chosen in _SUFFIXES and path.suffix.lower() not in _SUFFIXES[chosen]:
        raise ConfigError(f"backend '{chosen}' runs {' and '.join(_SUFFIXES[chosen])} files, got {path.name}")
    factory = _factory(chosen)
    graphs = {"cuda_graphs": cuda_graphs} if chosen in _WITH_CUDA_GRAPHS else {}
    try:
        return factory(path, device=device, threads=threads, **graphs)
    except SnlError:
        raise
    except Exception as error:  # whatever a library or a third party raises, none of it may escape
        raise BackendError(f"backend '{chosen}' cannot open {path.name}: {one_line(error)}") from error


def available_backends() -> list[str]:
    """Return the names of the backends whose packages are installed, built-in ones first."""
    built_in = [name for name in _BUILT_IN if _is_backend_installed(name)]
    return [*built_in, *sorted(set(_entry_points()) - set(_BUILT_IN))]


def _is_backend_installed(name: str) -> bool:
    return any(_is_installed(package) for package in _BUILT_IN[name][2])


def _factory(name: str) -> Callable[..., Backend]:
    if name in _BUILT_IN:
        module_name, class_name, packages = _BUILT_IN[name]
        try:
            return cast(Callable[..., Backend], getattr(importlib.import_module(module_name), class_name))
        except ImportError as error:
            needed = f"backend '{name}' needs the package {packages[0]}: pip install 'snl-edge[{name}]'"
            raise BackendUnavailableError(f"{needed} ({one_line(error)})") from error
    points = _entry_points()
    if name not in points:
        raise ConfigError(f"unknown backend '{name}'; expected one of {', '.join([*_BUILT_IN, *sorted(points)])}")
    try:
        return cast(Callable[..., Backend], points[name].load())
    except Exception as error:  # importing a third party's module may raise anything
        raise BackendUnavailableError(f"backend '{name}' from {points[name].value} cannot be imported: {one_line(error)}") from error


def _entry_points() -> dict[str, Any]:
    return {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)}


def _is_installed(package: str) -> bool:
    try:
        found = importlib.util.find_spec(package)
        return found is not None and found.origin is not None  # None: a folder of that name, without a package in it
    except (ImportError, ValueError):  # ValueError: a module without a spec, as a host program may have put there
        return False
