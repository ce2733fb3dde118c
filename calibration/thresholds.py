"""A pass threshold with a distribution-free bound on the share of good parts that score above it.

The scores of n good parts are taken as independent draws from the line's production; nothing else is assumed about their distribution. Let q be the
smallest score that at most a share p of production exceeds. The threshold t = (n - r)-th smallest score lies below q only if at most r of the n
scores reach q, and each reaches q with probability p or more, so P(t < q) <= P(Binomial(n, p) <= r). The largest r that keeps this at or below
1 - confidence is allowed. Equal scores only make the bound more careful: the argument uses "reach q" below and "exceed t" above.

What the bound does not cover: parts that are not independent (many images of one part), parts removed from the sample because they scored high,
and production that changes after the sample was taken.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from snl_runtime.errors import CalibrationRefusedError, ConfigError

_ROUNDING = 1e-12
"""Relative slack when a probability is compared with 1 - confidence, so that an exact tie is not lost to the last bit of a logarithm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdFit:
    """A pass threshold and the promise that comes with it.

    Attributes:
        pass_threshold: Highest score that passes; one of the calibration scores.
        floor: Half of the lowest calibration score; a lower score is no evidence of a good part.
        sample_count: Number of good scores.
        exceeding_allowed: r, how many calibration scores may lie above the threshold.
        exceeding: How many do; below ``exceeding_allowed`` where scores are equal.
        max_frr: Promised largest share of good parts above the threshold, 0 to 1.
        confidence: Probability that the promise holds, over repeated samples.
        bound: The promise in one sentence.
    """

    pass_threshold: float
    floor: float
    sample_count: int
    exceeding_allowed: int
    exceeding: int
    max_frr: float
    confidence: float
    bound: str


def fit_threshold(scores: Sequence[float], max_frr: float, confidence: float) -> ThresholdFit:
    """Return the lowest threshold that good parts exceed with a share of at most ``max_frr``, at the stated confidence.

    Args:
        scores: One raw anomaly score per good part, in any order, each finite and above 0.
        max_frr: Share of good parts that may score above the threshold, above 0 and below 1.
        confidence: Probability with which the promise must hold, above 0 and below 1.

    Raises:
        CalibrationRefusedError: If the sample is too small for the promise, or a score is not a finite number above 0.
        ConfigError: If ``max_frr`` or ``confidence`` is out of range.
    """
    _check_promise(max_frr, confidence)
    ordered = sorted(float(score) for score in scores)
    unusable = [score for score in ordered if not (math.isfinite(score) and score > 0)]
    if unusable:
        raise CalibrationRefusedError(
            f"{len(unusable)} of {len(ordered)} scores are not finite numbers above 0 (first: {unusable[0]}); check the exported model"
        )
    check_sample_size(len(ordered), max_frr, confidence)
    count = len(ordered)
    allowed = allowed_exceedances(count, max_frr, confidence)
    pass_threshold = ordered[count - allowed - 1]
    return ThresholdFit(
        pass_threshold=pass_threshold,
        floor=ordered[0] / 2,
        sample_count=count,
        exceeding_allowed=allowed,
        exceeding=sum(score > pass_threshold for score in ordered),
        max_frr=max_frr,
        confidence=confidence,
        bound=_bound_sentence(count, allowed, max_frr, confidence),
    )


def check_sample_size(count: int, max_frr: float, confidence: float) -> None:
    """Refuse a sample that cannot carry the promise even with its largest score as the threshold.

    Raises:
        CalibrationRefusedError: Naming what there is, what is needed and what the sample can carry.
        ConfigError: If ``max_frr`` or ``confidence`` is out of range.
    """
    needed = required_sample_size(max_frr, confidence)
    if count >= needed:
        return
    there_is = (
        f"{count} good part{'' if count == 1 else 's'} cannot carry a false-reject rate of {_percent(max_frr)} at {_percent(confidence)} confidence: "
    )
    carried = f"; this sample carries --max-frr {_rounded_up(smallest_max_frr(count, confidence))} or more" if count else ""
    raise CalibrationRefusedError(f"{there_is}{needed} are needed{carried}")


def required_sample_size(max_frr: float, confidence: float, exceeding: int = 0) -> int:
    """Return the smallest number of good parts that carries the promise with ``exceeding`` of them above the threshold.

    >>> required_sample_size(0.01, 0.95), required_sample_size(0.05, 0.95), required_sample_size(0.1, 0.95)
    (299, 59, 29)
    """
    _check_promise(max_frr, confidence)
    low, high = exceeding, exceeding + 1  # no promise at `low`: with as many parts as exceedances the probability is 1
    while not _holds(high, exceeding, max_frr, confidence):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if _holds(middle, exceeding, max_frr, confidence):
            high = middle
        else:
            low = middle
    return high


def smallest_max_frr(count: int, confidence: float) -> float:
    """Return the smallest false-reject rate that ``count`` good parts carry with their largest score as the threshold."""
    return -math.expm1(math.log1p(-confidence) / count)


def allowed_exceedances(count: int, max_frr: float, confidence: float) -> int:
    """Return the largest r with P(Binomial(count, max_frr) <= r) <= 1 - confidence, -1 if there is none."""
    limit = (1 - confidence) * (1 + _ROUNDING)
    cumulative, allowed = 0.0, -1
    while allowed + 1 < count:
        cumulative += _binomial_pmf(allowed + 1, count, max_frr)
        if cumulative > limit:
            break
        allowed += 1
    return allowed


def binomial_upper_tail(at_least: int, count: int, probability: float) -> float:
    """Return P(Binomial(count, probability) >= at_least)."""
    return min(1.0, math.fsum(_binomial_pmf(k, count, probability) for k in range(at_least, count + 1)))


def _holds(count: int, exceeding: int, max_frr: float, confidence: float) -> bool:
    cumulative = math.fsum(_binomial_pmf(k, count, max_frr) for k in range(exceeding + 1))
    return cumulative <= (1 - confidence) * (1 + _ROUNDING)


def _binomial_pmf(successes: int, count: int, probability: float) -> float:
    choices = math.lgamma(count + 1) - math.lgamma(successes + 1) - math.lgamma(count - successes + 1)
    return math.exp(choices + successes * math.log(probability) + (count - successes) * math.log1p(-probability))


def _check_promise(max_frr: float, confidence: float) -> None:
    if not 0 < max_frr < 1:
        raise ConfigError(f"--max-frr must be above 0 and below 1, got {max_frr}")
    if not 0 < confidence < 1:
        raise ConfigError(f"--confidence must be above 0 and below 1, got {confidence}")


def _bound_sentence(count: int, allowed: int, max_frr: float, confidence: float) -> str:
    rank = "largest" if allowed == 0 else f"{_ordinal(allowed + 1)} largest"
    return (
        f"with {_percent(confidence)} confidence at most {_percent(max_frr)} of good parts score above the pass threshold, the {rank} of {count} "
        "scores of good parts that were not trained on (distribution-free; for parts drawn independently from the same production)"
    )


def _ordinal(number: int) -> str:
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _percent(share: float) -> str:
    return f"{100 * share:.6g} %"


def _rounded_up(share: float) -> float:
    """Round up to three digits after the first: the rounded rate must still be carried."""
    if share >= 1:
        return share
    scale = 10.0 ** (3 - math.ceil(math.log10(share)))
    rounded = math.ceil(share * scale) / scale
    return rounded if rounded < 1 else share
