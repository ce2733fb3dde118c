"""Inference backends, chosen by name or by a rule; third parties add theirs through entry points.

The rule reads the file's suffix, what is installed, and the model's newest decision, and never a clock, so that a line gets the same backend at
every start. ``.trt`` runs on TensorRT. ``.onnx`` on a CPU runs where that decision was calibrated; without one on OpenVINO, which is installed by
choice and is the quicker of the two on x86, elsewhere on ONNX Runtime first. What is not installed is left out. On any other device ``.onnx`` runs on
ONNX Runtime.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from snl_runtime.backends.base import Backend, one_line
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
_BY_SUFFIX = {".onnx": "onnxruntime", ".trt": "tensorrt"}
_X86 = ("x86_64", "amd64")
"""What ``platform.machine`` calls the processors on which OpenVINO was measured to be quicker than ONNX Runtime."""
_SUFFIXES = {"onnxruntime": (".onnx",), "openvino": (".onnx",), "tensorrt": (".trt",)}


def open_backend(
    bundle_or_path: "ModelBundle | str | os.PathLike[str]",
    name: str | None = None,
    *,
    device: str | None = None,
    threads: int | None = None,
) -> Backend:
    """Return the loaded model, ready for ``infer``; the caller closes it.

    Args:
        bundle_or_path: An opened bundle, or the path of a model file (whose hash nobody checks then).
        name: ``onnxruntime``, ``openvino``, ``tensorrt`` or an entry point; None for the rule of this module, which knows no decision of a path.
        device: What the backend calls its devices; None for its default.
        threads: CPU threads for one call; None for the backend's default.

    Raises:
        ConfigError: If no backend has that name or runs that suffix.
        BackendError: If the backend or its device is missing (``BackendUnavailableError``), or the file cannot be loaded.
    """
    if isinstance(bundle_or_path, (str, os.PathLike)):
        path, calibrated_on = Path(bundle_or_path), None
    else:
        path, calibrated_on = bundle_or_path.path, bundle_or_path.calibrated_on
    chosen = name or _choose(path, device, calibrated_on)
    if chosen in _SUFFIXES and path.suffix.lower() not in _SUFFIXES[chosen]:
        raise ConfigError(f"backend '{chosen}' runs {' and '.join(_SUFFIXES[chosen])} files, got {path.name}")
    factory = _factory(chosen)
    try:
        return factory(path, device=device, threads=threads)
    except SnlError:
        raise
    except Exception as error:  # whatever a library or a third party raises, none of it may escape
        raise BackendError(f"backend '{chosen}' cannot open {path.name}: {one_line(error)}") from error


def available_backends() -> list[str]:
    """Return the names of the backends whose packages are installed, built-in ones first."""
    built_in = [name for name, (_, _, packages) in _BUILT_IN.items() if any(_is_installed(package) for package in packages)]
    return [*built_in, *sorted(set(_entry_points()) - set(_BUILT_IN))]


def _choose(path: Path, device: str | None, calibrated_on: str | None) -> str:
    suffix = path.suffix.lower()
    if suffix not in _BY_SUFFIX:
        raise ConfigError(f"no backend runs '{suffix}' files ({path.name}); expected {' or '.join(_BY_SUFFIX)}")
    if suffix != ".onnx" or (device or "cpu").lower() != "cpu":
        return _BY_SUFFIX[suffix]
    preferred = ("openvino", "onnxruntime") if platform.machine().lower() in _X86 else ("onnxruntime", "openvino")
    installed = [name for name in preferred if any(_is_installed(package) for package in _BUILT_IN[name][2])]
    if calibrated_on in installed:
        return calibrated_on
    return installed[0] if installed else _BY_SUFFIX[suffix]


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
