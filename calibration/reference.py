"""What is kept of the good parts, so that the line can tell whether its parts still look like them."""

from collections.abc import Sequence

import numpy as np

from snl_runtime.images.frame_look import FrameLook
from snl_runtime.model.manifest import ReferenceSample

MOST_KEPT = 1000
"""Good parts whose figures are kept: more would sharpen the test for drift little and make the manifest long."""
_DIGITS = 7
"""Decimal digits of a float32."""


def fit_reference(scores: Sequence[float], looks: Sequence[FrameLook]) -> ReferenceSample:
    """Return the reference sample of a product; of more than 1,000 parts a random draw, the same for the same parts.

    Args:
        scores: As they are compared with the thresholds, one per part.
        looks: Brightness and sharpness, in the same order.
    """
    kept = range(len(scores))
    if len(scores) > MOST_KEPT:
        kept = np.random.default_rng(len(scores)).choice(len(scores), MOST_KEPT, replace=False).tolist()
    return ReferenceSample(
        scores=_rounded([scores[index] for index in kept]),
        brightness=_rounded([looks[index].brightness for index in kept]),
        sharpness=_rounded([looks[index].sharpness for index in kept]),
    )


def _rounded(values: Sequence[float]) -> list[float]:
    return sorted(float(f"{value:.{_DIGITS}g}") for value in values)
