"""Anomaly map at frame resolution: the NumPy reference implementation of the CUDA kernel."""

from snl_runtime.images.opencv import load_opencv
from snl_runtime.images.preprocess import resample_first_axis
from snl_runtime.types import AnomalyMap


def upsample_map(anomaly_map: AnomalyMap, size_hw: tuple[int, int]) -> AnomalyMap:
    """Return the map at another size, each axis resized alone in float32 as frames are.

    Bilinear with half-pixel centers where an axis grows, area average where it shrinks: the map lies on the frame exactly as the frame was sampled.
    Values stay between the least and the greatest value of the map.

    Args:
        anomaly_map: (H, W) float32.
        size_hw: Height and width of the result, usually those of the region of interest.
    """
    height, width = size_hw
    rows = resample_first_axis(anomaly_map, height)  # (H', W)
    if width == anomaly_map.shape[1]:
        return rows
    transpose = load_opencv().transpose  # four times as fast as a copy of NumPy's
    resized: AnomalyMap = transpose(resample_first_axis(transpose(rows), width))
    return resized
