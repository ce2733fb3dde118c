"""Muon: momentum with orthogonalized steps for convolution kernels (Jordan et al. 2024).

Adam scales every weight by itself, and one direction of a kernel's gradient usually outweighs all others. Muon takes the kernel as a matrix and gives
all its directions the same step: with the momentum M = U S V^T it moves along U V^T. A student learns in far fewer steps that way;
``docs/decisions`` 36 has the figures.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from snl_train.config import OptimConfig
from snl_train.products import matmul

ROWS_AT_ONCE = 256
"""Most rows that are orthogonalized together; a kernel with more is cut: a 512 x 4608 kernel then takes about a third of the work."""
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd quintic a x + b x^3 + c x^5, which five times over takes every singular value from 0.01 to 1 to about 0.7 to 1.2 (Jordan et al.)."""
_ITERATIONS = 5
_MATCHED_RMS = 0.2
"""Root mean square of a step per unit of learning rate: about Adam's, so that both take the same ``learning_rate`` (Liu et al., arXiv 2502.16982)."""


def make_optimizers(parameters: Iterable[nn.Parameter], config: OptimConfig) -> list[torch.optim.Optimizer]:
    """Return what trains some parameters as a configuration says: Adam, or Muon for the convolution kernels and Adam for the rest.

    Args:
        parameters: Everything that is trained.
        config: Which optimizer, and its settings.
    """
    trained = list(parameters)
    kernels = [parameter for parameter in trained if parameter.dim() == 4] if config.optimizer == "muon" else []
    rest = [parameter for parameter in trained if parameter.dim() != 4] if kernels else trained
    made: list[torch.optim.Optimizer] = []
    if kernels:
        made.append(Muon(kernels, config))
    if rest:
        made.append(torch.optim.AdamW(rest, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True))
    return made


class Muon(torch.optim.Optimizer):
    """Moves each kernel along its orthogonalized momentum.

    PyTorch's own ``torch.optim.Muon`` takes matrices only and refuses the kernels of convolutions.

    Args:
        kernels: (rows, ...) parameters with two or more dimensions; all but the first are taken as one.
        config: Learning rate, ``momentum`` and weight decay.
    """

    def __init__(self, kernels: Sequence[nn.Parameter], config: OptimConfig) -> None:
        super().__init__(kernels, {"lr": config.learning_rate, "momentum": config.momentum, "weight_decay": config.weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 - the signature of every optimizer
        """Take one step: M <- momentum M + (1 - momentum) G, then along momentum M + (1 - momentum) G (Nesterov), orthogonalized."""
        for group in self.param_groups:
            kernels = [kernel for kernel in group["params"] if kernel.grad is not None]
            # A GPU takes all of them together, or it would wait for a thousand launches a step; a CPU is faster with one at a time in its cache.
            for together in [kernels] if kernels and kernels[0].is_cuda else [[kernel] for kernel in kernels]:
                steps = self._steps(self._directions(together, group["momentum"]))
                torch._foreach_mul_(together, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_([block for kernel in together for block in torch.split(kernel, ROWS_AT_ONCE)], steps, alpha=-group["lr"])

    def _directions(self, kernels: Sequence[Tensor], momentum: float) -> Sequence[Tensor]:
        gradients = [kernel.grad for kernel in kernels if kernel.grad is not None]
        for kernel in kernels:
            if not self.state[kernel]:
                self.state[kernel]["momentum"] = torch.zeros_like(kernel)
        momenta = [self.state[kernel]["momentum"] for kernel in kernels]
        torch._foreach_lerp_(momenta, gradients, 1 - momentum)
        return torch._foreach_lerp(gradients, momenta, momentum)

    def _steps(self, directions: Sequence[Tensor]) -> list[Tensor]:
        """Return the step of each kernel's blocks of rows, one kernel after the other, in the shapes of the blocks."""
        blocks = [block for direction in directions for block in torch.split(direction, ROWS_AT_ONCE)]
        matrices = [_in_order_of_memory(block).flatten(1) for block in blocks]  # each (m, n) with m at most ROWS_AT_ONCE
        of_shape: dict[torch.Size, list[Tensor]] = {}
        for matrix in matrices:
            of_shape.setdefault(matrix.shape, []).append(matrix)
        steps = {shape: iter(self._steps_of(same)) for shape, same in of_shape.items()}
        return [_as_in_memory(next(steps[matrix.shape]), block) for matrix, block in zip(matrices, blocks, strict=True)]

    def _steps_of(self, same: list[Tensor]) -> list[Tensor]:
        """Return the steps along matrices (m, n) of one shape."""
        length = _MATCHED_RMS * max(same[0].shape) ** 0.5
        if same[0].is_cuda:
            return list(orthogonalize(torch.stack(same), length=length))  # (N, m, n)
        return [orthogonalize(matrix, length=length) for matrix in same]


def _order(kernel: Tensor) -> list[int]:
    """Return a kernel's dimensions as they lie in memory, its rows first; the step does not depend on the order of columns."""
    strides = kernel.stride()
    return [0, *sorted(range(1, kernel.dim()), key=lambda dim: -strides[dim])]


def _in_order_of_memory(kernel: Tensor) -> Tensor:
    return kernel.permute(_order(kernel))


def _as_in_memory(step: Tensor, kernel: Tensor) -> Tensor:
    """Return a step (m, n) along :func:`_in_order_of_memory` in the kernel's own shape and order of memory."""
    order = _order(kernel)
    return step.reshape([kernel.shape[dim] for dim in order]).permute([order.index(dim) for dim in range(len(order))])


@contextlib.contextmanager
def _exact_products() -> Iterator[None]:
    """Keep PyTorch from rounding the factors of float32 products, which a caller may have allowed for everything else."""
    backends: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    if not all(hasattr(backend, "fp32_precision") for backend in backends):  # PyTorch before 2.9
        allowed = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(allowed)
        return
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


@_exact_products()
def orthogonalize(matrices: Tensor, *, length: float = 1.0) -> Tensor:
    """Return about U V^T for matrices U S V^T, (m, n) or (N, m, n): singular values near ``length`` wherever they are not tiny beside the largest.

    Newton and Schulz's iteration X <- (a I + b X X^T + c (X X^T)^2) X, carried out on the small Gram matrix X X^T alone and applied to X once: two
    products with n columns instead of ten. A zero matrix stays zero.

    All of it is float32, whatever the training is. A Gram matrix in half precision has eigenvalues below 0, which the polynomial drives away from 0,
    12-fold an iteration, until a step is thousands of times too long; and half precision of what is applied, up to 500 along weak directions, is an
    error as large as the strong ones.

    Args:
        matrices: (m, n) or (N, m, n), finite, of any floating type; each is taken by itself.
        length: Factor of the result.

    Returns:
        The same shape, float32.
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalize(matrices.mT, length=length).mT
    x = matrices.float()
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)  # singular values at most 1
    gram = matmul(x, x.mT)  # (..., m, m)
    polynomial = _polynomial(gram)
    applied = polynomial  # (..., m, m): what stands before X so far
    for _ in range(_ITERATIONS - 1):
        gram = matmul(matmul(polynomial, gram), polynomial)  # symmetric, and all of these commute
        polynomial = _polynomial(gram)
        applied = matmul(polynomial, applied)
    return matmul(applied.mul_(length), x)


def _polynomial(gram: Tensor) -> Tensor:
    """Return a I + b G + c G^2, (..., m, m)."""
    a, b, c = _COEFFICIENTS
    result = matmul(gram, gram).mul_(c).add_(gram, alpha=b)
    result.diagonal(dim1=-2, dim2=-1).add_(a)
    return result
