"""What each kernel is launched with: grid, block and arguments, and how its answer is read. No memory is owned in here.

Addresses are device addresses; everything happens in the order of the stream, and nothing waits.
"""

import math
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from snl_runtime.cuda.api import KernelArgument, Size3
from snl_runtime.cuda.resources import CudaModule, CudaStream
from snl_runtime.images.overlay import HEAT_STEPS, heat_table
from snl_runtime.images.preprocess import ROUNDING
from snl_runtime.images.views import Views
from snl_runtime.types import AnomalyRegion, ColorOrder
from snl_runtime.verdict.frame_checks import BLACK_LEVEL, COLOR_LEVEL, TINT_LEVEL, WHITE_LEVEL, FrameStatistics
from snl_runtime.verdict.regions import rank_regions

MAX_COMPONENTS = 1024
"""Components that the device measures; a map with more is noise, and its regions are found on the host."""
STATISTICS_WORDS = 8
RECORD_WORDS = 8
REPORT_WORDS = STATISTICS_WORDS + RECORD_WORDS * MAX_COMPONENTS
"""uint32 words of what :func:`launch_regions` writes: statistics, count of components in word 4, records."""
SUMS_COUNT = 13
"""uint64 words of what :func:`launch_input_sums` writes."""
_COUNT_WORD = 4
_TILE: Size3 = (64, 4, 1)
_WARP_ROWS: Size3 = (32, 8, 1)  # a warp is one row of 32 pixels and makes one word of the mask
_LINE = 256
_MOST_BLOCKS = 256
"""Blocks of a reduction: enough to fill a large GPU, few enough that their final atomics do not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFrame:
    """The inspected part of a frame in device memory; whoever made it owns the memory.

    Attributes:
        address: Of its first pixel.
        pitch_bytes: From one row to the next.
        size_hw: Height and width in pixels.
        color: Meaning of the last axis, whose values lie side by side.
        is_16_bit: uint16 instead of uint8.
    """

    address: int
    pitch_bytes: int
    size_hw: tuple[int, int]
    color: ColorOrder
    is_16_bit: bool = False

    @property
    def channels(self) -> int:
        """Values per pixel."""
        return {"gray": 1, "rgb": 3, "bgr": 3}.get(self.color, 4)

    @property
    def planes(self) -> int:
        """Values per pixel that count: alpha does not."""
        return 1 if self.color == "gray" else 3

    @property
    def is_bgr(self) -> bool:
        """Whether blue comes first."""
        return self.color in ("bgr", "bgra")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameOutputs:
    """Where :func:`launch_map_to_frame` writes; 0 for what is not wanted."""

    frame_map: int = 0
    """(H, W) float32."""
    mask: int = 0
    """(H, ceil(W / 32)) uint32, see :func:`unpack_mask`."""
    overlay: int = 0
    """(H, W, 3) uint8 RGB."""
    blocks_run: int = 0
    """One uint32, cleared by the caller; counts up to :func:`frame_blocks`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionScratch:
    """Device memory of :func:`launch_regions`."""

    report: int
    """REPORT_WORDS uint32, cleared by the caller before every launch."""
    labels: int
    """One int32 per cell of the map."""
    numbers: int
    """One int32 per cell of the map."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MapReport:
    """What is known of a map without having it.

    Attributes:
        peak: Largest finite value; NaN if there is none.
        cells: How many cells were looked at.
        non_finite: How many of them are NaN or infinite.
        above: How many are above the threshold.
        regions: As :func:`snl_runtime.verdict.regions.find_regions` gives them; None if there are more than :data:`MAX_COMPONENTS`.
    """

    peak: float
    cells: int
    non_finite: int
    above: int
    regions: tuple[AnomalyRegion, ...] | None


def rows_bytes(frame_hw: tuple[int, int], planes: int, size_hw: tuple[int, int]) -> int:
    """Return the size of the scratch memory of :func:`launch_frame_to_input`."""
    return size_hw[0] * frame_hw[1] * planes * 4


def launch_frame_to_input(kernels: CudaModule, frame: DeviceFrame, *, rows: int, target: int, size_hw: tuple[int, int], stream: CudaStream) -> None:
    """Make the network's input of a frame, by the definition of :mod:`snl_runtime.images.preprocess`.

    Args:
        kernels: What launches.
        frame: The inspected part of it.
        rows: Scratch memory of :func:`rows_bytes`.
        target: (height, width, 3) uint8 RGB.
        size_hw: Size of ``target``.
        stream: Where it is ordered.
    """
    height, width = size_hw
    arguments: Sequence[KernelArgument] = (
        c_void_p(frame.address),
        c_int64(frame.pitch_bytes),
        c_int32(frame.channels),
        c_int32(frame.is_16_bit),
        c_int32(frame.size_hw[0]),
        c_int32(frame.size_hw[1]),
        c_void_p(rows),
        c_int32(height),
    )
    kernels.launch("frame_rows", grid=_grid((height, frame.size_hw[1]), _TILE), block=_TILE, stream=stream, arguments=arguments)
    arguments = (
        c_void_p(rows),
        c_int32(frame.planes),
        c_int32(frame.is_bgr),
        c_int32(height),
        c_int32(frame.size_hw[1]),
        c_void_p(target),
        c_int32(width),
        c_float(float(ROUNDING)),
    )
    kernels.launch("frame_columns", grid=_grid(size_hw, _TILE), block=_TILE, stream=stream, arguments=arguments)


def launch_cut_views(  # noqa: PLR0913 - a grid, a part of it, three addresses
    kernels: CudaModule, views: Views, *, part: int, first: int, count: int, target: int, blocks_run: int, stream: CudaStream
) -> None:
    """Cut ``count`` views of a frame, from number ``first`` of their grid on, in one launch.

    Args:
        kernels: What launches.
        views: The grid.
        part: (H, W, 3) uint8 RGB of its ``map_hw``.
        first: Number of the first view.
        count: How many.
        target: (count, h, w, 3) uint8.
        blocks_run: One uint32, cleared by the caller; counts up to :func:`view_blocks`.
        stream: Where it is ordered.
    """
    arguments: Sequence[KernelArgument] = (
        c_void_p(part),
        *(c_int32(value) for value in (*views.map_hw, *views.grid_shape, first)),
        c_void_p(target),
        *(c_int32(side) for side in views.view_hw),
        c_void_p(blocks_run),
    )
    kernels.launch("cut_views", grid=_views_grid(views.view_hw, count), block=_TILE, stream=stream, arguments=arguments)


def view_blocks(view_hw: tuple[int, int], count: int) -> int:
    """Return how many blocks :func:`launch_cut_views` runs."""
    return math.prod(_views_grid(view_hw, count))


def launch_input_sums(kernels: CudaModule, *, source: int, size_hw: tuple[int, int], sums: int, stream: CudaStream) -> None:
    """Count what :func:`read_frame_statistics` needs into ``sums``, SUMS_COUNT uint64 that the caller cleared in stream order."""
    pixels = size_hw[0] * size_hw[1]
    levels = [c_int32(level) for level in (WHITE_LEVEL, BLACK_LEVEL, TINT_LEVEL, COLOR_LEVEL)]
    arguments: Sequence[KernelArgument] = (c_void_p(source), c_int32(pixels), *levels, c_void_p(sums))
    kernels.launch("input_sums", grid=_line_grid(pixels, most=_MOST_BLOCKS), block=(_LINE, 1, 1), stream=stream, arguments=arguments)


def launch_normalization(kernels: CudaModule, *, anomaly_map: int, normalization: int, cells: int, normalized: int, stream: CudaStream) -> None:
    """Multiply a map with a normalization map into ``normalized``; all three hold ``cells`` float32."""
    arguments = (c_void_p(anomaly_map), c_void_p(normalization), c_int32(cells), c_void_p(normalized))
    kernels.launch("normalization_cells", grid=_line_grid(cells), block=(_LINE, 1, 1), stream=stream, arguments=arguments)


def launch_map_statistics(kernels: CudaModule, *, anomaly_map: int, cells: int, statistics: int, stream: CudaStream) -> None:
    """Count what :func:`read_map_statistics` needs into ``statistics``, STATISTICS_WORDS uint32 that the caller cleared in stream order."""
    arguments = (c_void_p(anomaly_map), c_int32(cells), c_float(math.nan), c_void_p(statistics))
    kernels.launch("map_statistics", grid=_line_grid(cells, most=_MOST_BLOCKS), block=(_LINE, 1, 1), stream=stream, arguments=arguments)


def launch_map_to_frame(  # noqa: PLR0913 - one launch writes three outputs
    kernels: CudaModule,
    *,
    anomaly_map: int,
    map_hw: tuple[int, int],
    size_hw: tuple[int, int],
    threshold: float,
    outputs: FrameOutputs,
    frame: DeviceFrame | None = None,
    heat: int = 0,
    stream: CudaStream,
) -> None:
    """Bring a map to the resolution of its part of the frame and write what is wanted of map, mask and overlay.

    Args:
        kernels: What launches.
        anomaly_map: float32 of ``map_hw``.
        map_hw: Height and width of the map.
        size_hw: Height and width of the outputs; those of ``frame``.
        threshold: Of the mask, and what becomes yellow in the overlay.
        outputs: Where they go.
        frame: What the overlay is blended over; only needed for it.
        heat: :func:`heat_values` in device memory; only needed for the overlay.
        stream: Where it is ordered.
    """
    shown = frame or DeviceFrame(address=0, pitch_bytes=0, size_hw=size_hw, color="rgb")
    arguments: Sequence[KernelArgument] = (
        c_void_p(anomaly_map),
        *(c_int32(side) for side in (*map_hw, *size_hw)),
        c_float(threshold),
        c_void_p(outputs.frame_map),
        c_void_p(outputs.mask),
        c_void_p(outputs.overlay),
        c_void_p(shown.address),
        c_int64(shown.pitch_bytes),
        c_int32(shown.channels),
        c_int32(shown.is_16_bit),
        c_int32(shown.is_bgr),
        c_void_p(heat),
        c_int32(HEAT_STEPS),
        c_void_p(outputs.blocks_run),
    )
    kernels.launch("map_to_frame", grid=_grid(size_hw, _WARP_ROWS), block=_WARP_ROWS, stream=stream, arguments=arguments)


def launch_regions(
    kernels: CudaModule, *, anomaly_map: int, map_hw: tuple[int, int], score: int, threshold: float, scratch: RegionScratch, stream: CudaStream
) -> None:
    """Check a map and measure its regions, at its own resolution.

    As in the detector, a part whose score or peak is above the threshold gets a region even where the two differ by a rounding.

    Args:
        kernels: What launches.
        anomaly_map: float32 of ``map_hw``.
        map_hw: Height and width of the map.
        score: One float32, the graph's score.
        threshold: Pass threshold; with NaN there are no regions.
        scratch: Working memory and result.
        stream: Where it is ordered.
    """
    height, width = map_hw
    cells = height * width
    block, grid = (_LINE, 1, 1), _line_grid(cells)
    source, count, cell_threshold = c_void_p(anomaly_map), c_int32(cells), c_float(threshold)
    shape = (c_int32(height), c_int32(width))
    report, labels, numbers = c_void_p(scratch.report), c_void_p(scratch.labels), c_void_p(scratch.numbers)
    component_count = c_void_p(scratch.report + 4 * _COUNT_WORD)
    records = c_void_p(scratch.report + 4 * STATISTICS_WORDS)
    steps: Sequence[tuple[str, Size3, Sequence[KernelArgument]]] = (
        ("map_statistics", _line_grid(cells, most=_MOST_BLOCKS), (source, count, cell_threshold, report)),
        ("label_cells", grid, (source, count, cell_threshold, c_void_p(score), c_float(rounded_down(threshold)), report, labels)),
        ("join_cells", grid, (*shape, labels)),
        ("number_regions", grid, (count, labels, numbers, component_count)),
        ("measure_regions", grid, (source, *shape, labels, numbers, records, c_int32(MAX_COMPONENTS))),
    )
    for name, step_grid, arguments in steps:
        kernels.launch(name, grid=step_grid, block=block, stream=stream, arguments=arguments)


def read_map_statistics(words: npt.NDArray[np.uint32]) -> tuple[float, int, int]:
    """Return the largest finite value of a map, NaN if there is none, how many cells are not finite and how many were looked at."""
    key, non_finite, _, cells = (int(word) for word in words[:_COUNT_WORD])
    return float(ordered_values(np.array([key], np.uint32))[0]) if key else math.nan, non_finite, cells


def read_map_report(words: npt.NDArray[np.uint32], map_hw: tuple[int, int], roi_xyxy: tuple[int, int, int, int]) -> MapReport:
    """Return what :func:`launch_regions` found; ``words`` are its REPORT_WORDS on the host."""
    peak, non_finite, cells = read_map_statistics(words)
    above, components = int(words[2]), int(words[_COUNT_WORD])
    regions = None
    if components <= MAX_COMPONENTS:
        records = words[STATISTICS_WORDS:].reshape(-1, RECORD_WORDS)[:components].astype(np.int64)
        peak_keys, sizes, right, bottom, from_right, from_bottom = records[:, :6].T
        left, top = map_hw[1] - from_right, map_hw[0] - from_bottom
        boxes = np.stack([left, top, right - left, bottom - top, sizes], axis=1).astype(np.int32)
        regions = rank_regions(boxes, ordered_values(peak_keys.astype(np.uint32)).astype(np.float64), map_hw, roi_xyxy)
    return MapReport(peak=peak, cells=cells, non_finite=non_finite, above=above, regions=regions)


def read_frame_statistics(sums: npt.NDArray[np.uint64]) -> tuple[FrameStatistics, int]:
    """Return the statistics of a network input and of how many pixels they are; exact, as the sums are whole numbers."""
    values = [int(value) for value in sums]
    pixels = max(1, values[12])
    red, green, blue = values[0:3]
    variances = [(pixels * squares - total * total) / (pixels * pixels) for total, squares in zip(values[0:3], values[3:6])]
    statistics = FrameStatistics(
        mean=(red + green + blue) / (3 * pixels),
        deviation=math.sqrt(sum(variances) / 3),
        white_share=values[6] / pixels,
        black_share=values[7] / pixels,
        red_blue=(red - blue) / pixels,
        green=(2 * green - red - blue) / (2 * pixels),
        reddish_share=values[8] / pixels,
        bluish_share=values[9] / pixels,
        red_share=values[10] / pixels,
        blue_share=values[11] / pixels,
    )
    return statistics, values[12]


def ordered_values(keys: npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
    """Return the floats whose ordered keys these are; the reference implementation of ``ordered_value`` in the kernels."""
    sign = np.uint32(0x80000000)
    return np.where(keys & sign, keys & ~sign, ~keys).astype(np.uint32).view(np.float32)


def mask_words(size_hw: tuple[int, int]) -> int:
    """Return how many uint32 words the mask of a frame has."""
    return size_hw[0] * -(-size_hw[1] // 32)


def frame_blocks(size_hw: tuple[int, int]) -> int:
    """Return how many blocks :func:`launch_map_to_frame` runs for a frame."""
    return math.prod(_grid(size_hw, _WARP_ROWS))


def unpack_mask(words: npt.NDArray[np.uint32], size_hw: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the (H, W) mask that :func:`launch_map_to_frame` packed."""
    rows = words.astype("<u4", copy=False).reshape(size_hw[0], -1).view(np.uint8)
    return np.unpackbits(rows, axis=1, count=size_hw[1], bitorder="little").astype(np.bool_)


def heat_values() -> npt.NDArray[np.float32]:
    """Return the color table of the overlay as the kernel reads it: (4, steps) float32."""
    added, kept = heat_table()
    return np.ascontiguousarray(np.concatenate([added, kept[None]]))


def rounded_down(value: float) -> float:
    """Return the largest float32 that is not above ``value``: a float32 score exceeds it exactly if it exceeds ``value``."""
    with np.errstate(over="ignore"):
        nearest = np.float32(value)
    return float(np.nextafter(nearest, np.float32(-math.inf))) if float(nearest) > value else float(nearest)


def _views_grid(view_hw: tuple[int, int], count: int) -> Size3:
    columns, rows, _ = _grid((view_hw[0], 3 * view_hw[1]), _TILE)
    return columns, rows, count


def _grid(size_hw: tuple[int, int], block: Size3) -> Size3:
    return (-(-size_hw[1] // block[0]), -(-size_hw[0] // block[1]), 1)


def _line_grid(count: int, most: int = 1 << 30) -> Size3:
    return (min(-(-count // _LINE), most), 1, 1)
