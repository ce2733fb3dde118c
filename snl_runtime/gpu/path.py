"""Frames inspected on the GPU around a backend's own context: checked against the host when it opens, one upload per frame afterwards.

Where any of it is not available or does not do as the host does, there is no device path and one line in the log; the host path stays, with every
check. A device path that worked and then fails is an ``InferenceError`` like any failure of the backend.
"""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from snl_runtime.backends.base import Backend, DeviceBackend, ExecutionContext, one_line
from snl_runtime.cuda.api import CudaApi, device_scope
from snl_runtime.cuda.arrays import DeviceView, is_device_array, view_of, wait_for_producer
from snl_runtime.cuda.buffers import drain
from snl_runtime.cuda.resources import CudaModule, CudaStream
from snl_runtime.errors import BackendError, FrameError, InferenceError
from snl_runtime.gpu.checks import check_stages, check_views
from snl_runtime.gpu.kernels import load_kernels
from snl_runtime.gpu.kernels.launches import DeviceFrame
from snl_runtime.gpu.pipeline import DevicePostprocess, DevicePreprocess, Roi, Wanted, inspect_on_device, score_on_device
from snl_runtime.gpu.tiles import DeviceTiles
from snl_runtime.images.preprocess import CroppedFrame, FrameFormat, crop_frame
from snl_runtime.images.views import Views
from snl_runtime.model.map_factors import MapFactors
from snl_runtime.types import AnomalyMap, ColorOrder, OutputRequest
from snl_runtime.verdict.frame_checks import FrameStatistics
from snl_runtime.verdict.scored_frame import ScoredFrame

logger = logging.getLogger(__name__)


ChooseVisualizations = Callable[[ScoredFrame], OutputRequest | None]
"""What is wanted of a frame, given everything else that is known of it; None for nothing."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FrameTask:
    """One frame of several that are scored in one run.

    Attributes:
        cropped: The frame in host memory with its inspected part.
        color: Meaning of its last axis.
        threshold: Pass threshold; NaN if no decision applies.
        wanted: What comes back beside score, checks and regions.
        choose: Says, while the frame is still on the device, which images of it come back; None for none.
    """

    cropped: CroppedFrame
    color: ColorOrder
    threshold: float
    wanted: Wanted
    choose: ChooseVisualizations | None = None


def map_of(inspection: ScoredFrame) -> AnomalyMap:
    """Return the map of an inspection that was asked to keep it.

    Raises:
        InferenceError: If it did not come back.
    """
    if inspection.map.anomaly_map is None:
        raise InferenceError("the device gave no map though it was asked for one; open the backend again")
    return inspection.map.anomaly_map


def offers_context(backend: Backend) -> bool:
    """Return whether a backend's engine can work between device memory, so that frames may lie on the GPU."""
    return isinstance(backend, DeviceBackend) and backend.execution_context() is not None


def open_device_path(backend: Backend, size_hw: tuple[int, int], largest_batch: int = 1) -> "DevicePath | None":
    """Return a checked device path; None if the backend runs on the host or, with one line in the log, if anything on the way is missing or wrong.

    Args:
        backend: Outlives the path.
        size_hw: Network size.
        largest_batch: Most images of one run that anybody will ask for.
    """
    try:
        if not isinstance(backend, DeviceBackend) or (opened_context := backend.execution_context(largest_batch)) is None:
            return None
        if backend.input_shape[0] not in (None, 1):
            raise BackendError(f"the model takes batches of {backend.input_shape[0]} only")
        with opened_context as context:
            opened = _try_open(backend, context, size_hw, largest_batch)  # must not raise in here: a context ends with any failure
        if isinstance(opened, DevicePath):
            return opened
        failure = opened
    except Exception as error:  # noqa: BLE001  # a backend of a third party may raise anything
        failure = error
    reason = str(failure) if isinstance(failure, BackendError) else one_line(failure)
    logger.warning("frames are prepared on the host, not on the GPU: %s", reason)
    return None


def _try_open(backend: DeviceBackend, context: ExecutionContext, size_hw: tuple[int, int], largest_batch: int) -> "DevicePath | Exception":
    try:
        with contextlib.ExitStack() as opened:
            path = DevicePath(backend, context, size_hw, largest_batch)
            opened.callback(path.close)
            path.check(context)
            opened.pop_all()
            return path
    except Exception as failure:  # noqa: BLE001  # handed to the caller, who logs it
        return failure


