"""Any number of images through a graph that takes batches of a certain size."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
RunBatch: TypeAlias = Callable[[npt.NDArray[np.uint8], Floats, Floats], None]
"""As ``Backend.infer``: writes the maps (N, 1, H, W) and scores (N,) of (N, H, W, 3) images into arrays that hold NaN."""


def run_in_batches(images: npt.NDArray[np.uint8], run: RunBatch, *, fixed: int | None, largest: int) -> tuple[Floats, Floats]:
    """Return scores (N,) and maps (N, H, W); what was not written is NaN.

    Args:
        images: (N, H, W, 3) uint8, any N.
        run: The graph.
        fixed: How many images it takes, neither more nor fewer; the last image then fills the last batch. None if it takes any number.
        largest: Most images of a batch; ``fixed`` if there is one.
    """
    count, height, width, _ = images.shape
    scores = np.full(count, np.nan, np.float32)
    maps = np.full((count, 1, height, width), np.nan, np.float32)
    for start in range(0, count, largest):
        stop = min(start + largest, count)
        if fixed is None or stop - start == fixed:
            run(images[start:stop], maps[start:stop], scores[start:stop])
            continue
        padded = images[np.minimum(np.arange(start, start + fixed), count - 1)]
        padded_maps, padded_scores = np.full((fixed, 1, height, width), np.nan, np.float32), np.full(fixed, np.nan, np.float32)
        run(padded, padded_maps, padded_scores)
        maps[start:stop], scores[start:stop] = padded_maps[: stop - start], padded_scores[: stop - start]
    return scores, maps[:, 0]
