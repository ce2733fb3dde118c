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
_REFILLS = 4
"""Times that centers of too few images are replaced by others, which may have too few in turn; after the last time they are left out."""
_JUDGED_CELLS = 16
"""Cells that a center stands for on average, of its product and of all, where the images behind it are counted. With 4 most centers stand for one
image only, and 8 to 9 of 10 cells of 32 good images were left out; with 16 it was 1 to 2 of 100."""
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
        images: (n,) number of each one's image.
    """

    features: Floats
    products: Indices
    images: Indices


def choose_centers(candidates: Candidates, config: MemoryConfig, *, seed: int, advance: Callable[[int], object] = lambda _: None) -> Floats:
    """Return ``config.centers`` centers, (N, D) float32; the same for the same arguments on one machine.

    The images behind a center are counted while each stands for 16 cells or more on average; where more centers are asked for, the others are chosen
    from the cells that passed. Centers that cannot be had, because there are fewer different features, repeat others: a repeated center changes no
    distance.

    Args:
        candidates: At least one.
        config: How many centers, how they are dealt to the products, and how many images each must stand for.
        seed: Of the projection and the first point.
        advance: Called with the number of centers chosen since.
    """
    rng = np.random.default_rng(seed)
    search = _Search(_projected(candidates.features, rng), candidates, first=int(rng.integers(len(candidates.features))))
    advance(1)
    each = int(config.guaranteed_share * config.centers) // len(search.spans)
    at_first = [min(each, max(1, (span.stop - span.start) // _JUDGED_CELLS)) for span in search.spans]
    judged = min(config.centers - sum(each - dealt for dealt in at_first), max(1, len(candidates.features) // _JUDGED_CELLS))
    search.deal(at_first, up_to=judged, advance=advance)
    search.fill(judged, advance)
    for _ in range(_REFILLS):
        if not search.drop_unsupported(config.min_images):
            break
        search.fill(judged)
    search.drop_unsupported(config.min_images)
    search.deal([each - dealt for dealt in at_first], up_to=config.centers)
    search.fill(config.centers)
    advance(config.centers - judged)
    kept = np.flatnonzero(search.nearest >= 0)
    chosen = np.array([index for index, is_kept in zip(search.chosen, search.is_kept, strict=True) if is_kept])
    centers = _means(candidates.features[kept], candidates.features[chosen])
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
    is_kept: list[bool] = field(default_factory=list)
    nearest: Floats = field(init=False)
    """(n,) distance to the nearest center; -1 where a point may not become one."""
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

    def deal(self, each: Sequence[int], *, up_to: int, advance: Callable[[int], object] = lambda _: None) -> None:
        """Choose ``each`` centers of every product in turn, each the worst covered of its product; fewer where all of it are covered."""
        for turn in range(max(each)):
            for span, wanted in zip(self.spans, each, strict=True):
                if turn < wanted and sum(self.is_kept) < up_to and self._add_farthest(span):
                    advance(1)

    def fill(self, count: int, advance: Callable[[int], object] = lambda _: None) -> None:
        """Choose the worst covered of all until there are ``count`` centers or all are covered."""
        for _ in range(count - sum(self.is_kept)):
            if not self._add_farthest(slice(None)):
                return
            advance(1)

    def drop_unsupported(self, min_images: int) -> bool:
        """Take back centers whose points come from fewer images than asked for (or than their product has), and these points; return if any."""
        images_of = [len(np.unique(self.candidates.images[span])) for span in self.spans]
        is_member = self.nearest >= 0
        pairs = np.unique(np.stack([self.owner[is_member], self.candidates.images[is_member]]), axis=1)  # (2, different pairs)
        support = np.bincount(pairs[0], minlength=len(self.chosen))
        asked = np.array([min(min_images, images_of[self._product(index)]) for index in self.chosen])
        is_kept = np.array(self.is_kept)
        is_weak = (support < asked) & is_kept
        if not is_weak.any() or (is_weak == is_kept).all():  # at least one center remains
            return False
        self.nearest[is_weak[self.owner]] = -1
        self.is_kept = (is_kept & ~is_weak).tolist()
        return True

    def _product(self, index: int) -> int:
        return next(number for number, span in enumerate(self.spans) if span.start <= index < span.stop)

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
        self.is_kept.append(True)

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
