"""Matrix products in float32, by the library that is quickest on the processor."""

from collections.abc import Callable

import torch
from torch import Tensor


def _if_it_multiplies(operator: Callable[..., Tensor] | None) -> Callable[..., Tensor] | None:
    """Return an operator of PyTorch, None where it is missing, takes other arguments, has no kernel in this build or computes something else."""
    if operator is None:
        return None
    x, expected = torch.arange(6.0, device="cpu").reshape(2, 3), torch.tensor([[5.0, 14.0], [14.0, 50.0]])
    try:
        return operator if torch.equal(operator(x, x, None, "none", [], ""), expected) else None
    except RuntimeError:
        return None


_ONEDNN = _if_it_multiplies(getattr(torch.ops.mkldnn, "_linear_pointwise", None))
"""PyTorch (2.6 to 2.14) multiplies float32 by MKL, which uses half the width of an AMD processor's vectors: 105 GFLOP/s on a core where oneDNN, which
convolves, reaches 240. This operator is oneDNN's product; PyTorch's compiler uses it, and no public function does for plain tensors. It is private: a
version in which it is another one multiplies as ever."""


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """Return ``x @ y``, up to the rounding of sums taken in another order.

    Args:
        x: (m, k), or (B, m, k) of which a CPU takes one sample at a time.
        y: (k, n) or (B, k, n), of the same dtype.

    Returns:
        (m, n) or (B, m, n).
    """
    if _ONEDNN is None or not _suits_onednn(x) or not _suits_onednn(y):
        return x @ y
    if x.dim() == 3:
        return torch.stack([matmul(one, other) for one, other in zip(x, y, strict=True)]) if len(x) > 1 else matmul(x[0], y[0])[None]
    weight = y.mT  # (n, k), which the operator multiplies by its rows
    if not (weight.is_contiguous() or y.is_contiguous()):
        weight = weight.contiguous()  # of a view with gaps it takes entry by entry, a thousand times slower
    return _ONEDNN(x.contiguous(), weight, None, "none", [], "")


def _suits_onednn(x: Tensor) -> bool:
    """Return whether the operator may have a tensor: it refuses empty ones and has no derivative, of which PyTorch only warns."""
    needs_gradient = x.requires_grad and torch.is_grad_enabled()
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0 and not needs_gradient
