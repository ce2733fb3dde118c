"""Connected areas of an anomaly map, in frame pixels."""

import dataclasses

import numpy as np
import numpy.typing as npt

from snl_runtime.images.opencv import load_opencv
from snl_runtime.types import AnomalyMap, AnomalyRegion

MAX_REGIONS = 256
"""Most regions reported per frame; a map of noise has thousands, which helps nobody and fills the disk."""


def find_regions(anomaly_map: AnomalyMap, threshold: float, roi_xyxy: tuple[int, int, int, int]) -> tuple[AnomalyRegion, ...]:
    """Return the areas above a threshold, highest score first.

    Components are 8-connected and found at the resolution of the map, so a map whose maximum is above the threshold always has a region. A box is the
    smallest one in whole frame pixels that covers every cell of its region, hence inside the frame and never empty.

    Args:
        anomaly_map: (H, W) float32.
        threshold: Cells above it belong to a region; with NaN there are none.
        roi_xyxy: Part of the frame that the map covers, frame pixels.

    Returns:
        At most :data:`MAX_REGIONS` regions; ties are ordered top to bottom, then left to right.
    """
    above = anomaly_map > threshold
    if not above.any():
        return ()
    cv2 = load_opencv()
    _, labels, stats, _ = cv2.connectedComponentsWithStats(above.astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)
    peaks = np.full(len(stats), -np.inf)
    np.maximum.at(peaks, labels[above], anomaly_map[above])
    return rank_regions(stats[1:, : cv2.CC_STAT_AREA + 1], peaks[1:], anomaly_map.shape[:2], roi_xyxy)  # label 0 is the background


def rank_regions(
    boxes: npt.NDArray[np.int32], peaks: npt.NDArray[np.float64], map_hw: tuple[int, ...], roi_xyxy: tuple[int, int, int, int]
) -> tuple[AnomalyRegion, ...]:
    """Return components in frame pixels, highest score first; see :func:`find_regions`.

    Args:
        boxes: (N, 5): left, top, width, height and number of cells of each component, in cells of the map.
        peaks: (N,) highest value of each.
        map_hw: Height and width of the map.
        roi_xyxy: Part of the frame that the map covers, frame pixels.
    """
    order = np.lexsort((boxes[:, 0], boxes[:, 1], -peaks))[:MAX_REGIONS]
    return tuple(_region(boxes[index], float(peaks[index]), map_hw, roi_xyxy) for index in order)


def with_mm2(regions: tuple[AnomalyRegion, ...], mm_per_px: float | None) -> tuple[AnomalyRegion, ...]:
    """Return regions with their areas in square millimeters too, as they are where the scale of the frame is not known."""
    if mm_per_px is None:
        return regions
    return tuple(dataclasses.replace(region, area_mm2=region.area_px * mm_per_px**2) for region in regions)


def _region(stats: npt.NDArray[np.int32], peak: float, map_hw: tuple[int, ...], roi_xyxy: tuple[int, int, int, int]) -> AnomalyRegion:
    column, row, width, height, cells = (int(value) for value in stats)
    left, top, right, bottom = roi_xyxy
    rows, columns = map_hw
    frame_height, frame_width = bottom - top, right - left
    box = (
        left + column * frame_width // columns,
        top + row * frame_height // rows,
        left - (-(column + width) * frame_width // columns),  # integer ceiling: float rounding could lose a pixel
        top - (-(row + height) * frame_height // rows),
    )
    area_px = cells * (frame_height * frame_width) / (rows * columns)
    return AnomalyRegion(box_xyxy=box, score=peak, area_px=max(1, round(area_px)))
