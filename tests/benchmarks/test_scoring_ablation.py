"""The scoring ablation: each way to score against the training side's own scoring."""

import copy

import numpy as np
import pytest
import torch

from benchmarks.accuracy.scoring_ablation import SCORINGS, Cells, measure
from snl_runtime.model.normalization import fit_normalization
from snl_train import metrics
from snl_train.config import ModelConfig, ScoreConfig
from snl_train.models import build_model
from snl_train.scoring import score_features

SIZE_HW = (64, 64)
BY_NAME = {scoring.name: scoring for scoring in SCORINGS}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = ModelConfig(method="snl-rd", teacher="resnet18", teacher_weights="random", centers=4, whitening=True, whitening_expectation=0.5)
    made = build_model(config).eval()
    for module in made.whitening:
        module.set_moment(torch.diag(torch.linspace(0.1, 2, len(module.weight))))
        teacher, student = (torch.nn.functional.normalize(torch.randn(300, len(module.weight)).abs()) for _ in range(2))
        module.set_expectation(teacher, student)
    return made


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, *SIZE_HW, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def cells(model, images):
    return Cells(model, images)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("cosine distance, half-pixel, maximum", ScoreConfig(affinity_weight=0)),
        ("affinity error, weight 1 (Eq. 13)", ScoreConfig(affinity_weight=1)),
        ("placed on the grid", ScoreConfig(affinity_weight=0, alignment="grid")),
        ("smoothed, 4 px (RD4AD)", ScoreConfig(affinity_weight=0, smoothing_sigma=4)),
        ("whitened residuals", ScoreConfig(affinity_weight=0)),
        ("whitened residuals, expectation", ScoreConfig(affinity_weight=0)),
    ],
)
def test_a_way_to_score_is_what_the_training_side_scores(name, config, cells, model, images):
    with torch.no_grad():
        features = model(model.normalize(torch.from_numpy(images)))
    whitening = copy.deepcopy(model.whitening) if "whitened" in name else None
    if whitening is not None and "expectation" not in name:
        for module in whitening:
            module.expectation = 0
    expected, _ = score_features(*features, SIZE_HW, config, whitening=whitening)
    np.testing.assert_allclose(cells.maps(BY_NAME[name], SIZE_HW), expected[:, 0].numpy(), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "kept"),
    [("finest scale alone", [0]), ("coarsest scale alone", [2]), ("without the finest scale", [1, 2]), ("without the coarsest scale", [0, 1])],
)
def test_scales_that_are_left_out_are_as_if_they_were_not_there(name, kept, cells, model, images):
    with torch.no_grad():
        teacher, student = ([found[scale] for scale in kept] for found in model(model.normalize(torch.from_numpy(images))))
    expected, _ = score_features(teacher, student, SIZE_HW, ScoreConfig(affinity_weight=0, smoothing_sigma=4))
    np.testing.assert_allclose(cells.maps(BY_NAME[f"smoothed, 4 px, {name}"], SIZE_HW), expected[:, 0].numpy(), rtol=2e-4, atol=1e-5)
    whitening = [copy.deepcopy(model.whitening[scale]) for scale in kept]
    for module in whitening:
        module.expectation = 0
    expected, _ = score_features(teacher, student, SIZE_HW, ScoreConfig(affinity_weight=0, smoothing_sigma=4), whitening=whitening)
    np.testing.assert_allclose(cells.maps(BY_NAME[f"as best, {name}"], SIZE_HW), expected[:, 0].numpy(), rtol=2e-4, atol=1e-5)


def test_measures_count_unknown_masks_for_the_image_alone(cells):
    labels = np.array([False, False, True, True, True])
    masks = [np.zeros(SIZE_HW, np.bool_) for _ in range(4)] + [None]
    masks[2][10:20, 5:9] = masks[3][40:50, 30:60] = True
    scoring = BY_NAME["mean of the 10 highest pixels"]
    found = measure(scoring, cells, cells, labels, masks)
    maps = cells.maps(scoring, SIZE_HW)
    scores = [np.sort(one.ravel())[-10:].mean() for one in maps]
    assert found["image_auroc"] == pytest.approx(metrics.roc_auc(labels, scores))
    assert found["pixel_auroc"] == pytest.approx(metrics.roc_auc(np.stack(masks[:4]).ravel(), maps[:4].ravel()))
    without = measure(scoring, cells, cells, labels, [*masks[:2], None, None, None])
    assert without["pixel_auroc"] is None


def test_the_normalization_map_is_fitted_on_the_good_images(cells, model, images):
    good = Cells(model, images[:3])
    labels = np.array([False, True, False, True, True])
    masks = [np.zeros(SIZE_HW, np.bool_) for _ in range(5)]
    masks[1][3:9, 3:9] = True
    maps = cells.maps(SCORINGS[0], SIZE_HW) * fit_normalization(good.maps(SCORINGS[0], SIZE_HW)).values
    found = measure(BY_NAME["normalization map per product"], cells, good, labels, masks)
    assert found["image_auroc"] == pytest.approx(metrics.roc_auc(labels, maps.reshape(5, -1).max(1)))
