"""The views of a frame that a network sees: all of it at the network's size, a grid of overlapping tiles of it, or both."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from snl_runtime.errors import ConfigError
from snl_runtime.images.preprocess import resize
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
    with_whole_frame: bool
    """Whether the whole image, reduced to the network's input, is seen beside its tiles."""


class View(NamedTuple):
    """One view of the resized part: what it shows of it, and which cells of the merged map it gives."""

    top: int
    left: int
    own_rows: tuple[int, int]
    """First row of the part that it gives, and the one behind the last."""
    own_columns: tuple[int, int]
    """First column that it gives, and the one behind the last."""
    seen_hw: tuple[int, int]
    """Height and width of what it shows: of the network's input, or of all of the part, which is then reduced to it."""
    layer: int
    """Which layer of the merged map it gives: 0 for tiles, 1 for the whole frame beside them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """How the inspected part of a frame is cut into network inputs, and their maps become one map.

    The part is resized to ``map_hw``, then cut; a frame that is seen as a whole has one view of that very size. Neighbors overlap, and each gives its
    cells of the merged map up to the middle of the overlap: a network sees least at the border of its input, and its padding shows there.

    The whole frame beside tiles is one more view, after them: the resized part, reduced to the network's input. Its map is enlarged to the merged map
    by the nearest cell, which loses no value of it, and each cell of the merged map is the larger one of the two.

    Attributes:
        map_hw: Height and width that the part is resized to, which are those of the merged map.
        view_hw: Height and width of each view, the network's input.
        overlap_px: Least overlap of neighboring views, in pixels of the resized part; where the views do not fit evenly they overlap more.
        with_whole_frame: Whether the whole part is a view, too.
    """

    map_hw: tuple[int, int]
    view_hw: tuple[int, int]
    overlap_px: int = 0
    with_whole_frame: bool = False

    def __post_init__(self) -> None:
        if min(self.view_hw) < 1 or any(whole < view for whole, view in zip(self.map_hw, self.view_hw)):
            raise ConfigError(f"views of {self.view_hw} pixels (height, width) do not fit into a part of {self.map_hw}")
        if not 0 <= self.overlap_px < min(self.view_hw):
            raise ConfigError(f"views of {self.view_hw} pixels (height, width) cannot overlap by {self.overlap_px}")
        if self.count * math.prod(self.view_hw) > MAX_SEEN_PX:
            most = MAX_SEEN_PX // math.prod(self.view_hw)
            seen = f"a part of {self.map_hw} pixels would be seen in {self.count} views of {self.view_hw}"
            raise ConfigError(f"{seen}, at most {most} are allowed; take larger tiles, less overlap, or a smaller --roi")

    @property
    def grid_shape(self) -> tuple[int, int]:
        """How many rows of tiles there are, and how many are in each."""
        rows, columns = (_count(whole, view, self.overlap_px) for whole, view in zip(self.map_hw, self.view_hw))
        return rows, columns

    @property
    def grid(self) -> tuple[View, ...]:
        """The views, row by row; the whole frame beside them is the last."""
        rows, columns = (_spread(whole, view, self.overlap_px) for whole, view in zip(self.map_hw, self.view_hw))
        tiles = tuple(View(top, left, own_rows, own_columns, self.view_hw, 0) for top, own_rows in rows for left, own_columns in columns)
        height, width = self.map_hw
        return (*tiles, View(0, 0, (0, height), (0, width), self.map_hw, 1)) if self.with_whole_frame else tiles

    @property
    def count(self) -> int:
        """How many there are: how often the network runs for a frame."""
        return math.prod(self.grid_shape) + self.with_whole_frame

    def cut(self, part: Image, some: Sequence[View] | None = None) -> npt.NDArray[np.uint8]:
        """Return some views, all of them for None, as (N, h, w, 3), from the resized part (H, W, 3) uint8 RGB."""
        chosen = self.grid if some is None else some
        shown = [part[view.top : view.top + view.seen_hw[0], view.left : view.left + view.seen_hw[1]] for view in chosen]
        return np.stack([resize(pixels, self.view_hw) for pixels in shown])

    def empty_layers(self) -> npt.NDArray[np.float32]:
        """Return the layers (1 or 2, H, W) float32 of a merged map that no view has been put into: NaN, which nobody takes for a score."""
        return np.full((1 + self.with_whole_frame, *self.map_hw), np.nan, np.float32)

    def put(self, layers: npt.NDArray[np.float32], maps: npt.NDArray[np.float32], some: Sequence[View]) -> None:
        """Put the maps (N, h, w) of some views into the layers of a merged map, in any order; each view gives its own cells of its layer."""
        for anomaly_map, view in zip(maps, some, strict=True):
            (top, bottom), (left, right) = view.own_rows, view.own_columns
            shown = _enlarge(anomaly_map, view.seen_hw)
            layers[view.layer, top:bottom, left:right] = shown[top - view.top : bottom - view.top, left - view.left : right - view.left]

    def merge(self, layers: npt.NDArray[np.float32]) -> AnomalyMap:
        """Return the merged map (H, W): the largest value of any layer, NaN where any has none. It takes the place of the first layer."""
        return functools.reduce(lambda merged, layer: np.maximum(merged, layer, out=merged), layers)


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
    layers = [views.empty_layers() for views in seen]
    deviations: list[list[float]] = [[] for _ in seen]
    for start in range(0, len(grid), batch_size):
        some = grid[start : start + batch_size]
        scores, maps = run(start, len(some))
        for (number, view), score, anomaly_map in zip(some, scores, maps, strict=True):
            seen[number].put(layers[number], anomaly_map[None], [view])
            deviations[number].append(float(score) - float(anomaly_map.max()))  # exact: both are float32
    merged = [views.merge(each) for views, each in zip(seen, layers)]
    return [(float(anomaly_map.max()) + _worst(each), anomaly_map) for anomaly_map, each in zip(merged, deviations)]


def _worst(deviations: Sequence[float]) -> float:
    """Return the largest by amount; NaN counts as the largest."""
    return max(deviations, key=lambda deviation: math.inf if math.isnan(deviation) else abs(deviation))


def whole_view(size_hw: tuple[int, int]) -> Views:
    """Return the one view of a frame that is seen as a whole."""
    return Views(map_hw=size_hw, view_hw=size_hw)


def tile_views(part_hw: tuple[float, float], network_hw: tuple[int, int], tiles: Tiles) -> Views:
    """Return a grid of square tiles over a part of a frame, spread evenly from edge to edge, and the whole part where it is seen beside them.

    Args:
        part_hw: Height and width of the part in frame pixels.
        network_hw: Height and width of the network's input.
        tiles: A tile of the network's size is seen at native resolution; a larger one is reduced to it. A side of the part that is shorter than a
            tile is enlarged to one.

    Raises:
        ConfigError: If the network's input is not square or the overlap is not smaller than a tile.
    """
    if network_hw[0] != network_hw[1]:
        raise ConfigError(f"tiles need a network with a square input, this one takes {network_hw[0]} x {network_hw[1]}; train with --image-size N")
    tile_px, overlap_px, with_whole_frame = tiles
    if not (tile_px >= 1 and 0 <= overlap_px < tile_px):
        raise ConfigError(f"--overlap must be at least 0 and below --tile, got {overlap_px} and {tile_px}")
    side = network_hw[0]
    height, width = (max(side, round(length * side / tile_px)) for length in part_hw)
    overlap = min(side - 1, math.ceil(overlap_px * side / tile_px))
    return Views(map_hw=(height, width), view_hw=network_hw, overlap_px=overlap, with_whole_frame=with_whole_frame)


def choose_tiles(trained: Tiles | None, *, tile_px: int | None, overlap_px: int | None, with_whole_frame: bool | None) -> Tiles | None:
    """Return the tiles that are asked for, by default those of the training; None for whole images.

    Args:
        trained: Those of the training, None if it was on whole images.
        tile_px: Side that is asked for, 0 for whole images; None for that of the training.
        overlap_px: Overlap that is asked for; None for that of the training, or ``DEFAULT_OVERLAP_PX``.
        with_whole_frame: Whether the whole image beside tiles is asked for; None as in the training.

    Raises:
        ConfigError: If the whole image beside tiles is asked for, and there are none.
    """
    default = trained or Tiles(0, DEFAULT_OVERLAP_PX, with_whole_frame=False)
    side, overlap, whole = (own if asked is None else asked for asked, own in zip((tile_px, overlap_px, with_whole_frame), default))
    if with_whole_frame and not side:
        raise ConfigError("--with-whole-frame adds the whole frame to tiles, and there are none; give --tile N, or leave it out")
    return Tiles(side, overlap, with_whole_frame=bool(whole)) if side else None


def _spread(whole: int, view: int, overlap: int) -> list[tuple[int, tuple[int, int]]]:
    """Return where the views of one axis start, with the first cell that each gives and the one behind the last."""
    count = _count(whole, view, overlap)
    starts = [round(number * (whole - view) / max(1, count - 1)) for number in range(count)]
    edges = [0, *((first + view + second + 1) // 2 for first, second in itertools.pairwise(starts)), whole]
    return list(zip(starts, itertools.pairwise(edges)))


def _count(whole: int, view: int, overlap: int) -> int:
    return 1 + math.ceil((whole - view) / (view - overlap))


def _enlarge(anomaly_map: AnomalyMap, size_hw: tuple[int, int]) -> AnomalyMap:
    """Return a map at another, not smaller size, each cell being the one that its middle lies on: every value is kept, and none is made."""
    if anomaly_map.shape == size_hw:
        return anomaly_map
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(anomaly_map.shape, size_hw))
    enlarged: AnomalyMap = anomaly_map[rows[:, None], columns]
    return enlarged
