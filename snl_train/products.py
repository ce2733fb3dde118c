"""Matrix products in float32, by the library that is quickest on the processor."""

import torch
from torch import Tensor

_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
"""PyTorch (2.6 to 2.14) multiplies float32 by MKL, which uses half the width of an AMD processor's vectors: 105 GFLOP/s on a core where oneDNN, which
convolves, reaches 240. This operator is oneDNN's product; PyTorch's compiler uses it, and no public function does for plain tensors."""


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """Return ``x @ y`` without a gradient, up to the rounding of sums taken in another order.

    Args:
        x: (m, k), or (B, m, k) of which a CPU takes one sample at a time.
        y: (k, n) or (B, k, n), of the same dtype.

    Returns:
        (m, n) or (B, m, n).
    """
    if _ONEDNN is None or x.device.type != "cpu" or x.dtype != torch.float32 or not x.numel() or not y.numel():  # oneDNN refuses empty ones
        return x @ y
    if x.dim() == 3:
        return torch.stack([matmul(one, other) for one, other in zip(x, y, strict=True)]) if len(x) > 1 else matmul(x[0], y[0])[None]
    weight = y.mT  # (n, k), which the operator multiplies by its rows
    if not (weight.is_contiguous() or y.is_contiguous()):
        weight = weight.contiguous()  # of a view with gaps it takes entry by entry, a thousand times slower
    product: Tensor = _ONEDNN(x.contiguous(), weight, None, "none", [], "")
    return product
