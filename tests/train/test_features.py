"""Unit vectors and their hand-written gradient: the definition's, differentiated by autograd."""

import pytest
import torch
from torch import Tensor

from snl_train.features import unit_vectors


def numbers(seed: int) -> Tensor:
    return torch.randn(2, 5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_of_a_direction_is_that_of_the_definition(memory_format: torch.memory_format) -> None:
    features = numbers(0).to(memory_format=memory_format).requires_grad_()
    weights = numbers(1)
    (got,) = torch.autograd.grad((unit_vectors(features) * weights).sum(), features)
    (expected,) = torch.autograd.grad((features / features.square().sum(1, keepdim=True).sqrt() * weights).sum(), features)
    torch.testing.assert_close(got, expected)
    assert torch.autograd.gradcheck(unit_vectors, features)


def test_a_direction_is_the_same_with_and_without_a_gradient() -> None:
    features = numbers(2)
    assert torch.equal(unit_vectors(features.clone().requires_grad_()).detach(), unit_vectors(features))


def test_a_vector_without_a_direction_is_kept_and_hands_the_gradient_on() -> None:
    features = torch.zeros(1, 3, 2, dtype=torch.float64)
    features[0, 0, 1] = 1e-13
    features.requires_grad_()
    weights = torch.arange(6, dtype=torch.float64).reshape(1, 3, 2)
    units = unit_vectors(features)
    (gradient,) = torch.autograd.grad((units * weights).sum(), features)
    assert torch.equal(units.detach(), features.detach())
    torch.testing.assert_close(gradient, weights)
