"""Percentiles from the histogram agree with sorted values within half a bin, in fixed memory."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snl_runtime.line.histogram import HIGHEST_MS, LOWEST_MS, LatencyHistogram

TOLERANCE = 0.0051  # half of a bin that is 1 % wide


@given(values=st.lists(st.floats(LOWEST_MS, HIGHEST_MS), min_size=1, max_size=200), percent=st.sampled_from([0.0, 1.0, 50.0, 95.0, 99.0, 100.0]))
def test_percentile_equals_the_sorted_values_within_half_a_bin(values, percent):
    histogram = LatencyHistogram()
    for value in values:
        histogram.record(value)
    expected = np.percentile(values, percent, method="inverted_cdf")
    assert histogram.percentile(percent) == pytest.approx(expected, rel=TOLERANCE)
    assert histogram.max_ms == max(values)
    assert histogram.count == len(values)


def test_memory_does_not_grow_with_the_number_of_durations():
    histogram = LatencyHistogram()
    bins_before = len(histogram._bins)
    for index in range(10_000):
        histogram.record(index / 7)
    assert len(histogram._bins) == bins_before
    assert histogram.count == 10_000


def test_durations_beyond_the_range_count_at_its_ends_and_the_maximum_stays_exact():
    histogram = LatencyHistogram()
    histogram.record(0.0)
    histogram.record(5e6)
    assert histogram.percentile(50) == pytest.approx(LOWEST_MS, rel=TOLERANCE)
    assert histogram.max_ms == 5e6


def test_nothing_recorded_gives_nan():
    assert math.isnan(LatencyHistogram().percentile(50))
    assert math.isnan(LatencyHistogram().max_ms)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_impossible_duration_is_refused(value):
    with pytest.raises(ValueError, match="finite and not negative"):
        LatencyHistogram().record(value)
