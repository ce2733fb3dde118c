"""ONNX Runtime on an NVIDIA GPU with input and outputs in this SDK's own device memory, so that the CUDA kernels work around it without a copy.

Runs on a stream that the kernels share; used like :class:`snl_runtime.backends.tensorrt.context.TensorRtContext` by :mod:`snl_runtime.gpu.pipeline`.
"""

import contextlib
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import numpy as np

from snl_runtime.backends.base import INPUT_NAME, MAP_NAME, SCORE_NAME, one_line
from snl_runtime.backends.onnxruntime.capture import Answer, Images, record_and_check, recorded_batches
from snl_runtime.backends.onnxruntime.session import graph_run_options
from snl_runtime.cuda.api import CudaApi
from snl_runtime.cuda.resources import CudaStream, DeviceBuffer, PinnedBuffer
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
        largest_batch: Most images of one run.
        capture: The session records CUDA graphs: for one image and for ``largest_batch``, on this thread, compared with plain runs before this
            returns. Other numbers of images, and other threads, run without.
        device_type: What ONNX Runtime calls the memory.
        device_index: Which GPU.

    Raises:
        BackendError: If the session cannot be opened, CUDA fails, or a graph does not answer as a plain run does.

    Attributes:
        stream: What the session runs on.
        image: (N, H, W, 3) uint8.
        anomaly_map: (N, 1, H, W) float32.
        anomaly_score: (N,) float32.
        largest_batch: N.
    """

    def __init__(
        self,
        api: CudaApi,
        open_session: Callable[[int], Any],
        size_hw: tuple[int, int],
        *,
        largest_batch: int = 1,
        capture: bool = False,
        device_type: str = "cuda",
        device_index: int = 0,
    ) -> None:
        self._api, self._size_hw, self.largest_batch = api, size_hw, largest_batch
        self._place = (device_type, device_index)
        self._bindings: dict[int, Any] = {}
        self._graphs: Mapping[int, Any] = {}
        self._plain: Any = None
        self._thread = threading.get_ident()
        pixels = largest_batch * size_hw[0] * size_hw[1]
        with contextlib.ExitStack() as opened:
            self.stream = opened.enter_context(CudaStream(api))
            self.image = opened.enter_context(DeviceBuffer(api, 3 * pixels))
            self.anomaly_map = opened.enter_context(DeviceBuffer(api, _FLOAT_BYTES * pixels))
            self.anomaly_score = opened.enter_context(DeviceBuffer(api, _FLOAT_BYTES * largest_batch))
            self._session: Any = open_session(self.stream.handle)
            opened.callback(self._release_session)
            opened.callback(self._drain)  # first on close: nothing may be released while the device still uses it
            self._bind(1)
            if capture:
                self._record()
            self._has_graph = capture
            self._resources = opened.pop_all()

    @property
    def has_graph(self) -> bool:
        """Whether runs as the last one, of one image before the first, replay a CUDA graph."""
        return self._has_graph

    def run_on_device(self, count: int, bring_image: Callable[[int, CudaStream], None]) -> None:
        """Queue one run; the outputs are in the context's device buffers, in stream order, until the next run.

        Args:
            count: Images, 1 to ``largest_batch``.
            bring_image: Queues what puts them, one after the other, at the given address.

        Raises:
            InferenceError: If the library or CUDA fails; the context must be closed.
        """
        if not 1 <= count <= self.largest_batch or self._session is None:
            raise InferenceError(f"an open ONNX Runtime context takes 1 to {self.largest_batch} images at a time here, got {count}; queue fewer")
        bring_image(self.image.handle, self.stream)
        options = self._graphs.get(count, self._plain) if threading.get_ident() == self._thread else self._plain
        self._has_graph = options is not self._plain
        self._run(count, options)

    def close(self) -> None:
        """Wait for the stream and release everything; a second call does nothing."""
        self._resources.close()

    def __enter__(self) -> "OnnxRuntimeContext":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _run(self, count: int, options: Any) -> None:
        height, width = self._size_hw
        self._api.fill_async(self.anomaly_map.handle, _NAN_BYTE, _FLOAT_BYTES * count * height * width, self.stream.handle)
        self._api.fill_async(self.anomaly_score.handle, _NAN_BYTE, _FLOAT_BYTES * count, self.stream.handle)
        binding = self._bind(count)
        try:
            self._session.run_with_iobinding(binding, *([] if options is None else [options]))
        except Exception as error:  # the library's exception classes share no base
            raise InferenceError(f"backend 'onnxruntime' failed on the GPU: {one_line(error)}") from error

    def _bind(self, count: int) -> Any:
        """Return what tells the session where a run of ``count`` images reads and writes; the same addresses for every run."""
        if count not in self._bindings:
            height, width = self._size_hw
            binding = self._session.io_binding()
            binding.bind_input(INPUT_NAME, *self._place, np.uint8, (count, height, width, 3), self.image.handle)
            binding.bind_output(MAP_NAME, *self._place, np.float32, (count, 1, height, width), self.anomaly_map.handle)
            binding.bind_output(SCORE_NAME, *self._place, np.float32, (count,), self.anomaly_score.handle)
            self._bindings[count] = binding
        return self._bindings[count]

    def _record(self) -> None:
        """Record a graph for each number of images that gets one; all are compared again at the end, because they share the library's memory."""
        self._plain = graph_run_options(None)
        graphs = {count: graph_run_options(count) for count in recorded_batches(self.largest_batch)}
        byte_count = (3 + _FLOAT_BYTES) * self.image.byte_count // 3 + _FLOAT_BYTES * self.largest_batch
        with PinnedBuffer(self._api, byte_count) as host:
            try:
                for count in [*graphs, *graphs]:
                    record_and_check(self._scored_with(self._plain, host), self._scored_with(graphs[count], host), count, self._size_hw)
            finally:
                self._drain()  # the pinned memory may not go while a copy is on its way
        self._graphs = graphs

    def _scored_with(self, options: Any, host: PinnedBuffer) -> Callable[[Images], Answer]:
        def score(images: Images) -> Answer:
            count, stream = len(images), self.stream.handle
            host.array(images.shape, np.uint8)[...] = images
            self._api.copy_async(self.image.handle, host.handle, images.nbytes, "host_to_device", stream)
            self._run(count, options)
            self.stream.synchronize()
            cells = count * self._size_hw[0] * self._size_hw[1]
            values = host.array((cells + count,), np.float32)
            values[...] = np.nan
            self._api.copy_async(host.handle, self.anomaly_map.handle, _FLOAT_BYTES * cells, "device_to_host", stream)
            self._api.copy_async(host.handle + _FLOAT_BYTES * cells, self.anomaly_score.handle, _FLOAT_BYTES * count, "device_to_host", stream)
            self.stream.synchronize()
            return values[:cells].reshape(count, *self._size_hw).copy(), values[cells:].copy()

        return score

    def _release_session(self) -> None:
        self._bindings.clear()
        self._graphs, self._session = {}, None

    def _drain(self) -> None:
        with contextlib.suppress(BackendError):  # what failed before fails again here; releasing must go on
            self.stream.synchronize()
