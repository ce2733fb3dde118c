"""Connected areas of an anomaly map, in frame pixels."""

import numpy as np
import numpy.typing as npt

from snl_runtime.opencv import load_opencv
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
    first_row, first_column = stats[:, cv2.CC_STAT_TOP], stats[:, cv2.CC_STAT_LEFT]
    order = np.lexsort((first_column, first_row, -peaks))  # the background keeps its peak of -inf and comes last
    chosen = order[: min(len(order) - 1, MAX_REGIONS)]
    return tuple(_region(stats[label], float(peaks[label]), anomaly_map.shape, roi_xyxy) for label in chosen)


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
