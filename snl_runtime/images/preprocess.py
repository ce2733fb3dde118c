"""The only definition of frame -> (H, W, 3) uint8 RGB; training, evaluation, calibration and the line all call it."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from snl_runtime.errors import ConfigError, FrameError
from snl_runtime.images.opencv import load_opencv
from snl_runtime.types import BIT_DEPTHS, ColorOrder, Image

_CHANNELS: dict[str, int] = {"rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4, "gray": 1}
# Larger ones are no camera's frame (64k lines of a line camera fit) but a broken header, and would take all memory.
_MAX_SIDE = 1 << 16
_MAX_PIXELS = 1 << 28
# Ties round up. The guard of 1/1024 gray level keeps the last bits of a float32 sum, which differ between processors, from deciding a tie.
ROUNDING = np.float32(0.5 + 2.0**-10)
"""What is added to a resized value before it is cut off to whole gray levels."""
_BLOCK_VALUES = 1 << 17
"""Values that are gathered at a time: half a megabyte of float32 stays in a core's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """What a network takes and which part of the frame it sees.

    Attributes:
        size_hw: Height and width of the network's input in pixels.
        roi_xyxy: Left, top, right, bottom of the inspected part in frame pixels, right and bottom exclusive; None for the whole frame.
    """

    size_hw: tuple[int, int]
    roi_xyxy: tuple[int, int, int, int] | None = None

    def __post_init__(self) -> None:
        if len(self.size_hw) != 2 or min(self.size_hw) < 1:
            raise ConfigError(f"size_hw must be two positive numbers (height, width), got {self.size_hw}")
        if self.roi_xyxy is None:
            return
        if len(self.roi_xyxy) != 4:
            raise ConfigError(f"roi_xyxy must be (left, top, right, bottom), got {self.roi_xyxy}")
        left, top, right, bottom = self.roi_xyxy
        if not (0 <= left < right and 0 <= top < bottom):
            raise ConfigError(f"roi_xyxy must satisfy 0 <= left < right and 0 <= top < bottom, got {self.roi_xyxy}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameFormat:
    """How a frame came, before cropping.

    Attributes:
        size_hw: Height and width in pixels.
        bit_depth: Bits that a value uses: 8, or of a uint16 frame what was declared, 16 if nothing was.
    """

    size_hw: tuple[int, int]
    bit_depth: int


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CroppedFrame:
    """A frame in host memory that was checked, and which part of it is inspected.

    Attributes:
        whole: (H, W, C) uint8 or uint16, all of the frame; may be the caller's memory.
        roi_xyxy: The inspected part, inside the frame.
        bit_depth: Bits that a value of the frame used as it came.
    """

    whole: npt.NDArray[Any]
    roi_xyxy: tuple[int, int, int, int]
    bit_depth: int

    @property
    def part(self) -> npt.NDArray[Any]:
        """The inspected part, a view of ``whole``."""
        left, top, right, bottom = self.roi_xyxy
        return self.whole[top:bottom, left:right]

    @property
    def format(self) -> FrameFormat:
        """Size and bit depth of the whole frame as it came."""
        return FrameFormat(size_hw=(self.whole.shape[0], self.whole.shape[1]), bit_depth=self.bit_depth)


def prepare(image: object, color: ColorOrder, spec: InputSpec, bit_depth: int | None = None) -> Image:
    """Return the network's input for one frame: cropped to the ROI, RGB, resized (squashed) to ``spec.size_hw``.

    Equal to ``resize(to_rgb(crop), size)``; the channels are put in order after the resize, where there are fewer pixels.

    Args:
        image: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 or uint16; anything else raises.
        color: What the last axis of ``image`` means.
        spec: Size of the result and ROI.
        bit_depth: As for :func:`to_rgb`.

    Raises:
        FrameError: If ``image`` is no usable frame of that color order and bit depth or the ROI lies outside it.
    """
    return prepare_part(crop_frame(image, color, spec.roi_xyxy).part, color, spec.size_hw, bit_depth)


def prepare_part(part: npt.NDArray[Any], color: ColorOrder, size_hw: tuple[int, int], bit_depth: int | None = None) -> Image:
    """Return the network's input for the part of a frame that :func:`crop_frame` gave, as :func:`prepare` does."""
    return _in_rgb_order(resize(to_8_bit(_without_alpha(part), bit_depth), size_hw), color)


