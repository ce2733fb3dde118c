"""Frame -> network input and map -> frame on the GPU, around the engine and on its stream.

One frame costs one upload; the map stays on the device, and only the score, the checks, the regions and what was asked for come back. Order on the
stream: frame up, input kernels, statistics down | engine | map kernels, report down, what was asked for down. Nothing in here waits but
:meth:`DevicePostprocess.collect` and :meth:`DevicePostprocess.render`, which draws a frame once its verdict is known.
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from snl_runtime.backends.base import ExecutionContext
from snl_runtime.cuda.api import CudaApi
from snl_runtime.cuda.buffers import GrowingBuffer, drain
from snl_runtime.cuda.resources import CudaModule, CudaStream, DeviceBuffer, PinnedBuffer
from snl_runtime.errors import InferenceError
from snl_runtime.gpu.kernels.launches import (
    REPORT_WORDS,
    SUMS_COUNT,
    DeviceFrame,
    MapReport,
    RegionScratch,
    launch_frame_to_input,
    launch_input_sums,
    launch_regions,
    read_frame_statistics,
    read_map_report,
    rows_bytes,
)
from snl_runtime.gpu.normalization import DeviceNormalization
from snl_runtime.gpu.render import DeviceRenderer
from snl_runtime.images.frame_outputs import Visualizations
from snl_runtime.images.preprocess import CroppedFrame, FrameFormat, crop_frame
from snl_runtime.model.map_factors import MapFactors
from snl_runtime.types import AnomalyMap, AnomalyRegion, ColorOrder, OutputRequest
from snl_runtime.verdict.decision import MapSummary, summarize_map
from snl_runtime.verdict.frame_checks import FrameStatistics
from snl_runtime.verdict.regions import find_regions
from snl_runtime.verdict.scored_frame import ScoredFrame, ScoredMap

Roi = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What comes back beside score, checks and regions, and of which map."""

    anomaly_map: bool = False
    """The map at network resolution, 4 bytes a cell."""
    normalization: MapFactors | None = None
    """What the map is multiplied with before regions and images are made of it; checks and ``anomaly_map`` stay raw."""


def inspect_on_device(  # noqa: PLR0913 - the two stages, the engine between them, and the arguments of one frame
    context: ExecutionContext,
    before: "DevicePreprocess",
    after: "DevicePostprocess",
    image: object,
    *,
    color: ColorOrder,
    roi_xyxy: Roi | None,
    threshold: float,
    wanted: Wanted | None = None,
) -> ScoredFrame:
    """Run one frame from host memory to regions, see :func:`score_on_device`; what was cropped before is taken as it is.

    Raises:
        FrameError: If the frame cannot be used; nothing was queued then.
        InferenceError: If the device fails; the context must be closed.
    """
    # An unusable frame must not reach a context, which ends with any failure.
    cropped = image if isinstance(image, CroppedFrame) else crop_frame(image, color, roi_xyxy)

    def bring(address: int, _: CudaStream) -> DeviceFrame:
        return before.enqueue(cropped.part, color, address)

    return score_on_device(context, before, after, bring, roi_xyxy=cropped.roi_xyxy, frame=cropped.format, threshold=threshold, wanted=wanted)


def score_on_device(  # noqa: PLR0913 - the two stages, the engine between them, and the arguments of one frame
    context: ExecutionContext,
    before: "DevicePreprocess",
    after: "DevicePostprocess",
    bring: Callable[[int, CudaStream], DeviceFrame],
    *,
    roi_xyxy: Roi,
    frame: FrameFormat,
    threshold: float,
    wanted: Wanted | None = None,
) -> ScoredFrame:
    """Run one frame to its regions on one stream, with one wait at the end.

    Args:
        context: Runs the engine; both stages use its stream.
        before: Makes its input.
        after: Takes its outputs.
        bring: Queues the inspected part of the frame and the engine's input at an address on a stream, and returns where that part lies.
        roi_xyxy: That part, frame pixels.
        frame: Size and bit depth of the whole frame.
        threshold: Pass threshold; NaN if no decision applies.
        wanted: What comes back beside score, checks and regions.

    Raises:
        InferenceError: If the device fails; the context must be closed.
    """
    brought: list[DeviceFrame] = []
    context.run_on_device(1, lambda address, stream: brought.append(bring(address, stream)))
    score = context.anomaly_score.handle
    after.enqueue(context.anomaly_map.handle, score, frame=brought[0], roi_xyxy=roi_xyxy, threshold=threshold, wanted=wanted)
    return ScoredFrame(map=after.collect(), statistics=before.statistics(), roi_xyxy=roi_xyxy, frame=frame)


