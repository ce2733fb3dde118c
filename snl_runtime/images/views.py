"""The views of a frame that a network sees: all of it at the network's size, or a grid of overlapping tiles of it."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from snl_runtime.errors import ConfigError
from snl_runtime.types import AnomalyMap, Image

DEFAULT_OVERLAP_PX = 32
"""Overlap of tiles where nobody says one, in frame pixels."""

MAX_SEEN_PX = 1 << 28
"""Most pixels in all views of a frame, those that several see counted for each: 4096 views of 256 x 256.

More is a mistyped side or overlap, which would take all memory, or minutes for a frame."""

Infer: TypeAlias = Callable[[npt.NDArray[np.uint8]], tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]
"""(N, H, W, 3) uint8 RGB -> scores (N,), maps (N, H, W)."""
RunViews: TypeAlias = Callable[[int, int], tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]
"""Number of the first view and how many -> scores (N,), maps (N, H, W)."""


class Tiles(NamedTuple):
    """In which tiles images are seen."""

    tile_px: int
    """Side of a tile in image pixels."""
    overlap_px: int
    """Least overlap of neighboring tiles in image pixels."""


class View(NamedTuple):
    """One view of the resized part: where it lies, and which cells of the merged map it gives."""

    top: int
    left: int
    own_rows: tuple[int, int]
    """First row of the part that it gives, and the one behind the last."""
    own_columns: tuple[int, int]
    """First column that it gives, and the one behind the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """How the inspected part of a frame is cut into network inputs, and their maps become one map.

    The part is resized to ``map_hw``, then cut; a frame that is seen as a whole has one view of that very size. Neighbors overlap, and each gives its
    cells of the merged map up to the middle of the overlap: a network sees least at the border of its input, and its padding shows there.

    Attributes:
        map_hw: Height and width that the part is resized to, which are those of the merged map.
        view_hw: Height and width of each view, the network's input.
        overlap_px: Least overlap of neighboring views, in pixels of the resized part; where the views do not fit evenly they overlap more.
    """

    map_hw: tuple[int, int]
    view_hw: tuple[int, int]
    overlap_px: int = 0

    def __post_init__(self) -> None:
        if min(self.view_hw) < 1 or any(whole < view for whole, view in zip(self.map_hw, self.view_hw)):
            raise ConfigError(f"views of {self.view_hw} pixels (height, width) do not fit into a part of {self.map_hw}")
        if not 0 <= self.overlap_px < min(self.view_hw):
            raise ConfigError(f"views of {self.view_hw} pixels (height, width) cannot overlap by {self.overlap_px}")
        count = math.prod(_count(whole, view, self.overlap_px) for whole, view in zip(self.map_hw, self.view_hw))
        if count * math.prod(self.view_hw) > MAX_SEEN_PX:
            most = MAX_SEEN_PX // math.prod(self.view_hw)
            seen = f"a part of {self.map_hw} pixels would be seen in {count} views of {self.view_hw}"
            raise ConfigError(f"{seen}, at most {most} are allowed; take larger tiles, less overlap, or a smaller --roi")

    @property
    def grid_shape(self) -> tuple[int, int]:
        """How many rows of views there are, and how many are in each."""
        rows, columns = (_count(whole, view, self.overlap_px) for whole, view in zip(self.map_hw, self.view_hw))
        return rows, columns

    @property
    def grid(self) -> tuple[View, ...]:
        """The views, row by row."""
        rows, columns = (_spread(whole, view, self.overlap_px) for whole, view in zip(self.map_hw, self.view_hw))
        return tuple(View(top, left, own_rows, own_columns) for top, own_rows in rows for left, own_columns in columns)

    @property
    def count(self) -> int:
        """How many there are: how often the network runs for a frame."""
        return len(self.grid)

    def cut(self, part: Image, some: Sequence[View] | None = None) -> npt.NDArray[np.uint8]:
        """Return some views, all of them for None, as (N, h, w, 3), from the resized part (H, W, 3) uint8 RGB."""
        height, width = self.view_hw
        return np.stack([part[view.top : view.top + height, view.left : view.left + width] for view in (self.grid if some is None else some)])

    def empty_map(self) -> AnomalyMap:
        """Return a merged map (H, W) float32 that no view has been merged into: NaN, which nobody takes for a score."""
        return np.full(self.map_hw, np.nan, np.float32)

    def merge(self, merged: AnomalyMap, maps: npt.NDArray[np.float32], some: Sequence[View]) -> None:
        """Put the maps (N, h, w) of some views into a merged map, in place; each view gives its own cells."""
        for anomaly_map, view in zip(maps, some, strict=True):
            (top, bottom), (left, right) = view.own_rows, view.own_columns
            merged[top:bottom, left:right] = anomaly_map[top - view.top : bottom - view.top, left - view.left : right - view.left]


def score_views(part: Image, views: Views, infer: Infer, *, batch_size: int) -> tuple[float, AnomalyMap]:
    """Return score and map of one frame seen in views, see :func:`score_frames`."""
    return score_frames([(part, views)], infer, batch_size=batch_size)[0]


