"""The CUDA kernels against their NumPy reference implementations, and how much of the memory's bandwidth they use."""

import contextlib
import ctypes
import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from machine import peak_bytes_per_s
from table import CheckFailedError

from snl_runtime.cuda.api import CudaApi, describe_device, device_scope, load_cuda
from snl_runtime.cuda.resources import CudaModule, CudaStream, DeviceBuffer, PinnedBuffer
from snl_runtime.gpu.kernels import load_kernels
from snl_runtime.gpu.kernels.launches import DeviceFrame
from snl_runtime.gpu.pipeline import DeviceOutput, DevicePostprocess, DevicePreprocess, Wanted
from snl_runtime.images.frame_outputs import Visualizations
from snl_runtime.images.overlay import blend_heat
from snl_runtime.images.preprocess import InputSpec, prepare
from snl_runtime.images.upsampling import upsample_map
from snl_runtime.model.normalization import NormalizationMap
from snl_runtime.types import ColorOrder, Image, OutputRequest
from snl_runtime.verdict.frame_checks import frame_statistics
from snl_runtime.verdict.regions import find_regions

SIZE_HW = (256, 256)
FRAMES_HW = ((2048, 2592), (480, 640), (97, 131), (256, 256))
BIG_FRAME_HW = FRAMES_HW[0]
INPUT_LEVELS = 1
"""Gray levels by which an input may differ: host and device add in another order, and a sum on the edge of a level falls to either side."""
MAP_DIFFERENCE = 1e-5
OVERLAY_LEVELS = 1
_REPEATS = 200
_EVERYTHING = OutputRequest(frame_map=True, mask=True, overlay=True)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Device:
    """Both stages on one stream, with a network input, a map and a score of their own."""

    api: CudaApi
    stream: CudaStream
    before: DevicePreprocess
    after: DevicePostprocess
    image: DeviceBuffer
    anomaly_map: DeviceBuffer
    score: DeviceBuffer
    host: PinnedBuffer

    def upload(self, values: np.ndarray, target: int) -> None:
        self.host.array(values.shape, values.dtype)[...] = values
        self.api.copy_async(target, self.host.handle, values.nbytes, "host_to_device", self.stream.handle)
        self.stream.synchronize()

    def download_input(self) -> Image:
        self.api.copy_async(self.host.handle, self.image.handle, self.image.byte_count, "device_to_host", self.stream.handle)
        self.stream.synchronize()
        return self.host.array((*SIZE_HW, 3), np.uint8).copy()


def compare_with_twins() -> str:
    """Compare both stages on frames of several sizes and color orders with what the host computes."""
    describe_device()
    worst = {"input": 0.0, "map": 0.0, "overlay": 0.0}
    rng = np.random.default_rng(0)
    count = 0
    with _open_device() as device:
        for size_hw in FRAMES_HW:
            for color in _colors():
                frame = _frame(rng, size_hw, color)
                anomaly_map = _map(rng)
                for name, value in _compare_one(device, frame, color, anomaly_map).items():
                    worst[name] = max(worst[name], value)
                count += 1
    figures = (
        f"{count} frames up to {BIG_FRAME_HW[1]}x{BIG_FRAME_HW[0]}: input within {worst['input']:.0f} gray levels (allowed {INPUT_LEVELS}), "
        f"map within {worst['map']:.2g} (allowed {MAP_DIFFERENCE:g}), overlay within {worst['overlay']:.0f} levels, "
        "mask, regions and normalized maps as on the host"
    )
    if worst["input"] > INPUT_LEVELS or worst["map"] > MAP_DIFFERENCE or worst["overlay"] > OVERLAY_LEVELS:
        raise CheckFailedError(figures)
    return figures


def measure_bandwidth() -> str:
    """Time both stages on a 5-megapixel frame that is on the device, and state the bytes they must move against the peak."""
    describe_device()
    peak = peak_bytes_per_s()
    rng = np.random.default_rng(1)
    frame = _frame(rng, BIG_FRAME_HW, "bgr")
    height, width = BIG_FRAME_HW
    with _open_device() as device:
        anomaly_map = _map(rng)
        device.upload(anomaly_map, device.anomaly_map.handle)
        device.upload(anomaly_map.max(keepdims=True).ravel(), device.score.handle)
        on_device = device.before.enqueue(frame, "bgr", None, device.image.handle)
        rows_bytes = 4 * 3 * SIZE_HW[0] * width  # the frame with its rows resized, written and read once
        input_bytes = frame.nbytes + 2 * rows_bytes
        frame_bytes = 4 * height * width + height * width // 8 + 2 * 3 * height * width  # map, mask, and the image read and written

        def before() -> None:
            device.before.enqueue_device(on_device, device.image.handle)

        def after() -> None:
            device.after.enqueue(device.anomaly_map.handle, device.score.handle, frame=on_device, roi_xyxy=(0, 0, width, height), threshold=0.5)
            device.after.collect()
            device.after.render(_EVERYTHING)

        figures = [
            _bandwidth("frame to input", before, device, input_bytes, peak),
            _bandwidth("map to frame, mask, overlay and their downloads", after, device, frame_bytes, peak),
        ]
    return f"frame of {width}x{height}: {'; '.join(figures)}"


