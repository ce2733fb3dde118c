"""What a frame must be before its score counts: of the sizes and the look of the good parts that its product was calibrated on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from snl_runtime.errors import CalibrationRefusedError
from snl_runtime.images.opencv import load_opencv
from snl_runtime.images.preprocess import FrameFormat
from snl_runtime.model.frame_range import FrameRange, FrameSizes, size_text
from snl_runtime.types import Image
from snl_runtime.verdict.ruling import Ruling, error

MIN_DEVIATION = 2.0
"""Gray levels; a frame that varies less shows nothing (covered lens, light off, saturated sensor)."""
WHITE_LEVEL = 250
"""A pixel is white when every channel is at least this."""
BLACK_LEVEL = 5
"""A pixel is black when every channel is at most this."""
TINT_LEVEL = 4
"""A pixel is reddish when its red is at least this far above its blue, bluish the other way round; noise and JPEG change less."""
COLOR_LEVEL = 16
"""The same for a pixel that counts as red or blue."""
LOCAL_DEFECT_SHARE = 0.05
"""The range guards against cover, light and camera faults. A part with a clear defect on this share of the frame must stay inside, so that it is
REJECT and not ERROR. It is the least widening of the ranges of shares on each side."""
MIN_MARGIN_GRAY = 10.0
"""Least widening of the ranges of mean and deviation on each side, gray levels: what a strong defect on 5 % of the frame changes."""
MIN_MARGIN_COLOR = LOCAL_DEFECT_SHARE * 2 * 255
"""The same for ``red_blue`` and ``green``: what a defect on 5 % of the frame changes at most, say from pure blue to pure red."""

_SWAPPED = {"reddish_share": "bluish_share", "bluish_share": "reddish_share", "red_share": "blue_share", "blue_share": "red_share"}
"""Which statistic a frame with red and blue exchanged has in place of each of these; all others but ``red_blue`` stay as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameStatistics:
    """What the qualified input range is made of, computed on the network input; its fields are those of :class:`FrameRange`.

    Attributes:
        mean: Mean of all values, gray levels.
        deviation: Spread over positions, gray levels: root of the channels' mean variance, so a frame of one color has 0.
        white_share: Share of pixels whose three channels are all >= 250, 0 to 1.
        black_share: Share of pixels whose three channels are all <= 5, 0 to 1.
        red_blue: Mean of red less blue, gray levels.
        green: Mean of green less the mean of red and blue, gray levels.
        reddish_share: Share of pixels with red - blue >= 4, 0 to 1.
        bluish_share: Share of pixels with blue - red >= 4, 0 to 1.
        red_share: Share of pixels with red - blue >= 16, 0 to 1.
        blue_share: Share of pixels with blue - red >= 16, 0 to 1.
    """

    mean: float
    deviation: float
    white_share: float
    black_share: float
    red_blue: float
    green: float
    reddish_share: float
    bluish_share: float
    red_share: float
    blue_share: float


def frame_statistics(image_rgb: Image) -> FrameStatistics:
    """Return the statistics of a prepared frame.

    They are taken on the network input, (H, W, 3) uint8 after cropping and resizing: cheap, and the same in calibration and on the line.
    """
    cv2 = load_opencv()
    means, deviations = cv2.meanStdDev(image_rgb)
    red, green, blue = (float(mean) for mean in means.ravel())
    pixels = image_rgb.shape[0] * image_rgb.shape[1]
    white = cv2.inRange(image_rgb, (WHITE_LEVEL,) * 3, (255,) * 3)
    black = cv2.inRange(image_rgb, (0,) * 3, (BLACK_LEVEL,) * 3)
    planes = cv2.extractChannel(image_rgb, 0), cv2.extractChannel(image_rgb, 2)
    redder, bluer = cv2.subtract(*planes), cv2.subtract(*planes[::-1])  # saturates at 0
    return FrameStatistics(
        mean=(red + green + blue) / 3,
        deviation=float(np.sqrt(np.mean(deviations**2))),
        white_share=cv2.countNonZero(white) / pixels,
        black_share=cv2.countNonZero(black) / pixels,
        red_blue=red - blue,
        green=green - (red + blue) / 2,
        reddish_share=cv2.countNonZero(cv2.inRange(redder, TINT_LEVEL, 255)) / pixels,
        bluish_share=cv2.countNonZero(cv2.inRange(bluer, TINT_LEVEL, 255)) / pixels,
        red_share=cv2.countNonZero(cv2.inRange(redder, COLOR_LEVEL, 255)) / pixels,
        blue_share=cv2.countNonZero(cv2.inRange(bluer, COLOR_LEVEL, 255)) / pixels,
    )


