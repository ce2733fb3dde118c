"""Anomaly maps small enough to be kept for every row of an archive: to look at, not to judge by."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from snl_runtime.types import AnomalyMap, AnomalyResult

MAP_CELLS = 64
"""Most cells of a side: networks see an image in cells of four or more pixels, so a stored map of 8 KiB shows the same places."""


def pack_map(result: AnomalyResult) -> dict[str, Any] | None:
    """Return the map of a result as a row keeps it; None if it has none.

    Blocks of equal size are reduced to their largest value, so the largest cell is the score, rounded.

    Returns:
        ``height`` and ``width``, at most 64; ``roi_xyxy``, the part of the frame that the map covers; ``cells``, float16 little-endian, row by row,
        values beyond its range cut to it.
    """
    if result.anomaly_map is None or result.roi_xyxy is None:
        return None
    reduced = result.anomaly_map
    block = -(-max(reduced.shape) // MAP_CELLS)
    for axis, length in enumerate(reduced.shape):
        reduced = np.maximum.reduceat(reduced, np.arange(0, length, block), axis=axis)
    cells = np.clip(reduced, 0, np.finfo(np.float16).max).astype("<f2")
    return {"height": cells.shape[0], "width": cells.shape[1], "roi_xyxy": [*result.roi_xyxy], "cells": cells.tobytes()}


def unpack_map(stored: Mapping[str, Any]) -> AnomalyMap:
    """Return the map of a row, (height, width) float32."""
    return np.frombuffer(stored["cells"], "<f2").reshape(stored["height"], stored["width"]).astype(np.float32)
