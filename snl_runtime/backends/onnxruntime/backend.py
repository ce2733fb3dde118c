"""ONNX Runtime on the CPU, or on an NVIDIA GPU when asked."""

import contextlib
import functools
import logging
import os
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from snl_runtime.backends.base import INPUT_NAME, MAP_NAME, SCORE_NAME, check_arrays, check_signature, one_line, store_outputs
from snl_runtime.backends.onnxruntime.context import OnnxRuntimeContext
from snl_runtime.backends.onnxruntime.session import device_index, open_session
from snl_runtime.cuda import api as cuda_api
from snl_runtime.cuda.api import CudaApi, device_scope
from snl_runtime.errors import BackendError, InferenceError

logger = logging.getLogger(__name__)

_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


class OnnxRuntimeBackend:
    """Runs an ``.onnx`` file with ONNX Runtime."""

    name = "onnxruntime"

    def __init__(
        self, model_path: str | os.PathLike[str], *, device: str | None = None, threads: int | None = None, cuda_graphs: bool = True
    ) -> None:
        """Load the model.

        Args:
            model_path: The ``.onnx`` file.
            device: ``cpu`` (default), ``cuda`` or ``cuda:N``.
            threads: CPU threads for one call; None for the physical cores this process may use.
            cuda_graphs: Let the execution context record CUDA graphs; where it cannot, or they answer otherwise than plain runs, it works without,
                and one line in the log says why.

        Raises:
            BackendUnavailableError: If the package or its CUDA provider is missing.
            BackendError: If the file cannot be loaded or is another graph.
            ConfigError: If ``device`` or ``threads`` means nothing here.
        """
        self.device = device or "cpu"
        path = self._path = Path(model_path)
        self._threads, self._cuda_graphs = threads, cuda_graphs
        self._context: OnnxRuntimeContext | None = None
        self._failure: str | None = None
        self._closed = False
        self._session: Any = open_session(self._path, device=self.device, threads=self._threads)
        self.input_shape: tuple[int | None, int, int, int] = check_signature(
            path.name,
            {item.name: (_DTYPES.get(item.type, item.type), _fixed_sizes(item.shape)) for item in self._session.get_inputs()},
            {item.name: _DTYPES.get(item.type, item.type) for item in self._session.get_outputs()},
        )

    def infer(self, image: npt.NDArray[np.uint8], anomaly_map: npt.NDArray[np.float32], anomaly_score: npt.NDArray[np.float32]) -> None:
        """Write map and score into the caller's arrays; see ``Backend.infer``."""
        self._check_open()
        if self._session is None:
            self._session = open_session(self._path, device=self.device, threads=self._threads)
        check_arrays(self.name, self.input_shape, image, anomaly_map, anomaly_score)
        try:
            values = self._session.run([MAP_NAME, SCORE_NAME], {INPUT_NAME: np.ascontiguousarray(image)})
            outputs = dict(zip((MAP_NAME, SCORE_NAME), map(np.asarray, values), strict=True))
        except Exception as error:  # the library's exception classes share no base
            raise InferenceError(f"backend 'onnxruntime' failed on {self.device}: {one_line(error)}") from error
        store_outputs(self.name, outputs, anomaly_map, anomaly_score)

    def execution_context(self, largest_batch: int = 1) -> contextlib.AbstractContextManager[OnnxRuntimeContext] | None:
        """Return the context of a model on a GPU, lent with the GPU current; None on the CPU. See :class:`snl_runtime.backends.base.DeviceBackend`.

        The context has a session of its own, on its own stream; that of :meth:`infer` is released first and opened again if it is ever asked for, so
        that the GPU holds the model once.
        """
        return None if self.device == "cpu" else self._lend_context(largest_batch)

    def close(self) -> None:
        """Release the sessions; a second call does nothing."""
        self._closed, self._session = True, None
        self._close_context()

    def __enter__(self) -> "OnnxRuntimeBackend":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: types.TracebackType | None) -> None:
        self.close()

    @contextlib.contextmanager
    def _lend_context(self, largest_batch: int) -> Iterator[OnnxRuntimeContext]:
        self._check_open()
        self._session = None
        api, index = cuda_api.load_cuda(), device_index(self.device)
        with device_scope(api, index):
            if self._context is None:
                self._context = self._open_context(api, index, self.input_shape[0] or largest_batch)
            try:
                yield self._context
            except BaseException as failure:
                self._failure = one_line(failure)
                with contextlib.suppress(BackendError):  # the failure that led here is raised
                    self._close_context()
                raise

    def _open_context(self, api: CudaApi, index: int, largest_batch: int) -> OnnxRuntimeContext:
        _, height, width, _ = self.input_shape

        def open_context(*, capture: bool) -> OnnxRuntimeContext:
            open_on_stream = functools.partial(self._open_on_stream, capture=capture)
            return OnnxRuntimeContext(api, open_on_stream, (height, width), largest_batch=largest_batch, capture=capture, device_index=index)

        if self._cuda_graphs:
            try:
                return open_context(capture=True)
            except BackendError as failure:
                logger.warning("%s runs without a CUDA graph: %s", self._path.name, failure)
        return open_context(capture=False)

    def _open_on_stream(self, stream: int, *, capture: bool) -> Any:
        return open_session(self._path, device=self.device, threads=self._threads, stream=stream, capture=capture)

    def _close_context(self) -> None:
        context, self._context = self._context, None
        if context is not None:
            context.close()

    def _check_open(self) -> None:
        if self._closed:
            raise InferenceError("backend 'onnxruntime' is closed; open the model again")
        if self._failure is not None:
            raise InferenceError(f"backend 'onnxruntime' failed before ({self._failure}); close it and open the model again")


def _fixed_sizes(shape: list[Any]) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in shape)
