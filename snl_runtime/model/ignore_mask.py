"""An ignore mask: cells of a product's anomaly map that are not judged, part of the decision that was fitted under it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from snl_runtime.errors import DataError, NormalizationError
from snl_runtime.images.files import read_frame
from snl_runtime.images.preprocess import resize_mask
from snl_runtime.model.map_factors import MapFactors
from snl_runtime.types import Mask


@dataclass(frozen=True, slots=True, eq=False)
class IgnoreMask(MapFactors):
    """Which cells of a map are judged.

    Attributes:
        values: (H, W) float32: 0 where the map is ignored, 1 where it is judged; read-only.

    Raises:
        NormalizationError: If ``values`` is anything else, or judges nothing.
    """

    def __post_init__(self) -> None:
        MapFactors.__post_init__(self)  # super() without arguments does not know a class with slots
        if not np.isin(self.values, (0, 1)).all():
            raise NormalizationError("an ignore mask holds 0 where the map is ignored and 1 where it is judged, nothing else")


def read_ignore_mask(path: Path) -> Mask:
    """Return the mask in a black and white image, (H, W) bool, True where it is white: there nothing is judged.

    Raises:
        DataError: If it cannot be read, or holds anything but black and white: what a gray pixel means, nobody could tell.
    """
    image = read_frame(path)
    white = np.iinfo(image.dtype).max
    ignored: Mask = image.min(axis=2) == white
    if not (ignored | (image.max(axis=2) == 0)).all():
        raise DataError(f"{path} is no ignore mask: it may hold black (judged) and white (ignored) only, no gray; save it as PNG")
    return ignored


def ignore_mask_of(ignored: Mask) -> IgnoreMask:
    """Return the mask that ignores these cells, (H, W) bool.

    Raises:
        NormalizationError: If it is no such array, or ignores everything.
    """
    if ignored.dtype != np.bool_:
        raise NormalizationError(f"the cells that are ignored must be bool, got {ignored.dtype}")
    return IgnoreMask((~ignored).astype(np.float32))


def ignored_cells(ignored_px: Mask, map_hw: tuple[int, int]) -> Mask:
    """Return the cells of a map that lie on ignored pixels only; a cell with any pixel that is judged is judged.

    Args:
        ignored_px: (H, W) bool over the inspected part of a frame.
        map_hw: Height and width of its map.
    """
    return ~resize_mask(~ignored_px, map_hw)
