"""Whitened residuals: |W r|^2 with W from the residuals of good images, against NumPy."""

import numpy as np
import pytest
import torch

from snl_train.config import ModelConfig, ScoreConfig
from snl_train.evaluation import CheckpointScorer
from snl_train.models import build_model
from snl_train.models.whitening import ResidualWhitening, fit_whitening, normalize_maxima
from snl_train.scoring import anomaly_map, cell_scores, score_features


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def weights_by_scipy(residuals: np.ndarray, floor: float) -> np.ndarray:
    """(n, D) residuals to W, by another route: the inverse square root of a matrix as a product of Cholesky-free SciPy calls."""
    from scipy.linalg import inv, sqrtm

    moment = residuals.T @ residuals / len(residuals)
    mean = np.trace(moment) / len(moment)
    weight = inv(np.real(sqrtm(moment / mean + floor * np.eye(len(moment)))))
    distance = np.mean(((residuals @ weight) ** 2).sum(1))
    return weight / np.sqrt(distance)


def test_before_it_is_fitted_it_is_the_cosine_distance():
    rng = np.random.default_rng(0)
    t, s = (torch.from_numpy(unit(rng.normal(size=(2, 5, 7)))) for _ in range(2))
    module = ResidualWhitening(5, floor=0.1).double()
    np.testing.assert_allclose(module(t, s).numpy(), 1 - np.einsum("bdp,bdp->bp", t.numpy(), s.numpy()), atol=1e-6)


@pytest.mark.parametrize("floor", [0.01, 1.0])
def test_weights_are_the_inverse_root_of_the_second_moment(floor):
    rng = np.random.default_rng(1)
    residuals = rng.normal(size=(400, 6)) * np.array([3.0, 1.0, 1.0, 0.3, 0.1, 0.0]) @ np.linalg.qr(rng.normal(size=(6, 6)))[0]
    module = ResidualWhitening(6, floor=floor).double()
    module.set_moment(torch.from_numpy(residuals.T @ residuals / len(residuals)))
    np.testing.assert_allclose(module.weight.numpy(), weights_by_scipy(residuals, floor), rtol=1e-6, atol=1e-9)


def test_good_residuals_have_a_mean_of_one_and_rare_directions_count_more():
    rng = np.random.default_rng(2)
    residuals = rng.normal(size=(500, 4)) * np.array([2.0, 1.0, 0.5, 0.1])
    module = ResidualWhitening(4, floor=0.1).double()
    module.set_moment(torch.from_numpy(residuals.T @ residuals / 500))
    zero = torch.zeros(1, 4, 500, dtype=torch.float64)
    assert float(module(torch.from_numpy(residuals.T[None]), zero).mean()) == pytest.approx(1, rel=1e-9)
    one_each = module(torch.eye(4, dtype=torch.float64)[None], zero[..., :4])[0].tolist()
    assert one_each == sorted(one_each)


@pytest.mark.parametrize("moment", [torch.zeros(3, 3), torch.full((3, 3), float("nan"))])
def test_residuals_that_tell_nothing_are_refused(moment):
    with pytest.raises(ValueError, match="finite and not all zero"):
        ResidualWhitening(3, floor=0.1).set_moment(moment)


class Pair(torch.nn.Module):
    """Teacher and student features made from the input's numbers alone."""

    def forward(self, x):
        return [x[:, :3], x[:, 3:7]], [x[:, 7:10], x[:, 10:14]]


