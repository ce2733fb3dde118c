"""A camera that sends the same image again and again is frozen; sensor noise makes real images differ."""

from typing import Any

import numpy as np
import numpy.typing as npt

STRIDE_OF_QUICK_LOOK = 61
"""Rows between two compared ones: frames that differ nearly always differ there, and comparing everything costs a pass over the memory."""


class RepeatCounter:
    """Counts byte-equal images in a row.

    Args:
        frozen_after: Byte-equal images in a row that count as frozen; 0 for never.
    """

    def __init__(self, frozen_after: int) -> None:
        self._frozen_after = frozen_after
        self._previous: npt.NDArray[Any] | None = None
        self.count = 0

    def fault(self, image: npt.NDArray[Any], name: str) -> str | None:
        """Return why an image may not be judged, None if it may; ``name`` is the camera's."""
        if not self.is_frozen(image):
            return None
        return f"frozen camera: {name} sent {self.count} byte-equal frames in a row; restart it or check its cable"

    def is_frozen(self, image: npt.NDArray[Any]) -> bool:
        """Return whether this image is at least the ``frozen_after``-th equal one in a row. Keeps a reference to it until the next call."""
        if self._frozen_after == 0:
            return False
        self.count = self.count + 1 if self._previous is not None and _are_equal(self._previous, image) else 1
        self._previous = image
        return self.count >= self._frozen_after


def _are_equal(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> bool:
    if first.shape != second.shape or not np.array_equal(first[::STRIDE_OF_QUICK_LOOK], second[::STRIDE_OF_QUICK_LOOK]):
        return False
    return np.array_equal(first, second)
