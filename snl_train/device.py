"""Where a training runs, in which precision, and what is said when it is full."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from snl_runtime.errors import ConfigError
from snl_train.config import Device, TrainConfig


def resolve_device(device: Device) -> torch.device:
    """Return the device to train on.

    Raises:
        ConfigError: If CUDA was asked for and is not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but PyTorch finds no usable GPU; install a CUDA build of PyTorch or take --device cpu")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


@contextlib.contextmanager
def explaining_full_gpu(what: str, *, remedy: str = "lower --batch-size or --image-size") -> Iterator[None]:
    """Say what a GPU had too little memory for, and what to do, in place of PyTorch's own error.

    Args:
        what: What it had to hold, e.g. ``batches of 16``.
        remedy: What to do.

    Raises:
        ConfigError: If the GPU is full.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(f"the GPU has too little memory for {what}; {remedy}") from error


def half_precision(device: torch.device, config: TrainConfig) -> torch.dtype | None:
    """Return the type that backbones and affinities compute in, or None for float32."""
    if device.type == "cpu":
        if not config.mixed_precision_cpu:
            return None
        known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older PyTorch does not say
        return torch.bfloat16 if known.get("avx512_bf16") or known.get("amx_bf16") else None
    if not config.mixed_precision:
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
