"""Build an engine beside its ONNX: cached, cancellable, recorded in the manifest.

``x.trt`` is a cache that can be rebuilt from ``x.onnx``, never the only copy. ``snl-export`` calls this on the machine that exports,
``snl-run --rebuild`` on the station.
"""

import hashlib
import json
import logging
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from snl_runtime.backends.tensorrt.library import (
    LIBRARY_NAMES,
    BuildRequest,
    BuiltPlan,
    LibraryName,
    TensorRtLibrary,
    build_plan,
    installed_libraries,
    known_compute_capabilities,
    load_library,
)
from snl_runtime.cache import Cache
from snl_runtime.errors import BackendUnavailableError, ConfigError, EngineBuildError, ManifestError
from snl_runtime.files import atomic_write_bytes, check_writable, sha256_bytes, sha256_file
from snl_runtime.model.manifest import NOT_VERIFIED, EngineEntry, manifest_path, read_manifest, update_manifest
from snl_runtime.progress import ProgressReporter, no_progress

logger = logging.getLogger(__name__)

DEFAULT_RTX_TARGETS = (86, 89, 120)
"""Compute capabilities of an RTX engine when nobody says otherwise: RTX 30, 40 and 50 series."""
BUILD_RECIPE = 1
"""Raised when :mod:`snl_runtime.backends.tensorrt.library` sets other flags for the same request, so that no engine of an earlier release comes out
of the cache."""
CACHE_LIMIT_BYTES = 4 << 30
"""The build cache drops its oldest engines beyond this size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTarget:
    """The machine an engine is for.

    Attributes:
        library: Which TensorRT builds and runs it.
        compute_capabilities: SM numbers, e.g. (86, 89, 120); full TensorRT takes the GPU here and needs exactly its number here.
        device: What else ties the engine to one machine (GPU name, driver, system); empty for TensorRT-RTX, whose engines are portable.
    """

    library: TensorRtLibrary
    compute_capabilities: tuple[int, ...]
    device: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How an engine is built.

    Attributes:
        batches: Smallest, typical and largest N for a graph with dynamic N; ignored for a fixed one.
        max_aux_streams: Hidden streams; 0 is what lets row tiles save memory.
        optimization_level: 0 to 5, None for the library's default.
        precision: What the manifest says of the graph: ``fp32``, ``fp16`` or ``int8``.
    """

    batches: tuple[int, int, int] = (1, 1, 8)
    max_aux_streams: int = 0
    optimization_level: int | None = None
    precision: str = "fp32"

    def __post_init__(self) -> None:
        smallest, typical, largest = self.batches
        if not 1 <= smallest <= typical <= largest:
            raise ConfigError(f"batches must satisfy 1 <= smallest <= typical <= largest, got {self.batches}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltEngine:
    """An engine file and what the manifest records of it.

    Attributes:
        path: Where it lies.
        entry: Its manifest entry, without a parity report.
        from_cache: Whether an identical earlier build was taken.
        log: (severity, message) of the library; empty when the cache was used.
    """

    path: Path
    entry: EngineEntry
    from_cache: bool
    log: tuple[tuple[str, str], ...] = field(default=())


def choose_target(library: LibraryName | None, compute_capabilities: Sequence[int] = ()) -> EngineTarget:
    """Return what to build for on this machine.

    Full TensorRT is preferred where it and a GPU are there, because it builds for exactly that GPU; else TensorRT-RTX, which needs no GPU to build.

    Args:
        library: Name given by the user, None to choose.
        compute_capabilities: SM numbers given by the user.

    Raises:
        BackendUnavailableError: If the library is missing, or full TensorRT has no GPU to build on.
        ConfigError: If full TensorRT is asked for another GPU than the one here.
    """
    if library == "tensorrt":
        return _target_of_this_gpu(load_library("tensorrt"), compute_capabilities)
    if library == "tensorrt-rtx":
        return _rtx_target(load_library("tensorrt-rtx"), compute_capabilities)
    reasons = []
    for installed in installed_libraries():
        if installed.is_rtx:
            return _rtx_target(installed, compute_capabilities)
        try:
            return _target_of_this_gpu(installed, compute_capabilities)
        except (BackendUnavailableError, ConfigError) as failure:
            reasons.append(str(failure))
    names = " or ".join(LIBRARY_NAMES)
    raise BackendUnavailableError("; ".join(reasons) or f"no usable TensorRT is installed: pip install {names}")


def local_target(library: LibraryName | None = None) -> EngineTarget:
    """Return a target that this machine can build for and run: full TensorRT, else TensorRT-RTX if it knows the GPU.

    Args:
        library: The only one to consider; None for both.

    Raises:
        BackendUnavailableError: If no library or no GPU is here, or the library cannot build for the GPU; the message says which.
    """
    libraries = installed_libraries() if library is None else [load_library(library)]
    if not libraries:
        raise BackendUnavailableError(f"no usable TensorRT is installed: pip install {' or '.join(LIBRARY_NAMES)}")
    from snl_runtime.cuda.api import describe_device

    gpu = describe_device()
    if not libraries[0].is_rtx:
        return _target_of_this_gpu(libraries[0], ())
    supported = known_compute_capabilities(libraries[0])
    if gpu.compute_capability not in supported:
        names = ", ".join(f"SM{sm}" for sm in supported)
        raise BackendUnavailableError(f"tensorrt-rtx builds for {names}, this GPU ({gpu.name}) is SM{gpu.compute_capability}: install tensorrt")
    return _rtx_target(libraries[0], (gpu.compute_capability,))


def build_engine(
    onnx_path: Path,
    engine_path: Path,
    target: EngineTarget,
    options: EngineOptions | None = None,
    *,
    cache_folder: Path | None = None,
    cancel: threading.Event | None = None,
    progress: ProgressReporter = no_progress,
) -> BuiltEngine:
    """Build ``engine_path`` from ``onnx_path``, or take the identical build from the cache; write it atomically.

    Args:
        onnx_path: One file without external data, input ``image`` (N, H, W, 3) uint8.
        engine_path: Where the engine goes; an earlier file stays untouched until the new one is complete.
        target: What to build for, see :func:`choose_target`.
        options: How.
        cache_folder: Folder of the build cache, :func:`snl_runtime.cache.default_cache_folder` if None.
        cancel: Setting it stops the build.
        progress: Told each step of the library.

    Raises:
        EngineBuildError: If TensorRT refuses; the message ends with its own words.
        BuildCanceledError: If ``cancel`` was set or Ctrl-C was pressed.
        SinkError: If a file cannot be written.
    """
    options = options or EngineOptions()
    cache = Cache.at(cache_folder)
    try:
        onnx = onnx_path.read_bytes()
    except OSError as failure:
        raise EngineBuildError(f"cannot read {onnx_path}: {failure.strerror}; export the checkpoint first: snl-export --ckpt x.pt") from failure
    check_writable(engine_path)  # minutes of building may lie between here and the file
    plan_name = f"{cache_key(onnx, target, options)}.trt"
    plan = cache.read(plan_name)
    from_cache = plan is not None
    log: tuple[tuple[str, str], ...] = ()
    timings_name, timings = f"timing-{_digest(target.library.version, target.device)}.cache", None
    if plan is None:
        request = BuildRequest(
            onnx=onnx,
            compute_capabilities=target.compute_capabilities,
            batches=options.batches,
            max_aux_streams=options.max_aux_streams,
            optimization_level=options.optimization_level,
            timing_cache=cache.read(timings_name),
        )
        built = _build_with_progress(target, request, cancel or threading.Event(), progress)
        plan, log, timings = built.plan, built.log, built.timing_cache
    try:
        atomic_write_bytes(engine_path, plan)  # before the cache, whose disk may be full
    finally:  # where the engine cannot be written its minutes are not lost
        if not from_cache:
            cache.write(plan_name, plan)
            cache.evict(".trt", CACHE_LIMIT_BYTES)
        if timings is not None:
            cache.write(timings_name, timings)
    return BuiltEngine(path=engine_path, entry=_entry(engine_path, plan, sha256_bytes(onnx), target, options), from_cache=from_cache, log=log)


def rebuild_engine(engine_path: Path, *, cache_folder: Path | None = None, progress: ProgressReporter = no_progress) -> BuiltEngine:
    """Build ``x.trt`` again from the ``x.onnx`` beside it, for this machine and library version, and list it in ``x.json``.

    The new engine has no parity report: no decision applies to it until it passed the parity gate on this device.

    Raises:
        ManifestError: If the manifest is missing or the ONNX beside it is not the one it names.
        EngineBuildError: If TensorRT refuses.
        BackendUnavailableError: If the library is missing.
    """
    path = manifest_path(engine_path)
    manifest = read_manifest(path)
    onnx_path = engine_path.with_name(manifest.model_file)
    if not onnx_path.is_file() or sha256_file(onnx_path) != manifest.model_sha256:
        raise ManifestError(f"{onnx_path} is missing or is not the file that {path} names; copy both again from the export, then run --rebuild")
    earlier = next((engine for engine in manifest.engines if engine.file == engine_path.name), None)
    library = next((name for name in LIBRARY_NAMES if earlier is not None and earlier.library == name), None)
    largest = int(manifest.input["max_batch"])
    options = EngineOptions(batches=(1, 1, largest), precision=str(manifest.graph.get("precision", "fp32")))
    try:
        target = local_target(library)
    except BackendUnavailableError as failure:
        logger.debug("not built for a GPU here: %s", failure)
        target = choose_target(library)
    built = build_engine(onnx_path, engine_path, target, options, cache_folder=cache_folder, progress=progress)
    update_manifest(path, lambda listed: listed.with_engine(built.entry))
    return built


def cache_key(onnx: bytes, target: EngineTarget, options: EngineOptions) -> str:
    """Return the hash of everything that decides what a build gives: graph, library, target, options and how they are set."""
    return _digest(
        BUILD_RECIPE,
        sha256_bytes(onnx),
        target.library.name,
        target.library.version,
        target.compute_capabilities,
        target.device,
        options.batches,
        options.max_aux_streams,
        options.optimization_level,
    )


def _digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode("utf-8")).hexdigest()


