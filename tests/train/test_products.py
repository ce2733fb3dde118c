"""Products by the quicker library are PyTorch's products, whatever lies where in memory."""

import numpy as np
import pytest
import torch
from torch import Tensor

from snl_train.products import _if_it_multiplies, matmul

LAYOUTS = {
    "dense": lambda x: x,
    "transposed": lambda x: x.mT.contiguous().mT,
    "rows of a wider one": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    "columns of a taller one": lambda x: torch.cat([x, x], -2).mT.contiguous().mT[..., : x.shape[-2], :],
    "every second row": lambda x: x.repeat_interleave(2, -2)[..., ::2, :],
}


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


@pytest.mark.parametrize("of_x", LAYOUTS)
@pytest.mark.parametrize("of_y", LAYOUTS)
def test_a_product_is_the_sum_over_the_inner_dimension(of_x, of_y):
    x, y = LAYOUTS[of_x](numbers(0, 7, 30)), LAYOUTS[of_y](numbers(1, 30, 5))
    np.testing.assert_allclose(matmul(x, y), x.numpy().astype(np.float64) @ y.numpy().astype(np.float64), atol=1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_each_sample_of_a_batch_is_multiplied_by_its_own(count):
    x, y = numbers(2, count, 4, 6), numbers(3, count, 6, 5)
    np.testing.assert_allclose(matmul(x, y), np.einsum("bmk,bkn->bmn", x.numpy(), y.numpy()), atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 3), (3, 2, 0)])
def test_products_of_nothing_have_their_shape(shape):
    rows, inner, columns = shape
    product = matmul(torch.ones(rows, inner), torch.ones(inner, columns))
    assert product.shape == (rows, columns)
    assert not product.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_multiplied_in_their_own(dtype):
    x, y = numbers(4, 3, 8).to(dtype), numbers(5, 8, 2).to(dtype)
    assert torch.equal(matmul(x, y), x @ y)


def test_products_are_pytorchs_where_onednn_is_missing(monkeypatch):
    monkeypatch.setattr("snl_train.products._ONEDNN", None)
    x, y = numbers(6, 9, 8), numbers(7, 8, 9)
    assert torch.equal(matmul(x, y), x @ y)


def refusing(*arguments):
    raise RuntimeError("failed to match any schema")


@pytest.mark.parametrize("operator", [None, refusing, lambda x, *_: x @ x.mT + 1, lambda x, *_: x])
def test_an_operator_that_is_missing_refuses_or_computes_something_else_is_not_used(operator):
    assert _if_it_multiplies(operator) is None


def test_gradients_are_those_of_a_product():
    x, y = numbers(10, 4, 3).requires_grad_(), numbers(11, 3, 2).requires_grad_()
    matmul(x, y).sum().backward()
    np.testing.assert_allclose(x.grad, np.tile(y.detach().numpy().sum(1), (4, 1)), atol=1e-6)
    np.testing.assert_allclose(y.grad, np.tile(x.detach().numpy().sum(0)[:, None], (1, 2)), atol=1e-6)


def test_the_same_product_twice_has_the_same_bits():
    x, y = numbers(8, 256, 64), numbers(9, 64, 1000)
    assert torch.equal(matmul(x, y), matmul(x, y))
