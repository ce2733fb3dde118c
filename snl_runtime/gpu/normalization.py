"""A product's normalization map and ignore mask on the GPU, as one factor per cell: uploaded once, applied to every map where it lies, while the
checks of the raw output stay on the raw map.
"""

import contextlib
import math
from types import TracebackType

import numpy as np

from snl_runtime.cuda.api import CudaApi
from snl_runtime.cuda.buffers import drain, upload
from snl_runtime.cuda.resources import CudaModule, CudaStream, DeviceBuffer, PinnedBuffer
from snl_runtime.errors import InferenceError
from snl_runtime.gpu.kernels.launches import STATISTICS_WORDS, launch_map_statistics, launch_normalization, read_map_statistics
from snl_runtime.model.map_factors import MapFactors
from snl_runtime.verdict.decision import MapSummary

_NAN_BYTE = 0xFF
"""Four of them are a float32 NaN."""


class DeviceNormalization:
    """Applies normalization maps on the device. One frame at a time, on one thread.

    Args:
        api: CUDA, with the stream's device current in every call.
        kernels: Loaded kernels; outlive this object.
        stream: The engine's; outlives this object and is idle when it is closed.
        map_hw: Size of the engine's map.
    """

    def __init__(self, api: CudaApi, kernels: CudaModule, stream: CudaStream, map_hw: tuple[int, int]) -> None:
        self._api, self._kernels, self._stream, self._map_hw = api, kernels, stream, map_hw
        self._uploaded: dict[MapFactors, DeviceBuffer] = {}
        with contextlib.ExitStack() as opened:
            self._statistics = opened.enter_context(DeviceBuffer(api, 4 * STATISTICS_WORDS))
            self._host_statistics = opened.enter_context(PinnedBuffer(api, 4 * STATISTICS_WORDS))
            self._normalized = opened.enter_context(DeviceBuffer(api, 4 * map_hw[0] * map_hw[1]))
            self._no_score = opened.enter_context(DeviceBuffer(api, 4))
            api.fill_async(self._no_score.handle, _NAN_BYTE, 4, stream.handle)
            opened.callback(drain, stream)
            self._resources = opened.pop_all()

    @property
    def no_score(self) -> int:
        """Device address of a NaN: the graph's score belongs to the raw map, the normalized one is judged by its peak alone."""
        return self._no_score.handle

    def enqueue(self, anomaly_map: int, normalization: MapFactors) -> int:
        """Queue the checks of a raw map and its normalized map; the first frame of a product uploads its normalization map and waits for that.

        Args:
            anomaly_map: Device address of the raw map.
            normalization: Of its size.

        Returns:
            Device address of the normalized map, valid until the next frame. What the kernel does not write is NaN, so no earlier map can stand for
            it.

        Raises:
            InferenceError: If CUDA fails, or the normalization map is of another size or does not arrive.
        """
        api, stream, cells = self._api, self._stream.handle, self._map_hw[0] * self._map_hw[1]
        factors = self._uploaded.get(normalization) or self._upload(normalization)
        self._host_statistics.array((STATISTICS_WORDS,), np.uint32)[...] = 0  # a copy that did not run then looked at no cell
        api.fill_async(self._statistics.handle, 0, self._statistics.byte_count, stream)
        launch_map_statistics(self._kernels, anomaly_map=anomaly_map, cells=cells, statistics=self._statistics.handle, stream=self._stream)
        api.copy_async(self._host_statistics.handle, self._statistics.handle, self._statistics.byte_count, "device_to_host", stream)
        api.fill_async(self._normalized.handle, _NAN_BYTE, self._normalized.byte_count, stream)
        launch_normalization(
            self._kernels, anomaly_map=anomaly_map, normalization=factors.handle, cells=cells, normalized=self._normalized.handle, stream=self._stream
        )
        return self._normalized.handle

    def raw_summary(self) -> MapSummary:
        """Return what is known of the raw map queued last, once the stream has passed it.

        Raises:
            InferenceError: If the device did not look at every cell.
        """
        cells = self._map_hw[0] * self._map_hw[1]
        peak, non_finite, seen = read_map_statistics(self._host_statistics.array((STATISTICS_WORDS,), np.uint32))
        if seen != cells:
            raise InferenceError(f"the device looked at {seen} of {cells} cells of the raw map; open the backend again")
        return MapSummary(peak=peak, is_finite=non_finite == 0 and not math.isnan(peak))

    def close(self) -> None:
        """Release everything; a second call does nothing."""
        self._uploaded.clear()
        self._resources.close()

    def __enter__(self) -> "DeviceNormalization":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _upload(self, normalization: MapFactors) -> DeviceBuffer:
        if normalization.size_hw != self._map_hw:
            raise InferenceError(
                f"the normalization map or ignore mask has {normalization.size_hw} cells, the engine's map {self._map_hw}; calibrate this model again"
            )
        buffer = upload(normalization.values, "a normalization map or ignore mask", self._stream, self._resources)
        self._uploaded[normalization] = buffer
        return buffer
