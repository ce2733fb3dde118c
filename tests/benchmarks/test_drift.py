"""The simulation of the test for drift computes what the line computes, and its CUSUM limit is the textbook's."""

import numpy as np
import pytest


@pytest.fixture(scope="module")
def drift():
    from benchmarks import drift

    return drift


def test_arrays_give_the_statistics_of_the_line(drift):
    drift.require_agreement()


def test_the_cusum_limit_has_the_run_length_of_siegmunds_approximation(drift):
    b = drift.Cusum.limit(465 * 2) + 1.166  # both directions together: half of the length of one
    assert 2 * (np.exp(b) - b - 1) == pytest.approx(930, rel=1e-3)


def test_scores_have_mean_0_and_standard_deviation_1(drift):
    for draw in drift.DISTRIBUTIONS.values():
        values = draw(np.random.default_rng(0), (400_000,))
        assert (values.mean(), values.std()) == pytest.approx((0, 1), abs=0.03)
