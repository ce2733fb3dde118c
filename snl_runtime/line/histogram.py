"""Latency percentiles in a fixed amount of memory."""

import math

LOWEST_MS = 1e-3
HIGHEST_MS = 1e6
RELATIVE_WIDTH = 0.01
"""Bins are 1 % wide, so a percentile is off by at most 0.5 %."""

_LOG_WIDTH = math.log1p(RELATIVE_WIDTH)
_BIN_COUNT = math.ceil(math.log(HIGHEST_MS / LOWEST_MS) / _LOG_WIDTH) + 1


class LatencyHistogram:
    """Counts durations in logarithmic bins from 1 us to 1000 s; a station that runs for a year needs no more memory than one that runs for a minute.

    Example:
        >>> histogram = LatencyHistogram()
        >>> for duration_ms in range(1, 101):
        ...     histogram.record(duration_ms)
        >>> histogram.count, round(histogram.percentile(50)), histogram.max_ms
        (100, 50, 100.0)
    """

    def __init__(self) -> None:
        self._bins = [0] * _BIN_COUNT
        self._count = 0
        self._min_ms = math.inf
        self._max_ms = math.nan

    @property
    def count(self) -> int:
        """Durations recorded so far."""
        return self._count

    @property
    def max_ms(self) -> float:
        """The longest duration, exact; NaN if there is none."""
        return self._max_ms

    def record(self, duration_ms: float) -> None:
        """Count one duration; shorter than 1 us counts as 1 us, longer than 1000 s as 1000 s.

        Raises:
            ValueError: If ``duration_ms`` is negative or not finite.
        """
        if not 0 <= duration_ms < math.inf:
            raise ValueError(f"a duration must be finite and not negative, got {duration_ms} ms")
        clamped_ms = min(max(duration_ms, LOWEST_MS), HIGHEST_MS)
        self._bins[min(_BIN_COUNT - 1, int(math.log(clamped_ms / LOWEST_MS) / _LOG_WIDTH))] += 1
        duration_ms = float(duration_ms)
        self._min_ms = min(self._min_ms, duration_ms)
        self._max_ms = duration_ms if self._count == 0 else max(self._max_ms, duration_ms)
        self._count += 1

    def percentile(self, percent: float) -> float:
        """Return the smallest recorded duration that is not exceeded by ``percent`` of all, within 0.5 %; NaN if there is none.

        Raises:
            ValueError: If ``percent`` is outside 0 to 100.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"percent must lie in 0 to 100, got {percent}")
        if self._count == 0:
            return math.nan
        rank = max(1, math.ceil(self._count * percent / 100))
        seen = 0
        for index, bin_count in enumerate(self._bins):
            seen += bin_count
            if seen >= rank:
                middle_ms = LOWEST_MS * math.exp((index + 0.5) * _LOG_WIDTH)
                return min(max(middle_ms, self._min_ms), self._max_ms)
        raise AssertionError("the bins hold fewer durations than were counted")
