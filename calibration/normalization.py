"""The normalization map of a fixed-pose product: fitted on all good parts, judged with each of them left out, and compared with doing without."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import cv2
import numpy as np

from snl_runtime.errors import CalibrationRefusedError, NormalizationError
from snl_runtime.model.ignore_mask import IgnoreMask
from snl_runtime.model.map_factors import MapFactors, multiply_factors
from snl_runtime.model.normalization import NormalizationMap, fit_normalization, leave_one_out_normalizations
from snl_runtime.types import AnomalyMap, Image

from .thresholds import ThresholdFit, fit_threshold

MIN_NORMALIZATION_SAMPLE = 20
"""Fewest good parts that a normalization map is fitted on.

A part that is left out moves the mean map by 1 / n, so at 20 no part counts for more than 5 % of it, and what the threshold is fitted under is within
that of what the line applies. Values of one cell vary between good parts by about their mean; over 20 parts, and the 50 cells that the smoothing
joins, little of that is left."""
IMAGE_PX = 256


@dataclass(slots=True, eq=False, kw_only=True)
class NormalizationFit:
    """A normalization map with what speaks for it.

    Attributes:
        normalization: Fitted on all good parts.
        factors: The same under the ignore mask: what the line multiplies a map with.
        scores: Image name to score under the normalization map of all other parts.
        raw_fit: The threshold on raw scores, for comparison.
        raw_scores: The raw scores.
        raw_peaks: Raw scores of the defects that were tried, in order.
    """

    normalization: NormalizationMap
    factors: MapFactors
    scores: dict[str, float]
    raw_fit: ThresholdFit
    raw_scores: dict[str, float]
    raw_peaks: list[float] = field(default_factory=list)

    @property
    def raw_detected(self) -> int:
        """How many of the defects score above the raw threshold."""
        return sum(peak > self.raw_fit.pass_threshold for peak in self.raw_peaks)

    @property
    def raw_spread(self) -> float:
        """Raw pass threshold in units of the median raw score of good parts."""
        return _spread(self.raw_fit, self.raw_scores)


def check_normalization_sample(count: int) -> None:
    """Refuse a sample that is too small for a normalization map.

    Raises:
        CalibrationRefusedError: With the number needed.
    """
    if count < MIN_NORMALIZATION_SAMPLE:
        raise CalibrationRefusedError(
            f"{count} good part{'' if count == 1 else 's'} are too few for the normalization map of --fixed-pose: "
            f"{MIN_NORMALIZATION_SAMPLE} are needed, so that no part moves the mean map by more than 5 %; "
            "give more, or calibrate without --fixed-pose"
        )


def fit_product_normalization(
    raw_scores: Mapping[str, float], maps: Sequence[AnomalyMap], mask: IgnoreMask | None, max_frr: float, confidence: float
) -> NormalizationFit:
    """Return the normalization map of a product with the score of each good part under the normalization map of all others.

    Args:
        raw_scores: Image name to raw score of the good parts, under the mask.
        maps: Their raw maps, in the same order.
        mask: What is not judged; None for nothing.
        max_frr: As for :func:`snl_calibration.thresholds.fit_threshold`.
        confidence: Likewise.

    Raises:
        CalibrationRefusedError: If the model gives no usable maps, or the sample is too small for the promise.
    """
    raw_fit = fit_threshold(list(raw_scores.values()), max_frr, confidence)
    stack = np.stack(maps)
    try:
        normalizations = leave_one_out_normalizations(stack)
        scores = {name: _masked(each, mask).peak(anomaly_map) for name, each, anomaly_map in zip(raw_scores, normalizations, stack)}
        normalization = fit_normalization(stack)
        factors = _masked(normalization, mask)
        return NormalizationFit(normalization=normalization, factors=factors, scores=scores, raw_fit=raw_fit, raw_scores=dict(raw_scores))
    except NormalizationError as error:
        raise CalibrationRefusedError(f"no normalization map can be fitted: {error}") from error


def note_on_normalization(found: NormalizationFit, fit: ThresholdFit, detected: int, source: str) -> str | None:
    """Return what speaks against the normalization map, one sentence; None if it finds more defects, or as many with good parts that scatter no more.

    Args:
        found: The normalization map.
        fit: The threshold under it.
        detected: How many defects score above that threshold.
        source: What the defects are.
    """
    spread = _spread(fit, found.scores)
    if detected > found.raw_detected or (detected == found.raw_detected and spread <= found.raw_spread):
        return None
    return (
        f"the normalization map does not help: {detected} of {len(found.raw_peaks)} {source} score above the pass threshold, "
        f"{found.raw_detected} without the normalization map, and the threshold is {spread:.3g} times the median score of good parts, "
        f"{found.raw_spread:.3g} times without; the parts may not lie in the same pose: calibrate without --fixed-pose"
    )


def render_normalization(normalization: NormalizationMap) -> Image:
    """Return an image of a normalization map: dark where good parts score high and the map is lowered, bright where it is raised."""
    logarithm = np.log(normalization.values)
    span = float(np.ptp(logarithm)) or 1.0
    gray = np.rint((logarithm - logarithm.min()) / span * 255).astype(np.uint8)
    times = max(1, IMAGE_PX // max(gray.shape))
    colored = cv2.applyColorMap(gray.repeat(times, 0).repeat(times, 1), cv2.COLORMAP_VIRIDIS)
    return np.ascontiguousarray(colored[..., ::-1])


def _masked(normalization: NormalizationMap, mask: IgnoreMask | None) -> MapFactors:
    return multiply_factors(normalization, mask) or normalization


def _spread(fit: ThresholdFit, scores: Mapping[str, float]) -> float:
    return fit.pass_threshold / median(scores.values())
