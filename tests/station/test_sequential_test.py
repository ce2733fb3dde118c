"""False alarms of the sequential test stay below the stated rate at every moment, and a change is found."""

import numpy as np
import pytest
from scipy.stats import beta

from snl_runtime.station.sequential_test import ALTERNATIVES, SequentialTest, upper_bound


def run_length(probability, bound, threshold, *, frames, rng):
    """Frames until the statistic reaches the threshold; None if it does not."""
    test = SequentialTest([bound])
    for frame, came in enumerate(rng.random(frames) < probability, start=1):
        if test.update([bool(came)]) >= threshold:
            return frame
    return None


def test_the_statistic_is_the_mean_of_the_likelihood_ratio_recursions():
    test = SequentialTest([0.5, 0.2])
    rows = [[1, 0], [1, 1], [0, 1], [0, 0]]
    expected = np.zeros((2, 3))
    for row in rows:
        for event, bound in enumerate((0.5, 0.2)):
            for index, share in enumerate(ALTERNATIVES):
                alternative = bound + (1 - bound) * share
                ratio = alternative / bound if row[event] else (1 - alternative) / (1 - bound)
                expected[event, index] = (1 + expected[event, index]) * ratio
        assert test.update([bool(came) for came in row]) == pytest.approx(expected.mean())


@pytest.mark.parametrize("bound", [0.05, 0.6])
def test_within_n_frames_the_share_of_false_alarms_is_at_most_n_over_the_threshold(bound):
    rng = np.random.default_rng(1)
    runs, frames, threshold = 1500, 200, 2000
    alarms = sum(run_length(bound, bound, threshold, frames=frames, rng=rng) is not None for _ in range(runs))
    share = frames / threshold
    assert alarms <= runs * share + 3 * (runs * share * (1 - share)) ** 0.5
    assert alarms > 0, "a test that never fires at its bound would say nothing about the rate"


def test_the_mean_run_length_at_the_bound_is_at_least_the_threshold():
    rng = np.random.default_rng(2)
    lengths = [run_length(0.3, 0.3, 50, frames=20_000, rng=rng) for _ in range(300)]
    assert None not in lengths
    assert np.mean(lengths) >= 50 - 3 * np.std(lengths) / len(lengths) ** 0.5


def test_a_change_after_a_long_good_time_is_found_as_fast_as_at_the_start():
    came = np.random.default_rng(3).random(300) < 0.9
    fresh, experienced = SequentialTest([0.6]), SequentialTest([0.6])
    for quiet in np.random.default_rng(4).random(20_000) < 0.5:
        experienced.update([bool(quiet)])
    delays = [next(frame for frame, event in enumerate(came) if test.update([bool(event)]) >= 1e6) for test in (fresh, experienced)]
    assert delays[1] <= delays[0]
    assert delays[0] < 100


def test_evidence_survives_a_restart():
    first, second = SequentialTest([0.1, 0.2]), SequentialTest([0.1, 0.2])
    for _ in range(5):
        first.update([True, False])
    second.restore(first.evidence)
    assert second.statistic == first.statistic
    assert second.update([True, True]) == first.update([True, True])


@pytest.mark.parametrize("evidence", [[], [[0.0] * 3], [[0.0] * 2] * 2, [[0.0, 0.0, -1.0]] * 2, [[0.0, 0.0, float("nan")]] * 2])
def test_evidence_of_another_form_is_refused(evidence):
    with pytest.raises(ValueError, match="evidence"):
        SequentialTest([0.1, 0.2]).restore(evidence)


def test_endless_evidence_stays_finite():
    test = SequentialTest([0.01])
    for _ in range(2000):
        test.update([True])
    assert np.isfinite(test.statistic)


@pytest.mark.parametrize(("rank", "count"), [(1, 1), (15, 29), (150, 299), (270, 299), (299, 299), (900, 1000)])
def test_the_bound_is_that_of_clopper_and_pearson(rank, count):
    assert upper_bound(rank, count, 1e-3) == pytest.approx(1 - beta.ppf(1e-3, rank, count - rank + 1), rel=1e-6)


@pytest.mark.parametrize("bounds", [[], [0.0], [1.0], [0.5, float("nan")]])
def test_impossible_bounds_are_refused(bounds):
    with pytest.raises(ValueError, match="bounds"):
        SequentialTest(bounds)
