"""Engines for GPUs beside an exported bundle; ``snl_runtime.backends.tensorrt.builder`` builds them."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from snl_runtime.errors import BackendUnavailableError, ConfigError
from snl_runtime.model.manifest import NOT_VERIFIED, EngineEntry, Manifest, manifest_path, read_manifest, update_manifest
from snl_runtime.parity.meter import refuse_unless_passed
from snl_runtime.progress import ProgressReporter, no_progress

if TYPE_CHECKING:
    from snl_runtime.backends.tensorrt.builder import EngineTarget

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedEngine:
    """An engine beside the bundle.

    Attributes:
        path: Where it lies.
        entry: What the manifest says of it, the parity report included.
        from_cache: Whether an identical earlier build was taken.
        why_unverified: Why there is no parity report, one sentence; None if there is one.
        manifest: The manifest that lists it.
    """

    path: Path
    entry: EngineEntry
    from_cache: bool
    why_unverified: str | None
    manifest: Manifest


def plan_engine(asked: str | None, compute_capabilities: Sequence[int]) -> EnginePlan:
    """Return what to build.

    Args:
        asked: Library the user named, or ``none``; None to build where a usable TensorRT and a GPU are here.
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
    from snl_runtime.backends.tensorrt.builder import local_target

    try:
        return EnginePlan(target=local_target(), why_not=None)
    except (BackendUnavailableError, ConfigError) as error:
        return EnginePlan(target=None, why_not=f"{error} (--engine tensorrt-rtx builds without a GPU)")


def build_planned_engine(
    model_path: Path, manifest: Manifest, target: "EngineTarget", *, frames: Path | None, progress: ProgressReporter = no_progress
) -> ExportedEngine:
    """Build ``x.trt`` beside ``x.onnx``, list it in the manifest and, where this machine can run it, compare it with the ONNX file.

    Args:
        model_path: The exported file.
        manifest: Its manifest as written.
        target: What to build for.
        frames: Folder of images for the comparison; None derives them from the golden samples.
        progress: Told how far build and comparison are.

    Raises:
        EngineBuildError: If the library refuses.
        ParityRefusedError: If the engine does not score like the ONNX file; it stays listed with the failed report, which lends it no threshold.
        SinkError: If a file cannot be written.
    """
    from snl_runtime.backends.tensorrt.builder import EngineOptions, build_engine
    from snl_runtime.parity.engine import verify_if_possible

    largest = int(manifest.input["max_batch"])
    options = EngineOptions(batches=(1, 1, largest), precision=str(manifest.graph["precision"]))
    built = build_engine(model_path, model_path.with_suffix(".trt"), target, options, progress=progress)
    update_manifest(manifest_path(model_path), lambda listed: listed.with_engine(built.entry))
    report, why_not = verify_if_possible(built.path, frames, progress=progress)
    if report is not None:
        refuse_unless_passed(report, advice=f"{model_path.name} stands; the engine is listed with this report and gives no verdict but ERROR")
    listed = read_manifest(manifest_path(model_path))
    return ExportedEngine(
        path=built.path,
        entry=listed.engine_for(built.entry.sha256) or built.entry,
        from_cache=built.from_cache,
        why_unverified=why_not,
        manifest=listed,
    )


def engine_lines(engine: ExportedEngine) -> list[str]:
    """Return what a person should know about the engine; a device is named only if it ran there."""
    entry = engine.entry
    built_for = f"compute capability {', '.join(entry.compute_capability)}{', taken from the build cache' if engine.from_cache else ''}"
    line = f"{engine.path} is an engine of {entry.library} {entry.library_version} for {built_for}"
    if entry.parity is None:
        return [f"{line}; {NOT_VERIFIED}: {engine.why_unverified}", f"verify it where it runs: snl-run --engine {engine.path.name} --rebuild"]
    return [f"{line}; verified on {entry.parity.verified_on}"]


def _target(asked: str | None, compute_capabilities: Sequence[int]) -> "EngineTarget":
    from snl_runtime.backends.tensorrt.builder import choose_target

    library: EngineLibrary | None = next((name for name in _PACKAGES if name == asked), None)
    if library is not None and importlib.util.find_spec(_PACKAGES[library]) is None:
        raise BackendUnavailableError(f"--engine {library} needs the package {_PACKAGES[library]}: pip install {library}")
    return choose_target(library, compute_capabilities)
