"""Affinity matrices of teacher and student compared without ever holding one.

The matrix of an image with P positions has P^2 entries: 16.8 million at 64x64. Everything here walks over row tiles of the difference
D = A_s - A_t = [F_s; F_t]^T [F_s; -F_t], one matrix product of inner size 2D, with backward passes written by hand: autograd would keep every tile.
The derivative of |.| at 0 is taken as 0.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from snl_train.products import matmul

DEFAULT_TILE_ROWS = 256


def intra_affinity_error(student: Tensor, teacher: Tensor, tile_rows: int = DEFAULT_TILE_ROWS, *, product_dtype: torch.dtype | None = None) -> Tensor:
    """Return sum_ij |<s_i, s_j> - <t_i, t_j>| per sample, the inner sums of Eq. 5.

    D is symmetric, so only tiles on and right of the diagonal are computed. The gradient is made in the forward pass, tile by tile, because the
    result is one number per sample: no tile is computed twice.

    Args:
        student: (B, D, P), columns of unit length.
        teacher: Same shape.
        tile_rows: Rows of D held at a time.
        product_dtype: Type of the factors of the matrix products, for mixed precision; sums and gradients stay in the inputs' type. None for theirs.

    Returns:
        (B,).
    """
    error: Tensor = _IntraError.apply(student, teacher, tile_rows, product_dtype)
    return error


def inter_affinity_error(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    tile_rows: int = DEFAULT_TILE_ROWS,
    *,
    product_dtype: torch.dtype | None = None,
) -> Tensor:
    """Return sum_ij |<s_i, s'_j> - <t_i, t'_j>| per pair of samples, the inner sums of Eq. 6.

    Args:
        student: s and s', (B, D, P) each, columns of unit length.
        teacher: t and t', same shapes.
        tile_rows: Rows of D held at a time.
        product_dtype: As in :func:`intra_affinity_error`.

    Returns:
        (B,).
    """
    error: Tensor = _InterError.apply(*student, *teacher, tile_rows, product_dtype)
    return error


def mean_affinity_error(student: Tensor, teacher: Tensor, tile_rows: int = DEFAULT_TILE_ROWS) -> Tensor:
    """Return mean_i |A_s(i, j) - A_t(i, j)| for every position j, the inner mean of Eq. 12.

    D is symmetric, so only tiles on and right of the diagonal are computed, and their column sums stand for the mirrored ones: half the time.
    Without gradients this is plain tensor code with a fixed number of tiles, fit for export.

    Args:
        student: (B, D, P), columns of unit length.
        teacher: Same shape.
        tile_rows: Rows of D held at a time.

    Returns:
        (B, P).
    """
    if torch.is_grad_enabled() and (student.requires_grad or teacher.requires_grad):
        error: Tensor = _MeanError.apply(student, teacher, tile_rows)
        return error
    return _mean_error(student, teacher, tile_rows)


class _IntraError(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, tile_rows: int, product_dtype: torch.dtype | None) -> Tensor:
        error = student.new_zeros(student.shape[0])
        sides = [_Side(side, needed, factor, product_dtype) for side, needed, factor in zip((student, teacher), ctx.needs_input_grad, (2, -2))]
        left, right = (torch.cat([sides[0].upright, factor * sides[1].upright], 2) for factor in (1, -1))  # (B, P, 2D)
        for samples, rows in _tiles(student, tile_rows):
            for columns in _from_diagonal(student, rows):
                tile = matmul(left[samples, rows], right[samples, columns].mT)  # (b, height, width)
                inside = max(rows.stop - columns.start, 0)  # columns on the diagonal, whose mirror image is in the tile itself
                size = tile.abs()
                error[samples] += 2 * size.sum((1, 2), dtype=error.dtype) - size[:, :, :inside].sum((1, 2), dtype=error.dtype)
                sign = tile.sgn_()
                for side in sides:
                    side.add_to_rows(samples, rows, sign, columns)
                    side.add_to_columns(samples, slice(columns.start + inside, columns.stop), sign[:, :, inside:], rows)
        ctx.save_for_backward(*(side.gradient() for side in sides))
        return error

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_error: Tensor) -> tuple[Tensor | None, ...]:
        return (*_scaled(ctx.saved_tensors, grad_error), None, None)


class _InterError(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student_a: Tensor, student_b: Tensor, teacher_a: Tensor, teacher_b: Tensor, tile_rows: int, product_dtype: torch.dtype | None
    ) -> Tensor:
        inputs = (student_a, student_b, teacher_a, teacher_b)
        error = student_a.new_zeros(student_a.shape[0])
        sides = [_Side(side, needed, factor, product_dtype) for side, needed, factor in zip(inputs, ctx.needs_input_grad, (1, 1, -1, -1))]
        left, right = torch.cat([sides[0].upright, sides[2].upright], 2), torch.cat([sides[1].upright, -sides[3].upright], 2)  # (B, P, 2D)
        for samples, rows in _tiles(student_a, tile_rows):
            tile = matmul(left[samples, rows], right[samples].mT)  # (b, height, P)
            error[samples] += tile.abs().sum((1, 2), dtype=error.dtype)
            sign = tile.sgn_()
            for first, second in ((sides[0], sides[1]), (sides[2], sides[3])):
                first.add_to_rows(samples, rows, sign, slice(None), of=second)
                second.add_to_columns(samples, slice(None), sign, rows, of=first)
        ctx.save_for_backward(*(side.gradient() for side in sides))
        return error

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_error: Tensor) -> tuple[Tensor | None, ...]:
        return (*_scaled(ctx.saved_tensors, grad_error), None, None)


class _Side:
    """One of the inputs whose products a tile compares, and its gradient as it grows; nothing is added where none is wanted."""

    def __init__(self, features: Tensor, needs_gradient: bool, factor: float, product_dtype: torch.dtype | None) -> None:
        self._factor = factor
        self.features = features.to(product_dtype or features.dtype)  # (B, D, P)
        self.upright = self.features.mT.contiguous()  # (B, P, D)
        self._of_rows = torch.zeros_like(features.mT, memory_format=torch.contiguous_format) if needs_gradient else None  # (B, P, D)
        self._of_columns = torch.zeros_like(features, memory_format=torch.contiguous_format) if needs_gradient else None  # (B, D, P)

    def add_to_rows(self, samples: slice, rows: slice, sign: Tensor, columns: slice, *, of: "_Side | None" = None) -> None:
        """Add the sum over ``columns`` of a tile's signs, (b, height, width), times another side's features there, its own by default."""
        if self._of_rows is not None:
            self._of_rows[samples, rows].add_(matmul(sign, (of or self).upright[samples, columns]), alpha=self._factor)  # (b, height, D)

    def add_to_columns(self, samples: slice, columns: slice, sign: Tensor, rows: slice, *, of: "_Side | None" = None) -> None:
        """The same for the mirrored tile: the sum over ``rows``."""
        if self._of_columns is not None and sign.shape[2]:
            self._of_columns[samples, :, columns].add_(matmul((of or self).features[samples, :, rows], sign), alpha=self._factor)  # (b, D, width)

    def gradient(self) -> Tensor | None:
        """Return the gradient of the sum of both, (B, D, P)."""
        return None if self._of_columns is None or self._of_rows is None else self._of_columns.add_(self._of_rows.mT)


def _scaled(gradients: Sequence[Tensor | None], grad_error: Tensor) -> Iterator[Tensor | None]:
    return (None if gradient is None else gradient * grad_error[:, None, None] for gradient in gradients)


class _MeanError(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, tile_rows: int) -> Tensor:
        ctx.save_for_backward(student, teacher)
        ctx.tile_rows = tile_rows
        return _mean_error(student, teacher, tile_rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_mean: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher = ctx.saved_tensors
        left, right = torch.cat([student, teacher], 1), torch.cat([student, -teacher], 1)
        weight = grad_mean / student.shape[2]  # (B, P)
        gradients = [torch.zeros_like(side) if needed else None for side, needed in zip((student, teacher), ctx.needs_input_grad, strict=False)]
        for samples, rows in _tiles(student, ctx.tile_rows):
            slope = (left[samples, :, rows].mT @ right[samples]).sgn_()  # (b, height, P)
            slope *= weight[samples, rows, None] + weight[samples, None, :]  # entry ij stands in row i's mean and, mirrored, in row j's
            for side, gradient, factor in zip((student, teacher), gradients, (1, -1), strict=True):
                if gradient is not None:
                    gradient[samples, :, rows] += factor * (side[samples] @ slope.mT)
        return (*gradients, None)


def _mean_error(student: Tensor, teacher: Tensor, tile_rows: int) -> Tensor:
    count = student.shape[0]
    if _is_on_cpu(student) and type(count) is int and count > 1:  # a symbolic count is an export with a dynamic batch
        return torch.cat([_mean_error(student[i : i + 1], teacher[i : i + 1], tile_rows) for i in range(count)])
    left, right = torch.cat([student, teacher], 1).mT, torch.cat([student, -teacher], 1)  # (B, P, 2D), (B, 2D, P)
    positions = student.shape[2]
    above = student.new_zeros(student.shape[0], positions)  # column sums of the tiles so far: the mirror image of what the next rows lack
    sums = []
    for start in range(0, positions, tile_rows):
        height = min(tile_rows, positions - start)
        size = (left[:, start : start + height] @ right[:, :, start:]).abs_()  # (B, height, P - start): the columns from the diagonal on
        sums.append(size.sum(2) + above[:, :height])
        above = above[:, height:] + size[:, :, height:].sum(1)
    return torch.cat(sums, 1) / positions


def _tiles(features: Tensor, tile_rows: int) -> Iterator[tuple[slice, slice]]:
    """Yield (samples, rows): one sample at a time on a CPU, where a tile should stay in the cache, all samples at once elsewhere."""
    count, _, positions = features.shape
    at_once = 1 if _is_on_cpu(features) else count
    for first in range(0, count, at_once):
        for start in range(0, positions, tile_rows):
            yield slice(first, first + at_once), slice(start, min(start + tile_rows, positions))


def _from_diagonal(features: Tensor, rows: slice) -> list[slice]:
    """Return the columns from the diagonal on: in one piece, but on a CPU apart from those on the diagonal, since it multiplies dense tiles only."""
    positions = features.shape[2]
    if not _is_on_cpu(features):
        return [slice(rows.start, positions)]
    return [rows, slice(rows.stop, positions)] if rows.stop < positions else [rows]


def _is_on_cpu(features: Tensor) -> bool:
    return features.device.type == "cpu"