def crop_frame(image: object, color: ColorOrder, roi_xyxy: tuple[int, int, int, int] | None) -> CroppedFrame:
    """Return a frame with its inspected part, all of it without a ROI; no pixel is copied.

    Raises:
        FrameError: If ``image`` is no usable frame of that color order or the ROI lies outside it.
    """
    frame = _checked_frame(image, color)
    height, width = frame.shape[:2]
    left, top, right, bottom = roi_xyxy or (0, 0, width, height)
    if right > width or bottom > height:
        raise FrameError(
            f"the frame has {width}x{height} pixels, the ROI {roi_xyxy} reaches outside it; check the camera's resolution or calibrate again",
            "frame_size",
        )
    return CroppedFrame(whole=frame, roi_xyxy=(left, top, right, bottom), bit_depth=stored_bits(frame.dtype))


def to_rgb(image: object, color: ColorOrder, bit_depth: int | None = None) -> Image:
    """Return a frame as (H, W, 3) uint8 RGB; a view where nothing had to be done.

    Gray is replicated, alpha dropped, more than 8 bits become round(v * 255 / (2**bits - 1)): declared rules, none of them looks at the pixel values.

    Args:
        image: As for :func:`prepare`.
        color: What its last axis means.
        bit_depth: Bits that a value uses: 8 for uint8; 10, 12, 14 or 16 for uint16. None for 8 or 16, whichever the array has.

    Raises:
        FrameError: If ``image`` is no array, is empty, does not have the dtype or shape that ``color`` and ``bit_depth`` need, or holds a value above
            what ``bit_depth`` can hold.
    """
    return to_8_bit(in_rgb_order(image, color), bit_depth)


def in_rgb_order(image: object, color: ColorOrder) -> npt.NDArray[Any]:
    """Return a frame as (H, W, 3) RGB, uint8 or uint16 as it is; a view where nothing had to be done.

    Raises:
        FrameError: If ``image`` is no array, is empty, or does not have the dtype or shape that ``color`` needs.
    """
    return _in_rgb_order(_without_alpha(_checked_frame(image, color)), color)


def stored_bits(dtype: np.dtype[Any]) -> int:
    """Return how many bits a value of a uint8 or uint16 frame uses if nothing was declared."""
    return 8 * dtype.itemsize


