"""ONNX Runtime on an NVIDIA GPU with input and outputs in this SDK's own device memory, so that the CUDA kernels work around it without a copy.

Runs on a stream that the kernels share; used like :class:`snl_runtime.backends.tensorrt.context.TensorRtContext` by :mod:`snl_runtime.gpu.pipeline`.
"""

import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np

from snl_runtime.backends.base import INPUT_NAME, MAP_NAME, SCORE_NAME, one_line
from snl_runtime.cuda.api import CudaApi
from snl_runtime.cuda.resources import CudaStream, DeviceBuffer
from snl_runtime.errors import BackendError, InferenceError

_NAN_BYTE = 0xFF  # four of them are a float32 NaN
_FLOAT_BYTES = 4


class OnnxRuntimeContext:
    """One stream, one session and the device memory that it reads and writes; used by one thread until :meth:`close`.

    Args:
        api: CUDA, with the session's device current on this thread in every call.
        open_session: Returns an ``InferenceSession`` that runs on the stream with the given handle, see
            :func:`snl_runtime.backends.onnxruntime.session.open_session`.
        size_hw: Network size.
        device_type: What ONNX Runtime calls the memory.
        device_index: Which GPU.

    Attributes:
        stream: What the session runs on.
        image: (1, H, W, 3) uint8.
        anomaly_map: (1, 1, H, W) float32.
        anomaly_score: (1,) float32.
    """

    def __init__(
        self,
        api: CudaApi,
        open_session: Callable[[int], Any],
        size_hw: tuple[int, int],
        *,
        device_type: str = "cuda",
        device_index: int = 0,
    ) -> None:
        self._api = api
        height, width = size_hw
        self._map_bytes = _FLOAT_BYTES * height * width
        with contextlib.ExitStack() as opened:
            self.stream = opened.enter_context(CudaStream(api))
            self.image = opened.enter_context(DeviceBuffer(api, 3 * height * width))
            self.anomaly_map = opened.enter_context(DeviceBuffer(api, self._map_bytes))
            self.anomaly_score = opened.enter_context(DeviceBuffer(api, _FLOAT_BYTES))
            self._session: Any = open_session(self.stream.handle)
            self._binding: Any = self._session.io_binding()
            place = (device_type, device_index)
            self._binding.bind_input(INPUT_NAME, *place, np.uint8, (1, height, width, 3), self.image.handle)
            self._binding.bind_output(MAP_NAME, *place, np.float32, (1, 1, height, width), self.anomaly_map.handle)
            self._binding.bind_output(SCORE_NAME, *place, np.float32, (1,), self.anomaly_score.handle)
            opened.callback(self._release_session)
            opened.callback(self._drain)  # first on close: nothing may be released while the device still uses it
            self._resources = opened.pop_all()

    def run_on_device(self, count: int, bring_image: Callable[[int, CudaStream], None]) -> None:
        """Queue one run; the outputs are in the context's device buffers, in stream order, until the next run.

        Args:
            count: 1; more is refused.
            bring_image: Queues what puts the image at the given address.

        Raises:
            InferenceError: If the library or CUDA fails; the context must be closed.
        """
        if count != 1 or self._binding is None:
            raise InferenceError(f"an open ONNX Runtime context takes one image at a time, got {count}; queue them one after the other")
        bring_image(self.image.handle, self.stream)
        self._api.fill_async(self.anomaly_map.handle, _NAN_BYTE, self._map_bytes, self.stream.handle)
        self._api.fill_async(self.anomaly_score.handle, _NAN_BYTE, _FLOAT_BYTES, self.stream.handle)
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # the library's exception classes share no base
            raise InferenceError(f"backend 'onnxruntime' failed on the GPU: {one_line(error)}") from error

    def close(self) -> None:
        """Wait for the stream and release everything; a second call does nothing."""
        self._resources.close()

    def __enter__(self) -> "OnnxRuntimeContext":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _release_session(self) -> None:
        self._binding = self._session = None

    def _drain(self) -> None:
        with contextlib.suppress(BackendError):  # what failed before fails again here; releasing must go on
            self.stream.synchronize()