class DevicePreprocess:
    """Takes frames to the device and makes the network's input there. One frame at a time, on one thread.

    Args:
        api: CUDA, with the stream's device current in every call.
        kernels: Loaded kernels; outlive this object.
        stream: The engine's; outlives this object.
        size_hw: Network size.
    """

    def __init__(self, api: CudaApi, kernels: CudaModule, stream: CudaStream, size_hw: tuple[int, int]) -> None:
        self._api, self._kernels, self._stream, self._size_hw = api, kernels, stream, size_hw
        with contextlib.ExitStack() as opened:
            self._sums = opened.enter_context(DeviceBuffer(api, 8 * SUMS_COUNT))
            self._host_sums = opened.enter_context(PinnedBuffer(api, 8 * SUMS_COUNT))
            self._staging = opened.enter_context(GrowingBuffer(api, stream, PinnedBuffer))
            self._frame = opened.enter_context(GrowingBuffer(api, stream, DeviceBuffer))
            self._rows = opened.enter_context(GrowingBuffer(api, stream, DeviceBuffer))
            opened.callback(drain, stream)  # first on close: nothing may be released while the device still uses it
            self._resources = opened.pop_all()

    def enqueue(self, part: npt.NDArray[Any], color: ColorOrder, target: int) -> DeviceFrame:
        """Queue everything from a frame in host memory to the network's input; the frame may be changed as soon as this returns.

        Args:
            part: The inspected part, see :class:`snl_runtime.images.preprocess.CroppedFrame`; only that is uploaded.
            color: Meaning of its last axis.
            target: Device address of (height, width, 3) uint8.

        Returns:
            That part on the device, valid until the next frame.

        Raises:
            InferenceError: If CUDA fails.
        """
        frame = self._upload(part, color)
        self.enqueue_device(frame, target)
        return frame

    def enqueue_device(self, frame: DeviceFrame, target: int) -> None:
        """Queue everything from a frame that is on the device already, and in stream order, to the network's input."""
        stream = self._stream.handle
        rows = self._rows.reserve(rows_bytes(frame.size_hw, frame.planes, self._size_hw))
        self._host_sums.array((SUMS_COUNT,), np.uint64)[...] = 0  # a copy that did not run then counts no pixels
        launch_frame_to_input(self._kernels, frame, rows=rows.handle, target=target, size_hw=self._size_hw, stream=self._stream)
        self._api.fill_async(self._sums.handle, 0, self._sums.byte_count, stream)
        launch_input_sums(self._kernels, source=target, size_hw=self._size_hw, sums=self._sums.handle, stream=self._stream)
        self._api.copy_async(self._host_sums.handle, self._sums.handle, self._sums.byte_count, "device_to_host", stream)

    def statistics(self) -> FrameStatistics:
        """Return the statistics of the last input, once the stream has passed it.

        Raises:
            InferenceError: If the device did not count every pixel.
        """
        statistics, pixels = read_frame_statistics(self._host_sums.array((SUMS_COUNT,), np.uint64))
        if pixels != self._size_hw[0] * self._size_hw[1]:
            raise InferenceError(f"the device counted {pixels} of {self._size_hw[0] * self._size_hw[1]} input pixels; open the backend again")
        return statistics

    def close(self) -> None:
        """Wait for the stream and release everything; a second call does nothing."""
        self._resources.close()

    def __enter__(self) -> "DevicePreprocess":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _upload(self, crop: npt.NDArray[Any], color: ColorOrder) -> DeviceFrame:
        staging, device = self._staging.reserve(crop.nbytes), self._frame.reserve(crop.nbytes)
        staging.array(crop.shape, crop.dtype)[...] = crop
        self._api.copy_async(device.handle, staging.handle, crop.nbytes, "host_to_device", self._stream.handle)
        height, width, channels = crop.shape
        return DeviceFrame(
            address=device.handle,
            pitch_bytes=width * channels * crop.itemsize,
            size_hw=(height, width),
            color=color,
            is_16_bit=crop.dtype == np.uint16,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pending:
    """What was queued for one frame; ``judged_map`` is the normalized map where there is a normalization, else the raw one."""

    judged_map: int
    frame: DeviceFrame
    threshold: float
    roi_xyxy: Roi
    wanted: Wanted

    @property
    def frame_hw(self) -> tuple[int, int]:
        left, top, right, bottom = self.roi_xyxy
        return bottom - top, right - left


class DevicePostprocess:
    """Checks a map on the device, measures its regions and brings it to the frame. One frame at a time, on one thread.

    Args:
        api: CUDA, with the stream's device current in every call.
        kernels: Loaded kernels; outlive this object.
        stream: The engine's; outlives this object.
        map_hw: Size of the engine's map.
    """

    def __init__(self, api: CudaApi, kernels: CudaModule, stream: CudaStream, map_hw: tuple[int, int]) -> None:
        self._api, self._kernels, self._stream, self._map_hw = api, kernels, stream, map_hw
        self._pending: _Pending | None = None
        self._shown: _Pending | None = None
        self._map_bytes = 4 * map_hw[0] * map_hw[1]
        with contextlib.ExitStack() as opened:
            self._report = opened.enter_context(DeviceBuffer(api, 4 * REPORT_WORDS))
            self._labels = opened.enter_context(DeviceBuffer(api, self._map_bytes))
            self._numbers = opened.enter_context(DeviceBuffer(api, self._map_bytes))
            self._host_report = opened.enter_context(PinnedBuffer(api, 4 * REPORT_WORDS))
            self._host_score = opened.enter_context(PinnedBuffer(api, 4))
            self._host_map = opened.enter_context(PinnedBuffer(api, self._map_bytes))
            self._renderer = opened.enter_context(DeviceRenderer(api, kernels, stream, map_hw))
            self._normalization = opened.enter_context(DeviceNormalization(api, kernels, stream, map_hw))
            opened.callback(drain, stream)  # first on close: nothing may be released while the device still uses it
            self._resources = opened.pop_all()

    def enqueue(
        self, anomaly_map: int, anomaly_score: int, *, frame: DeviceFrame, roi_xyxy: Roi, threshold: float, wanted: Wanted | None = None
    ) -> None:
        """Queue everything that follows the engine.

        Args:
            anomaly_map: Device address of the engine's map, unchanged until :meth:`collect`, and :meth:`render` if it follows, return.
            anomaly_score: Device address of its score.
            frame: The inspected part on the device, unchanged just as long.
            roi_xyxy: Where that part lies in the frame, frame pixels.
            threshold: Pass threshold; NaN if no decision applies, then there are no regions, no mask and no heat.
            wanted: What comes back beside score, checks and regions.

        Raises:
            InferenceError: If CUDA fails or ``frame`` has another size than ``roi_xyxy``.
        """
        pending = _Pending(judged_map=anomaly_map, frame=frame, threshold=threshold, roi_xyxy=roi_xyxy, wanted=wanted or Wanted())
        if frame.size_hw != pending.frame_hw:
            raise InferenceError(f"the frame on the device has {frame.size_hw} pixels (height, width), its ROI {roi_xyxy} has {pending.frame_hw}")
        self._pending = self._shown = None  # until everything below is queued
        api, stream = self._api, self._stream.handle
        self._host_report.array((REPORT_WORDS,), np.uint32)[...] = 0  # a copy that did not run then looked at no cell
        self._host_score.array((1,), np.float32)[...] = np.nan
        api.fill_async(self._report.handle, 0, self._report.byte_count, stream)
        judged_score = anomaly_score
        if pending.wanted.normalization is not None:
            pending = replace(pending, judged_map=self._normalization.enqueue(anomaly_map, pending.wanted.normalization))
            judged_score = self._normalization.no_score
        scratch = RegionScratch(report=self._report.handle, labels=self._labels.handle, numbers=self._numbers.handle)
        launch_regions(
            self._kernels,
            anomaly_map=pending.judged_map,
            map_hw=self._map_hw,
            score=judged_score,
            threshold=threshold,
            scratch=scratch,
            stream=self._stream,
        )
        api.copy_async(self._host_report.handle, self._report.handle, self._report.byte_count, "device_to_host", stream)
        api.copy_async(self._host_score.handle, anomaly_score, 4, "device_to_host", stream)
        if pending.wanted.anomaly_map:
            self._host_map.array(self._map_hw, np.float32)[...] = np.nan  # part of an earlier map must not look like this one
            api.copy_async(self._host_map.handle, anomaly_map, self._map_bytes, "device_to_host", stream)
        self._pending = pending

    def collect(self) -> ScoredMap:
        """Wait for the stream and return what was queued.

        Raises:
            InferenceError: If anything on the stream failed, nothing was queued, the device did not look at every cell of the map, or it says of a
                map that came back what is not true.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            raise InferenceError("there is no frame on the device to collect; queue one first")
        self._stream.synchronize()
        report = read_map_report(self._host_report.array((REPORT_WORDS,), np.uint32), self._map_hw, pending.roi_xyxy)
        cells = self._map_hw[0] * self._map_hw[1]
        if report.cells != cells:
            raise InferenceError(f"the device looked at {report.cells} of {cells} cells of the map; open the backend again")
        score = float(self._host_score.array((1,), np.float32)[0])
        judged = MapSummary(peak=report.peak, is_finite=report.non_finite == 0)
        raw = judged if pending.wanted.normalization is None else self._normalization.raw_summary()
        anomaly_map = self._host_map.array(self._map_hw, np.float32).copy() if pending.wanted.anomaly_map else None  # before regions reuse it
        regions = self._regions(report, score if raw is judged else report.peak, pending)
        summary = raw if raw is judged else replace(raw, normalized_peak=judged.peak if judged.is_finite else math.nan)
        if anomaly_map is not None:
            summary = _checked_summary(summary, anomaly_map, pending.wanted.normalization)
        self._shown = pending
        return ScoredMap(score=score, anomaly_map=anomaly_map, summary=summary, regions=regions)

    def render(self, wanted: OutputRequest) -> Visualizations:
        """Wait for images of the frame that was collected last; frame and map must still be where they were queued.

        Args:
            wanted: What to make and download, at least one.

        Raises:
            InferenceError: If anything on the stream failed, no frame was collected, or the device did not draw all of it.
        """
        shown = self._shown
        if shown is None:
            raise InferenceError("there is no inspected frame on the device to draw; inspect one first")
        self._renderer.enqueue(shown.judged_map, frame=shown.frame, threshold=shown.threshold, wanted=wanted)
        self._stream.synchronize()
        return self._renderer.take()

    def close(self) -> None:
        """Wait for the stream and release everything; a second call does nothing."""
        self._resources.close()

    def __enter__(self) -> "DevicePostprocess":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _regions(self, report: MapReport, score: float, pending: _Pending) -> tuple[AnomalyRegion, ...]:
        if report.regions is not None:
            return report.regions
        # More components than the device measures: noise, which is worth one extra download.
        self._api.copy_async(self._host_map.handle, pending.judged_map, self._map_bytes, "device_to_host", self._stream.handle)
        self._stream.synchronize()
        threshold = pending.threshold
        if max(score, report.peak) > threshold:  # as region_cutoff in the kernels
            threshold = min(threshold, float(np.nextafter(np.float32(report.peak), np.float32(-np.inf))))
        return find_regions(self._host_map.array(self._map_hw, np.float32), threshold, pending.roi_xyxy)


def _checked_summary(summary: MapSummary, anomaly_map: AnomalyMap, normalization: MapFactors | None) -> MapSummary:
    """Return what is known of a map that came back, which the device must have said of it."""
    fetched = summarize_map(anomaly_map, normalization)
    is_true = fetched.is_finite is summary.is_finite and (not fetched.is_finite or fetched.peak == summary.peak)
    if fetched.is_finite and fetched.normalized_peak is not None and math.isfinite(fetched.normalized_peak):
        is_true = is_true and fetched.normalized_peak == summary.normalized_peak
    if not is_true:
        raise InferenceError(f"the device says its map is {summary}, what arrived is {fetched}; open the backend again")
    return fetched
