"""A frame seen in views on the GPU: uploaded once, resized to the size of the merged map, cut into the batches that the engine takes.

Order on the stream: frame up, input kernels, statistics down | one cut, the engine, maps and scores down for each batch of views. The maps are merged
on the host, which waits once for each batch.
"""

import contextlib
import functools
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from snl_runtime.backends.base import ExecutionContext
from snl_runtime.cuda.api import CudaApi
from snl_runtime.cuda.buffers import GrowingBuffer, drain
from snl_runtime.cuda.resources import CudaModule, CudaStream, DeviceBuffer, PinnedBuffer
from snl_runtime.errors import InferenceError
from snl_runtime.gpu.kernels.launches import launch_cut_views, view_blocks
from snl_runtime.gpu.pipeline import DevicePreprocess
from snl_runtime.images.views import Views, merge_answers
from snl_runtime.types import AnomalyMap, ColorOrder
from snl_runtime.verdict.frame_checks import FrameStatistics

Floats = npt.NDArray[np.float32]
_COUNTER_BYTES = 4


class DeviceTiles:
    """Scores frames seen in views. One frame at a time, on one thread; memory follows the largest frame and grid.

    Args:
        api: CUDA, with the stream's device current in every call.
        kernels: Loaded kernels; outlive this object.
        stream: The engine's; outlives this object.
    """

    def __init__(self, api: CudaApi, kernels: CudaModule, stream: CudaStream) -> None:
        self._api, self._kernels, self._stream = api, kernels, stream
        self._stages: dict[tuple[int, int], DevicePreprocess] = {}
        with contextlib.ExitStack() as opened:
            self._part = opened.enter_context(GrowingBuffer(api, stream, DeviceBuffer))
            self._answers = opened.enter_context(GrowingBuffer(api, stream, PinnedBuffer))
            self._blocks_run = opened.enter_context(DeviceBuffer(api, _COUNTER_BYTES))
            opened.callback(self._close_stages)
            opened.callback(drain, stream)  # first on close: nothing may be released while the device still uses it
            self._resources = opened.pop_all()

    def score(
        self, context: ExecutionContext, part: npt.NDArray[Any], color: ColorOrder, views: Views, *, batch_size: int
    ) -> tuple[float, AnomalyMap, FrameStatistics]:
        """Return score and merged map of a frame, see :func:`snl_runtime.images.views.score_frames`, and the statistics of what was cut.

        Args:
            context: Runs the engine.
            part: The inspected part, as :func:`snl_runtime.images.preprocess.crop_frame` gives it; only that is uploaded, once.
            color: Meaning of its last axis.
            views: How it is cut; into tiles alone, the kernel reduces no whole frame.
            batch_size: Most views of one run.

        Raises:
            InferenceError: If the whole frame is among the views, or the device fails or did not cut every view; the context must be closed.
        """
        if views.with_whole_frame:
            raise InferenceError("the device cuts tiles, and the whole frame beside them was asked for; cut the views on the host")
        before = self._stage(views.map_hw)
        seen = self._part.reserve(3 * views.map_hw[0] * views.map_hw[1])
        before.enqueue(part, color, seen.handle)
        run = functools.partial(self._run, context, views, seen.handle)
        ((score, merged),) = merge_answers([views], run, batch_size=min(batch_size, context.largest_batch))
        return score, merged, before.statistics()

    def score_inputs(self, context: ExecutionContext, images: npt.NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Return scores (N,) and maps (N, H, W) of network inputs (N, H, W, 3) in one run, cut like the views of one frame from all of them in a row.

        Raises:
            InferenceError: As :meth:`score`.
        """
        count, height, width, _ = images.shape
        views = Views(map_hw=(count * height, width), view_hw=(height, width))
        seen = self._part.reserve(images.nbytes)
        self._stage(views.map_hw).enqueue(images.reshape(*views.map_hw, 3), "rgb", seen.handle)
        return self._run(context, views, seen.handle, 0, count)

    def close(self) -> None:
        """Wait for the stream and release everything; a second call does nothing."""
        self._resources.close()

    def __enter__(self) -> "DeviceTiles":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _run(self, context: ExecutionContext, views: Views, part: int, first: int, count: int) -> tuple[Floats, Floats]:
        """Cut ``count`` views, run the engine on them and wait for its answers."""
        api, stream = self._api, self._stream

        def bring(address: int, _: CudaStream) -> None:
            api.fill_async(self._blocks_run.handle, 0, _COUNTER_BYTES, stream.handle)
            blocks_run = self._blocks_run.handle
            launch_cut_views(self._kernels, views, part=part, first=first, count=count, target=address, blocks_run=blocks_run, stream=stream)

        context.run_on_device(count, bring)
        cells = count * views.view_hw[0] * views.view_hw[1]
        host = self._answers.reserve(4 * (cells + count) + _COUNTER_BYTES)
        values, blocks = host.array((cells + count,), np.float32), host.array((cells + count + 1,), np.uint32)[-1:]
        values[...], blocks[...] = np.nan, 0  # what a copy did not bring must not look like an earlier answer
        copies = ((context.anomaly_map.handle, 4 * cells), (context.anomaly_score.handle, 4 * count), (self._blocks_run.handle, _COUNTER_BYTES))
        offset = 0
        for source, byte_count in copies:
            api.copy_async(host.handle + offset, source, byte_count, "device_to_host", stream.handle)
            offset += byte_count
        stream.synchronize()
        wanted = view_blocks(views.view_hw, count)
        if int(blocks[0]) != wanted:
            raise InferenceError(f"the device cut {int(blocks[0])} of {wanted} blocks of the views; open the backend again")
        return values[cells:].copy(), values[:cells].reshape(count, *views.view_hw).copy()

    def _stage(self, map_hw: tuple[int, int]) -> DevicePreprocess:
        if map_hw not in self._stages:
            self._stages[map_hw] = DevicePreprocess(self._api, self._kernels, self._stream, map_hw)
        return self._stages[map_hw]

    def _close_stages(self) -> None:
        with contextlib.ExitStack() as closing:
            while self._stages:
                closing.callback(self._stages.popitem()[1].close)
