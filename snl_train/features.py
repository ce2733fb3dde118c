"""What losses and scores share about teacher and student features: precision, unit length, agreement of shapes."""

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_SMALLEST_NORM = 1e-12
"""Vectors shorter than this have no direction; they are kept as they are, so that no gradient explodes."""


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Return a context without autocast: distances need float32, since 1 - cos in half precision is noise near 0."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()  # torch.export would otherwise record a region of its own


def exact_float32(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which a GPU convolves float32 in float32: by default cuDNN rounds the factors to TF32, about three digits."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def unit_vectors(features: Tensor) -> Tensor:
    """Return features (B, D, ...) scaled to L2 norm 1 along dimension 1; zero vectors stay zero."""
    if torch.is_grad_enabled() and features.requires_grad:
        units: Tensor = _UnitVectors.apply(features)
        return units
    return features / _lengths(features)


def _lengths(features: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return torch.where(norm > _SMALLEST_NORM, norm, torch.ones_like(norm))


class _UnitVectors(torch.autograd.Function):
    """The same with a gradient that is written by hand, in a third of the passes over memory: (g - u <u, g>) / |f|."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        lengths = _lengths(features)
        units = features / lengths
        ctx.save_for_backward(units, lengths)
        return units

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_units: Tensor) -> Tensor:
        units, lengths = ctx.saved_tensors
        along = (units * grad_units).sum(1, keepdim=True)  # of a vector kept as it is, u is f: below 1e-24, and 0 of a zero vector
        gradient: Tensor = torch.addcmul(grad_units, units, along, value=-1).div_(lengths)
        return gradient


def paired_scales(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return (teacher, student) of each scale in float32, or in float64 if either is.

    Raises:
        ValueError: If the lists are empty or differ in length or in any shape, or a tensor is not (B, D, H, W).
    """
    if not teacher or len(teacher) != len(student):
        raise ValueError(f"teacher and student must have the same number of scales, at least 1, got {len(teacher)} and {len(student)}")
    pairs: list[tuple[Tensor, Tensor]] = []
    for of_teacher, of_student in zip(teacher, student, strict=True):
        if of_teacher.dim() != 4 or of_teacher.shape != of_student.shape:
            shapes = f"{tuple(of_teacher.shape)} and {tuple(of_student.shape)}"
            raise ValueError(f"features must have one shape (B, D, H, W) in teacher and student, got {shapes}")
        dtype = torch.promote_types(torch.promote_types(of_teacher.dtype, of_student.dtype), torch.float32)
        pairs.append((of_teacher.to(dtype), of_student.to(dtype)))
    return pairs
