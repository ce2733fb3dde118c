"""Good parts that score beyond median + 6 MAD are named."""

import numpy as np
import pytest

from snl_calibration.outliers import find_outliers


def _named(scores):
    return {f"{i:03d}.png": float(score) for i, score in enumerate(scores)}


def test_limit_is_median_plus_six_scaled_median_absolute_deviations():
    scores = np.random.default_rng(0).gamma(4, 1, 201)
    median = np.sort(scores)[100]
    deviation = np.sort(np.abs(scores - median))[100]
    assert find_outliers(_named(scores)).limit == pytest.approx(median + 6 * 1.4826 * deviation, rel=1e-12)


def test_outliers_are_listed_highest_first():
    report = find_outliers(_named([*np.linspace(1, 2, 40), 9.0, 30.0]))
    assert list(report.scores.items()) == [("041.png", 30.0), ("040.png", 9.0)]


def test_low_scores_are_no_outliers():
    assert find_outliers(_named([*np.linspace(10, 11, 40), 0.001])).scores == {}


def test_score_at_the_limit_is_no_outlier():
    # median 2, deviations 1, 1, 0, 1, 8.8956: MAD 1, limit 2 + 6 * 1.4826
    assert find_outliers(_named([1, 1, 2, 3, 10.8956])).scores == {}
    assert find_outliers(_named([1, 1, 2, 3, 10.896])).scores == {"004.png": 10.896}


def test_constant_scores_have_no_outlier():
    assert find_outliers(_named([3.0] * 20)).scores == {}


def test_with_half_of_the_scores_equal_everything_above_is_named():
    assert find_outliers(_named([3.0] * 20 + [3.1])).scores == {"020.png": 3.1}


def test_empty_sample_has_no_outlier():
    assert find_outliers({}).scores == {}


def test_the_factor_makes_the_deviation_of_normal_scores_their_standard_deviation():
    scores = np.random.default_rng(0).normal(50, 2, 20_001)
    assert find_outliers(_named(scores)).limit == pytest.approx(50 + 6 * 2, abs=0.2)