def _rtx_target(library: TensorRtLibrary, compute_capabilities: Sequence[int]) -> EngineTarget:
    return EngineTarget(library=library, compute_capabilities=tuple(compute_capabilities) or DEFAULT_RTX_TARGETS)


def _target_of_this_gpu(library: TensorRtLibrary, compute_capabilities: Sequence[int]) -> EngineTarget:
    from snl_runtime.cuda.api import describe_device

    gpu = describe_device()  # raises BackendUnavailableError where there is none
    if compute_capabilities and tuple(compute_capabilities) != (gpu.compute_capability,):
        asked = ", ".join(f"SM{sm}" for sm in compute_capabilities)
        raise ConfigError(
            f"full TensorRT builds for the GPU of this machine (SM{gpu.compute_capability}), not for {asked}; leave --sm out or build there"
        )
    return EngineTarget(
        library=library, compute_capabilities=(gpu.compute_capability,), device=f"{gpu.name}, driver {gpu.driver_version}, {sys.platform}"
    )


def _build_with_progress(target: EngineTarget, request: BuildRequest, cancel: threading.Event, progress: ProgressReporter) -> BuiltPlan:
    """Build on another thread while its steps are reported; Ctrl-C cancels at the library's next step instead of killing the process inside C++."""
    label = f"build for {target.library.name} {', '.join(f'SM{sm}' for sm in target.compute_capabilities)}"
    outcome: list[BuiltPlan | BaseException] = []
    with progress(None, unit="steps", label=label) as steps:

        def step(phase: str, done: int, total: int) -> bool:
            steps.advance(1, phase=f"{phase} {done}/{total}")
            return not cancel.is_set()

        def work() -> None:
            try:
                outcome.append(build_plan(target.library, request, on_progress=step))
            except BaseException as failure:  # noqa: BLE001 - raised again below, in the caller's thread
                outcome.append(failure)

        thread = threading.Thread(target=work, name="snl-engine-build", daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(timeout=0.2)
        except KeyboardInterrupt:
            cancel.set()
            thread.join()
            raise
    (result,) = outcome
    if isinstance(result, BaseException):
        raise result
    return result


def _entry(path: Path, plan: bytes, onnx_sha256: str, target: EngineTarget, options: EngineOptions) -> EngineEntry:
    return EngineEntry(
        file=path.name,
        sha256=sha256_bytes(plan),
        library=target.library.name,
        library_version=target.library.version,
        compute_capability=[f"{sm // 10}.{sm % 10}" for sm in target.compute_capabilities],
        precision=options.precision,
        built_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        parity=None,
        options={
            "batches": list(options.batches),
            "max_aux_streams": options.max_aux_streams,
            "optimization_level": options.optimization_level,
            "device": target.device,
            "verified_on": NOT_VERIFIED,
        },
        onnx_sha256=onnx_sha256,
    )
