"""Every difference between TensorRT 10.3 to 11.x and TensorRT-RTX, in one place.

What makes one code path possible: strongly typed networks only (precision lives in the ONNX graph), flags looked up by name (their integers moved
between 10 and 11), tensor names instead of bindings, one logger object per process and library (TensorRT keeps the first and ignores others).

``tests/runtime/backends/tensorrt`` holds every attribute used here against the dumped API of 10.3, 10.16, 11.4 and RTX 1.7.
"""

import importlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from snl_runtime.errors import BackendUnavailableError, BuildCanceledError, EngineBuildError

logger = logging.getLogger(__name__)

LibraryName = Literal["tensorrt", "tensorrt-rtx"]
LIBRARY_NAMES: tuple[LibraryName, ...] = ("tensorrt", "tensorrt-rtx")

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_LEVELS = {"INTERNAL_ERROR": logging.ERROR, "ERROR": logging.ERROR, "WARNING": logging.WARNING, "INFO": logging.INFO, "VERBOSE": logging.DEBUG}

ProgressCallback = Callable[[str, int, int], bool]
"""Called with phase, steps done and steps in all; returning False cancels the build."""


@dataclass(frozen=True, slots=True)
class TensorRtLibrary:
    """One installed TensorRT.

    Attributes:
        name: ``tensorrt`` or ``tensorrt-rtx``.
        version: As the library states it, e.g. ``10.3.0`` or ``1.7.1.116``.
        module: The Python bindings.
    """

    name: LibraryName
    version: str
    module: Any

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT-RTX."""
        return self.name == "tensorrt-rtx"


def load_library(name: LibraryName) -> TensorRtLibrary:
    """Import one TensorRT.

    Raises:
        BackendUnavailableError: If it is missing, broken, a stub without builder, or older than 10.3.
    """
    remedy = (
        "pip install tensorrt-rtx" if name == "tensorrt-rtx" else "pip install 'snl-edge[tensorrt]', or on Jetson use the tensorrt package of JetPack"
    )
    try:
        module = importlib.import_module(_MODULES[name])
    except (ImportError, OSError, RuntimeError) as failure:  # OSError: a shared library of it is missing
        raise BackendUnavailableError(f"{name} cannot be imported ({failure}); {remedy}") from failure
    if not hasattr(module, "Builder"):
        raise BackendUnavailableError(f"the installed {name} has no builder (a stub package); {remedy}")
    version = str(module.__version__)
    if name == "tensorrt" and _version_tuple(version) < (10, 3):
        raise BackendUnavailableError(f"tensorrt {version} is too old, 10.3 or newer is needed; {remedy}")
    return TensorRtLibrary(name, version, module)


def installed_libraries() -> list[TensorRtLibrary]:
    """Return every usable TensorRT of this environment, full TensorRT first."""
    found = []
    for name in LIBRARY_NAMES:
        try:
            found.append(load_library(name))
        except BackendUnavailableError as failure:
            logger.debug("%s", failure)
    return found


def _version_tuple(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


# ---- logging -------------------------------------------------------------------------------------------------------------------------------

_loggers: dict[str, Any] = {}
_loggers_lock = threading.Lock()
_recorders: list[list[tuple[str, str]]] = []
_recorders_lock = threading.Lock()


def library_logger(library: TensorRtLibrary) -> Any:
    """Return the process's one logger for ``library``; it forwards to :mod:`logging` and to whoever records."""
    with _loggers_lock:
        if library.name not in _loggers:
            base = library.module.ILogger

            class _Logger(base):  # type: ignore[misc, valid-type]
                def __init__(self) -> None:
                    base.__init__(self)

                def log(self, severity: Any, message: str) -> None:
                    # Called from any thread of the library; raising here would cross C++.
                    name = str(severity).rsplit(".", 1)[-1]
                    with _recorders_lock:
                        for lines in _recorders:
                            lines.append((name, message))
                    logger.log(_LEVELS.get(name, logging.INFO), "%s", message)

            _loggers[library.name] = _Logger()
        return _loggers[library.name]


