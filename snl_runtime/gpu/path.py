"""Frames inspected on the GPU around a backend's own context: checked against the host when it opens, one upload per frame afterwards.

Where any of it is not available or does not do as the host does, there is no device path and one line in the log; the host path stays, with every
check. A device path that worked and then fails is an ``InferenceError`` like any failure of the backend.
"""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from snl_runtime.backends.base import Backend, DeviceBackend, ExecutionContext, one_line
from snl_runtime.cuda.api import CudaApi, device_scope
from snl_runtime.cuda.arrays import DeviceView, is_device_array, view_of, wait_for_producer
from snl_runtime.cuda.buffers import drain
from snl_runtime.cuda.resources import CudaModule, CudaStream
from snl_runtime.errors import BackendError, FrameError, InferenceError
from snl_runtime.gpu.checks import check_stages
from snl_runtime.gpu.kernels import load_kernels
from snl_runtime.gpu.kernels.launches import DeviceFrame
from snl_runtime.gpu.pipeline import DeviceOutput, DevicePostprocess, DevicePreprocess, Roi, Wanted, inspect_on_device
from snl_runtime.images.preprocess import crop_frame, stored_bits
from snl_runtime.model.normalization import NormalizationMap
from snl_runtime.types import AnomalyMap, ColorOrder, OutputRequest
from snl_runtime.verdict.decision import MapSummary, summarize_map
from snl_runtime.verdict.frame_checks import FrameFormat, FrameStatistics
from snl_runtime.verdict.scored_frame import ScoredFrame

logger = logging.getLogger(__name__)


ChooseVisualizations = Callable[[ScoredFrame], OutputRequest | None]
"""What is wanted of a frame, given everything else that is known of it; None for nothing."""


def map_of(inspection: ScoredFrame) -> AnomalyMap:
    """Return the map of an inspection that was asked to keep it.

    Raises:
        InferenceError: If it did not come back.
    """
    if inspection.anomaly_map is None:
        raise InferenceError("the device gave no map though it was asked for one; open the backend again")
    return inspection.anomaly_map


def offers_context(backend: Backend) -> bool:
    """Return whether a backend's engine can work between device memory, so that frames may lie on the GPU."""
    return isinstance(backend, DeviceBackend) and backend.execution_context() is not None


def open_device_path(backend: Backend, size_hw: tuple[int, int]) -> "DevicePath | None":
    """Return a checked device path; None if the backend runs on the host or, with one line in the log, if anything on the way is missing or wrong.

    Args:
        backend: Outlives the path.
        size_hw: Network size.
    """
    try:
        if not isinstance(backend, DeviceBackend) or (opened_context := backend.execution_context()) is None:
            return None
        if backend.input_shape[0] not in (None, 1):
            raise BackendError(f"the model takes batches of {backend.input_shape[0]} only")
        with opened_context as context:
            opened = _try_open(backend, context, size_hw)  # must not raise in here: a context ends with any failure
        if isinstance(opened, DevicePath):
            return opened
        failure = opened
    except Exception as error:  # noqa: BLE001  # a backend of a third party may raise anything
        failure = error
    reason = str(failure) if isinstance(failure, BackendError) else one_line(failure)
    logger.warning("frames are prepared on the host, not on the GPU: %s", reason)
    return None


