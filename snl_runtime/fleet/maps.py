"""Anomaly maps small enough to be kept for every row of an archive: to look at, not to judge by."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from snl_runtime.types import AnomalyMap, AnomalyResult, Mask

MAP_CELLS = 64
"""Most cells of a side: networks see an image in cells of four or more pixels, so a stored map of 8 KiB shows the same places."""


def pack_map(result: AnomalyResult) -> dict[str, Any] | None:
    """Return the map of a result as a row keeps it; None if it has none.

    Blocks of equal size are reduced to their largest value, so the largest cell is the score, rounded.

    Returns:
        ``height`` and ``width``, at most 64; ``roi_xyxy``, the part of the frame that the map covers; ``cells``, float16 little-endian, row by row,
        values beyond its range cut to it; ``ignored``, a byte for each of them, 1 where an ignore mask hides all of its block, or None without one.
    """
    if result.anomaly_map is None or result.roi_xyxy is None:
        return None
    block = -(-max(result.anomaly_map.shape) // MAP_CELLS)
    cells = np.clip(_reduced(np.maximum, result.anomaly_map, block), 0, np.finfo(np.float16).max).astype("<f2")
    ignored = None if result.ignored is None else _reduced(np.logical_and, result.ignored, block).tobytes()
    return {"height": cells.shape[0], "width": cells.shape[1], "roi_xyxy": [*result.roi_xyxy], "cells": cells.tobytes(), "ignored": ignored}


def unpack_map(stored: Mapping[str, Any]) -> AnomalyMap:
    """Return the map of a row, (height, width) float32."""
    return np.frombuffer(stored["cells"], "<f2").reshape(stored["height"], stored["width"]).astype(np.float32)


def unpack_ignored(stored: Mapping[str, Any]) -> Mask | None:
    """Return which cells of the map of a row are not judged, (height, width) bool; None if all are, or the row is from before that was kept."""
    cells = stored.get("ignored")
    return None if cells is None else np.frombuffer(cells, np.bool_).reshape(stored["height"], stored["width"])


def _reduced(operation: np.ufunc, values: npt.NDArray[Any], block: int) -> npt.NDArray[Any]:
    """Return what an operation makes of each block of cells."""
    for axis, length in enumerate(values.shape):
        values = operation.reduceat(values, np.arange(0, length, block), axis=axis)
    return values
