"""Farthest points first, for PatchCore's coreset on a CPU: the rule of anomalib's ``KCenterGreedy`` without most of its work.

The rule (Gonzalez 1985) takes, point by point, the one that is farthest from all chosen so far::

    next = argmax_i min_j ||x_i - x_j||,  j chosen

Written down so, each choice reads all N points: 1.2 million rows of 346 numbers, 123,500 times, for the training images of seven classes. Nearly all
of it changes nothing. Points are kept in leaves of a tree here, each with its center and radius, and three lower bounds of a distance leave out what
cannot become smaller; what is left is computed in full. The chosen points are those of the plain rule, up to ties within float32.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

_LEAF = 64
_HEAD = 32
_SAMPLED = 20_000
_SAMPLED_OF_NODE = 512
_POWER_STEPS = 4
_AT_ONCE = 1000
_SLACK = 1e-5  # of the longest vector: what float32 may err by in a distance


def farthest_points(points: Floats, start: int, count: int, *, advance: Callable[[int], object] | None = None) -> Indices:
    """Return the indices (count,) int64 of ``points`` (N, D) float32, chosen farthest first, beginning with ``start``.

    ``advance`` is called every thousand points with the number of those chosen since.

    Raises:
        ValueError: If ``start`` is no index of a point, or ``count`` is not in 1..N.
    """
    if not 0 <= start < len(points):
        raise ValueError(f"start must be an index of {len(points)} points, got {start}")
    if not 1 <= count <= len(points):
        raise ValueError(f"count must be in 1..{len(points)}, got {count}")
    tree = _grown(points)
    state = _State(np.full(len(points), np.inf, np.float32), np.full(len(tree.centers), np.inf, np.float32))
    chosen = np.empty(count, np.int64)
    chosen[0] = int(np.nonzero(tree.order == start)[0][0])
    for begin in range(1, count, _AT_ONCE):
        end = min(begin + _AT_ONCE, count)
        _choose(tree, state, chosen, begin, end)
        if advance is not None:
            advance(end - begin)
    return tree.order[chosen]


class _Tree(NamedTuple):
    """Points in the order of their leaves, turned onto their principal axes, which changes no distance."""

    order: Indices  # (N,): where each stood
    points: Floats  # (N, D)
    heads: Floats  # (N, H): the first axes and the length of the rest, so that ||head(x) - head(y)|| <= ||x - y||
    to_center: Floats  # (N,): distance to the center of the leaf
    begins: Indices  # (L + 1,)
    centers: Floats  # (L, D)
    center_heads: Floats  # (L, H)
    radii: Floats  # (L,): the largest of to_center
    slack: float


class _State(NamedTuple):
    nearest: Floats  # (N,): distance to the nearest chosen point
    farthest: Floats  # (L,): the largest of nearest


def _grown(points: Floats) -> _Tree:
    rng = np.random.default_rng(0)  # shapes the tree, not the choice
    sample = points[rng.integers(len(points), size=min(_SAMPLED, len(points)))].astype(np.float64)
    mean = sample.mean(axis=0)
    _, axes = np.linalg.eigh((sample - mean).T @ (sample - mean))
    turned = (points - mean.astype(np.float32)) @ axes[:, ::-1].astype(np.float32)
    order, begins = _leaves(turned, rng)
    turned = turned[order]
    spans = list(itertools.pairwise(begins))
    centers = np.stack([turned[begin:end].mean(axis=0) for begin, end in spans])
    to_center = np.concatenate([np.linalg.norm(turned[begin:end] - center, axis=1) for (begin, end), center in zip(spans, centers, strict=True)])
    return _Tree(
        order=order,
        points=turned,
        heads=_heads(turned),
        to_center=to_center,
        begins=begins,
        centers=centers,
        center_heads=_heads(centers),
        radii=np.maximum.reduceat(to_center, begins[:-1]),
        slack=_SLACK * float(np.linalg.norm(turned, axis=1).max()),
    )


def _leaves(points: Floats, rng: np.random.Generator) -> tuple[Indices, Indices]:
    """Halve the points (N, D) across their widest axis until at most 64 are together; return their order (N,) and the bounds (L + 1,)."""
    order = np.arange(len(points))
    bounds = [0, len(points)]
    while max(np.diff(bounds)) > _LEAF:
        halves = [0]
        for begin, end in itertools.pairwise(bounds):
            inside = order[begin:end]
            along = points[inside] @ _widest_axis(points[rng.choice(inside, size=min(_SAMPLED_OF_NODE, len(inside)))], rng)
            order[begin:end] = inside[np.argsort(along)]
            halves += [(begin + end + 1) // 2, end]
        bounds = halves
    return order, np.array(bounds)


def _widest_axis(sample: Floats, rng: np.random.Generator) -> Floats:
    """Return roughly the first principal axis (D,) of a sample (n, D), by power iteration."""
    sample = sample - sample.mean(axis=0)
    axis: Floats = rng.standard_normal((sample.shape[1],), np.float32)  # (D,)
    for _ in range(_POWER_STEPS):
        axis = sample.T @ (sample @ axis)
        axis /= max(float(np.linalg.norm(axis)), float(np.finfo(np.float32).tiny))  # points may all be one
    return axis


def _heads(rows: Floats) -> Floats:
    """Return (n, H): the first H - 1 columns of ``rows`` (n, D) and the length of the others, a bound by the reverse triangle inequality."""
    kept = min(_HEAD - 1, rows.shape[1])
    return np.concatenate([rows[:, :kept], np.linalg.norm(rows[:, kept:], axis=1, keepdims=True)], axis=1)


_compiled: Callable[[Any], Any] = numba.njit(fastmath={"reassoc", "contract", "nsz", "arcp"}, cache=True)  # infinity stays infinity


@_compiled
def _choose(tree: _Tree, state: _State, chosen: Indices, begin: int, end: int) -> None:
    """Fill ``chosen[begin:end]`` with positions in the order of the leaves; ``nearest`` and ``farthest`` go along."""
    for step in range(begin, end):
        newest = chosen[step - 1]
        point, head = tree.points[newest].copy(), tree.heads[newest].copy()
        widest = 0
        for leaf in range(len(tree.centers)):
            limit = tree.radii[leaf] + state.farthest[leaf] + tree.slack
            if _squared(tree.center_heads[leaf], head) < limit * limit:
                distance = np.sqrt(_squared(tree.centers[leaf], point))
                if distance < limit:
                    _update(tree, state, leaf, distance, point, head)
            if state.farthest[leaf] > state.farthest[widest]:
                widest = leaf
        inside = state.nearest[tree.begins[widest] : tree.begins[widest + 1]]
        chosen[step] = tree.begins[widest] + inside.argmax()
        state.nearest[chosen[step]] = 0
        state.farthest[widest] = inside.max()


@_compiled
def _update(tree: _Tree, state: _State, leaf: int, distance: float, point: Floats, head: Floats) -> None:
    """Bring the points of a leaf up to date with a chosen ``point`` at ``distance`` from the leaf's center."""
    farthest = np.float32(0)
    for row in range(tree.begins[leaf], tree.begins[leaf + 1]):
        nearest = state.nearest[row]
        limit = nearest + tree.slack
        if abs(distance - tree.to_center[row]) < limit and _squared(tree.heads[row], head) < limit * limit:
            nearest = min(nearest, np.float32(np.sqrt(_squared(tree.points[row], point))))
            state.nearest[row] = nearest
        farthest = max(farthest, nearest)
    state.farthest[leaf] = farthest


@_compiled
def _squared(one: Floats, other: Floats) -> np.float32:
    total = np.float32(0)
    for column in range(len(one)):
        total += (one[column] - other[column]) ** 2
    return total