def test_fitting_takes_every_position_of_every_batch():
    rng = np.random.default_rng(3)
    batches = [rng.normal(size=(n, 14, 2, 3)).astype(np.float32) for n in (2, 3)]
    modules = [ResidualWhitening(3, floor=0.1), ResidualWhitening(4, floor=0.1)]
    fit_whitening(Pair(), modules, [torch.from_numpy(batch) for batch in batches])
    everything = np.concatenate(batches).astype(np.float64)
    for module, t, s in zip(modules, (everything[:, :3], everything[:, 3:7]), (everything[:, 7:10], everything[:, 10:14])):
        residuals = (unit(t) - unit(s)).transpose(0, 2, 3, 1).reshape(-1, t.shape[1])
        np.testing.assert_allclose(module.weight.numpy(), weights_by_scipy(residuals, 0.1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("expectation", [0.0, 0.5])
def test_leveled_peaks_are_one_on_average_over_the_good_images(expectation):
    rng = np.random.default_rng(4)
    batches = [rng.normal(size=(n, 14, 3, 4)).astype(np.float32) for n in (2, 5)]
    inputs = [torch.from_numpy(batch) for batch in batches]
    modules = [ResidualWhitening(3, floor=0.1, expectation=expectation), ResidualWhitening(4, floor=0.1, expectation=expectation)]
    fit_whitening(Pair(), modules, inputs)
    before = [module.weight.numpy().astype(np.float64) for module in modules]
    normalize_maxima(Pair(), modules, inputs)
    everything = np.concatenate(batches).astype(np.float64)
    for module, w, t, s in zip(modules, before, (everything[:, :3], everything[:, 3:7]), (everything[:, 7:10], everything[:, 10:14])):
        distance = (np.einsum("ij,njhw->nihw", w, unit(t) - unit(s)) ** 2).sum(1)  # (7, 3, 4)
        if expectation:
            log_expected = np.einsum("j,njhw->nhw", module.expected.numpy(), unit(s)) + float(module.offset)
            distance = distance / np.exp(np.clip(log_expected, float(module.lowest), float(module.highest)))
        peak = distance.reshape(7, -1).max(1).mean()
        assert peak > 1.2  # the means are 1, so levelling does something
        np.testing.assert_allclose(module.weight.numpy(), w / np.sqrt(peak), rtol=1e-4, atol=1e-6)


def test_levelling_needs_images_and_residuals():
    modules = [ResidualWhitening(3, floor=0.1), ResidualWhitening(4, floor=0.1)]
    with pytest.raises(ValueError, match="at least one batch"):
        normalize_maxima(Pair(), modules, [])
    same = torch.ones(1, 14, 2, 2)  # teacher and student agree everywhere
    with pytest.raises(ValueError, match="finite and not all zero to be leveled"):
        normalize_maxima(Pair(), modules, [same])


def test_fitting_without_images_is_refused():
    with pytest.raises(ValueError, match="at least one batch"):
        fit_whitening(Pair(), [ResidualWhitening(3, floor=0.1)], [])


def test_the_map_uses_the_modules_in_the_order_of_the_scales():
    rng = np.random.default_rng(4)
    teacher = [torch.from_numpy(rng.normal(size=(1, d, n, n))) for d, n in ((3, 4), (5, 2))]
    student = [torch.from_numpy(rng.normal(size=(1, d, n, n))) for d, n in ((3, 4), (5, 2))]
    modules = [ResidualWhitening(3, floor=0.1).double(), ResidualWhitening(5, floor=0.1).double()]
    for module in modules:
        module.set_moment(torch.from_numpy(np.diag(rng.uniform(0.1, 2, module.weight.shape[0]))))
    alone = [cell_scores(t, s, affinity_weight=0, whitening=w) for t, s, w in zip(teacher, student, modules)]
    for cells, t, s, module in zip(alone, teacher, student, modules):
        residual = unit(t.numpy()) - unit(s.numpy())
        expected = (np.einsum("ij,bjhw->bihw", module.weight.numpy(), residual) ** 2).sum(1)
        np.testing.assert_allclose(cells.numpy(), expected, rtol=1e-9)
    together = anomaly_map(teacher, student, (4, 4), affinity_weight=0, whitening=modules)
    apart = [anomaly_map([t], [s], (4, 4), affinity_weight=0, whitening=[w]) for t, s, w in zip(teacher, student, modules)]
    torch.testing.assert_close(together, apart[0] + apart[1])


def test_a_model_has_weights_only_where_asked_and_a_checkpoint_scores_with_them():
    from snl_train.checkpoint import Checkpoint
    from snl_train.config import TrainConfig

    assert build_model(ModelConfig(method="rd", teacher="resnet18", teacher_weights="random")).whitening is None
    config = TrainConfig(
        model=ModelConfig(method="rd", teacher="resnet18", teacher_weights="random", whitening=True), score=ScoreConfig(), image_size=(64, 64)
    )
    torch.manual_seed(0)
    model = build_model(config.model).eval()
    for module in model.whitening:
        module.set_moment(torch.diag(torch.linspace(0.1, 2, len(module.weight))))
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    checkpoint = Checkpoint(
        config=config,
        state_dict=model.state_dict(),
        classes=["bolt"],
        seed=0,
        epochs_done=1,
        training_image_sha256=[],
        golden_images=images,
        golden_classes=["bolt", "bolt"],
    )
    scores, maps = CheckpointScorer(checkpoint).score_inputs(images)
    with torch.no_grad():
        teacher, student = model(model.normalize(torch.from_numpy(images)))
        whitened = score_features(teacher, student, (64, 64), config.score, whitening=model.whitening)[0][:, 0]
        plain = score_features(teacher, student, (64, 64), config.score)[0][:, 0]
    np.testing.assert_allclose(maps, whitened.numpy(), rtol=1e-5)
    np.testing.assert_allclose(scores, maps.reshape(2, -1).max(1))
    assert not np.allclose(maps, plain.numpy(), rtol=0.1)
