"""Visualizations of a verdict: heat map, outlined regions and a banner."""

import functools
import math

import numpy as np
import numpy.typing as npt

from snl_runtime.images.opencv import load_opencv
from snl_runtime.images.upsampling import upsample_map
from snl_runtime.types import AnomalyMap, AnomalyResult, Image, Mask, Verdict

MAX_OPACITY = 0.6
"""Share of the color in the blend at twice the threshold and above."""
HEAT_STOPS = ((0.0, (0, 60, 200), 0.0), (0.5, (0, 200, 180), 0.25), (1.0, (255, 220, 0), 0.45), (2.0, (255, 0, 0), MAX_OPACITY))
"""Map value in units of the threshold, RGB color, opacity; linear in between, constant above."""
BANNER_COLORS: dict[Verdict, tuple[int, int, int]] = {
    Verdict.PASS: (0, 120, 60),
    Verdict.REVIEW: (190, 110, 0),
    Verdict.REJECT: (180, 0, 20),
    Verdict.ERROR: (90, 40, 120),
}
HEAT_STEPS = 512
"""Steps of the color table between 0 and the threshold; a step moves a color by less than one gray level."""
_OUTLINE = (255, 0, 0)
_TEXT = (255, 255, 255)
_HATCH = (150, 150, 150)


def render_overlay(image_rgb: Image, result: AnomalyResult) -> Image:
    """Return a frame with its heat map, the boxes of its regions and a banner above it that says the verdict.

    Colors are absolute: a map value of 0 leaves the image as it is, the pass threshold is yellow, twice the threshold and more is red. Two parts
    can be compared, and a good part never glows. Without a threshold there is no heat map.

    A result that carries an overlay, as a GPU made it, is only outlined and titled; else the heat map is blended here. What an ignore mask hides is
    darkened and hatched, and the banner says its share.

    Args:
        image_rgb: (H, W, 3) uint8, the whole frame; what ``result.overlay`` covers is not looked at.
        result: Verdict on it.

    Returns:
        (H + banner, W, 3) uint8; the height of the banner depends on the size of the frame alone.
    """
    cv2 = load_opencv()
    image = np.ascontiguousarray(image_rgb).copy()
    if result.roi_xyxy is not None:
        left, top, right, bottom = result.roi_xyxy
        if result.overlay is not None:
            image[top:bottom, left:right] = result.overlay
        elif result.anomaly_map is not None:
            image[top:bottom, left:right] = blend_heat(image[top:bottom, left:right], result.anomaly_map, result.threshold)
        if result.overlay is None and result.ignored is not None:
            image[top:bottom, left:right] = hatch_ignored(image[top:bottom, left:right], result.ignored)
    thickness = max(1, round(min(image.shape[:2]) / 300))
    for region in result.regions:
        left, top, right, bottom = region.box_xyxy
        cv2.rectangle(image, (left, top), (right - 1, bottom - 1), _OUTLINE, thickness)
    return np.concatenate([_banner(result, image.shape[1], banner_height(image.shape[:2])), image])


