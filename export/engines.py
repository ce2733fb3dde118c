"""Engines for GPUs beside an exported bundle; ``snl_runtime.engine_builder`` builds them."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from snl_runtime.errors import BackendUnavailableError, ConfigError
from snl_runtime.manifest import Manifest, manifest_path, write_manifest

if TYPE_CHECKING:
    from snl_runtime.engine_builder import BuiltEngine, EngineTarget

EngineLibrary: TypeAlias = Literal["tensorrt", "tensorrt-rtx"]

_PACKAGES: dict[EngineLibrary, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePlan:
    """Whether an engine will be built, decided before the export starts.

    Attributes:
        target: What to build for; None for nothing.
        why_not: Why there will be no engine, one sentence; None if there will.
    """

    target: "EngineTarget | None"
    why_not: str | None


def plan_engine(asked: str | None, compute_capabilities: Sequence[int]) -> EnginePlan:
    """Return what to build.

    Args:
        asked: Library the user named, or ``none``; None to build where full TensorRT and a GPU are at hand.
        compute_capabilities: GPUs the user named, e.g. (86, 89).

    Raises:
        BackendUnavailableError: If the user named a library or GPUs and the library or its GPU is not here.
        ConfigError: If the library cannot build for these GPUs.
    """
    if asked == "none":
        if compute_capabilities:
            raise ConfigError("--sm says what an engine is for and --engine none that there is none; leave one of them out")
        return EnginePlan(target=None, why_not="--engine none was given")
    if asked is not None or compute_capabilities:
        return EnginePlan(target=_target(asked, compute_capabilities), why_not=None)
    try:
        return EnginePlan(target=_target("tensorrt", ()), why_not=None)
    except (BackendUnavailableError, ConfigError) as error:
        return EnginePlan(target=None, why_not=f"{error} (--engine tensorrt-rtx builds without a GPU)")


def build_planned_engine(model_path: Path, manifest: Manifest, target: "EngineTarget") -> "tuple[BuiltEngine, Manifest]":
    """Build ``x.trt`` beside ``x.onnx`` and list it in the manifest, without a parity report: it has not run yet.

    Raises:
        EngineBuildError: If the library refuses.
        SinkError: If a file cannot be written.
    """
    from snl_runtime.engine_builder import EngineOptions, build_engine

    largest = int(manifest.input["max_batch"])
    options = EngineOptions(batches=(1, 1, largest), precision=str(manifest.graph["precision"]))
    built = build_engine(model_path, model_path.with_suffix(".trt"), target, options)
    return built, write_manifest(manifest_path(model_path), manifest.with_engine(built.entry))


def _target(asked: str | None, compute_capabilities: Sequence[int]) -> "EngineTarget":
    from snl_runtime.engine_builder import choose_target

    library: EngineLibrary | None = next((name for name in _PACKAGES if name == asked), None)
    if library is not None and importlib.util.find_spec(_PACKAGES[library]) is None:
        raise BackendUnavailableError(f"--engine {library} needs the package {_PACKAGES[library]}: pip install {library}")
    return choose_target(library, compute_capabilities)
