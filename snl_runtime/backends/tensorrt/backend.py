"""TensorRT and TensorRT-RTX engines on an NVIDIA GPU.

Device work shares the primary context with the rest of the process, runs on streams of its own and gives the caller's thread its device back. The
manifest's entry is compared with library, version and GPU before the engine is loaded, and the hash before that: an engine holds code.
"""

import contextlib
import hashlib
import os
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from snl_runtime.backends.base import check_arrays
from snl_runtime.backends.tensorrt.context import TensorRtContext
from snl_runtime.backends.tensorrt.engine import EngineLibrary, open_library, rebuild_advice
from snl_runtime.cache import default_cache_folder
from snl_runtime.cuda import api as cuda_api
from snl_runtime.cuda.api import CudaApi, DeviceDescription, describe_device, device_scope
from snl_runtime.errors import BackendError, ConfigError, EngineMismatchError, InferenceError, ManifestError
from snl_runtime.files import sha256_bytes
from snl_runtime.model.manifest import EngineEntry, manifest_path, read_manifest


class TensorRtBackend:
    """Runs an ``.trt`` engine. One thread per call; each thread gets a stream, a context and buffers of its own.

    The engine takes any number of images in batches that it was built for; a last batch below the smallest one is refused.
    """

    name = "tensorrt"

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        device: str | None = None,
        threads: int | None = None,
        cuda_graphs: bool = True,
        cuda: CudaApi | None = None,
        find_library: Callable[[str], EngineLibrary] | None = None,
    ) -> None:
        """Check the engine against this machine and load it.

        Args:
            model_path: The engine; its manifest lies beside it.
            device: ``cuda`` (the first GPU, default) or ``cuda:N``.
            threads: Accepted for the sake of the other backends; nothing here uses CPU threads.
            cuda_graphs: Record the engine's work as CUDA graphs.
            cuda: CUDA to use; None for the real one.
            find_library: Returns the TensorRT that the manifest names; None for the installed ones.

        Raises:
            ManifestError: If the manifest is missing, or the file is missing, truncated or altered.
            EngineMismatchError: If the engine was built for another GPU or library version.
            BackendUnavailableError: If TensorRT, cuda-bindings, the driver or the GPU is missing.
            ConfigError: If ``device`` or ``threads`` means nothing here.
        """
        path = Path(model_path)
        if threads is not None and threads < 1:
            raise ConfigError(f"threads must be at least 1, got {threads}")
        self._device, self._capture = _device_index(device), cuda_graphs
        plan, entry = read_engine(path)
        library = (find_library or open_library)(entry.library)
        check_library(path.name, entry, library)
        self._api = cuda or cuda_api.load_cuda()
        gpu = describe_device(self._device, self._api)
        check_gpu(path.name, entry, gpu)
        self.device = f"cuda:{self._device} ({gpu.name}, SM{gpu.compute_capability}, driver for CUDA {gpu.driver_version})"
        self.library = f"{library.name} {library.version}"
        self._contexts: dict[threading.Thread, TensorRtContext] = {}
        self._contexts_lock = threading.Lock()
        self._failure: str | None = None
        self._closed = False
        with device_scope(self._api, self._device), contextlib.ExitStack() as opened:
            self._engine = library.load_engine(plan, file_name=path.name, cache_path=_cache_path(library, gpu, entry))
            opened.callback(self._engine.close)
            self.input_shape: tuple[int | None, int, int, int] = self._engine.input_shape
            self._contexts[threading.current_thread()] = TensorRtContext(self._api, self._engine, capture=self._capture)
            opened.pop_all()

    def infer(self, image: npt.NDArray[np.uint8], anomaly_map: npt.NDArray[np.float32], anomaly_score: npt.NDArray[np.float32]) -> None:
        """Write map and score into the caller's arrays; see ``Backend.infer``."""
        self._check_open()
        check_arrays(self.name, self.input_shape, image, anomaly_map, anomaly_score)
        with self.execution_context() as context:
            context.infer(image, anomaly_map, anomaly_score)

    @contextlib.contextmanager
    def execution_context(self, largest_batch: int = 1) -> Iterator[TensorRtContext]:  # noqa: ARG002
        """Lend the calling thread its context, with the engine's device current; kernels may be queued on ``context.stream``.

        After any failure in the body the backend answers no more: what is on the device is then unknown. The engine itself says how many images a
        run takes, whatever ``largest_batch`` is.

        Raises:
            InferenceError: If the backend is closed or failed before, or CUDA fails.
        """
        self._check_open()
        with device_scope(self._api, self._device):
            try:
                yield self._own_context()
            except BaseException as failure:
                self._failure = f"{type(failure).__name__}: {failure}"
                self._close_context(threading.current_thread())
                raise

    def close(self) -> None:
        """Release all contexts and the engine; a second call does nothing. No other thread may be inside :meth:`infer`."""
        if self._closed:
            return
        self._closed = True
        with device_scope(self._api, self._device), contextlib.ExitStack() as closing:
            closing.callback(self._engine.close)
            with self._contexts_lock:
                for context in self._contexts.values():
                    closing.callback(context.close)
                self._contexts.clear()

    def __enter__(self) -> "TensorRtBackend":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: types.TracebackType | None) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise InferenceError("backend 'tensorrt' is closed; open the model again")
        if self._failure is not None:
            raise InferenceError(f"backend 'tensorrt' failed before ({self._failure}); close it and open the model again")

    def _own_context(self) -> TensorRtContext:
        thread = threading.current_thread()
        with self._contexts_lock:
            for ended in [other for other in self._contexts if not other.is_alive()]:
                self._contexts.pop(ended).close()
            if thread not in self._contexts:
                self._contexts[thread] = TensorRtContext(self._api, self._engine, capture=self._capture)
            return self._contexts[thread]

    def _close_context(self, thread: threading.Thread) -> None:
        with self._contexts_lock:
            context = self._contexts.pop(thread, None)
        if context is not None:
            with contextlib.suppress(BackendError):  # the failure that led here is raised
                context.close()


