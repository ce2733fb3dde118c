"""Whether runs that replay a CUDA graph answer as plain runs do, asked before any frame is trusted to them.

A graph that was recorded with other addresses, or of nothing, replays without an error: the outputs are then those of an earlier image, and a defect
passes. So images are scored in both ways in turns, each must be answered as by the plain run, and images that differ must not be answered alike.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from snl_runtime.errors import InferenceError

Images: TypeAlias = npt.NDArray[np.uint8]
Answer: TypeAlias = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""Maps (N, H, W) and scores (N,)."""
Score: TypeAlias = Callable[[Images], Answer]

RUNS_UNTIL_REPLAY = 4
"""Runs after which the library replays: it makes one or two plain ones, records the next, and may do all of that within the first."""
TOLERANCE = 1e-3
"""Share of the largest value of the plain run by which a replay may differ: that of golden samples, float32. Kernels and order are the same."""
_LEAST_CHANGE = 10 * TOLERANCE
"""Share by which the two images must be answered differently at least, or the comparison tells nothing."""


def check_images(count: int, size_hw: tuple[int, int]) -> tuple[Images, Images]:
    """Return two batches of (count, H, W, 3) uint8 RGB without an image in common: colored blocks, coarse in one and fine in the other."""
    rng = np.random.default_rng(0)
    batches = []
    for cells in (4, 13):
        blocks = rng.integers(0, 256, (count, cells, cells, 3), dtype=np.uint8)
        rows, columns = (np.arange(side) * cells // side for side in size_hw)
        batches.append(np.ascontiguousarray(blocks[:, rows][:, :, columns]))
    return batches[0], batches[1]


def record_and_check(plain: Score, replayed: Score, count: int, size_hw: tuple[int, int]) -> None:
    """Let a session record a CUDA graph for runs of ``count`` images, and compare it with plain runs.

    Args:
        plain: Scores images without a graph; outputs that it does not write are NaN.
        replayed: Scores images with one: the first calls record it.
        count: Images of a run.
        size_hw: Network size.

    Raises:
        InferenceError: If a replay answers otherwise than a plain run, both images are answered alike, or a run fails.
    """
    first, second = check_images(count, size_hw)
    expected = {"first": plain(first), "second": plain(second)}
    largest = float(np.max([np.abs(maps).max() for maps, _ in expected.values()]))
    if not largest > 0:  # NaN included
        raise InferenceError(f"a plain run of {count} images gives maps up to {largest:g}, with which nothing can be compared")
    if not _difference(expected["first"], expected["second"]) >= _LEAST_CHANGE * largest:
        raise InferenceError(f"two different images get the same answer from a run of {count} images, so a replay cannot be told from an old answer")
    for name in [*["first"] * RUNS_UNTIL_REPLAY, "second", "first", "second", "second", "first"]:
        difference = _difference(replayed(first if name == "first" else second), expected[name])
        if not difference <= TOLERANCE * largest:
            allowed = f"{TOLERANCE * largest:.3g}"
            raise InferenceError(f"a replay of {count} images is {difference:.3g} off a plain run, allowed is {allowed}: it may be an old answer")


def _difference(one: Answer, other: Answer) -> float:
    """Return the largest difference of any value, NaN if there is a NaN."""
    return float(np.max([np.abs(mine - its).max() for mine, its in zip(one, other, strict=True)]))


def recorded_batches(largest_batch: int) -> Sequence[int]:
    """Return the numbers of images for which graphs are recorded: one, and the most that a run takes."""
    return sorted({1, largest_batch})
