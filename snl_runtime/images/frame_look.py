"""How bright and how sharp a frame is as it was captured: cheap figures that change when lamp, exposure or focus do."""

from dataclasses import dataclass

import numpy as np

from snl_runtime.images.opencv import load_opencv
from snl_runtime.images.preprocess import crop_frame, to_8_bit
from snl_runtime.types import ColorOrder

ROW_PAIRS = 128
"""Pairs of neighboring rows that are looked at, spread over the height: enough for a mean, whatever the camera's resolution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameLook:
    """Brightness and sharpness of the inspected part.

    Attributes:
        brightness: Mean of the green channel, gray levels 0 to 255.
        sharpness: Mean absolute step between neighboring pixels, relative to the brightness, so that a dimmer lamp leaves it as it is.
    """

    brightness: float
    sharpness: float


def measure_look(image: object, color: ColorOrder, roi_xyxy: tuple[int, int, int, int] | None = None, bit_depth: int | None = None) -> FrameLook:
    """Return brightness and sharpness at the resolution of the camera, where blur shows that resizing would hide.

    Args:
        image: Frame as captured, see :class:`snl_runtime.types.Frame`; on the host.
        color: Meaning of its last axis.
        roi_xyxy: Inspected part in frame pixels; None for all of it.
        bit_depth: Bits that a value uses; None for 8 or 16, whichever the array has.

    Raises:
        FrameError: If ``image`` is no usable frame.
    """
    part = crop_frame(image, color, roi_xyxy).part
    green = part[..., 0 if color == "gray" else 1]
    height = green.shape[0]
    first = np.unique(np.linspace(0, max(height - 2, 0), min(ROW_PAIRS, max(height - 1, 1))).astype(np.intp))
    upper = to_8_bit(np.ascontiguousarray(green[first]), bit_depth)  # (pairs, W) uint8
    lower = to_8_bit(np.ascontiguousarray(green[np.minimum(first + 1, height - 1)]), bit_depth)
    cv2 = load_opencv()
    brightness = (cv2.mean(upper)[0] + cv2.mean(lower)[0]) / 2
    across = cv2.mean(cv2.absdiff(upper[:, 1:], upper[:, :-1]))[0] if upper.shape[1] > 1 else 0.0
    down = cv2.mean(cv2.absdiff(upper, lower))[0]
    return FrameLook(brightness=brightness, sharpness=(across + down) / 2 / max(brightness, 1.0))
