"""The pass threshold keeps the promised false-reject rate with the promised confidence, whatever the distribution of the scores."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from snl_calibration.thresholds import (
    allowed_exceedances,
    binomial_upper_tail,
    check_sample_size,
    fit_threshold,
    required_sample_size,
    smallest_max_frr,
)
from snl_runtime.errors import CalibrationRefusedError, ConfigError

# Continuous, skewed, heavy-tailed, bounded, bimodal and discrete; each with its exact upper tail P(score > t).
DISTRIBUTIONS = {
    "uniform": (lambda rng, n: rng.uniform(1, 2, n), lambda t: 1 - np.clip(t - 1, 0, 1)),
    "exponential": (lambda rng, n: 1 + rng.exponential(1, n), lambda t: np.exp(-np.maximum(t - 1, 0))),
    "pareto": (lambda rng, n: 1 + rng.pareto(1.0, n), lambda t: 1 / np.maximum(t, 1)),
    "beta": (lambda rng, n: 1 + rng.beta(1, 4, n), lambda t: (1 - np.clip(t - 1, 0, 1)) ** 4),
    "two_lots": (lambda rng, n: rng.uniform(1, 2, n) + 3 * (rng.uniform(size=n) < 0.03), lambda t: _two_lots_tail(t)),
    "few_values": (lambda rng, n: 1.0 + rng.binomial(3, 0.2, n), lambda t: binom.sf(np.floor(t - 1 + 1e-9), 3, 0.2)),
}


def _two_lots_tail(t):
    uniform_tail = lambda x: 1 - np.clip(x - 1, 0, 1)  # noqa: E731
    return 0.97 * uniform_tail(t) + 0.03 * uniform_tail(t - 3)


@pytest.mark.parametrize(
    ("max_frr", "confidence", "needed"), [(0.01, 0.95, 299), (0.05, 0.95, 59), (0.1, 0.95, 29), (0.005, 0.95, 598), (0.5, 0.75, 2)]
)
def test_smallest_sample_is_the_one_of_the_textbook(max_frr, confidence, needed):
    assert required_sample_size(max_frr, confidence) == needed


@given(
    count=st.integers(1, 3000),
    max_frr=st.floats(0.001, 0.9),
    confidence=st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99, 0.999]),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_allowed_exceedances_are_the_largest_that_the_binomial_distribution_carries(count, max_frr, confidence):
    allowed = allowed_exceedances(count, max_frr, confidence)
    cumulative = binom.cdf(np.arange(count), count, max_frr)
    expected = int((cumulative <= 1 - confidence).sum()) - 1
    margin = np.min(np.abs(cumulative / (1 - confidence) - 1))
    assert allowed == expected or margin < 1e-8  # a tie within rounding may go either way


@pytest.mark.parametrize("exceeding", [0, 1, 2, 5, 20])
def test_required_sample_size_is_the_smallest_that_scipy_accepts(exceeding):
    needed = required_sample_size(0.02, 0.9, exceeding)
    assert binom.cdf(exceeding, needed, 0.02) <= 0.1 < binom.cdf(exceeding, needed - 1, 0.02)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize(("count", "max_frr", "confidence"), [(299, 0.01, 0.95), (130, 0.05, 0.95), (29, 0.1, 0.95), (80, 0.2, 0.8)])
def test_promise_is_kept_with_the_stated_confidence(name, count, max_frr, confidence):
    draw, upper_tail = DISTRIBUTIONS[name]
    rng = np.random.default_rng([17, count, *name.encode()])
    trials = 1500
    kept = sum(upper_tail(fit_threshold(draw(rng, count), max_frr, confidence).pass_threshold) <= max_frr + 1e-12 for _ in range(trials))
    monte_carlo_error = math.sqrt(confidence * (1 - confidence) / trials)
    assert kept / trials >= confidence - 3 * monte_carlo_error


def test_threshold_is_not_more_careful_than_the_promise_needs():
    # n = 299 at 1 % / 95 % is the smallest sample, so the promise is broken in nearly 5 % of the samples of a continuous distribution
    rng = np.random.default_rng(3)
    broken = sum(1 - (fit_threshold(rng.uniform(1, 2, 299), 0.01, 0.95).pass_threshold - 1) > 0.01 for _ in range(3000))
    assert 0.035 < broken / 3000 <= 0.065


@pytest.mark.parametrize(("count", "max_frr", "rank_from_top"), [(299, 0.01, 1), (473, 0.01, 2), (59, 0.05, 1), (93, 0.05, 2), (124, 0.05, 3)])
def test_threshold_is_the_stated_order_statistic(count, max_frr, rank_from_top):
    scores = np.random.default_rng(5).permutation(np.arange(1, count + 1)).astype(float)
    fit = fit_threshold(scores, max_frr, 0.95)
    assert fit.pass_threshold == count + 1 - rank_from_top
    assert fit.exceeding == fit.exceeding_allowed == rank_from_top - 1


def test_equal_scores_leave_fewer_parts_above_than_allowed():
    scores = [1.0] * 90 + [2.0] * 34  # 124 parts at 5 % allow 2 above
    fit = fit_threshold(scores, 0.05, 0.95)
    assert (fit.pass_threshold, fit.exceeding_allowed, fit.exceeding) == (2.0, 2, 0)


def test_floor_is_half_of_the_lowest_score():
    assert fit_threshold([3.0, 1.5, 2.0, 2.5, 4.0], 0.5, 0.95).floor == 0.75


def test_bound_is_one_sentence_with_the_promise_and_the_sample():
    bound = fit_threshold(np.linspace(1, 2, 473), 0.01, 0.95).bound
    assert "95 % confidence" in bound
    assert "at most 1 %" in bound
    assert "2nd largest of 473" in bound


@pytest.mark.parametrize(("count", "carried"), [(0, None), (1, 0.95), (16, 0.171), (28, 0.102), (298, 0.0101)])
def test_small_sample_is_refused_with_what_there_is_what_is_needed_and_what_it_carries(count, carried):
    with pytest.raises(CalibrationRefusedError) as refusal:
        fit_threshold(np.linspace(1, 2, count), 0.01, 0.95)
    message = str(refusal.value)
    assert message.startswith(f"{count} good part")
    assert "299 are needed" in message
    if carried is not None:
        offered = float(message.split("--max-frr ")[1].split()[0])
        assert offered == pytest.approx(carried, rel=0.01)
        check_sample_size(count, offered, 0.95)  # the rate it names must be carried


@given(count=st.integers(1, 5000), confidence=st.floats(0.01, 0.999))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_smallest_rate_is_the_one_that_the_maximum_carries(count, confidence):
    rate = smallest_max_frr(count, confidence)
    assert binom.cdf(0, count, rate) == pytest.approx(1 - confidence, rel=1e-9)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_score_that_is_no_positive_number_is_refused(bad):
    with pytest.raises(CalibrationRefusedError, match="not finite numbers above 0"):
        fit_threshold([*np.linspace(1, 2, 50), bad], 0.1, 0.95)


@pytest.mark.parametrize(("max_frr", "confidence"), [(0, 0.95), (1, 0.95), (-0.1, 0.95), (math.nan, 0.95), (0.1, 0), (0.1, 1), (0.1, math.nan)])
def test_promise_out_of_range_is_a_user_error(max_frr, confidence):
    with pytest.raises(ConfigError, match="must be above 0 and below 1"):
        fit_threshold([1.0] * 500, max_frr, confidence)


@pytest.mark.parametrize(("at_least", "count", "probability"), [(0, 5, 0.3), (1, 1, 0.1), (7, 20, 0.3), (150, 300, 0.5), (300, 300, 0.01)])
def test_upper_tail_agrees_with_scipy(at_least, count, probability):
    assert binomial_upper_tail(at_least, count, probability) == pytest.approx(binom.sf(at_least - 1, count, probability), rel=1e-9)