def read_engine(path: Path) -> tuple[bytes, EngineEntry]:
    """Return an engine's bytes and its manifest entry; the bytes are those that the entry's hash was taken of.

    Raises:
        ManifestError: If the file or its manifest is missing, or the file is not the one that is listed.
    """
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"cannot read {path}: {error.strerror or error}; {rebuild_advice(path.name)}") from error
    entry = read_manifest(manifest_path(path)).engine_for(sha256_bytes(plan))
    if entry is None:
        raise ManifestError(
            f"{path} has sha256 {sha256_bytes(plan)[:12]}, {manifest_path(path).name} lists no such engine: the file is truncated, altered or from "
            f"another build; {rebuild_advice(path.name)}"
        )
    return plan, entry


def check_library(file_name: str, entry: EngineEntry, library: EngineLibrary) -> None:
    """Return if the engine was built with this very library and version: none loads the engines of another one.

    Raises:
        EngineMismatchError: If not.
    """
    if (entry.library, entry.library_version) != (library.name, library.version):
        raise EngineMismatchError(
            f"{file_name} was built with {entry.library} {entry.library_version}, this machine has {library.name} {library.version}; "
            f"{rebuild_advice(file_name)}"
        )


def check_gpu(file_name: str, entry: EngineEntry, gpu: DeviceDescription) -> None:
    """Return if the engine was built for this kind of GPU.

    Raises:
        EngineMismatchError: If not.
    """
    here = f"{gpu.compute_capability // 10}.{gpu.compute_capability % 10}"
    if here not in entry.compute_capability:
        built_for = ", ".join(entry.compute_capability) or "none"
        raise EngineMismatchError(
            f"{file_name} was built for compute capability {built_for}, this device ({gpu.name}) has {here}; {rebuild_advice(file_name)}"
        )


def _device_index(device: str | None) -> int:
    kind, _, index = (device or "cuda").lower().partition(":")
    if kind != "cuda" or (index and not (index.isascii() and index.isdecimal())):
        raise ConfigError(f"backend 'tensorrt' has no device '{device}'; use cuda or cuda:N")
    return int(index or 0)


def _cache_path(library: EngineLibrary, gpu: DeviceDescription, entry: EngineEntry) -> Path | None:
    folder = default_cache_folder()
    if folder is None:
        return None
    parts = (entry.sha256, library.name, library.version, gpu.name, str(gpu.compute_capability), gpu.driver_version)
    return folder / f"runtime-{hashlib.sha256('/'.join(parts).encode()).hexdigest()[:32]}.cache"