def fit_frame_range(statistics: Sequence[FrameStatistics]) -> FrameRange:
    """Return the qualified input range of a product: what its good frames span, widened on each side.

    Each range grows on both sides by half of its width, and at least, as a handful of frames under steady light spans almost nothing, by what a clear
    defect on 5 % of the frame changes: 10 gray levels (mean, deviation), 25.5 (``red_blue``, ``green``) or 0.05 (shares). Ends are clipped to what
    the statistic can be: 0 to 255, -255 to 255, or 0 to 1.

    Args:
        statistics: Of the network inputs of good parts, one per part.

    Raises:
        CalibrationRefusedError: If the sample is empty.
    """
    if not statistics:
        raise CalibrationRefusedError("the qualified input range needs at least one good frame, got 0")

    def gray(name: str) -> tuple[float, float]:
        return _widened([getattr(s, name) for s in statistics], MIN_MARGIN_GRAY, (0.0, 255.0))

    def share(name: str) -> tuple[float, float]:
        return _widened([getattr(s, name) for s in statistics], LOCAL_DEFECT_SHARE, (0.0, 1.0))

    def color(name: str) -> tuple[float, float]:
        return _widened([getattr(s, name) for s in statistics], MIN_MARGIN_COLOR, (-255.0, 255.0))

    return FrameRange(
        mean=gray("mean"),
        deviation=gray("deviation"),
        white_share=share("white_share"),
        black_share=share("black_share"),
        red_blue=color("red_blue"),
        green=color("green"),
        reddish_share=share("reddish_share"),
        bluish_share=share("bluish_share"),
        red_share=share("red_share"),
        blue_share=share("blue_share"),
    )


def check_format(frame: FrameFormat, sizes: FrameSizes, bit_depth: int) -> Ruling | None:
    """Return why a frame of this format may not be judged, None if its size and bit depth were calibrated on."""
    if not sizes.fits(frame.size_hw):
        return error(
            "frame_size",
            f"the frame has {size_text(frame.size_hw)} pixels, the product was calibrated on {sizes}; "
            "set the camera to that size, or calibrate on frames of this one",
        )
    if frame.bit_depth != bit_depth:
        return error(
            "frame_bit_depth",
            f"the frame has {frame.bit_depth} bits, the product was calibrated on {bit_depth}; set the camera to these, or calibrate again",
        )
    return None


def check_frame(statistics: FrameStatistics, frame_range: FrameRange) -> Ruling | None:
    """Return why a frame may not be judged, None if it lies inside the qualified input range."""
    if not statistics.deviation >= MIN_DEVIATION:  # written so that NaN fails
        return error(
            "frame_flat", f"the frame shows nothing: its deviation is {statistics.deviation:.3g} gray levels, expected at least {MIN_DEVIATION:g}"
        )
    if _looks_swapped(statistics, frame_range):
        return error(
            "frame_color_order",
            f"the frame's red and blue look swapped: {100 * statistics.reddish_share:.3g} % of it is reddish, {100 * statistics.bluish_share:.3g} % "
            "bluish, of good parts the other way round; name the order of its channels (color='bgr' for OpenCV, else mostly 'rgb')",
        )
    for name, advice in _JUDGED_BY_RANGE.items():
        value = getattr(statistics, name)
        low, high = getattr(frame_range, name)
        if not low <= value <= high:
            title = name.replace("_", " ")
            return error("frame_out_of_range", f"the frame's {title} is {value:.4g}, qualified input range {low:.4g} to {high:.4g}; {advice}")
    return None


_LIGHT, _COLOR = "check light and lens", "check light, white balance and the order of the channels"
_JUDGED_BY_RANGE = {"mean": _LIGHT, "deviation": _LIGHT, "white_share": _LIGHT, "black_share": _LIGHT, "red_blue": _COLOR, "green": _COLOR}
"""Statistics that must lie inside their range, with what to do; the shares of color only tell a swapped frame."""


def _looks_swapped(statistics: FrameStatistics, frame_range: FrameRange) -> bool:
    """Whether the shares of color lie outside, and inside once red and blue are exchanged; a defect on 5 % of the frame moves none outside."""

    def is_inside(name: str, value: float) -> bool:
        low, high = getattr(frame_range, name)
        return bool(low <= value <= high)

    return not all(is_inside(name, getattr(statistics, name)) for name in _SWAPPED) and all(
        is_inside(name, getattr(statistics, other)) for name, other in _SWAPPED.items()
    )


def _widened(values: Sequence[float], min_margin: float, limits: tuple[float, float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = max((high - low) / 2, min_margin)
    return max(low - margin, limits[0]), min(high + margin, limits[1])