@contextmanager
def recorded_log() -> Iterator[list[tuple[str, str]]]:
    """Collect (severity, message) of everything TensorRT says meanwhile, from any thread."""
    lines: list[tuple[str, str]] = []
    with _recorders_lock:
        _recorders.append(lines)
    try:
        yield lines
    finally:
        with _recorders_lock:
            _recorders[:] = [other for other in _recorders if other is not lines]


# ---- building ------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """What to build.

    Attributes:
        onnx: The serialized graph.
        compute_capabilities: SM numbers an RTX engine is for, e.g. (86, 89); full TensorRT builds for the GPU of this machine and ignores it.
        batches: Smallest, typical and largest N of a graph with dynamic N; unused for a fixed one.
        max_aux_streams: Hidden streams; 0 keeps row tiles of the affinity from running side by side, which is what saves their memory.
        optimization_level: 0 to 5; None for the library's default.
        timing_cache: Contents of a cache of this library and GPU; full TensorRT only.
        is_detailed: Keep layer information in the engine and let the builder report its memory. Leave it off for engines that ship: they would
            disclose more of the model.
    """

    onnx: bytes
    compute_capabilities: tuple[int, ...] = ()
    batches: tuple[int, int, int] | None = None
    max_aux_streams: int = 0
    optimization_level: int | None = None
    timing_cache: bytes | None = None
    is_detailed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltPlan:
    """What a build gave.

    Attributes:
        plan: The serialized engine.
        inputs: (name, shape, type) of every input, -1 where N is dynamic.
        outputs: The same for every output.
        timing_cache: Updated cache, None for TensorRT-RTX.
        log: (severity, message) of everything the library said.
    """

    plan: bytes
    inputs: tuple[tuple[str, tuple[int, ...], str], ...]
    outputs: tuple[tuple[str, tuple[int, ...], str], ...]
    timing_cache: bytes | None
    log: tuple[tuple[str, str], ...]


def build_plan(library: TensorRtLibrary, request: BuildRequest, *, on_progress: ProgressCallback | None = None) -> BuiltPlan:
    """Build one engine.

    Raises:
        EngineBuildError: If the graph is refused or the build fails; the message ends with the library's own words.
        BuildCanceledError: If ``on_progress`` returned False.
    """
    trt = library.module
    with recorded_log() as lines:
        builder = _checked(trt.Builder(library_logger(library)), "create a builder", lines)
        network = _checked(builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)), "create a network", lines)
        parser = _checked(trt.OnnxParser(network, library_logger(library)), "create the ONNX parser", lines)
        if not parser.parse(request.onnx):
            raise EngineBuildError(f"{library.name} {library.version} cannot read the graph: {_parser_errors(parser) or _last_errors(lines)}")
        if network.num_outputs == 0:  # the parser takes bytes that are no ONNX for an empty graph
            raise EngineBuildError(f"{library.name} {library.version} found no graph in the ONNX file: it is truncated or not ONNX")
        config = _checked(builder.create_builder_config(), "create a build configuration", lines)
        _set_target(library, config, request, lines)
        _set_options(library, builder, network, config, request, lines)
        monitor = _progress_monitor(trt, on_progress) if on_progress is not None else None
        if monitor is not None:
            config.progress_monitor = monitor  # the library keeps no reference: `monitor` must live until the build returns
        serialized = builder.build_serialized_network(network, config)
        if serialized is None:
            if monitor is not None and monitor.is_canceled:
                raise BuildCanceledError(f"the build with {library.name} was canceled")
            raise EngineBuildError(f"{library.name} {library.version} built no engine: {_last_errors(lines)}")
        return BuiltPlan(
            plan=bytes(serialized),
            inputs=tuple(_tensor(network.get_input(i)) for i in range(network.num_inputs)),
            outputs=tuple(_tensor(network.get_output(i)) for i in range(network.num_outputs)),
            timing_cache=None if library.is_rtx else _serialized_timing_cache(config),
            log=tuple(lines),
        )


def known_compute_capabilities(library: TensorRtLibrary) -> tuple[int, ...]:
    """Return the SM numbers that TensorRT-RTX builds for."""
    members = library.module.ComputeCapability.__members__
    return tuple(sorted(int(name.removeprefix("SM")) for name in members if name.startswith("SM")))


def _checked(made: Any, what: str, lines: Sequence[tuple[str, str]]) -> Any:
    if made is None:
        raise EngineBuildError(f"TensorRT could not {what}: {_last_errors(lines)}")
    return made


def _set_target(library: TensorRtLibrary, config: Any, request: BuildRequest, lines: Sequence[tuple[str, str]]) -> None:
    if not library.is_rtx:
        return
    capabilities = library.module.ComputeCapability
    known = known_compute_capabilities(library)
    unknown = [sm for sm in request.compute_capabilities if sm not in known]
    if unknown:
        supported = ", ".join(map(str, known))
        raise EngineBuildError(f"{library.name} {library.version} cannot build for SM{unknown[0]}; it knows {supported}")
    config.num_compute_capabilities = len(request.compute_capabilities)
    for index, sm in enumerate(request.compute_capabilities):
        if not config.set_compute_capability(getattr(capabilities, f"SM{sm}"), index):
            raise EngineBuildError(f"{library.name} refused SM{sm}: {_last_errors(lines)}")


def _set_options(library: TensorRtLibrary, builder: Any, network: Any, config: Any, request: BuildRequest, lines: Sequence[tuple[str, str]]) -> None:
    trt = library.module
    config.max_aux_streams = request.max_aux_streams
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default: fp32 matrices would be multiplied with 11 bits, and fp32 would not mean fp32
    if request.optimization_level is not None:
        config.builder_optimization_level = request.optimization_level
    if request.is_detailed:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if not library.is_rtx:  # RTX has no timing cache; asking for one makes some releases look for a GPU
        _set_timing_cache(library, config, request.timing_cache or b"", lines)
    image = network.get_input(0)
    batch, *rest = tuple(image.shape)
    if request.batches is not None and batch == -1:
        profile = _checked(builder.create_optimization_profile(), "create an optimization profile", lines)
        profile.set_shape(image.name, *((size, *rest) for size in request.batches))
        if config.add_optimization_profile(profile) < 0:
            raise EngineBuildError(f"{library.name} refused batches {request.batches}: {_last_errors(lines)}")


def _set_timing_cache(library: TensorRtLibrary, config: Any, content: bytes, lines: Sequence[tuple[str, str]]) -> None:
    """Hand over the timings of earlier builds; where the library refuses them it times everything itself."""
    for candidate in dict.fromkeys((content, b"")):
        cache = config.create_timing_cache(candidate)
        if cache is not None and config.set_timing_cache(cache, False):
            return
    logger.warning("%s refused its timing cache, the build takes longer: %s", library.name, _last_errors(lines))


def _serialized_timing_cache(config: Any) -> bytes | None:
    cache = config.get_timing_cache()
    return None if cache is None else bytes(cache.serialize())


def _tensor(tensor: Any) -> tuple[str, tuple[int, ...], str]:
    return str(tensor.name), tuple(int(n) for n in tensor.shape), str(tensor.dtype).rsplit(".", 1)[-1]


def _parser_errors(parser: Any) -> str:
    return "; ".join(str(parser.get_error(i)).strip() for i in range(parser.num_errors))


def _last_errors(lines: Sequence[tuple[str, str]]) -> str:
    errors = [message.strip() for severity, message in lines if severity in ("ERROR", "INTERNAL_ERROR")]
    return "; ".join(errors[-3:]) or "the library gave no reason"


def _progress_monitor(trt: Any, on_progress: ProgressCallback) -> Any:
    base = trt.IProgressMonitor

    class _Monitor(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)
            self.is_canceled = False
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            # Runs on a library thread: an exception must not cross C++, and a broken progress bar must not cost the build.
            try:
                go_on = bool(on_progress(phase_name, step + 1, self._steps.get(phase_name, 0)))
            except Exception:
                logger.exception("the progress callback failed")
                go_on = True
            self.is_canceled = self.is_canceled or not go_on
            return go_on

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return _Monitor()
