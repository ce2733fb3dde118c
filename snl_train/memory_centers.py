"""Centers of a codebook: farthest points first on a random projection, dealt to the products, then one step of Lloyd's algorithm.

Farthest points alone (k-center) keep rare normal features but lie at the rim of what is normal; means alone (k-means) lose rare features. One Lloyd
step on farthest points keeps both.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from snl_train.memory_config import MemoryConfig

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

_PROJECTED = 64
"""Dimensions in which farthest points are searched."""
_COVERED = 1e-3
"""Distance of unit vectors that float32 cannot tell from 0."""
_COPIED_SHARE = 0.1
"""Where more of the points than this may change, computing all of their distances is cheaper than copying those."""
_ROWS = 8192
"""Features compared with all centers at a time."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Candidates:
    """Features of good images that centers are chosen from, sorted by product.

    Attributes:
        features: (n, D) of unit length.
        products: (n,) number of each one's product, never falling.
    """

    features: Floats
    products: Indices


def choose_centers(candidates: Candidates, config: MemoryConfig, *, seed: int, advance: Callable[[int], object] = lambda _: None) -> Floats:
    """Return ``config.centers`` centers, (N, D) float32; the same for the same arguments on one machine.

    Centers that cannot be had, because there are fewer different features, repeat others: a repeated center changes no distance.

    Args:
        candidates: At least one.
        config: How many centers, and how they are dealt to the products.
        seed: Of the projection and the first point.
        advance: Called with the number of centers chosen since.
    """
    rng = np.random.default_rng(seed)
    search = _Search(_projected(candidates.features, rng), candidates, first=int(rng.integers(len(candidates.features))))
    advance(1)
    search.deal(int(config.guaranteed_share * config.centers) // len(search.spans), up_to=config.centers, advance=advance)
    search.fill(config.centers, advance)
    centers = _means(candidates.features, candidates.features[search.chosen])
    return centers[np.arange(config.centers) % len(centers)]


@dataclass(slots=True, eq=False)
class _Search:
    """Farthest points of ``points`` (n, d): each point knows its nearest chosen one and the distance to it.

    A new center c can be nearer to x than its nearest center b only if |b - c| < 2 |b - x|, so most points are left out of each step.
    """

    points: Floats
    candidates: Candidates
    first: int
    chosen: list[int] = field(default_factory=list)
    nearest: Floats = field(init=False)
    """(n,) distance to the nearest center."""
    squares: Floats = field(init=False)
    """(n,) squared length of each point."""
    owner: Indices = field(init=False)
    """(n,) which of ``chosen`` is nearest."""
    spans: list[slice] = field(init=False)
    """Points of each product."""

    def __post_init__(self) -> None:
        self.nearest = np.full(len(self.points), np.inf, np.float32)
        self.squares = np.square(self.points).sum(axis=1)
        self.owner = np.zeros(len(self.points), np.int64)
        bounds = [0, *(np.flatnonzero(np.diff(self.candidates.products)) + 1).tolist(), len(self.points)]
        self.spans = [slice(begin, end) for begin, end in itertools.pairwise(bounds)]
        self._add(self.first)

    def deal(self, each: int, *, up_to: int, advance: Callable[[int], object]) -> None:
        """Choose ``each`` centers of every product in turn, each the worst covered of its product; fewer where all of it are covered."""
        for _ in range(each):
            for span in self.spans:
                if len(self.chosen) < up_to and self._add_farthest(span):
                    advance(1)

    def fill(self, count: int, advance: Callable[[int], object] = lambda _: None) -> None:
        """Choose the worst covered of all until there are ``count`` centers or all are covered."""
        for _ in range(count - len(self.chosen)):
            if not self._add_farthest(slice(None)):
                return
            advance(1)

    def _add_farthest(self, span: slice) -> bool:
        index = int(self.nearest[span].argmax()) + (span.start or 0)
        if self.nearest[index] < _COVERED:
            return False
        self._add(index)
        return True

    def _add(self, index: int) -> None:
        affected: Indices | slice = slice(None)
        if self.chosen:
            between = self._distances(np.array(self.chosen), index)
            affected = np.flatnonzero(self.nearest > 0.5 * between[self.owner])
            if len(affected) > _COPIED_SHARE * len(self.points):
                affected = slice(None)
        distance = self._distances(affected, index)
        is_nearer = distance < self.nearest[affected]
        moved = np.flatnonzero(is_nearer) if isinstance(affected, slice) else affected[is_nearer]
        self.nearest[moved] = distance[is_nearer]
        self.owner[moved] = len(self.chosen)
        self.nearest[index] = 0  # rounding
        self.chosen.append(index)

    def _distances(self, of: Indices | slice, index: int) -> Floats:
        squared = self.squares[of] + self.squares[index] - 2 * (self.points[of] @ self.points[index])
        distances: Floats = np.sqrt(np.maximum(squared, 0))
        return distances


def _projected(features: Floats, rng: np.random.Generator) -> Floats:
    """Return features (n, D) in at most 64 dimensions, which keeps distances roughly."""
    if features.shape[1] <= _PROJECTED:
        return features
    directions = rng.standard_normal((features.shape[1], _PROJECTED)) / _PROJECTED**0.5
    projected: Floats = features @ directions.astype(np.float32)
    return projected


def _means(features: Floats, centers: Floats) -> Floats:
    """Return the mean of the features (n, D) nearest to each center (N, D): one step of Lloyd's algorithm; a center without any stays."""
    sums, counts = torch.zeros(centers.shape, dtype=torch.float64), np.zeros(len(centers), np.int64)
    offset = 0.5 * np.square(centers).sum(axis=1)
    for begin in range(0, len(features), _ROWS):
        rows = features[begin : begin + _ROWS]
        nearest = (rows @ centers.T - offset).argmax(axis=1)
        sums.index_add_(0, torch.from_numpy(nearest), torch.from_numpy(rows).double())
        counts += np.bincount(nearest, minlength=len(centers))
    means: Floats = np.where(counts[:, None] > 0, sums.numpy() / np.maximum(counts, 1)[:, None], centers).astype(np.float32)
    return means


def cells_per_image(image_counts: Sequence[int], config: MemoryConfig, *, most_cells: int) -> list[int]:
    """Return how many cells of each image of a product are candidates, 1 or more: products get equal parts of ``most_cells`` where that is too few.

    >>> cells_per_image([20, 4000], MemoryConfig(positions_per_image=256), most_cells=400_000)
    [256, 50]
    """
    part = most_cells // len(image_counts)
    return [max(1, min(config.positions_per_image, part // count)) for count in image_counts]
