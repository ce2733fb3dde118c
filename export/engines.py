"""Engines for one GPU from an exported bundle; the builder itself lives in ``snl_runtime.engine_builder``."""

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from snl_runtime.errors import BackendUnavailableError

EngineLibrary: TypeAlias = Literal["tensorrt", "tensorrt-rtx", "none"]
_BUILDER = "snl_runtime.engine_builder"
_PACKAGES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePlan:
    """Whether engines will be built, decided before the export starts.

    Attributes:
        library: What builds them; ``none`` for nothing.
        why_not: Why there will be no engine, one sentence; None if there will.
    """

    library: EngineLibrary
    why_not: str | None


def plan_engines(asked: EngineLibrary | None, compute_capabilities: Sequence[str]) -> EnginePlan:
    """Return what to build.

    Args:
        asked: Library the user named; None to build one only where everything is at hand.
        compute_capabilities: GPUs the user named, e.g. ``["86", "89"]``.

    Raises:
        BackendUnavailableError: If the user named a library that is not here.
    """
    if asked == "none":
        return EnginePlan(library="none", why_not="--engine none was given")
    if asked is None and not compute_capabilities:
        return EnginePlan(library="none", why_not="name a library to build one: --engine tensorrt (on the GPU it is for) or --engine tensorrt-rtx")
    library = asked or "tensorrt-rtx"
    package = _PACKAGES[library]
    if importlib.util.find_spec(package) is None:
        raise BackendUnavailableError(f"--engine {library} needs the package {package}: pip install {package.replace('_', '-')}")
    if importlib.util.find_spec(_BUILDER) is None:
        raise BackendUnavailableError(f"--engine {library} needs {_BUILDER}, which this version does not have; use --engine none")
    return EnginePlan(library=library, why_not=None)


def build_engines(model_path: Path, plan: EnginePlan, *, compute_capabilities: Sequence[str]) -> list[Path]:
    """Build the planned engines beside an exported bundle and return their paths; the builder writes the manifest's entries.

    Raises:
        EngineBuildError: If the library refuses.
    """
    if plan.library == "none":
        return []
    builder = importlib.import_module(_BUILDER)
    built = builder.build_engines(model_path, library=plan.library, compute_capabilities=list(compute_capabilities))
    return [Path(path) for path in built]
