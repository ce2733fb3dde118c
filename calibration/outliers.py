"""Scores among the "good" that look like bad parts: they stop a fit until a person accepts them by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from snl_runtime.errors import ConfigError

from .sample import GoodPart, ProductSample, listed

OUTLIER_FACTOR = 6.0
"""How many median absolute deviations above the median a good part may score."""
NORMAL_CONSISTENCY = 1.4826
"""Makes the median absolute deviation of normally distributed scores their standard deviation, 1 / 0.6745.

Scores are maxima of maps and therefore skewed: of 320 good parts with Gumbel-distributed scores some would lie beyond the plain 6 MAD in 88 % of
the samples, beyond the scaled one in 23 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierReport:
    """Scores too high for the rest of the sample.

    Attributes:
        limit: median + 6 scaled median absolute deviations; a score above it needs a person's word.
        scores: Name to score of what lies above ``limit``, highest first.
    """

    limit: float
    scores: dict[str, float]


def find_outliers(scores: Mapping[str, float]) -> OutlierReport:
    """Return the scores above median + 6 scaled MAD, by name.

    One bad part among the good would become the threshold and hide every defect below it, so high scores are looked at; low ones are harmless.
    A sample in which half of the scores are equal has a deviation of 0: then everything above the median is reported.

    >>> find_outliers({"a": 1.0, "b": 1.1, "c": 1.2, "d": 1.3, "e": 9.0}).scores
    {'e': 9.0}
    """
    if not scores:
        return OutlierReport(limit=float("inf"), scores={})
    center = median(scores.values())
    deviation = median(abs(score - center) for score in scores.values())
    limit = center + OUTLIER_FACTOR * NORMAL_CONSISTENCY * deviation
    above = sorted(((name, score) for name, score in scores.items() if score > limit), key=lambda item: (-item[1], item[0]))
    return OutlierReport(limit=limit, scores=dict(above))


def find_accepted(samples: Sequence[ProductSample], names: Sequence[str]) -> tuple[str, ...]:
    """Return the full names of the good images that a person accepts as outliers.

    Args:
        samples: The good parts of every product that is fitted.
        names: Each a path relative to the folder of good images, a file name, or a product and a file name, e.g. ``bottle/012.png``.

    Raises:
        ConfigError: If a name fits no image, or more than one: a person looked at one of them.
    """
    accepted = []
    for name in names:
        fitting = [(sample, part) for sample in samples for part in sample.parts if name in _names(sample, part)]
        exact = [part.name for _, part in fitting if part.name == name]
        found = exact or [part.name for _, part in fitting]
        if not found:
            raise ConfigError(
                f"--accept-outlier {name}: no such good image; expected a file name, PRODUCT/NAME or a path relative to the --good folder"
            )
        if len(found) > 1:
            raise ConfigError(f"--accept-outlier {name} fits {len(found)} good images: {listed(found)}; give the one that was looked at by its path")
        accepted += found
    return tuple(accepted)


def _names(sample: ProductSample, part: GoodPart) -> set[str]:
    file_name = Path(part.name).name
    return {part.name, file_name, f"{sample.product}/{part.name}", f"{sample.product}/{file_name}"}
