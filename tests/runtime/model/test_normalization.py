"""A normalization map is low where good parts score high, keeps scores in the model's units, and is fitted without the part that it judges."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snl_runtime.errors import NormalizationError
from snl_runtime.model.normalization import NormalizationMap, fit_normalization, leave_one_out_normalizations
from tolerances import FLOAT32_REL, NORMALIZATION_REL

SHAPE = (64, 48)


def random_maps(count, shape=SHAPE, seed=0):
    """Maps with a bright bar where every part scores high, and noise."""
    rng = np.random.default_rng(seed)
    maps = rng.gamma(2.0, 0.1, (count, *shape)).astype(np.float32)
    maps[:, shape[0] // 4 : shape[0] // 2, shape[1] // 3 :] += np.float32(2.0)
    return maps


def mirrored(index, count):
    """Index of a cell outside the map when the edge is mirrored with its own cell: -1 is 0, count is count - 1."""
    period = index % (2 * count)
    return period if period < count else 2 * count - 1 - period


def smoothed_by_loops(mean, axis):
    """Gaussian along one axis, deviation 2 / 128 of the side, cut off after 4 deviations, written out."""
    count = mean.shape[axis]
    sigma = 2 / 128 * count
    reach = int(4 * sigma + 0.5)
    weights = {step: math.exp(-(step**2) / (2 * sigma**2)) for step in range(-reach, reach + 1)}
    total = math.fsum(weights.values())
    rows = np.moveaxis(mean, axis, 0)
    result = [sum(weights[step] / total * rows[mirrored(index + step, count)] for step in weights) for index in range(count)]
    return np.moveaxis(np.array(result), 0, axis)


def normalization_by_loops(maps):
    """The equation, without the code under test."""
    mean = np.zeros(maps.shape[1:])
    for anomaly_map in maps:
        mean += anomaly_map.astype(np.float64) / len(maps)
    mu = smoothed_by_loops(smoothed_by_loops(mean, 0), 1)
    level = mu.sum() / mu.size
    inverse = np.array([[1 / (value + level) for value in row] for row in mu])
    return inverse * level / ((inverse * mu).sum() / mu.size), mu


@pytest.mark.parametrize("shape", [(128, 128), SHAPE, (7, 5)])
def test_normalization_is_the_smoothed_mean_plus_its_level_inverted(shape):
    maps = random_maps(9, shape)
    expected, _ = normalization_by_loops(maps)
    assert np.allclose(fit_normalization(maps).values, expected, rtol=FLOAT32_REL)


def test_mean_map_keeps_its_level_under_the_normalization():
    maps = random_maps(9)
    _, mu = normalization_by_loops(maps)
    assert (fit_normalization(maps).values * mu).mean() == pytest.approx(mu.mean(), rel=FLOAT32_REL)


def test_normalization_is_low_where_good_parts_score_high_and_above_1_elsewhere():
    normalization = fit_normalization(random_maps(30)).values
    assert normalization[24, 36] < 0.8
    assert normalization[50, 10] > 1.2


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_normalization_does_not_depend_on_the_unit_of_the_scores(scale):
    maps = random_maps(9)
    assert np.allclose(fit_normalization(maps * np.float32(scale)).values, fit_normalization(maps).values, rtol=NORMALIZATION_REL)


def test_equal_maps_of_one_value_give_a_normalization_of_one():
    assert np.allclose(fit_normalization(np.full((5, *SHAPE), 0.3, np.float32)).values, 1, rtol=FLOAT32_REL)


def test_each_part_is_judged_by_the_normalization_of_all_others():
    maps = random_maps(6)
    for index, normalization in enumerate(leave_one_out_normalizations(maps)):
        expected, _ = normalization_by_loops(np.delete(maps, index, axis=0))
        assert np.allclose(normalization.values, expected, rtol=NORMALIZATION_REL)


def test_a_part_with_its_own_flaw_scores_lower_by_a_normalization_that_knows_it():
    """Why one is left out: the flaw of the part itself lowers the common normalization where it lies."""
    maps = random_maps(20)
    maps[3, 50:54, 10:14] += np.float32(5)
    own = list(leave_one_out_normalizations(maps))[3].peak(maps[3])
    assert fit_normalization(maps).peak(maps[3]) < 0.95 * own


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (np.zeros((0, 8, 8), np.float32), "got none"),
        ([], "got none"),
        (np.zeros((3, 8, 8), np.float32), "above 0"),
        (np.full((3, 8, 8), -1, np.float32), "above 0"),
        (np.full((3, 8, 8), np.nan, np.float32), "NaN or infinity"),
        (np.where(np.arange(192).reshape(3, 8, 8) == 77, np.inf, 1).astype(np.float32), "NaN or infinity"),
        (np.ones((3, 8), np.float32), "one shape"),
        (np.ones((3, 1, 8, 8), np.float32), "one shape"),
        (np.ones((3, 0, 8), np.float32), "one shape"),
        ([np.ones((8, 8), np.float32), np.ones((8, 9), np.float32)], "one shape"),
    ],
)
def test_unusable_maps_are_refused(maps, message):
    for fit in (fit_normalization, lambda maps: list(leave_one_out_normalizations(maps))):
        with pytest.raises(NormalizationError, match=message):
            fit(maps)


def test_one_map_has_no_others():
    with pytest.raises(NormalizationError, match="at least 2"):
        leave_one_out_normalizations(random_maps(1))


@pytest.mark.parametrize(
    "values",
    [
        np.ones((4, 4)),
        np.ones(16, np.float32),
        np.ones((0, 4), np.float32),
        np.zeros((4, 4), np.float32),
        -np.ones((4, 4), np.float32),
        np.full((4, 4), np.nan, np.float32),
        np.full((4, 4), np.inf, np.float32),
    ],
)
def test_normalization_map_is_finite_float32_and_hides_nothing(values):
    with pytest.raises(NormalizationError):
        NormalizationMap(values)


def test_normalized_map_is_one_product_per_cell_and_its_score_the_largest():
    anomaly_map = np.float32([[1, 2], [3, 0.1]])
    normalization = NormalizationMap(np.float32([[8, 0.5], [1, 3]]))
    assert normalization.apply(anomaly_map).tolist() == [[8, 1], [3, np.float32(0.1) * np.float32(3)]]
    assert normalization.peak(anomaly_map) == 8


def test_map_of_another_shape_is_refused():
    with pytest.raises(NormalizationError, match=r"\(2, 2\).*\(2, 3\)"):
        NormalizationMap(np.ones((2, 2), np.float32)).apply(np.ones((2, 3), np.float32))


def test_normalization_map_does_not_change_with_the_array_it_was_made_of():
    values = np.ones((2, 2), np.float32)
    normalization = NormalizationMap(values)
    values[:] = 7
    assert normalization.values.max() == 1
    with pytest.raises(ValueError, match="read-only"):
        normalization.values[0, 0] = 2


@given(seed=st.integers(0, 10**6), count=st.integers(2, 6))
@settings(max_examples=40, deadline=None)
def test_any_usable_maps_give_a_usable_normalization_and_a_level_that_stays(seed, count):
    rng = np.random.default_rng(seed)
    maps = (rng.gamma(0.3, 1, (count, *rng.integers(2, 40, 2))) * 10.0 ** rng.integers(-6, 6)).astype(np.float32)
    if not (maps.sum(axis=0) > 0).any():
        return
    _, mu = normalization_by_loops(maps)
    assert (fit_normalization(maps).values * mu).mean() == pytest.approx(mu.mean(), rel=NORMALIZATION_REL)
