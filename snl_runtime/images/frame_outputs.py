"""Map, mask and overlay at the resolution of the inspected part of a frame, as the host makes them: the reference implementation of the CUDA
kernel.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from snl_runtime.images.overlay import blend_frame_map
from snl_runtime.images.preprocess import to_rgb
from snl_runtime.images.upsampling import upsample_map
from snl_runtime.types import AnomalyMap, ColorOrder, Image, Mask, OutputRequest


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Visualizations:
    """What was wanted, at the size of the inspected part; the arrays are the caller's own.

    Attributes:
        frame_map: (H, W) float32 raw scores.
        mask: (H, W) bool, the map above the threshold.
        overlay: (H, W, 3) uint8 RGB.
    """

    frame_map: AnomalyMap | None = None
    mask: Mask | None = None
    overlay: Image | None = None


def draw_visualizations(
    crop: npt.NDArray[Any], color: ColorOrder, anomaly_map: AnomalyMap, threshold: float, wanted: OutputRequest
) -> Visualizations:
    """Return what is wanted of one frame.

    Args:
        crop: The inspected part, see :func:`snl_runtime.images.preprocess.crop_frame`.
        color: Meaning of its last axis.
        anomaly_map: (h, w) float32.
        threshold: Of the mask, and what becomes yellow in the overlay.
        wanted: What to make.
    """
    frame_map = upsample_map(anomaly_map, (crop.shape[0], crop.shape[1]))
    return Visualizations(
        frame_map=frame_map if wanted.frame_map else None,
        mask=frame_map > np.float32(threshold) if wanted.mask else None,
        overlay=blend_frame_map(to_rgb(crop, color), frame_map, threshold) if wanted.overlay else None,
    )
