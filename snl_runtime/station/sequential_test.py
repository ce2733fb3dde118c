"""A test that runs for ever: has an event become more frequent than it may be? With a bound on false alarms that holds at every moment.

For each event with a bound p on its probability, and each of a few higher probabilities p1, the likelihood ratio of one observation is p1 / p where
the event came and (1 - p1) / (1 - p) where it did not. While the event's probability, given everything before, is at most p, its expectation is at
most 1. The Shiryaev-Roberts recursion R <- (1 + R) x ratio then grows by at most 1 per observation on average, and so does the mean of all R.
Therefore, by Doob's optional stopping, the mean number of observations until the statistic reaches a threshold c is at least c, and the probability
that it does so within n observations is at most n / c. Nothing else is assumed: no distribution, and no independence beyond that bound.

Shin, Ramdas and Rinaldo, "E-detectors: a nonparametric framework for sequential change detection", 2023; the recursion is Shiryaev's (1963) and
Roberts' (1966).
"""

import math
from collections.abc import Sequence

ALTERNATIVES = (0.15, 0.4, 0.8)
"""Where between the bound and 1 the higher probabilities lie: small, medium and large changes, each found fastest by its own."""
_LARGEST = 1e30
"""Evidence that says everything already; to hold it there keeps the bound and prevents an overflow."""


class SequentialTest:
    """Evidence that one of several events of the same trend has become more frequent than its bound.

    Args:
        bounds: Highest probability of each event that is no alarm, above 0 and below 1; not empty.

    Example:
        >>> test = SequentialTest([0.05])
        >>> [round(test.update([True]), 1) for _ in range(3)]
        [9.5, 126.6, 1774.8]
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        if not bounds or not all(0 < bound < 1 for bound in bounds):
            raise ValueError(f"bounds must lie above 0 and below 1 and be at least one, got {list(bounds)}")
        self._came = [[(bound + (1 - bound) * share) / bound for share in ALTERNATIVES] for bound in bounds]
        self._stayed_away = [1 - share for share in ALTERNATIVES]  # (1 - p1) / (1 - p), the same for every bound
        self._evidence = [[0.0] * len(ALTERNATIVES) for _ in bounds]

    @property
    def statistic(self) -> float:
        """The mean of all R, at least 0."""
        return math.fsum(value for row in self._evidence for value in row) / (len(self._evidence) * len(ALTERNATIVES))

    @property
    def evidence(self) -> list[list[float]]:
        """R by event and alternative, to be kept across a restart; a copy."""
        return [list(row) for row in self._evidence]

    def update(self, came: Sequence[bool]) -> float:
        """Take one observation, whether each event came, and return the statistic."""
        for row, ratios, has_come in zip(self._evidence, self._came, came, strict=True):
            for index, ratio in enumerate(ratios if has_come else self._stayed_away):
                row[index] = min((1 + row[index]) * ratio, _LARGEST)
        return self.statistic

    def restore(self, evidence: Sequence[Sequence[float]]) -> None:
        """Go on from evidence of an earlier process.

        Raises:
            ValueError: If it is not that of a test of this form.
        """
        rows = [[float(value) for value in row] for row in evidence]
        has_form = len(rows) == len(self._evidence) and all(len(row) == len(ALTERNATIVES) for row in rows)
        if not has_form or not all(0 <= value <= _LARGEST for row in rows for value in row):
            raise ValueError("expected one row of evidence per event, with a number of at least 0 per alternative")
        self._evidence = rows

    def reset(self) -> None:
        """Forget everything, as after a person has looked."""
        self._evidence = [[0.0] * len(ALTERNATIVES) for _ in self._evidence]


def upper_bound(rank: int, count: int, error: float) -> float:
    """Return a bound on the probability of a value above the rank-th smallest of ``count`` earlier ones, which holds but for a probability ``error``.

    Clopper and Pearson: the probability of a value of at most the rank-th smallest is at least as large, stochastically, as the rank-th smallest of
    ``count`` uniform numbers, also where values are equal. By symmetry the same number bounds the probability of a value below the
    (count + 1 - rank)-th.

    >>> round(upper_bound(59, 59, 0.05), 4)
    0.0495
    """
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        # P(at most count - rank of count values exceed a quantile that a share `middle` exceeds)
        if _binomial_cdf(count - rank, count, middle) > error:
            low = middle
        else:
            high = middle
    return high


def _binomial_cdf(successes: int, count: int, probability: float) -> float:
    if not 0 < probability < 1:
        return 1.0 if probability <= 0 or successes >= count else 0.0
    log_odds, term = math.log(probability) - math.log1p(-probability), count * math.log1p(-probability)
    total = math.exp(term)
    for k in range(successes):
        term += math.log((count - k) / (k + 1)) + log_odds
        total += math.exp(term)
    return min(total, 1.0)
