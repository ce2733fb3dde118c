"""What the device stages must reproduce before a frame is trusted to them: the host's answers on seeded frames and seeded maps."""

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from snl_runtime.cuda.api import CudaApi
from snl_runtime.cuda.buffers import drain
from snl_runtime.cuda.resources import CudaModule, CudaStream, DeviceBuffer, PinnedBuffer
from snl_runtime.errors import BackendError
from snl_runtime.gpu.kernels.launches import DeviceFrame, launch_cut_views
from snl_runtime.gpu.pipeline import DevicePostprocess, DevicePreprocess, Roi, Wanted
from snl_runtime.images.frame_outputs import draw_visualizations
from snl_runtime.images.preprocess import InputSpec, crop_frame, prepare
from snl_runtime.images.views import Views
from snl_runtime.model.map_factors import MapFactors
from snl_runtime.types import AnomalyMap, ColorOrder, OutputRequest
from snl_runtime.verdict.frame_checks import frame_statistics
from snl_runtime.verdict.regions import find_regions

INPUT_TOLERANCE = 1
"""Gray levels by which the device's network input may differ from that of :mod:`snl_runtime.images.preprocess`."""
_MAP_TOLERANCE = 1e-5  # share of a value of the map at frame resolution
_OVERLAY_TOLERANCE = 1  # gray levels
_STATISTICS_TOLERANCE = 1e-3  # both are exact up to float64 rounding, on the same pixels


StageFrame: TypeAlias = tuple[npt.NDArray[Any], ColorOrder, Roi | None]
"""A frame, the meaning of its last axis, and the part of it that is inspected, None for all of it."""


def check_stages(
    api: CudaApi,
    stream: CudaStream,
    before: DevicePreprocess,
    after: DevicePostprocess,
    size_hw: tuple[int, int],
    *,
    frames: Sequence[StageFrame] | None = None,
) -> None:
    """Compare input, statistics, checks, regions and images with what the host computes.

    Args:
        api: CUDA, with the stream's device current.
        stream: That of both stages; idle.
        before: Makes the network's input.
        after: Takes its map.
        size_hw: Network size.
        frames: What input and images are made of; None for a few of odd sizes in 8 and 16 bits, as every start asks.

    Raises:
        BackendError: If the device gives anything else than the host would, or CUDA fails.
    """
    height, width = size_hw
    with DeviceBuffer(api, 4 * height * width + 4) as device, PinnedBuffer(api, 4 * height * width + 4) as host:
        checks = _Checks(api, stream, before, after, size_hw, device, host)
        try:
            for image, color, roi_xyxy in _frames(size_hw) if frames is None else frames:
                checks.check_input(image, color, roi_xyxy)
                checks.check_visualizations(image, color, roi_xyxy)
            for spoiled in (False, True):
                for normalization in (None, _normalization(size_hw)):
                    checks.check_map(normalization, spoiled=spoiled)
        finally:
            drain(stream)  # neither buffer may go while the device uses it


