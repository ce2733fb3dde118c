"""Running engines of TensorRT 10.3 to 11.x and TensorRT-RTX: the half of :mod:`snl_runtime.backends.tensorrt.library` that needs a GPU.

The backend sees three small classes and no TensorRT, so that a fake can prove its order of calls. What differs between the libraries is decided
here: RTX can judge an engine by its header, keeps a cache of compiled kernels and captures CUDA graphs itself.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from snl_runtime.backends.base import INPUT_NAME, MAP_NAME, SCORE_NAME, check_signature
from snl_runtime.backends.tensorrt.library import LIBRARY_NAMES, TensorRtLibrary, library_logger, load_library, recorded_log
from snl_runtime.cache import Cache
from snl_runtime.errors import BackendUnavailableError, EngineMismatchError, InferenceError

logger = logging.getLogger(__name__)

_DTYPES = {"UINT8": "uint8", "FLOAT": "float32"}
_PROFILE = 0
# What RTX's verdict on an engine means for the user; the first that applies is shown.
_MISMATCHES = {
    "MALFORMED_ENGINE": "it is truncated, altered or no engine",
    "VERSION_MISMATCH": "it was built with another version of the library",
    "UNSUPPORTED_CC": "it was not built for this GPU",
}
_OBSTACLES = {
    "OLD_CUDA_DRIVER": "the NVIDIA driver is too old; update it",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old; update it",
    "INSUFFICIENT_GPU_MEMORY": "the GPU has too little free memory; close other programs",
    "CUDA_ERROR": "CUDA is not usable here; check the NVIDIA driver",
}


def open_library(name: str) -> "EngineLibrary":
    """Return an installed TensorRT by the name that a manifest gives.

    Raises:
        BackendUnavailableError: If it is not installed or no such library is known.
    """
    for known in LIBRARY_NAMES:
        if name == known:
            return EngineLibrary(load_library(known))
    raise BackendUnavailableError(f"no library called '{name}' runs engines; expected tensorrt or tensorrt-rtx")


def rebuild_advice(file_name: str) -> str:
    """Return how an engine that does not fit is made to fit."""
    return f"rebuild it: snl-run --engine {file_name} --rebuild"


class EngineLibrary:
    """A TensorRT that can load engines."""

    def __init__(self, library: TensorRtLibrary) -> None:
        self._library = library

    @property
    def name(self) -> str:
        """``tensorrt`` or ``tensorrt-rtx``."""
        return self._library.name

    @property
    def version(self) -> str:
        """As the library states it."""
        return self._library.version

    def load_engine(self, plan: bytes, *, file_name: str, cache_path: Path | None) -> "Engine":
        """Return an engine on the calling thread's device.

        Args:
            plan: The serialized engine; only one whose hash was checked, because it holds code that the GPU runs.
            file_name: For messages.
            cache_path: Where RTX keeps the kernels it compiled on this machine; None for nowhere.

        Raises:
            EngineMismatchError: If the library refuses it: other GPU, other version, truncated.
            BackendUnavailableError: If no GPU is usable.
            BackendError: If it is an engine of another graph.
        """
        trt = self._library.module
        with recorded_log() as lines:
            runtime = trt.Runtime(library_logger(self._library))
            if runtime is None:
                raise BackendUnavailableError(f"{self.name} {self.version} cannot start: {_words(lines)}")
            if self._library.is_rtx:
                _check_header(trt, runtime, plan, file_name, lines)
            engine = runtime.deserialize_cuda_engine(plan)
            if engine is None:
                raise EngineMismatchError(f"{self.name} {self.version} refuses {file_name}: {_words(lines)}; {rebuild_advice(file_name)}")
        return Engine(self._library, runtime, engine, file_name, cache_path)


def _check_header(trt: Any, runtime: Any, plan: bytes, file_name: str, lines: Sequence[tuple[str, str]]) -> None:
    """Let RTX judge an engine before it is loaded. This finds misfits, not tampering: the hash in the manifest does that."""
    validity, diagnostics = runtime.get_engine_validity(plan[: max(int(runtime.engine_header_size), 64)])
    if validity != trt.EngineValidity.INVALID:
        if validity == trt.EngineValidity.SUBOPTIMAL:
            logger.info("%s runs here but was built for another GPU; rebuilding it may make it faster", file_name)
        return
    found = {name for name, member in trt.EngineInvalidityDiagnostics.__members__.items() if int(diagnostics) & int(member)}
    for name, words in _MISMATCHES.items():
        if name in found:
            raise EngineMismatchError(f"{file_name} does not fit: {words}; {rebuild_advice(file_name)}")
    reason = next((words for name, words in _OBSTACLES.items() if name in found), _words(lines))
    raise BackendUnavailableError(f"{file_name} cannot run here: {reason}")


class Engine:
    """A loaded engine; any number of contexts may share it.

    Attributes:
        input_shape: (N, H, W, 3); N is None if it may vary.
        batch_range: Smallest and largest N.
    """

    def __init__(self, library: TensorRtLibrary, runtime: Any, engine: Any, file_name: str, cache_path: Path | None) -> None:
        self._library = library
        self._runtime = runtime  # must outlive the engine
        self._engine = engine
        self._file_name = file_name
        self._cache_path = cache_path
        self._configuration: Any = None
        self._cache: Any = None
        self._known_cache = b""
        self.input_shape = self._check_tensors()
        self.batch_range = self._read_batch_range()
        if library.is_rtx:
            self._configure_rtx()

    def create_context(self, stream: int) -> "EngineContext":
        """Return a context for one stream."""
        trt = self._library.module
        with recorded_log() as lines:
            how = trt.ExecutionContextAllocationStrategy.STATIC if self._configuration is None else self._configuration
            context = self._engine.create_execution_context(how)
            if context is None:
                raise InferenceError(f"{self._library.name} could not make a context for {self._file_name}: {_words(lines)}")
            if context.active_optimization_profile != _PROFILE and not context.set_optimization_profile_async(_PROFILE, stream):
                raise InferenceError(f"{self._library.name} could not select the profile of {self._file_name}: {_words(lines)}")
        _, height, width, _ = self.input_shape
        return EngineContext(context, (height, width), captures_itself=self._library.is_rtx)

    def close(self) -> None:
        """Release the engine after all its contexts; a second call does nothing."""
        if self._engine is None:
            return
        self._save_cache()
        self._configuration = self._cache = None
        self._engine = None
        self._runtime = None

    def _check_tensors(self) -> tuple[int | None, int, int, int]:
        trt, engine = self._library.module, self._engine
        inputs: dict[str, tuple[str, tuple[int | None, ...]]] = {}
        outputs: dict[str, str] = {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            dtype = str(engine.get_tensor_dtype(name)).rsplit(".", 1)[-1]
            if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                shape = tuple(None if size < 0 else int(size) for size in engine.get_tensor_shape(name))
                inputs[name] = (_DTYPES.get(dtype, dtype), shape)
                continue
            outputs[name] = _DTYPES.get(dtype, dtype)
        return check_signature(self._file_name, inputs, outputs)

    def _read_batch_range(self) -> tuple[int, int]:
        fixed = self.input_shape[0]
        if fixed is not None:
            return fixed, fixed
        smallest, _, largest = self._engine.get_tensor_profile_shape(INPUT_NAME, _PROFILE)
        return int(smallest[0]), int(largest[0])

    def _configure_rtx(self) -> None:
        trt = self._library.module
        configuration = self._engine.create_runtime_config()
        if configuration is None:
            raise InferenceError(f"{self._library.name} could not make a runtime configuration for {self._file_name}")
        configuration.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.STATIC)
        configuration.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        cache = configuration.create_runtime_cache()
        if cache is not None:
            path = self._cache_path
            self._known_cache = b"" if path is None else Cache(path.parent).read(path.name) or b""
            if self._known_cache and not cache.deserialize(self._known_cache):
                logger.debug("the runtime cache %s is of another machine or version; kernels are compiled anew", self._cache_path)
            if configuration.set_runtime_cache(cache):
                self._cache = cache
        self._configuration = configuration

    def _save_cache(self) -> None:
        if self._cache is None or self._cache_path is None:
            return
        compiled = self._cache.serialize()
        content = b"" if compiled is None else bytes(compiled)
        if not content or content == self._known_cache:
            return
        Cache(self._cache_path.parent).write(self._cache_path.name, content)


class EngineContext:
    """One thread's state for running an engine on its stream.

    Attributes:
        captures_itself: Whether the library records CUDA graphs by itself.
    """

    def __init__(self, context: Any, size_hw: tuple[int, int], *, captures_itself: bool) -> None:
        self._context = context
        self._size_hw = size_hw
        self.captures_itself = captures_itself

    def set_batch(self, count: int) -> None:
        """Prepare for N = ``count``. Not while work of this context is under way."""
        height, width = self._size_hw
        with recorded_log() as lines:
            if not self._context.set_input_shape(INPUT_NAME, (count, height, width, 3)):
                raise InferenceError(f"the engine does not take a batch of {count}: {_words(lines)}")
            if self._context.infer_shapes():  # names of tensors whose shape is still unknown
                raise InferenceError(f"the engine leaves its output shapes open for a batch of {count}: {_words(lines)}")
        for name, expected in ((MAP_NAME, (count, 1, height, width)), (SCORE_NAME, (count,))):
            actual = tuple(int(size) for size in self._context.get_tensor_shape(name))
            if actual != expected:
                raise InferenceError(f"the engine gives {name} the shape {actual}, expected {expected}; export the model again with snl-export")

    def set_addresses(self, image: int, anomaly_map: int, anomaly_score: int) -> None:
        """Say where the device buffers of input and outputs lie; they must hold the largest batch."""
        for name, address in ((INPUT_NAME, image), (MAP_NAME, anomaly_map), (SCORE_NAME, anomaly_score)):
            if not self._context.set_tensor_address(name, address):
                raise InferenceError(f"the engine refused the address of {name}")

    def enqueue(self, stream: int) -> bool:
        """Queue one run and return whether the library accepted it. Raises nothing: it is called while a stream is being captured."""
        try:
            return bool(self._context.execute_async_v3(stream))
        except Exception as failure:  # noqa: BLE001 - an exception must not leave a capture open
            logger.error("the library failed while queueing a run: %s", failure)
            return False

    def close(self) -> None:
        """Release the context; a second call does nothing."""
        self._context = None


def _words(lines: Sequence[tuple[str, str]]) -> str:
    errors = [" ".join(message.split()) for severity, message in lines if severity in ("ERROR", "INTERNAL_ERROR")]
    return "; ".join(errors[-3:]) or "the library gave no reason"
