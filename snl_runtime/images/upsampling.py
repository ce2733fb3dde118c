"""Anomaly map at frame resolution: the NumPy reference implementation of the CUDA kernel."""

import numpy as np

from snl_runtime.images.preprocess import axis_weights
from snl_runtime.types import AnomalyMap


def upsample_map(anomaly_map: AnomalyMap, size_hw: tuple[int, int]) -> AnomalyMap:
    """Return the map at another size, each axis resized alone in float32 as frames are.

    Bilinear with half-pixel centers where an axis grows, area average where it shrinks: the map lies on the frame exactly as the frame was sampled.
    Values stay between the least and the greatest value of the map.

    Args:
        anomaly_map: (H, W) float32.
        size_hw: Height and width of the result, usually those of the region of interest.
    """
    rows = axis_weights(anomaly_map.shape[0], size_hw[0])  # (H', H)
    columns = axis_weights(anomaly_map.shape[1], size_hw[1])  # (W', W)
    resized: AnomalyMap = np.matmul(np.matmul(rows, anomaly_map), columns.T).astype(np.float32, copy=False)
    return resized