def check_views(api: CudaApi, kernels: CudaModule, stream: CudaStream, size_hw: tuple[int, int]) -> None:
    """Compare the views that the device cuts out of seeded noise with what the host cuts, byte by byte, from the first view on and from a later one.

    Raises:
        BackendError: If a byte differs, or CUDA fails.
    """
    height, width = size_hw
    views = Views(map_hw=(2 * height + height // 2, width + width // 3), view_hw=size_hw, overlap_px=min(size_hw) // 5)
    part = np.random.default_rng(3).integers(0, 256, (*views.map_hw, 3), dtype=np.uint8)
    with contextlib.ExitStack() as opened:
        target = opened.enter_context(DeviceBuffer(api, 3 * views.count * height * width))
        source = opened.enter_context(DeviceBuffer(api, part.nbytes))
        counter = opened.enter_context(DeviceBuffer(api, 4))
        host = opened.enter_context(PinnedBuffer(api, max(part.nbytes, target.byte_count)))
        opened.callback(drain, stream)  # no buffer may go while the device uses it
        host.array(part.shape, np.uint8)[...] = part
        api.copy_async(source.handle, host.handle, part.nbytes, "host_to_device", stream.handle)
        stream.synchronize()
        for first in (0, views.count // 2):
            expected = views.cut(part, views.grid[first:])
            actual = host.array(expected.shape, np.uint8)
            actual[...] = ~expected  # views that never came back must not look right
            addresses = {"part": source.handle, "target": target.handle, "blocks_run": counter.handle}
            launch_cut_views(kernels, views, first=first, count=len(expected), stream=stream, **addresses)
            api.copy_async(host.handle, target.handle, expected.nbytes, "device_to_host", stream.handle)
            stream.synchronize()
            if not np.array_equal(actual, expected):
                raise BackendError(f"{int((actual != expected).sum())} of {expected.size} bytes of its views of a frame are not those of the host")


@dataclass(frozen=True, slots=True, eq=False)
class _Checks:
    """Both stages, with room for a map and a score of its own."""

    api: CudaApi
    stream: CudaStream
    before: DevicePreprocess
    after: DevicePostprocess
    size_hw: tuple[int, int]
    device: DeviceBuffer
    host: PinnedBuffer

    def check_input(self, image: npt.NDArray[Any], color: ColorOrder, roi_xyxy: Roi | None) -> None:
        expected = prepare(image, color, InputSpec(size_hw=self.size_hw, roi_xyxy=roi_xyxy))
        actual = self.host.array(expected.shape, np.uint8)
        actual[...] = ~expected  # an input that never came back must not look right
        self.before.enqueue(crop_frame(image, color, roi_xyxy).part, color, self.device.handle)
        self.api.copy_async(self.host.handle, self.device.handle, expected.nbytes, "device_to_host", self.stream.handle)
        self.stream.synchronize()
        allowed = 0 if image.shape == expected.shape else INPUT_TOLERANCE
        difference = int(np.abs(actual.astype(np.int16) - expected).max())
        if difference > allowed:
            raise BackendError(f"its network input of a {color} {image.dtype} frame differs by {difference} gray levels, allowed is {allowed}")
        counted, counted_here = self.before.statistics(), frame_statistics(actual)
        for name, value in dataclasses.asdict(counted).items():
            value_here = getattr(counted_here, name)
            if not abs(value - value_here) <= _STATISTICS_TOLERANCE:
                raise BackendError(f"its {name} of a frame is {value:.6g}, the host's {value_here:.6g}")

    def check_map(self, normalization: MapFactors | None, *, spoiled: bool) -> None:
        height, width = self.size_hw
        anomaly_map = _cells(self.size_hw)
        judged_map = anomaly_map if normalization is None else normalization.apply(anomaly_map)
        threshold = float(np.quantile(judged_map, 0.9))
        expected = find_regions(judged_map, threshold, (0, 0, width, height))
        peak = anomaly_map.max()
        if spoiled:
            anomaly_map[-1, -1] = np.nan
        self._upload_map(anomaly_map, peak)
        frame = DeviceFrame(address=self.device.handle, pitch_bytes=3 * width, size_hw=self.size_hw, color="rgb")
        score = self.device.handle + anomaly_map.nbytes
        self.after.enqueue(
            self.device.handle, score, frame=frame, roi_xyxy=(0, 0, width, height), threshold=threshold, wanted=Wanted(normalization=normalization)
        )
        found = self.after.collect()
        summary, regions = found.summary, found.regions or ()
        if summary.is_finite is spoiled:
            raise BackendError("its check of a map for NaN does not work")
        if not spoiled and normalization is not None and summary.normalized_peak != judged_map.max():
            raise BackendError(f"it finds {summary.normalized_peak} as the peak of a normalized map, the host {judged_map.max():.6g}")
        if not spoiled and (found.score, summary.peak, regions) != (peak, peak, expected):
            raise BackendError(f"it finds {len(regions)} regions up to {summary.peak:.6g} in a map, the host {len(expected)} up to {peak:.6g}")

    def check_visualizations(self, image: npt.NDArray[Any], color: ColorOrder, roi_xyxy: Roi | None) -> None:
        anomaly_map = _cells(self.size_hw)
        threshold = float(np.quantile(anomaly_map, 0.5))
        cropped = crop_frame(image, color, roi_xyxy)
        frame = self.before.enqueue(cropped.part, color, self.device.handle)
        self._upload_map(anomaly_map, anomaly_map.max())
        everything = OutputRequest(frame_map=True, mask=True, overlay=True)
        score = self.device.handle + anomaly_map.nbytes
        self.after.enqueue(self.device.handle, score, frame=frame, roi_xyxy=cropped.roi_xyxy, threshold=threshold)
        self.after.collect()
        drawn = self.after.render(everything)
        expected = draw_visualizations(cropped.part, color, anomaly_map, threshold, everything)
        if drawn.frame_map is None or drawn.mask is None or drawn.overlay is None or expected.frame_map is None or expected.overlay is None:
            raise BackendError("an image of a frame is missing")
        if not np.allclose(drawn.frame_map, expected.frame_map, rtol=_MAP_TOLERANCE, atol=0):
            raise BackendError(f"its map at frame resolution differs by {float(np.abs(drawn.frame_map - expected.frame_map).max()):.3g}")
        if not np.array_equal(drawn.mask, drawn.frame_map > np.float32(threshold)):
            raise BackendError("its mask is not its map above the threshold")
        difference = int(np.abs(drawn.overlay.astype(np.int16) - expected.overlay).max())
        if difference > _OVERLAY_TOLERANCE:
            raise BackendError(f"its overlay of a {color} {image.dtype} frame differs by {difference} gray levels, allowed is {_OVERLAY_TOLERANCE}")

    def _upload_map(self, anomaly_map: AnomalyMap, peak: np.float32) -> None:
        self.host.array((anomaly_map.size + 1,), np.float32)[...] = (*anomaly_map.ravel(), peak)
        self.api.copy_async(self.device.handle, self.host.handle, self.host.byte_count, "host_to_device", self.stream.handle)


def _frames(size_hw: tuple[int, int]) -> list[StageFrame]:
    """Return frames of odd sizes that shrink, grow and stay, in 8 and 16 bits, with white and black parts."""
    height, width = size_hw
    rng = np.random.default_rng(0)
    large = rng.integers(0, 256, (2 * height + 5, 3 * width + 7, 3)).astype(np.uint8)
    small = rng.integers(0, 65536, (height // 2 + 1 | 1, width // 3 + 1 | 1)).astype(np.uint16)
    same = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    for image, top in ((large, 255), (small, 65535), (same, 255)):
        image[: image.shape[0] // 3] = top
        image[-(image.shape[0] // 4) :] = 0
    return [(large, "bgr", (3, 1, 3 * width + 4, 2 * height)), (small, "gray", None), (same, "rgb", None)]


def _cells(size_hw: tuple[int, int]) -> AnomalyMap:
    """Return a map of blocks, so that there are regions of several cells and fewer of them than the device can measure."""
    height, width = size_hw
    side = max(1, -(-max(size_hw) // 24))
    rows, columns = np.arange(height) // side, np.arange(width) // side
    blocks = np.random.default_rng(1).uniform(0.5, 2, (rows[-1] + 1, columns[-1] + 1)).astype(np.float32)
    return blocks[np.ix_(rows, columns)]


def _normalization(size_hw: tuple[int, int]) -> MapFactors:
    """Return factors as of a normalization map under an ignore mask, which hides a corner with some of the highest cells."""
    values = np.random.default_rng(2).uniform(0.5, 2, size_hw).astype(np.float32)
    values[: max(1, size_hw[0] // 3), : max(1, size_hw[1] // 3)] = 0
    return MapFactors(values)
