"""ONNX Runtime on the CPU, or on an NVIDIA GPU when asked."""

import contextlib
import os
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from snl_runtime.backends.base import INPUT_NAME, MAP_NAME, SCORE_NAME, check_arrays, check_signature, one_line, path_or_bytes, store_outputs
from snl_runtime.backends.onnxruntime.context import OnnxRuntimeContext, load_onnxruntime, open_cuda_session
from snl_runtime.cuda import api as cuda_api
from snl_runtime.cuda.api import device_scope
from snl_runtime.errors import BackendError, BackendUnavailableError, ConfigError, InferenceError

_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
_LOG_NOTHING = 4  # errors reach the caller as exceptions; the library would print them as well


class OnnxRuntimeBackend:
    """Runs an ``.onnx`` file with ONNX Runtime."""

    name = "onnxruntime"

    def __init__(self, model_path: str | os.PathLike[str], *, device: str | None = None, threads: int | None = None) -> None:
        """Load the model.

        Args:
            model_path: The ``.onnx`` file.
            device: ``cpu`` (default), ``cuda`` or ``cuda:N``.
            threads: CPU threads for one call; None for the physical cores this process may use.

        Raises:
            BackendUnavailableError: If the package or its CUDA provider is missing.
            BackendError: If the file cannot be loaded or is another graph.
            ConfigError: If ``device`` or ``threads`` means nothing here.
        """
        self.device = device or "cpu"
        path = self._path = Path(model_path)
        self._threads = threads
        self._context: OnnxRuntimeContext | None = None
        self._failure: str | None = None
        self._closed = False
        self._session: Any = self._open_session()
        self.input_shape: tuple[int | None, int, int, int] = check_signature(
            path.name,
            {item.name: (_DTYPES.get(item.type, item.type), _fixed_sizes(item.shape)) for item in self._session.get_inputs()},
            {item.name: _DTYPES.get(item.type, item.type) for item in self._session.get_outputs()},
        )

    def infer(self, image: npt.NDArray[np.uint8], anomaly_map: npt.NDArray[np.float32], anomaly_score: npt.NDArray[np.float32]) -> None:
        """Write map and score into the caller's arrays; see ``Backend.infer``."""
        self._check_open()
        if self._session is None:
            self._session = self._open_session()
        check_arrays(self.name, self.input_shape, image, anomaly_map, anomaly_score)
        try:
            values = self._session.run([MAP_NAME, SCORE_NAME], {INPUT_NAME: np.ascontiguousarray(image)})
            outputs = dict(zip((MAP_NAME, SCORE_NAME), map(np.asarray, values), strict=True))
        except Exception as error:  # the library's exception classes share no base
            raise InferenceError(f"backend 'onnxruntime' failed on {self.device}: {one_line(error)}") from error
        store_outputs(self.name, outputs, anomaly_map, anomaly_score)

    def execution_context(self) -> contextlib.AbstractContextManager[OnnxRuntimeContext] | None:
        """Return the context of a model on a GPU, lent with the GPU current; None on the CPU. See :class:`snl_runtime.backends.base.DeviceBackend`.

        The context has a session of its own, on its own stream; that of :meth:`infer` is released first and opened again if it is ever asked for, so
        that the GPU holds the model once.
        """
        return None if self.device == "cpu" else self._lend_context()

    def close(self) -> None:
        """Release the sessions; a second call does nothing."""
        self._closed, self._session = True, None
        self._close_context()

    def __enter__(self) -> "OnnxRuntimeBackend":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: types.TracebackType | None) -> None:
        self.close()

    @contextlib.contextmanager
    def _lend_context(self) -> Iterator[OnnxRuntimeContext]:
        self._check_open()
        self._session = None
        api, index = cuda_api.load_cuda(), int(self.device.partition(":")[2] or "0")
        with device_scope(api, index):
            if self._context is None:
                _, height, width, _ = self.input_shape
                path = self._path
                self._context = OnnxRuntimeContext(
                    api, lambda stream: open_cuda_session(path, stream, device_index=index), (height, width), device_index=index
                )
            try:
                yield self._context
            except BaseException as failure:
                self._failure = one_line(failure)
                with contextlib.suppress(BackendError):  # the failure that led here is raised
                    self._close_context()
                raise

    def _open_session(self) -> Any:
        library = load_onnxruntime()
        providers, options = _providers(library, self.device), _options(library, self._threads)
        try:
            session = library.InferenceSession(path_or_bytes(self._path), sess_options=options, providers=providers)
        except Exception as error:  # the library's exception classes share no base
            raise BackendError(f"onnxruntime cannot load {self._path}: {one_line(error)}; export the model again: snl-export --ckpt x.pt") from error
        if self.device != "cpu" and session.get_providers()[0] != "CUDAExecutionProvider":  # it falls back to the CPU silently
            raise BackendUnavailableError(f"onnxruntime could not start device '{self.device}'; check the driver and CUDA, or use device cpu")
        return session

    def _close_context(self) -> None:
        context, self._context = self._context, None
        if context is not None:
            context.close()

    def _check_open(self) -> None:
        if self._closed:
            raise InferenceError("backend 'onnxruntime' is closed; open the model again")
        if self._failure is not None:
            raise InferenceError(f"backend 'onnxruntime' failed before ({self._failure}); close it and open the model again")


def _providers(library: Any, device: str) -> list[Any]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    kind, _, index = device.partition(":")
    if kind != "cuda" or (index and not index.isdecimal()):
        raise ConfigError(f"backend 'onnxruntime' has no device '{device}'; use cpu, cuda or cuda:N")
    if "CUDAExecutionProvider" not in library.get_available_providers():
        raise BackendUnavailableError("device 'cuda' needs the package onnxruntime-gpu instead of onnxruntime: pip install 'snl-edge[gpu]'")
    return [("CUDAExecutionProvider", {"device_id": index or "0"}), "CPUExecutionProvider"]


def _options(library: Any, threads: int | None) -> Any:
    if threads is not None and threads < 1:
        raise ConfigError(f"threads must be at least 1, got {threads}")
    options = library.SessionOptions()
    options.intra_op_num_threads = threads or _default_threads()
    options.inter_op_num_threads = 1
    options.execution_mode = library.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = library.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _LOG_NOTHING
    # Idle threads that spin take a core from the camera; at 10 frames/s: 0.55 instead of 0.76 CPU seconds per second, the same latency.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _default_threads() -> int:
    """Return 0, which lets the library count physical cores, unless the process is pinned to some of them."""
    if not hasattr(os, "sched_getaffinity"):
        return 0
    usable = len(os.sched_getaffinity(0))
    return 0 if usable == os.cpu_count() else usable


def _fixed_sizes(shape: list[Any]) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in shape)