def to_8_bit(frame: npt.NDArray[Any], bit_depth: int | None = None) -> npt.NDArray[np.uint8]:
    """Return uint8 for a uint8 or uint16 array of any shape, by the rule of :func:`to_rgb`.

    Raises:
        FrameError: If ``bit_depth`` does not fit the array or a value is above what it can hold.
    """
    _check_bit_depth(frame.dtype, bit_depth)
    if frame.dtype == np.uint8:
        return frame
    if bit_depth in (None, 16):
        return ((frame.astype(np.uint32) + 128) // 257).astype(np.uint8)  # round(v / 257), exact: 257 is odd, so there are no ties
    highest, limit = int(frame.max()), (1 << bit_depth) - 1
    if highest > limit:
        raise FrameError(
            f"the frame holds the value {highest}, {bit_depth} bits hold at most {limit}; name the bit depth that the camera sends (--bit-depth)",
            "frame_bit_depth",
        )
    return np.take(_gray_levels(bit_depth), frame)


def resize(image_rgb: Image, size_hw: tuple[int, int]) -> Image:
    """Return the image squashed or stretched to ``size_hw``.

    Each axis alone, in float32: the average over the covered area if the axis shrinks, linear between half-pixel centers if it grows. The values
    are rounded once, at the end, ties up.

    Args:
        image_rgb: (H, W, C) uint8 with 1 or 3 channels; the channels never mix.
        size_hw: Height and width of the result.

    Returns:
        (height, width, C) uint8, never a view of ``image_rgb``.
    """
    if image_rgb.shape[:2] == tuple(size_hw):
        return image_rgb.copy(order="C")
    height, width = size_hw
    channels = image_rgb.shape[2]
    rows = resample_first_axis(image_rgb, height)  # (height, W, C)
    if width == image_rgb.shape[1]:
        return _round(rows)
    cv2 = load_opencv()
    columns = cv2.transpose(rows).reshape(image_rgb.shape[1], height, channels)  # cv2 drops an axis of length 1
    resized = cv2.transpose(resample_first_axis(columns, width)).reshape(height, width, channels)
    return _round(resized)


def resample_first_axis(values: npt.NDArray[Any], n_out: int) -> npt.NDArray[np.float32]:
    """Return an array whose first axis has ``n_out`` lines, each a weighted sum of lines of ``values`` in float32, see :func:`axis_weights`.

    Computed by the calling thread alone. A matrix product would go to a BLAS library, whose threads wait for each other: beside another process that
    has the cores, one frame then takes a hundred times as long.

    Args:
        values: (n_in, ...) of numbers.
        n_out: Length of the first axis of the result.
    """
    n_in, *rest = values.shape
    if n_in == n_out:
        return values.astype(np.float32)
    lines, weights = _taps(n_in, n_out)
    length = math.prod(rest)
    result = np.empty((n_out, length), np.float32)
    step = max(1, _BLOCK_VALUES // max(1, lines.shape[1] * length))
    for start in range(0, n_out, step):
        block = slice(start, start + step)
        gathered = values[lines[block]].astype(np.float32, order="C", copy=False)
        np.einsum("ot,otn->on", weights[block], gathered.reshape(*lines[block].shape, length), out=result[block], optimize=False)
    return result.reshape(n_out, *rest)


def resize_mask(mask: npt.NDArray[np.bool_], size_hw: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the mask on a grid of ``size_hw``; a cell is anomalous if any part of it, however small, is covered by an anomalous pixel."""
    rows = _any_first_axis(np.asarray(mask, dtype=np.bool_), size_hw[0])
    return np.ascontiguousarray(_any_first_axis(rows.T, size_hw[1]).T)


@functools.lru_cache(maxsize=32)
def axis_weights(n_in: int, n_out: int) -> npt.NDArray[np.float32]:
    """Return the (n_out, n_in) weights of one axis of ``resize``, read-only, each row summing to 1.

    Example:
        >>> axis_weights(3, 2).round(3).tolist()
        [[0.6669999957084656, 0.3330000042915344, 0.0], [0.0, 0.3330000042915344, 0.6669999957084656]]
    """
    weights = _area_weights(n_in, n_out) if n_out < n_in else _linear_weights(n_in, n_out)
    result = weights.astype(np.float32)
    result.flags.writeable = False
    return result


def _round(values: npt.NDArray[np.float32]) -> Image:
    rounded: Image = (values + ROUNDING).astype(np.uint8)  # weights sum to 1, so nothing lies outside 0..255
    return rounded


def _area_weights(n_in: int, n_out: int) -> npt.NDArray[np.float64]:
    # In units of 1 / n_out input pixels, both grids have whole-numbered edges, so the overlaps are exact.
    out_start = np.arange(n_out)[:, None] * n_in
    in_start = np.arange(n_in)[None, :] * n_out
    overlap = np.minimum(out_start + n_in, in_start + n_out) - np.maximum(out_start, in_start)
    return np.asarray(np.maximum(overlap, 0) / n_in)


def _linear_weights(n_in: int, n_out: int) -> npt.NDArray[np.float64]:
    position = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
    lower = np.minimum(np.floor(position).astype(np.intp), n_in - 1)
    upper = np.minimum(lower + 1, n_in - 1)
    share = position - lower
    weights = np.zeros((n_out, n_in))
    np.add.at(weights, (np.arange(n_out), lower), 1 - share)
    np.add.at(weights, (np.arange(n_out), upper), share)
    return weights


@functools.lru_cache(maxsize=64)
def _taps(n_in: int, n_out: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """Return which input lines each output line is made of, (n_out, taps), and their weights; a line with fewer is filled up with weights of 0."""
    weights = axis_weights(n_in, n_out)
    used = weights > 0
    lines = used.argmax(axis=1)[:, None] + np.arange(int(used.sum(axis=1).max()))
    inside = lines < n_in
    lines = np.minimum(lines, n_in - 1)
    return lines, np.where(inside, np.take_along_axis(weights, lines, axis=1), np.float32(0))


def _any_first_axis(mask: npt.NDArray[np.bool_], n_out: int) -> npt.NDArray[np.bool_]:
    n_in = mask.shape[0]
    if n_in == n_out:
        return mask
    starts = np.arange(n_out) * n_in // n_out
    ends = -(-(np.arange(n_out) + 1) * n_in // n_out)
    return np.stack([mask[start:end].any(axis=0) for start, end in zip(starts, ends, strict=True)])


def _checked_frame(image: object, color: ColorOrder) -> npt.NDArray[Any]:
    """Return the frame as (H, W, C) without copying pixels."""
    if not isinstance(color, str) or color not in _CHANNELS:
        raise FrameError(f"color must be one of {', '.join(_CHANNELS)}, got {color!r}")
    if not isinstance(image, np.ndarray):
        raise FrameError(f"a frame must be a NumPy array, got {type(image).__name__}")
    if image.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        raise FrameError(f"a frame must be uint8 or uint16, got {image.dtype}")
    channels = _CHANNELS[color]
    frame = image[:, :, None] if channels == 1 and image.ndim == 2 else image
    if frame.ndim != 3 or frame.shape[2] != channels:
        expected = "(H, W) or (H, W, 1)" if channels == 1 else f"(H, W, {channels})"
        raise FrameError(f"a {color} frame must have shape {expected}, got {image.shape}")
    if 0 in frame.shape:
        raise FrameError(f"a frame must not be empty, got shape {image.shape}")
    if max(frame.shape[:2]) > _MAX_SIDE or frame.shape[0] * frame.shape[1] > _MAX_PIXELS:
        raise FrameError(f"a frame may have {_MAX_SIDE} pixels a side and {_MAX_PIXELS} in all, got shape {image.shape}")
    return frame


def _check_bit_depth(dtype: np.dtype[Any], bit_depth: object) -> None:
    if bit_depth is None:
        return
    if type(bit_depth) is not int or bit_depth not in BIT_DEPTHS:
        raise FrameError(f"bit_depth must be one of {', '.join(map(str, BIT_DEPTHS))} or None, got {bit_depth!r}", "frame_bit_depth")
    if (dtype == np.uint8) is not (bit_depth == 8):
        expected = "uint8" if bit_depth == 8 else "uint16"
        raise FrameError(
            f"a frame of {bit_depth} bits must be {expected}, got {dtype}; name the bit depth that the camera sends, or set the camera to that one",
            "frame_bit_depth",
        )


@functools.cache
def _gray_levels(bit_depth: int) -> npt.NDArray[np.uint8]:
    """Return round(v * 255 / limit) of every value; exact: the limit is odd, so there are no ties."""
    limit = (1 << bit_depth) - 1
    return ((np.arange(limit + 1, dtype=np.uint32) * 510 + limit) // (2 * limit)).astype(np.uint8)


def _without_alpha(frame: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return frame[:, :, :3] if frame.shape[2] == 4 else frame


def _in_rgb_order(frame: npt.NDArray[Any], color: ColorOrder) -> npt.NDArray[Any]:
    if color == "gray":
        return np.repeat(frame, 3, axis=2)
    if color in ("bgr", "bgra"):
        return np.ascontiguousarray(frame[:, :, ::-1])
    return frame