def score_frames(seen: Sequence[tuple[Image, Views]], infer: Infer, *, batch_size: int) -> list[tuple[float, AnomalyMap]]:
    """Return score and map of each of some frames seen in views.

    The score is the maximum of the merged map, off by as much as any view's score is off the maximum of its own map, and NaN if a score or map of any
    view holds NaN: who compares score and map, as every verdict does, thereby checks each view whole. Of one view they are what the network gave.

    Args:
        seen: Of each frame the inspected part at the size of the merged map, (H, W, 3) uint8 RGB, and how it is cut.
        infer: The network.
        batch_size: Most views that it is given at a time, of one frame or several; memory is bounded by them and the merged maps.
    """
    grid = [(number, view) for number, (_, views) in enumerate(seen) for view in views.grid]

    def run(start: int, count: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        return infer(np.concatenate([seen[number][1].cut(seen[number][0], [view]) for number, view in grid[start : start + count]]))

    return merge_answers([views for _, views in seen], run, batch_size=batch_size)


def merge_answers(seen: Sequence[Views], run: RunViews, *, batch_size: int) -> list[tuple[float, AnomalyMap]]:
    """Return what :func:`score_frames` does, from a function that is told which views to score and has the frames itself.

    Args:
        seen: How each frame is cut.
        run: Scores ``count`` views from ``start`` on, counted over all frames in order.
        batch_size: Most views that it is told at a time.
    """
    grid = [(number, view) for number, views in enumerate(seen) for view in views.grid]
    merged = [views.empty_map() for views in seen]
    deviations: list[list[float]] = [[] for _ in seen]
    for start in range(0, len(grid), batch_size):
        some = grid[start : start + batch_size]
        scores, maps = run(start, len(some))
        for (number, view), score, anomaly_map in zip(some, scores, maps, strict=True):
            seen[number].merge(merged[number], anomaly_map[None], [view])
            deviations[number].append(float(score) - float(anomaly_map.max()))  # exact: both are float32
    return [(float(anomaly_map.max()) + _worst(each), anomaly_map) for anomaly_map, each in zip(merged, deviations)]


def _worst(deviations: Sequence[float]) -> float:
    """Return the largest by amount; NaN counts as the largest."""
    return max(deviations, key=lambda deviation: math.inf if math.isnan(deviation) else abs(deviation))


def whole_view(size_hw: tuple[int, int]) -> Views:
    """Return the one view of a frame that is seen as a whole."""
    return Views(map_hw=size_hw, view_hw=size_hw)


def tile_views(part_hw: tuple[float, float], network_hw: tuple[int, int], *, tile_px: int, overlap_px: int) -> Views:
    """Return a grid of square tiles over a part of a frame, spread evenly from edge to edge.

    Args:
        part_hw: Height and width of the part in frame pixels.
        network_hw: Height and width of the network's input.
        tile_px: Side of a tile in frame pixels. Of the network's size it is seen at native resolution; a larger one is reduced to it. A side of the
            part that is shorter than a tile is enlarged to one.
        overlap_px: Least overlap of neighboring tiles in frame pixels.

    Raises:
        ConfigError: If the network's input is not square or the overlap is not smaller than a tile.
    """
    if network_hw[0] != network_hw[1]:
        raise ConfigError(f"tiles need a network with a square input, this one takes {network_hw[0]} x {network_hw[1]}; train with --image-size N")
    if not (tile_px >= 1 and 0 <= overlap_px < tile_px):
        raise ConfigError(f"--overlap must be at least 0 and below --tile, got {overlap_px} and {tile_px}")
    side = network_hw[0]
    height, width = (max(side, round(length * side / tile_px)) for length in part_hw)
    return Views(map_hw=(height, width), view_hw=network_hw, overlap_px=min(side - 1, math.ceil(overlap_px * side / tile_px)))


def choose_tiles(trained: Tiles | None, *, tile_px: int | None, overlap_px: int | None) -> Tiles | None:
    """Return the tiles that are asked for, by default those of the training; None for whole images.

    Args:
        trained: Those of the training, None if it was on whole images.
        tile_px: Side that is asked for, 0 for whole images; None for that of the training.
        overlap_px: Overlap that is asked for; None for that of the training, or ``DEFAULT_OVERLAP_PX``.
    """
    default = trained or Tiles(0, DEFAULT_OVERLAP_PX)
    side = default.tile_px if tile_px is None else tile_px
    return Tiles(side, default.overlap_px if overlap_px is None else overlap_px) if side else None


def _spread(whole: int, view: int, overlap: int) -> list[tuple[int, tuple[int, int]]]:
    """Return where the views of one axis start, with the first cell that each gives and the one behind the last."""
    count = _count(whole, view, overlap)
    starts = [round(number * (whole - view) / max(1, count - 1)) for number in range(count)]
    edges = [0, *((first + view + second + 1) // 2 for first, second in itertools.pairwise(starts)), whole]
    return list(zip(starts, itertools.pairwise(edges)))


def _count(whole: int, view: int, overlap: int) -> int:
    return 1 + math.ceil((whole - view) / (view - overlap))
