"""Muon's steps: singular values carried through the published polynomial one by one, in NumPy, and what is left to Adam."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from snl_runtime.errors import ConfigError
from snl_train.config import OptimConfig
from snl_train.muon import ROWS_AT_ONCE, Muon, make_optimizers, orthogonalize

MUON = OptimConfig(optimizer="muon", learning_rate=0.1, momentum=0.5)


def by_singular_values(matrix: np.ndarray) -> np.ndarray:
    """The iteration as a function of each singular value: U p(S) V^T."""
    u, values, vt = np.linalg.svd(matrix.astype(np.float64) / np.linalg.norm(matrix), full_matrices=False)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return u * values @ vt


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (16, 16), (1, 9)])
def test_orthogonalizing_is_the_polynomial_of_the_singular_values(shape):
    matrix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    np.testing.assert_allclose(orthogonalize(torch.from_numpy(matrix)).numpy(), by_singular_values(matrix), atol=2e-5)


def test_matrices_in_one_stack_are_orthogonalized_each_by_itself():
    rng = np.random.default_rng(4)
    stack = np.stack([scale * rng.normal(size=(8, 30)) for scale in (1e-6, 1.0, 1e4)] + [np.zeros((8, 30))]).astype(np.float32)
    expected = np.stack([by_singular_values(matrix) for matrix in stack[:3]] + [np.zeros((8, 30))])
    np.testing.assert_allclose(orthogonalize(torch.from_numpy(stack)).numpy(), expected, atol=2e-5)


def test_orthogonalized_directions_count_alike_whatever_their_size():
    rng = np.random.default_rng(1)
    u, v = (np.linalg.qr(rng.normal(size=(n, 8)))[0] for n in (8, 50))
    matrix = u * np.logspace(0, -1.5, 8) @ v.T
    values = np.linalg.svd(orthogonalize(torch.from_numpy(matrix).float()).numpy(), compute_uv=False)
    assert 0.6 < values.min() < values.max() < 1.25


@given(rows=st.integers(1, 64), columns=st.integers(1, 96), decades=st.floats(0, 9), strongest=st.integers(1, 4), seed=st.integers(0, 2**31))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_direction_is_ever_longer_than_the_polynomial_makes_it(dtype, rows, columns, decades, strongest, seed):
    """A few strong directions above many weak ones, as gradients of smooth images have them."""
    rng = np.random.default_rng(seed)
    rank = min(rows, columns)
    u, v = (np.linalg.qr(rng.normal(size=(n, rank)))[0] for n in (rows, columns))
    sizes = np.where(np.arange(rank) < strongest, 1.0, 10**-decades)
    result = orthogonalize(torch.from_numpy(u * sizes @ v.T).to(dtype))
    assert result.dtype == torch.float32
    assert np.linalg.norm(result.numpy(), 2) < 1.25  # the polynomial's own maximum over five rounds is 1.202


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("shape", [(64, 147), (256, 1152)])
def test_a_first_kernel_over_smooth_pictures_gets_the_step_of_the_polynomial(shape, precision):
    """Its gradient is almost of rank one; products in bfloat16, which PyTorch may be told to use, made a step 46000 times too long of such a one."""
    rng = np.random.default_rng(6)
    matrix = (np.outer(rng.normal(size=shape[0]), 1 + 0.05 * rng.normal(size=shape[1])) + 1e-3 * rng.normal(size=shape)).astype(np.float32)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        result = orthogonalize(torch.from_numpy(matrix)).numpy()
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_allclose(result, by_singular_values(matrix), atol=2e-3)


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="PyTorch before 2.9 has no such setting")
def test_steps_are_exact_where_a_caller_allowed_rounded_products_of_one_backend():
    """PyTorch refuses its older question about precision once the newer setting was used."""
    backend = torch.backends.mkldnn.matmul
    before = backend.fp32_precision
    matrix = np.outer(np.arange(1, 65), np.ones(147)).astype(np.float32) + np.random.default_rng(7).normal(size=(64, 147)).astype(np.float32) * 1e-2
    backend.fp32_precision = "bf16"
    try:
        result = orthogonalize(torch.from_numpy(matrix)).numpy()
        assert backend.fp32_precision == "bf16"
    finally:
        backend.fp32_precision = before
    np.testing.assert_allclose(result, by_singular_values(matrix), atol=2e-3)


def test_a_zero_gradient_gives_no_step():
    assert torch.equal(orthogonalize(torch.zeros(3, 7)), torch.zeros(3, 7))


def test_two_steps_of_a_kernel_by_hand():
    rng = np.random.default_rng(2)
    start, *gradients = (rng.normal(size=(4, 3, 2, 2)).astype(np.float32) for _ in range(3))
    kernel = nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = Muon([kernel], OptimConfig(optimizer="muon", learning_rate=0.1, momentum=0.5, weight_decay=0.2))
    expected, momentum = start.astype(np.float64), np.zeros(start.shape)
    for gradient in gradients:
        kernel.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        momentum = 0.5 * momentum + 0.5 * gradient
        direction = 0.5 * gradient + 0.5 * momentum
        step = by_singular_values(direction.reshape(4, 12)).reshape(start.shape) * 0.2 * np.sqrt(12)
        expected = expected * (1 - 0.1 * 0.2) - 0.1 * step
    np.testing.assert_allclose(kernel.detach().numpy(), expected, atol=1e-5)


def test_kernels_that_are_stepped_together_move_as_each_by_itself():
    """A GPU takes them all in one call; a CPU takes one at a time, and both in this test."""
    rng = np.random.default_rng(8)
    shapes = [(6, 4, 3, 3), (ROWS_AT_ONCE + 6, 4, 3, 3), (6, 4, 3, 3), (40, 2, 1, 1)]
    gradients = [torch.from_numpy(rng.normal(size=shape).astype(np.float32)) for shape in shapes]
    kernels = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for kernel, gradient in zip(kernels, gradients, strict=True):
        kernel.grad = gradient
    together = Muon(kernels, MUON)
    for _ in range(2):
        steps = together._steps(together._directions(kernels, MUON.momentum))
    expected = []
    for kernel in kernels:
        alone = Muon([kernel], MUON)
        for _ in range(2):
            of_kernel = alone._steps(alone._directions([kernel], MUON.momentum))
        expected += of_kernel
    assert len(steps) == 5  # one kernel has more rows than are taken at once
    assert all(torch.equal(step, other) for step, other in zip(steps, expected, strict=True))


def test_kernels_with_many_rows_are_cut_into_blocks():
    rows = ROWS_AT_ONCE + 8
    gradient = np.random.default_rng(3).normal(size=(rows, 300, 1, 1)).astype(np.float32)
    kernel = nn.Parameter(torch.zeros(rows, 300, 1, 1))
    kernel.grad = torch.from_numpy(gradient)
    Muon([kernel], OptimConfig(optimizer="muon", learning_rate=1.0, momentum=0.0)).step()
    for part in (slice(0, ROWS_AT_ONCE), slice(ROWS_AT_ONCE, rows)):
        expected = -by_singular_values(gradient[part, :, 0, 0]) * 0.2 * np.sqrt(300)
        np.testing.assert_allclose(kernel.detach().numpy()[part, :, 0, 0], expected, atol=5e-4)


@pytest.mark.parametrize("rows", [5, ROWS_AT_ONCE + 5])
def test_memory_format_does_not_change_a_step(rows):
    gradient = torch.randn(rows, 3, 3, 2, generator=torch.Generator().manual_seed(0))
    kernels = [nn.Parameter(torch.ones(rows, 3, 3, 2).to(memory_format=order)) for order in (torch.contiguous_format, torch.channels_last)]
    for kernel in kernels:
        kernel.grad = gradient.to(memory_format=torch.channels_last)
        Muon([kernel], MUON).step()
    torch.testing.assert_close(*[kernel.detach() for kernel in kernels])


def test_muon_takes_the_kernels_and_adam_the_rest():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 2, 2))
    muon, adam = make_optimizers(model.parameters(), MUON)
    kernels = {id(model[0].weight), id(model[2].weight)}
    assert {id(one) for group in muon.param_groups for one in group["params"]} == kernels
    everything = {id(parameter) for parameter in model.parameters()}
    assert {id(one) for group in adam.param_groups for one in group["params"]} == everything - kernels
    assert (type(muon), type(adam)) == (Muon, torch.optim.AdamW)


@pytest.mark.parametrize(("config", "kinds"), [(OptimConfig(), [torch.optim.AdamW]), (MUON, [Muon])])
def test_there_is_one_optimizer_where_one_has_everything(config, kinds):
    made = make_optimizers([nn.Parameter(torch.zeros(2, 2, 1, 1))], config)
    assert [type(one) for one in made] == kinds


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_a_momentum_that_never_forgets_is_refused(momentum):
    with pytest.raises(ConfigError, match="optim.momentum"):
        OptimConfig(momentum=momentum)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_kernels_that_a_gpu_takes_together_move_as_on_a_cpu():
    rng = np.random.default_rng(5)
    shapes = [(6, 4, 3, 3), (ROWS_AT_ONCE + 6, 4, 3, 3), (6, 4, 3, 3), (40, 2, 1, 1)]
    gradients = [torch.from_numpy(rng.normal(size=shape).astype(np.float32)) for shape in shapes]
    moved = []
    for device in ("cpu", "cuda"):
        kernels = [nn.Parameter(torch.zeros(shape, device=device)) for shape in shapes]
        optimizer = Muon(kernels, MUON)
        for _ in range(2):
            for kernel, gradient in zip(kernels, gradients, strict=True):
                kernel.grad = gradient.to(device)
            optimizer.step()
        moved.append([kernel.detach().cpu() for kernel in kernels])
    torch.testing.assert_close(moved[1], moved[0], atol=1e-4, rtol=0)
