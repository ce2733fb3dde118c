"""Whitened residuals divided by what to expect at such a place, against NumPy; nothing hides behind an expectation that no good image had."""

import numpy as np
import pytest
import torch

from snl_runtime.errors import ConfigError
from snl_train.config import ModelConfig
from snl_train.models import build_model
from snl_train.models.whitening import ResidualWhitening, fit_whitening

POWER, CHANNELS, COUNT = 0.5, 6, 500


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def good_pairs(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(n, D) unit vectors whose residuals are the larger, the more the student points along the first axis."""
    rng = np.random.default_rng(seed)
    student = unit(rng.normal(size=(COUNT, CHANNELS)))
    teacher = unit(student + rng.normal(size=student.shape) * 0.1 * np.exp(student[:, :1]))
    return teacher, student


def fitted(teacher: np.ndarray, student: np.ndarray, power: float = POWER) -> ResidualWhitening:
    module = ResidualWhitening(teacher.shape[1], floor=0.1, expectation=power).double()
    residual = torch.from_numpy(teacher - student)
    module.set_moment(residual.mT @ residual / len(residual))
    module.set_expectation(torch.from_numpy(teacher), torch.from_numpy(student))
    return module


def log_expectation_by_numpy(teacher: np.ndarray, student: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Ridge regression as least squares with one more row per weight, the offset free of it."""
    target = np.log((((teacher - student) @ weight) ** 2).sum(1) + 0.1)
    penalty = np.sqrt(1e-3 / CHANNELS * len(student)) * np.eye(CHANNELS)
    rows = np.vstack([np.hstack([student, np.ones((len(student), 1))]), np.hstack([penalty, np.zeros((CHANNELS, 1))])])
    solution = np.linalg.lstsq(rows, np.concatenate([target, np.zeros(CHANNELS)]), rcond=None)[0]
    return student @ solution[:-1] + solution[-1]


def scores(module: ResidualWhitening, teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    """(n,) for (n, D)."""
    return module(torch.from_numpy(teacher.T[None]), torch.from_numpy(student.T[None]))[0].numpy()


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_residuals_are_divided_by_a_power_of_the_regression(power):
    teacher, student = good_pairs()
    module = fitted(teacher, student, power)
    weight = module.weight.numpy()
    divided = (((teacher - student) @ weight) ** 2).sum(1) / np.exp(log_expectation_by_numpy(teacher, student, weight)) ** power
    np.testing.assert_allclose(scores(module, teacher, student), divided / divided.mean(), rtol=1e-6)


def test_a_place_that_always_misses_counts_less():
    teacher, student = good_pairs()
    module, plain = fitted(teacher, student), fitted(teacher, student, 0.0)
    rough, smooth = student[:, 0] > 0.5, student[:, 0] < -0.5
    before, after = (one[rough].mean() / one[smooth].mean() for one in (scores(plain, teacher, student), scores(module, teacher, student)))
    assert after < 0.75 * before


def test_no_expectation_lies_outside_those_of_good_images():
    teacher, student = good_pairs()
    module = fitted(teacher, student)
    lowest, highest = float(module.lowest), float(module.highest)
    assert lowest < highest
    for sign, bound in ((1.0, highest), (-1.0, lowest)):
        extreme = sign * module.expected.numpy() / np.linalg.norm(module.expected.numpy()) * 50  # far beyond any unit vector
        other = extreme + 1.0
        plain = ((np.ones(CHANNELS) @ module.weight.numpy()) ** 2).sum()
        np.testing.assert_allclose(scores(module, other[None], extreme[None]), plain * np.exp(-bound), rtol=1e-9)


def test_before_it_is_fitted_and_without_a_power_nothing_is_divided():
    teacher, student = (unit(np.random.default_rng(seed).normal(size=(7, 4))) for seed in (0, 1))
    unfitted = ResidualWhitening(4, floor=0.1, expectation=1.0).double()
    np.testing.assert_allclose(scores(unfitted, teacher, student), 1 - (teacher * student).sum(1), atol=1e-6)
    assert set(dict(ResidualWhitening(4, floor=0.1).named_buffers())) == {"weight"}  # checkpoints from before load as they are


class Pair(torch.nn.Module):
    def forward(self, x):
        return [x[:, :3]], [x[:, 3:]]


def test_fitting_on_few_positions_takes_them_all():
    rng = np.random.default_rng(3)
    batches = [torch.from_numpy(rng.normal(size=(n, 6, 4, 5)).astype(np.float32)) for n in (2, 3)]
    module = ResidualWhitening(3, floor=0.1, expectation=POWER)
    fit_whitening(Pair(), [module], batches)
    everything = np.concatenate([batch.numpy() for batch in batches]).astype(np.float64).transpose(0, 2, 3, 1).reshape(-1, 6)
    expected = fitted(unit(everything[:, :3]), unit(everything[:, 3:]))
    for name, value in expected.named_buffers():
        np.testing.assert_allclose(getattr(module, name).numpy(), value.numpy(), rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_model_has_an_expectation_only_where_asked_and_its_state_loads_again():
    config = ModelConfig(method="rd", teacher="resnet18", teacher_weights="random", whitening=True, whitening_expectation=0.5)
    model = build_model(config)
    names = {name for name in model.state_dict() if "whitening.2" in name}
    assert names == {f"whitening.2.{name}" for name in ("weight", "expected", "offset", "lowest", "highest")}
    build_model(config, load_teacher_weights=False).load_state_dict(model.state_dict(), strict=True)


@pytest.mark.parametrize("power", [-0.1, 1.1])
def test_a_power_outside_0_to_1_is_refused(power):
    with pytest.raises(ConfigError, match=r"model\.whitening_expectation must be in \[0, 1\]"):
        ModelConfig(whitening_expectation=power)