def _try_open(backend: DeviceBackend, context: ExecutionContext, size_hw: tuple[int, int]) -> "DevicePath | Exception":
    try:
        with contextlib.ExitStack() as opened:
            path = DevicePath(backend, context, size_hw)
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

    Raises:
        BackendError: If the kernels cannot be had or CUDA fails.
    """

    def __init__(self, backend: DeviceBackend, context: ExecutionContext, size_hw: tuple[int, int]) -> None:
        self._backend, self._size_hw = backend, size_hw
        self._api: CudaApi = context.stream.api
        self._device = self._api.current_device()
        self._stages = contextlib.ExitStack()
        with contextlib.ExitStack() as opened:
            self._kernels: CudaModule = opened.enter_context(load_kernels(self._api))
            opened.callback(self._close_stages)
            self._bind(context)
            self._resources = opened.pop_all()

    def inspect(
        self,
        image: object,
        *,
        color: ColorOrder,
        roi_xyxy: Roi | None,
        threshold: float,
        keep_map: bool,
        normalization: NormalizationMap | None = None,
        choose: ChooseVisualizations | None = None,
    ) -> ScoredFrame:
        """Inspect one frame, from host or device memory, with one wait at the end, and a second one for images.

        Args:
            image: Frame as captured, or an array on the GPU, see :mod:`snl_runtime.cuda.arrays`.
            color: Meaning of its last axis.
            roi_xyxy: Part of the frame to look at; only that is uploaded. None for all of it.
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

    def infer(self, image: npt.NDArray[np.uint8]) -> tuple[float, AnomalyMap]:
        """Return raw score and map of one (H, W, 3) uint8 RGB network input, on the very path that frames take.

        Raises:
            InferenceError: If the device fails; path and backend must be closed.
        """
        inspection = self.inspect(image, color="rgb", roi_xyxy=None, threshold=math.nan, keep_map=True)
        return inspection.score, map_of(inspection)

    def check(self, context: ExecutionContext) -> None:
        """Compare every stage with its definition, see :func:`snl_runtime.gpu.checks.check_stages`.

        Raises:
            BackendError: If the device gives anything else than the host would, or CUDA fails.
        """
        check_stages(self._api, context.stream, self._before, self._after, self._size_hw)

    def close(self) -> None:
        """Release everything; a second call does nothing. The backend stays open."""
        with device_scope(self._api, self._device):
            self._resources.close()

    @contextlib.contextmanager
    def _own_execution_context(self) -> Iterator[ExecutionContext]:
        opened_context = self._backend.execution_context()
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
            self._context = context
            self._stages = opened.pop_all()

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
                covered = _checked_roi(view, color, roi_xyxy)
                try:
                    statistics, output = self._inspect_view(context, view, color, covered, threshold, wanted)
                    return self._with_visualizations(statistics, output, covered, _format_of(view), wanted.normalization, choose)
                except BaseException:
                    drain(context.stream)  # the producer's memory is given back with the view
                    raise
        frame = _format_of(crop_frame(image, color, None))
        covered = roi_xyxy or (0, 0, frame.size_hw[1], frame.size_hw[0])
        statistics, output = inspect_on_device(
            context, self._before, self._after, image, color=color, roi_xyxy=covered, threshold=threshold, wanted=wanted
        )
        return self._with_visualizations(statistics, output, covered, frame, wanted.normalization, choose)

    def _with_visualizations(
        self,
        statistics: FrameStatistics,
        output: DeviceOutput,
        covered: Roi,
        frame: FrameFormat,
        normalization: NormalizationMap | None,
        choose: ChooseVisualizations | None,
    ) -> ScoredFrame:
        inspection = ScoredFrame(
            score=output.score,
            summary=_checked_summary(output, normalization),
            anomaly_map=output.anomaly_map,
            statistics=statistics,
            regions=output.regions,
            roi_xyxy=covered,
            frame=frame,
        )
        wanted = None if choose is None else choose(inspection)
        return inspection if wanted is None else dataclasses.replace(inspection, visualizations=self._after.render(wanted))

    def _inspect_view(
        self, context: ExecutionContext, view: DeviceView, color: ColorOrder, roi_xyxy: Roi, threshold: float, wanted: Wanted
    ) -> tuple[FrameStatistics, DeviceOutput]:
        frame = _frame_of(view, color, roi_xyxy)

        def bring_image(address: int, stream: CudaStream) -> None:
            wait_for_producer(self._api, view, stream)
            self._before.enqueue_device(frame, address)

        context.run_on_device(1, bring_image)
        self._after.enqueue(
            context.anomaly_map.handle, context.anomaly_score.handle, frame=frame, roi_xyxy=roi_xyxy, threshold=threshold, wanted=wanted
        )
        output = self._after.collect()
        return self._before.statistics(), output


def _checked_summary(output: DeviceOutput, normalization: NormalizationMap | None) -> MapSummary:
    """Return what the device says about its map, which must be true where the map is here."""
    summary = MapSummary(peak=output.peak, is_finite=output.is_finite, normalized_peak=output.normalized_peak)
    if output.anomaly_map is not None:
        fetched = summarize_map(output.anomaly_map, normalization)
        is_true = fetched.is_finite is summary.is_finite and (not fetched.is_finite or fetched.peak == summary.peak)
        if fetched.is_finite and fetched.normalized_peak is not None and math.isfinite(fetched.normalized_peak):
            is_true = is_true and fetched.normalized_peak == summary.normalized_peak
        if not is_true:
            raise InferenceError(f"the device says its map is {summary}, what arrived is {fetched}; open the backend again")
    return summary


def _checked_roi(view: DeviceView, color: ColorOrder, roi_xyxy: Roi | None) -> Roi:
    """Return the inspected part of a frame in device memory, which must be such a frame as the host takes."""
    if view.dtype.hasobject or not view.address or view.address % view.dtype.itemsize:
        raise FrameError(f"the device array of {view.dtype} at address {view.address:#x} is no frame; its values must be aligned")
    shape_only = np.broadcast_to(np.zeros((), view.dtype), view.shape)
    crop_frame(shape_only, color, roi_xyxy)
    return roi_xyxy or (0, 0, view.shape[1], view.shape[0])


def _format_of(frame: DeviceView | npt.NDArray[Any]) -> FrameFormat:
    return FrameFormat(size_hw=(frame.shape[0], frame.shape[1]), bit_depth=stored_bits(frame.dtype))


def _frame_of(view: DeviceView, color: ColorOrder, roi_xyxy: Roi) -> DeviceFrame:
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
