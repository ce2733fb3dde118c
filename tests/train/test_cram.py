"""Contract: Cram is Eq. 8 and 9, whatever the speed of its form."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from snl_train.models import Cram


def literal(features: Tensor, centers: Tensor, alpha: float) -> Tensor:
    """Eq. 8 and 9 as printed, one position at a time."""
    f, c = features.detach().numpy(), centers.detach().numpy()
    result = np.empty_like(f)
    for b, h, w in np.ndindex(f.shape[0], f.shape[2], f.shape[3]):
        residuals = f[b, :, h, w][None] - c  # (N, D)
        exponents = -alpha * (residuals**2).sum(1)
        assignment = np.exp(exponents - exponents.max())
        assignment /= assignment.sum()
        result[b, :, h, w] = (assignment[:, None] * residuals).sum(0)
    return torch.from_numpy(result)


def cram_float64(channels: int = 5, centers: int = 7, **options: float | bool) -> Cram:
    torch.manual_seed(1)
    return Cram(channels, centers, **options).double()  # type: ignore[arg-type]


@pytest.mark.parametrize("alpha", [0.01, 1.0, 30.0, -0.5])
def test_fast_form_equals_the_printed_equations(alpha: float) -> None:
    cram = cram_float64()
    with torch.no_grad():
        cram.alpha.fill_(alpha)
    features = 2 * torch.randn(2, 5, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(cram(features), literal(features, cram.centers, alpha), rtol=1e-10, atol=1e-12)


def test_fast_form_has_the_gradients_of_the_printed_equations() -> None:
    cram = cram_float64(center_norm=2.0, alpha=0.7)
    features = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    residuals = features[:, None] - cram.centers[None, :, :, None, None]  # (B, N, D, H, W)
    assignment = (-cram.alpha * residuals.square().sum(2)).softmax(1)
    expected = (assignment[:, :, None] * residuals).sum(1)
    weight = torch.randn_like(expected)
    inputs = (features, cram.centers, cram.alpha)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs)
    got = torch.autograd.grad((cram(features) * weight).sum(), inputs)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_two_centers_by_hand() -> None:
    """f = (1, 0), c = (0, 0) and (2, 2), alpha ln(2)/4: distances 1 and 5, so weights 2:1; F = 2/3 (1, 0) + 1/3 (-1, -2)."""
    cram = Cram(2, 2)
    with torch.no_grad():
        cram.centers.copy_(torch.tensor([[0.0, 0.0], [2.0, 2.0]]))
        cram.alpha.fill_(math.log(2) / 4)
    result = cram(torch.tensor([1.0, 0.0])[None, :, None, None])
    torch.testing.assert_close(result[0, :, 0, 0], torch.tensor([1 / 3, -2 / 3]))


def test_one_center_is_subtracted_whatever_alpha_is() -> None:
    cram = cram_float64(centers=1, alpha=3.0)
    features = torch.randn(1, 5, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(cram(features), features - cram.centers[0][:, None, None])


def test_parameters_are_the_centers_and_the_factor_itself() -> None:
    cram = Cram(6, 4, alpha=2.5)
    assert {name: tuple(value.shape) for name, value in cram.named_parameters()} == {"centers": (4, 6), "alpha": ()}
    assert cram.alpha.item() == 2.5


def test_long_features_stay_finite() -> None:
    cram = Cram(64, 50, alpha=100.0)
    features = (1e3 * torch.randn(1, 64, 4, 4)).requires_grad_()
    result = cram(features)
    result.square().mean().backward()
    assert torch.isfinite(result).all()
    assert all(torch.isfinite(part.grad).all() for part in (features, cram.centers, cram.alpha) if part.grad is not None)


def test_normalized_input_is_the_printed_form_on_directions_times_length() -> None:
    cram = cram_float64(normalize_input=True, alpha=4.0)
    features = 3 * torch.randn(2, 5, 3, 4, dtype=torch.float64)
    length = features.square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(cram(features), length * literal(features / length, cram.centers, 4.0), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(cram(10 * features), 10 * cram(features))


def test_normalized_input_keeps_a_zero_vector_with_finite_gradient() -> None:
    cram = Cram(5, 3, normalize_input=True)
    features = torch.zeros(1, 5, 1, 1, requires_grad=True)
    result = cram(features)
    result.sum().backward()
    assert result.abs().max() == 0
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


def test_positive_alpha_uses_the_absolute_value() -> None:
    cram = cram_float64(positive_alpha=True)
    with torch.no_grad():
        cram.alpha.fill_(-0.8)
    features = torch.randn(1, 5, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(cram(features), literal(features, cram.centers, 0.8), rtol=1e-10, atol=1e-12)


def test_centers_start_with_the_given_expected_norm() -> None:
    torch.manual_seed(0)
    assert Cram(256, 200, center_norm=3.0).centers.norm(dim=1).mean().item() == pytest.approx(3.0, rel=0.02)


def test_assignments_are_computed_in_the_parameters_precision_under_autocast() -> None:
    cram, features = Cram(32, 8), 5 * torch.randn(1, 32, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = cram(features)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, cram(features), rtol=0, atol=0)


def test_unfit_features_are_refused_with_their_shape() -> None:
    with pytest.raises(ValueError, match=r"\(B, 4, H, W\), got \(1, 3, 2, 2\)"):
        Cram(4, 2)(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match="1 or more"):
        Cram(4, 0)
