"""What losses and scores share about teacher and student features: precision, unit length, agreement of shapes."""

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

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
    norm = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / torch.where(norm > _SMALLEST_NORM, norm, torch.ones_like(norm))


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