def _bandwidth(what: str, enqueue: Callable[[], object], device: _Device, byte_count: int, peak: float) -> str:
    for _ in range(10):
        enqueue()
    device.stream.synchronize()
    seconds = []
    for _ in range(_REPEATS // 10):
        started_s = time.perf_counter()
        for _ in range(10):
            enqueue()
        device.stream.synchronize()
        seconds.append((time.perf_counter() - started_s) / 10)
    median_s = float(np.median(seconds))
    return f"{what} {1e3 * median_s:.3f} ms, {byte_count / 1e6:.0f} MB, {100 * byte_count / median_s / peak:.0f} % of peak bandwidth"


def _compare_one(device: _Device, frame: np.ndarray, color: ColorOrder, anomaly_map: np.ndarray) -> dict[str, float]:
    height, width = frame.shape[:2]
    threshold = float(np.quantile(anomaly_map, 0.98))
    score = np.array([anomaly_map.max()], np.float32)
    device.upload(anomaly_map, device.anomaly_map.handle)
    device.upload(score, device.score.handle)
    on_device = device.before.enqueue(frame, color, None, device.image.handle)
    device.after.enqueue(
        device.anomaly_map.handle,
        device.score.handle,
        frame=on_device,
        roi_xyxy=(0, 0, width, height),
        threshold=threshold,
    )
    output = device.after.collect()
    drawn = device.after.render(_EVERYTHING)
    made = device.download_input()
    expected_input = prepare(frame, color, InputSpec(size_hw=SIZE_HW))
    counted, expected = (dataclasses.astuple(statistics) for statistics in (device.before.statistics(), frame_statistics(made)))
    if not np.allclose(counted, expected, rtol=1e-5, atol=1e-5):
        raise CheckFailedError(f"statistics of {color} {width}x{height} differ from those of the input that the device made")
    _compare_normalized(device, on_device, anomaly_map)
    return {"input": float(np.abs(made.astype(int) - expected_input).max()), **_compare_outputs(output, drawn, frame, color, anomaly_map, threshold)}


def _compare_normalized(device: _Device, on_device: DeviceFrame, anomaly_map: np.ndarray) -> None:
    """Compare the map of a fixed-pose product with the host's, bit for bit."""
    height, width = on_device.size_hw
    normalization = NormalizationMap(np.random.default_rng(3).uniform(0.5, 2, anomaly_map.shape).astype(np.float32))
    normalized_map = normalization.apply(anomaly_map)
    threshold, roi_xyxy = float(np.quantile(normalized_map, 0.98)), (0, 0, width, height)
    device.after.enqueue(
        device.anomaly_map.handle,
        device.score.handle,
        frame=on_device,
        roi_xyxy=roi_xyxy,
        threshold=threshold,
        wanted=Wanted(normalization=normalization),
    )
    output = device.after.collect()
    if output.normalized_peak != normalized_map.max() or output.regions != find_regions(normalized_map, threshold, roi_xyxy):
        raise CheckFailedError(f"{width}x{height}: the normalized map of a fixed-pose product differs from the host's")


def _compare_outputs(
    output: DeviceOutput, drawn: Visualizations, frame: np.ndarray, color: ColorOrder, anomaly_map: np.ndarray, threshold: float
) -> dict[str, float]:
    height, width = frame.shape[:2]
    where = f"{color} {width}x{height}"
    if drawn.frame_map is None or drawn.mask is None or drawn.overlay is None:
        raise CheckFailedError(f"{where}: an output is missing")
    expected_map = upsample_map(anomaly_map, (height, width))
    decided = np.abs(expected_map - threshold) > MAP_DIFFERENCE
    if (drawn.mask != (expected_map > threshold))[decided].any():
        raise CheckFailedError(f"{where}: the mask differs from map > threshold")
    if output.regions != find_regions(anomaly_map, threshold, (0, 0, width, height)):
        raise CheckFailedError(f"{where}: the regions differ from the host's")
    rgb = prepare(frame, color, InputSpec(size_hw=(height, width)))
    expected_overlay = blend_heat(rgb, anomaly_map, threshold)
    return {
        "map": float(np.abs(drawn.frame_map - expected_map).max()),
        "overlay": float(np.abs(drawn.overlay.astype(int) - expected_overlay).max()),
    }


@contextlib.contextmanager
def _open_device() -> Iterator[_Device]:
    api = load_cuda()
    with device_scope(api, 0), contextlib.ExitStack() as opened:
        kernels: CudaModule = opened.enter_context(load_kernels(api))
        stream = opened.enter_context(CudaStream(api))
        pixels = SIZE_HW[0] * SIZE_HW[1]
        yield _Device(
            api=api,
            stream=stream,
            before=opened.enter_context(DevicePreprocess(api, kernels, stream, SIZE_HW)),
            after=opened.enter_context(DevicePostprocess(api, kernels, stream, SIZE_HW)),
            image=opened.enter_context(DeviceBuffer(api, 3 * pixels)),
            anomaly_map=opened.enter_context(DeviceBuffer(api, 4 * pixels)),
            score=opened.enter_context(DeviceBuffer(api, ctypes.sizeof(ctypes.c_float))),
            host=opened.enter_context(PinnedBuffer(api, 4 * pixels)),
        )


def _colors() -> tuple[ColorOrder, ...]:
    return ("bgr", "rgb", "gray")


def _frame(rng: np.random.Generator, size_hw: tuple[int, int], color: ColorOrder) -> np.ndarray:
    return rng.integers(0, 256, size_hw if color == "gray" else (*size_hw, 3), dtype=np.uint8)


def _map(rng: np.random.Generator) -> np.ndarray:
    """Return a smooth map with a few peaks, as networks give them."""
    return upsample_map(rng.random((12, 12), dtype=np.float32), SIZE_HW)
