"""Defects drawn on good frames, to show that a model and its threshold see something at all.

Five kinds, each inside the part, seeded, with its mask. Sizes are shares of the part's short side, drawn evenly from the range; contrast is in gray
levels (0 to 255) against the surroundings:

* ``scratch``        bent line, 25 to 50 % long, 1.5 to 3 % wide, 60 to 100 levels lighter or darker
* ``stain``          soft-edged blob, 10 to 20 % across, 40 to 80 levels darker or lighter, slightly tinted on color frames
* ``missing_patch``  ragged hole, 10 to 20 % across, filled with the background's color; black or white where that differs by less than 40 levels
* ``pasted_patch``   10 to 20 % across, cut from elsewhere in the part, turned; the most different of 12 places, 25 levels off if all look alike
* ``color_shift``    sharp-edged ellipse, 10 to 20 % across, one channel shifted by 35 to 60 levels (all three on a gray frame)

No defect is drawn smaller than 3 % of the frame's short side (a scratch no thinner than 1 %), which is about 4 px of a 128 px network input.
They are evidence against blindness, not an estimate of how many real defects will be found.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from snl_runtime.errors import ConfigError
from snl_runtime.types import Image

Mask: TypeAlias = npt.NDArray[np.bool_]
Pixels: TypeAlias = npt.NDArray[np.float32]

_ATTEMPTS = 40
_PART_SIDE_PX = 256  # the part is looked for at this size: 12-megapixel frames would cost a second each


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SyntheticDefect:
    """A good frame with one defect on it.

    Attributes:
        image: (H, W, 3) uint8 RGB, a new array.
        mask: (H, W) bool, True exactly where ``image`` differs from the good frame.
        kind: One of ``DEFECT_KINDS``.
        contrast: Mean absolute change inside the mask, largest channel, gray levels.
    """

    image: Image
    mask: Mask
    kind: str
    contrast: float


def add_defect(image_rgb: Image, kind: str, rng: np.random.Generator, roi_xyxy: tuple[int, int, int, int] | None = None) -> SyntheticDefect:
    """Return a copy of a good frame with one defect of the given kind inside the part.

    Args:
        image_rgb: (H, W, 3) uint8, at least 16 px on each side inside the ROI; not changed.
        kind: One of ``DEFECT_KINDS``.
        rng: Draws place, size and contrast; the same state gives the same defect.
        roi_xyxy: Part of the frame that is inspected; the defect lies inside it.

    Raises:
        ConfigError: If the kind is unknown or the inspected area is smaller than 16 px.
    """
    if kind not in _PAINTERS:
        raise ConfigError(f"unknown defect kind {kind!r}; expected one of {', '.join(DEFECT_KINDS)}")
    x0, y0, x1, y1 = roi_xyxy or (0, 0, image_rgb.shape[1], image_rgb.shape[0])
    view = image_rgb[y0:y1, x0:x1]
    if min(view.shape[:2]) < 16:
        raise ConfigError(
            f"a synthetic defect needs at least 16 x 16 px to be put on, got {view.shape[1]} x {view.shape[0]} px; give bad images with --bad"
        )
    canvas = _Canvas(view)
    painted, changed = _draw_until_visible(canvas, kind, rng)
    image = image_rgb.copy()
    image[y0:y1, x0:x1] = painted
    mask = np.zeros(image.shape[:2], dtype=np.bool_)
    mask[y0:y1, x0:x1] = changed
    difference = np.abs(painted[changed].astype(np.int16) - view[changed]).max(axis=1)
    return SyntheticDefect(image=image, mask=mask, kind=kind, contrast=float(difference.mean()))


def find_part(image_rgb: Image) -> Mask:
    """Return where the part is: what differs from a plain background, else the whole frame less a margin of 4 %.

    A background counts as plain if at least 80 % of the frame's border has its color and the rest covers 3 to 95 % of the frame. Textures, boards
    and close-ups fill the frame.
    """
    height, width = image_rgb.shape[:2]
    part = _small_part(image_rgb)
    return np.asarray(cv2.resize(part, (width, height), interpolation=cv2.INTER_NEAREST), dtype=np.bool_)


class _Canvas:
    """A frame, where its part is, and what lies around it."""

    def __init__(self, image_rgb: Image) -> None:
        self.image_rgb = image_rgb
        small = _small_part(image_rgb)
        self.size_hw: tuple[int, int] = (image_rgb.shape[0], image_rgb.shape[1])
        self.part = cv2.resize(small, self.size_hw[::-1], interpolation=cv2.INTER_NEAREST).astype(np.bool_)
        self.background = np.median(_border(image_rgb), axis=0)
        self.is_gray = bool((image_rgb == image_rgb[..., :1]).all())
        self.frame_side = min(self.size_hw)
        self._cells = np.argwhere(small)  # (n, 2) row, column
        self._cell_px = self.size_hw[0] / small.shape[0], self.size_hw[1] / small.shape[1]
        extent = (self._cells.max(axis=0) - self._cells.min(axis=0) + 1) * self._cell_px
        self.part_side = float(extent.min())

    def point(self, rng: np.random.Generator) -> tuple[int, int]:
        """Return (x, y) of a pixel of the part."""
        row, column = (self._cells[rng.integers(len(self._cells))] + rng.uniform(0, 1, 2)) * self._cell_px
        return min(int(column), self.size_hw[1] - 1), min(int(row), self.size_hw[0] - 1)

    def size(self, rng: np.random.Generator, low: float, high: float, smallest: float = 0.03) -> float:
        """Return a length in pixels: a share of the part's short side, at least ``smallest`` of the frame's."""
        share = float(rng.uniform(low, high))
        return max(share * self.part_side, smallest * self.frame_side, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class _Spot:
    """The piece of the frame that a defect covers.

    Attributes:
        pixels: (h, w, 3) float32, the good frame there.
        mask: (h, w) bool, where to paint.
        rows: Frame rows of the piece.
        columns: Frame columns of the piece.
        size: Length across in pixels that was asked for.
    """

    pixels: npt.NDArray[np.float32]
    mask: Mask
    rows: slice
    columns: slice
    size: float


def _draw_until_visible(canvas: _Canvas, kind: str, rng: np.random.Generator) -> tuple[Image, Mask]:
    outline_of, paint = _PAINTERS[kind]
    best_quality, best = 0.0, (canvas.image_rgb, np.zeros(canvas.size_hw, dtype=np.bool_))
    for _ in range(_ATTEMPTS):
        size = canvas.size(rng, 0.10, 0.20)
        outline = outline_of(canvas, size, rng)
        mask = outline & canvas.part
        if not mask.any():
            continue
        spot = _cut(canvas, mask, size)
        changed = np.clip(np.rint(paint(canvas, spot, rng)), 0, 255).astype(np.uint8)
        painted = canvas.image_rgb.copy()
        painted[spot.rows, spot.columns][spot.mask] = changed[spot.mask]
        visible = (painted[spot.rows, spot.columns] != canvas.image_rgb[spot.rows, spot.columns]).any(axis=2)
        quality = float(visible.sum() / outline.sum())  # low for a defect that mostly hangs over the edge of the part
        if quality > best_quality:
            best_mask = np.zeros(canvas.size_hw, dtype=np.bool_)
            best_mask[spot.rows, spot.columns] = visible
            best_quality, best = quality, (painted, best_mask)
        if best_quality >= 0.6:
            break
    return best


def _cut(canvas: _Canvas, mask: Mask, size: float) -> _Spot:
    used_rows, used_columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    rows, columns = slice(int(used_rows[0]), int(used_rows[-1]) + 1), slice(int(used_columns[0]), int(used_columns[-1]) + 1)
    return _Spot(canvas.image_rgb[rows, columns].astype(np.float32), mask[rows, columns], rows, columns, size)


# --- outlines: (canvas, size) -> (H, W) bool -----------------------------------------------------------------------------------------------------


def _ellipse(canvas: _Canvas, size: float, rng: np.random.Generator) -> Mask:
    mask = np.zeros(canvas.size_hw, dtype=np.uint8)
    axes = (max(1, round(size / 2)), max(1, round(size / 2 * rng.uniform(0.6, 1.0))))
    cv2.ellipse(mask, canvas.point(rng), axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    return mask.astype(np.bool_)


def _ragged(canvas: _Canvas, size: float, rng: np.random.Generator) -> Mask:
    angles = np.linspace(0, 2 * math.pi, 11, endpoint=False)
    radii = size / 2 * rng.uniform(0.7, 1.1, len(angles))
    corners = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1) + canvas.point(rng)
    mask = np.zeros(canvas.size_hw, dtype=np.uint8)
    cv2.fillPoly(mask, [np.rint(corners).astype(np.int32)], 1)
    return mask.astype(np.bool_)


def _bent_line(canvas: _Canvas, _size: float, rng: np.random.Generator) -> Mask:
    length = canvas.size(rng, 0.25, 0.50, smallest=0.06)
    width = max(1, round(canvas.size(rng, 0.015, 0.03, smallest=0.01)))
    angle, bend = rng.uniform(0, 2 * math.pi), rng.uniform(-0.3, 0.3)
    along = np.linspace(-0.5, 0.5, 17)
    local = np.stack([length * along, length * bend * (0.25 - along**2)], axis=1)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    points = np.rint(local @ turn + canvas.point(rng)).astype(np.int32)
    mask = np.zeros(canvas.size_hw, dtype=np.uint8)
    cv2.polylines(mask, [points], False, 1, thickness=width)
    return mask.astype(np.bool_)


# --- paint: the spot's pixels, changed; the caller keeps what lies inside the outline -------------------------------------------------------------


def _paint_step(_canvas: _Canvas, spot: _Spot, rng: np.random.Generator) -> Pixels:
    return spot.pixels + np.float32(_signed(spot, rng.uniform(60, 100)))


def _paint_stain(canvas: _Canvas, spot: _Spot, rng: np.random.Generator) -> Pixels:
    step = _signed(spot, rng.uniform(40, 80))
    tint = np.ones(3) if canvas.is_gray else rng.uniform(0.7, 1.0, 3)
    weight = cv2.GaussianBlur(spot.mask.astype(np.float32), (0, 0), max(0.5, spot.size / 12), borderType=cv2.BORDER_CONSTANT)
    return np.asarray(spot.pixels + weight[..., None] * (step * tint), dtype=np.float32)


def _paint_hole(canvas: _Canvas, spot: _Spot, _rng: np.random.Generator) -> Pixels:
    surroundings = spot.pixels[spot.mask].mean(axis=0)
    fill = canvas.background
    if np.abs(fill - surroundings).max() < 40:
        fill = np.full(3, 0.0 if surroundings.mean() > 127 else 255.0)
    return np.broadcast_to(fill, spot.pixels.shape).astype(np.float32)


def _paint_patch(canvas: _Canvas, spot: _Spot, rng: np.random.Generator) -> Pixels:
    quarter_turns = int(rng.integers(4))
    best, best_difference = spot.pixels, -1.0
    for _ in range(12):
        source = _turned_copy(canvas, spot.mask.shape, quarter_turns, canvas.point(rng))
        difference = float(np.abs(source - spot.pixels)[spot.mask].mean())
        if difference > best_difference:
            best, best_difference = source, difference
    return best if best_difference >= 12 else best + np.float32(_signed(spot, 25))


def _paint_shift(canvas: _Canvas, spot: _Spot, rng: np.random.Generator) -> Pixels:
    step = float(rng.uniform(35, 60))
    painted = spot.pixels.copy()
    channels = [0, 1, 2] if canvas.is_gray else [int(rng.integers(3))]
    for channel in channels:
        painted[..., channel] += step if painted[..., channel][spot.mask].mean() < 128 else -step
    return painted


_Outline: TypeAlias = Callable[[_Canvas, float, np.random.Generator], Mask]
_Paint: TypeAlias = Callable[[_Canvas, _Spot, np.random.Generator], Pixels]
_PAINTERS: dict[str, tuple[_Outline, _Paint]] = {
    "scratch": (_bent_line, _paint_step),
    "stain": (_ellipse, _paint_stain),
    "missing_patch": (_ragged, _paint_hole),
    "pasted_patch": (_ellipse, _paint_patch),
    "color_shift": (_ellipse, _paint_shift),
}
DEFECT_KINDS: tuple[str, ...] = tuple(_PAINTERS)
"""Names of the kinds, in the order in which they are reported."""


def _signed(spot: _Spot, levels: float) -> float:
    """Return the step with the sign that has room: bright places get darker, dark ones lighter."""
    return float(levels if spot.pixels[spot.mask].mean() < 128 else -levels)


def _turned_copy(canvas: _Canvas, shape_hw: tuple[int, ...], quarter_turns: int, center_xy: tuple[int, int]) -> Pixels:
    dy, dx = np.indices(shape_hw[:2]) - (np.array(shape_hw[:2]) // 2)[:, None, None]
    for _ in range(quarter_turns):
        dy, dx = dx, -dy
    height, width = canvas.size_hw
    rows, columns = np.clip(center_xy[1] + dy, 0, height - 1), np.clip(center_xy[0] + dx, 0, width - 1)
    return np.asarray(canvas.image_rgb[rows, columns], dtype=np.float32)


def _small_part(image_rgb: Image) -> npt.NDArray[np.uint8]:
    """Return 1 where the part is, at no more than 256 px."""
    height, width = image_rgb.shape[:2]
    scale = min(1.0, _PART_SIDE_PX / max(height, width))
    small_wh = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image_rgb, small_wh, interpolation=cv2.INTER_AREA) if scale < 1 else image_rgb
    part = _foreground(small)
    if part is None:
        part = np.zeros(small.shape[:2], dtype=np.uint8)
        margin_y, margin_x = (round(0.04 * side) for side in small.shape[:2])
        part[margin_y : small.shape[0] - margin_y, margin_x : small.shape[1] - margin_x] = 1
    return part


def _border(image_rgb: Image) -> Image:
    depth = max(1, round(0.03 * min(image_rgb.shape[:2])))
    sides = (image_rgb[:depth], image_rgb[-depth:], image_rgb[:, :depth], image_rgb[:, -depth:])
    return np.concatenate([side.reshape(-1, 3) for side in sides])


def _foreground(image_rgb: Image) -> npt.NDArray[np.uint8] | None:
    """Return 1 where the part is, None if there is no plain background around it."""
    background = np.median(_border(image_rgb), axis=0).astype(np.int16)
    distance = np.abs(image_rgb.astype(np.int16) - background).max(axis=2).astype(np.uint8)
    otsu, _ = cv2.threshold(distance, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    border_distance = np.abs(_border(image_rgb).astype(np.int16) - background).max(axis=1)
    noise = float(np.quantile(border_distance, 0.8))
    limit = max(12.0, min(float(otsu), max(24.0, 2 * noise)))  # Otsu alone takes a bright label for the part and its dark glass for the background
    if (border_distance <= limit).mean() < 0.8:
        return None
    part = (distance > limit).astype(np.uint8)
    part = cv2.morphologyEx(part, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    contours, _ = cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    smallest = 0.01 * part.size
    filled = np.zeros_like(part)
    cv2.drawContours(filled, [c for c in contours if cv2.contourArea(c) >= smallest], -1, 1, -1)
    inner = cv2.erode(filled, np.ones((3, 3), np.uint8))
    share = float(inner.mean())
    return inner if 0.03 <= share <= 0.95 else None