class DevicePath:
    """Kernels and both stages around a backend's context. One thread at a time.

    Args:
        backend: Lends the context; outlives this object.
        context: The backend's, opened_context now.
        size_hw: Network size.
        largest_batch: Most images of one run that anybody will ask for; the engine may take fewer.

    Raises:
        BackendError: If the kernels cannot be had or CUDA fails.
    """

    def __init__(self, backend: DeviceBackend, context: ExecutionContext, size_hw: tuple[int, int], largest_batch: int = 1) -> None:
        self._backend, self._size_hw, self._asked_batch = backend, size_hw, largest_batch
        self._api: CudaApi = context.stream.api
        self._device = self._api.current_device()
        self._stages = contextlib.ExitStack()
        with contextlib.ExitStack() as opened:
            self._kernels: CudaModule = opened.enter_context(load_kernels(self._api))
            opened.callback(self._close_stages)
            self._bind(context)
            self._resources = opened.pop_all()

    @property
    def largest_batch(self) -> int:
        """Most images of one run."""
        return min(self._asked_batch, self._context.largest_batch)

    @property
    def has_graph(self) -> bool:
        """Whether the backend's context replays a CUDA graph for frames as the last one."""
        return self._context.has_graph

    def inspect(
        self,
        image: object,
        *,
        color: ColorOrder,
        roi_xyxy: Roi | None,
        threshold: float,
        keep_map: bool,
        normalization: MapFactors | None = None,
        choose: ChooseVisualizations | None = None,
    ) -> ScoredFrame:
        """Inspect one frame, from host or device memory, with one wait at the end, and a second one for images.

        Args:
            image: Frame as captured, or an array on the GPU, see :mod:`snl_runtime.cuda.arrays`; or what :func:`crop_frame` made of a frame.
            color: Meaning of its last axis.
            roi_xyxy: Part of the frame to look at; only that is uploaded. None for all of it, or what was cropped.
            threshold: Pass threshold; NaN if no decision applies.
            keep_map: Bring the raw map back, too.
            normalization: What the map is multiplied with before regions and images are made of it; uploaded with the first frame.
            choose: Says, while the frame is still on the device, which images of it come back; None for none.

        Raises:
            FrameError: If the frame cannot be used; the path goes on.
            InferenceError: If the device fails; path and backend must be closed.
        """
        with self._own_execution_context() as context:
            try:
                return self._inspect(context, image, color, roi_xyxy, threshold, Wanted(anomaly_map=keep_map, normalization=normalization), choose)
            except FrameError as fault:  # nothing was queued for it: the context must not end
                unusable = fault
        raise unusable

    def inspect_batch(self, tasks: Sequence[FrameTask]) -> list[ScoredFrame]:
        """Inspect 1 to :attr:`largest_batch` frames from host memory: an upload for each, one run of the engine, then one frame after the other.

        Raises:
            InferenceError: If the device fails; path and backend must be closed.
        """
        height, width = self._size_hw
        parts: list[DeviceFrame] = []
        with self._own_execution_context() as context:
            slots = [self._slot(number) for number in range(len(tasks))]

            def bring(address: int, _: CudaStream) -> None:
                for number, (slot, task) in enumerate(zip(slots, tasks, strict=True)):
                    parts.append(slot.enqueue(task.cropped.part, task.color, address + number * 3 * height * width))

            context.run_on_device(len(tasks), bring)
            seen: list[ScoredFrame] = []
            for number, (slot, task) in enumerate(zip(slots, tasks, strict=True)):
                anomaly_map, roi_xyxy = context.anomaly_map.handle + number * 4 * height * width, task.cropped.roi_xyxy
                score = context.anomaly_score.handle + number * 4
                self._after.enqueue(anomaly_map, score, frame=parts[number], roi_xyxy=roi_xyxy, threshold=task.threshold, wanted=task.wanted)
                scored = self._after.collect()
                frame = ScoredFrame(map=scored, statistics=slot.statistics(), roi_xyxy=roi_xyxy, frame=task.cropped.format)
                seen.append(self._with_visualizations(frame, task.choose))
            return seen

    def inspect_tiles(self, part: npt.NDArray[Any], color: ColorOrder, views: Views, *, batch_size: int) -> tuple[float, AnomalyMap, FrameStatistics]:
        """Return raw score, merged map and statistics of one frame seen in views, from one upload; see :class:`snl_runtime.gpu.tiles.DeviceTiles`.

        Args:
            part: The inspected part in host memory, as :func:`crop_frame` gives it.
            color: Meaning of its last axis.
            views: How it is cut.
            batch_size: Most views of one run, at most :attr:`largest_batch`.

        Raises:
            InferenceError: If the device fails; path and backend must be closed.
        """
        with self._own_execution_context() as context:
            return self._tiles.score(context, part, color, views, batch_size=batch_size)

    def infer(self, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return raw scores (N,) and maps (N, H, W) of (N, H, W, 3) uint8 RGB network inputs, on the very path that frames take.

        Raises:
            InferenceError: If the device fails; path and backend must be closed.
        """
        everything = Wanted(anomaly_map=True)
        tasks = [FrameTask(cropped=crop_frame(image, "rgb", None), color="rgb", threshold=math.nan, wanted=everything) for image in images]
        seen = self.inspect_batch(tasks)
        return np.array([each.map.score for each in seen], np.float32), np.stack([map_of(each) for each in seen])

    def infer_tiles(self, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return what :meth:`infer` does, on the path that tiles take.

        Raises:
            InferenceError: If the device fails; path and backend must be closed.
        """
        with self._own_execution_context() as context:
            return self._tiles.score_inputs(context, images)

    def check(self, context: ExecutionContext) -> None:
        """Compare every stage with its definition, see :mod:`snl_runtime.gpu.checks`.

        Raises:
            BackendError: If the device gives anything else than the host would, or CUDA fails.
        """
        check_stages(self._api, context.stream, self._before, self._after, self._size_hw)
        check_views(self._api, self._kernels, context.stream, self._size_hw)

    def close(self) -> None:
        """Release everything; a second call does nothing. The backend stays open."""
        with device_scope(self._api, self._device):
            self._resources.close()

    @contextlib.contextmanager
    def _own_execution_context(self) -> Iterator[ExecutionContext]:
        opened_context = self._backend.execution_context(self._asked_batch)
        if opened_context is None:
            raise InferenceError("the backend lends its context no more; open the model again")
        with opened_context as context:
            if context is not self._context:  # another thread has another context
                self._close_stages()
                self._bind(context)
            yield context

    def _bind(self, context: ExecutionContext) -> None:
        with contextlib.ExitStack() as opened:
            self._before = opened.enter_context(DevicePreprocess(self._api, self._kernels, context.stream, self._size_hw))
            self._after = opened.enter_context(DevicePostprocess(self._api, self._kernels, context.stream, self._size_hw))
            self._tiles = opened.enter_context(DeviceTiles(self._api, self._kernels, context.stream))
            self._context, self._slots = context, [self._before]
            self._stages = opened.pop_all()

    def _slot(self, number: int) -> DevicePreprocess:
        """Return what prepares the frame of this number in a batch: its own upload and frame, so that no frame takes another's place."""
        while len(self._slots) <= number:
            slot = DevicePreprocess(self._api, self._kernels, self._context.stream, self._size_hw)
            self._slots.append(self._stages.enter_context(slot))
        return self._slots[number]

    def _close_stages(self) -> None:
        self._stages.close()

    def _inspect(
        self,
        context: ExecutionContext,
        image: object,
        color: ColorOrder,
        roi_xyxy: Roi | None,
        threshold: float,
        wanted: Wanted,
        choose: ChooseVisualizations | None,
    ) -> ScoredFrame:
        if is_device_array(image):
            with view_of(image, stream=context.stream.handle) as view:
                covered, frame = _checked_view(view, color, roi_xyxy)
                try:
                    return self._with_visualizations(self._inspect_view(context, view, color, covered, frame, threshold, wanted), choose)
                except BaseException:
                    drain(context.stream)  # the producer's memory is given back with the view
                    raise
        seen = inspect_on_device(context, self._before, self._after, image, color=color, roi_xyxy=roi_xyxy, threshold=threshold, wanted=wanted)
        return self._with_visualizations(seen, choose)

    def _with_visualizations(self, seen: ScoredFrame, choose: ChooseVisualizations | None) -> ScoredFrame:
        wanted = None if choose is None else choose(seen)
        return seen if wanted is None else dataclasses.replace(seen, visualizations=self._after.render(wanted))

    def _inspect_view(
        self, context: ExecutionContext, view: DeviceView, color: ColorOrder, covered: Roi, frame: FrameFormat, threshold: float, wanted: Wanted
    ) -> ScoredFrame:
        part = _part_of(view, color, covered)

        def bring(address: int, stream: CudaStream) -> DeviceFrame:
            wait_for_producer(self._api, view, stream)
            self._before.enqueue_device(part, address)
            return part

        return score_on_device(context, self._before, self._after, bring, roi_xyxy=covered, frame=frame, threshold=threshold, wanted=wanted)


def _checked_view(view: DeviceView, color: ColorOrder, roi_xyxy: Roi | None) -> tuple[Roi, FrameFormat]:
    """Return inspected part and format of a frame in device memory, which must be such a frame as the host takes."""
    if view.dtype.hasobject or not view.address or view.address % view.dtype.itemsize:
        raise FrameError(f"the device array of {view.dtype} at address {view.address:#x} is no frame; its values must be aligned")
    shape_only = crop_frame(np.broadcast_to(np.zeros((), view.dtype), view.shape), color, roi_xyxy)
    return shape_only.roi_xyxy, shape_only.format


def _part_of(view: DeviceView, color: ColorOrder, roi_xyxy: Roi) -> DeviceFrame:
    left, top, right, bottom = roi_xyxy
    pixel_bytes = view.dtype.itemsize * (view.shape[2] if len(view.shape) == 3 else 1)
    pitch_bytes = view.shape[1] * pixel_bytes
    return DeviceFrame(
        address=view.address + top * pitch_bytes + left * pixel_bytes,
        pitch_bytes=pitch_bytes,
        size_hw=(bottom - top, right - left),
        color=color,
        is_16_bit=view.dtype == np.uint16,
    )