def hatch_ignored(image_rgb: Image, ignored: Mask) -> Image:
    """Return an image in which what is not judged is darkened and hatched, so that nobody takes it for judged.

    Args:
        image_rgb: (H, W, 3) uint8, the part of the frame that the map covers.
        ignored: (h, w) bool, the cells of the map that are not judged.
    """
    height, width = image_rgb.shape[:2]
    cell_rows, cell_columns = (np.arange(side) * cells // side for side, cells in zip((height, width), ignored.shape))
    hidden = ignored[np.ix_(cell_rows, cell_columns)]
    spacing = max(6, round(min(height, width) / 40))
    line = (np.arange(height)[:, None] + np.arange(width)) % spacing < max(1, spacing // 6)
    hatched = image_rgb.copy()
    hatched[hidden] = image_rgb[hidden] // 3
    hatched[hidden & line] = _HATCH
    return hatched


def blend_heat(image_rgb: Image, anomaly_map: AnomalyMap, threshold: float) -> Image:
    """Return an image with its anomaly map blended over it; the reference implementation of the CUDA kernel.

    Args:
        image_rgb: (H, W, 3) uint8, the part of the frame that the map covers.
        anomaly_map: (h, w) float32, resized to (H, W) by :func:`snl_runtime.images.upsampling.upsample_map`.
        threshold: Value that becomes yellow; the image stays as it is unless it is positive and finite.
    """
    return blend_frame_map(image_rgb, upsample_map(anomaly_map, (image_rgb.shape[0], image_rgb.shape[1])), threshold)


def blend_frame_map(image_rgb: Image, frame_map: AnomalyMap, threshold: float) -> Image:
    """Return an image with an anomaly map of its own size blended over it; see :func:`blend_heat`."""
    if not 0 < threshold < math.inf:
        return image_rgb.copy()
    heat = frame_map / np.float32(threshold)
    index = np.clip(heat * HEAT_STEPS + np.float32(0.5), 0, 2 * HEAT_STEPS).astype(np.intp)
    added, kept = heat_table()
    share = kept.take(index)
    blended = np.empty_like(image_rgb)
    for channel in range(3):  # one by one: three times as fast as broadcasting over the last axis
        blended[:, :, channel] = image_rgb[:, :, channel] * share + added[channel].take(index)
    return blended


@functools.cache
def heat_table() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return what each step of heat adds, (3, steps), 0.5 for the rounding included, and what share of the image it keeps, (steps,)."""
    heat = np.arange(2 * HEAT_STEPS + 1) / HEAT_STEPS
    colors, opacity = heat_colors(heat)
    added = np.ascontiguousarray((colors * opacity[:, None] + 0.5).T)
    return added.astype(np.float32), (1 - opacity).astype(np.float32)


def heat_colors(heat: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return color (..., 3), 0 to 255, and opacity (...), 0 to 0.6, of map values in units of the threshold.

    Example:
        >>> colors, opacity = heat_colors(np.array([0.0, 0.75, 1.0, 5.0]))
        >>> colors[1:].tolist(), opacity.round(2).tolist()
        ([[127.5, 210.0, 90.0], [255.0, 220.0, 0.0], [255.0, 0.0, 0.0]], [0.0, 0.35, 0.45, 0.6])
    """
    stops = [stop for stop, _, _ in HEAT_STOPS]
    channels = [np.interp(heat, stops, [color[channel] for _, color, _ in HEAT_STOPS]) for channel in range(3)]
    return np.stack(channels, axis=-1), np.interp(heat, stops, [share for _, _, share in HEAT_STOPS])


def banner_height(frame_hw: tuple[int, ...]) -> int:
    """Return the height in pixels of the banner over a frame of that size."""
    return max(16, round(min(frame_hw[:2]) / 14))


def banner_text(result: AnomalyResult) -> str:
    """Return what the banner says: verdict, score against its threshold, product; for an ERROR its cause."""
    product = "" if result.product is None else f"  {result.product}"
    if result.verdict is Verdict.ERROR:
        return f"ERROR  {result.reason_code}{product}"
    ignored = f"  {100 * result.ignored_share:.3g} % not judged" if result.ignored_share else ""
    return f"{result.verdict.value}  {result.score:.4g} / {result.threshold:.4g}{product}{ignored}"


def _banner(result: AnomalyResult, width: int, height: int) -> Image:
    cv2 = load_opencv()
    banner = np.full((height, width, 3), BANNER_COLORS[result.verdict], np.uint8)
    text = banner_text(result).encode("ascii", "replace").decode()  # OpenCV's font has no other characters
    scale = height / 36
    (text_width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    scale *= min(1.0, (width - 4) / max(text_width, 1))
    cv2.putText(banner, text, (2, round(height * 0.72)), cv2.FONT_HERSHEY_SIMPLEX, max(scale, 0.1), _TEXT, 1, cv2.LINE_AA)
    return banner
