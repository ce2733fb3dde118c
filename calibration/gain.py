"""The gain map of a fixtured product: fitted on all good parts, judged with each of them left out, and compared with doing without."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import cv2
import numpy as np

from snl_runtime.errors import CalibrationRefusedError, GainError
from snl_runtime.model.gain import GainMap, fit_gain, leave_one_out_gains
from snl_runtime.types import AnomalyMap, Image

from .thresholds import ThresholdFit, fit_threshold

MIN_GAIN_SAMPLE = 20
"""Fewest good parts that a gain map is fitted on.

A part that is left out moves the mean map by 1 / n, so at 20 no part counts for more than 5 % of it, and what the threshold is fitted under is within
that of what the line applies. Values of one cell vary between good parts by about their mean; over 20 parts, and the 50 cells that the smoothing
joins, little of that is left."""
PICTURE_PX = 256


@dataclass(slots=True, eq=False, kw_only=True)
class GainFit:
    """A gain map with what speaks for it.

    Attributes:
        gain: Fitted on all good parts.
        scores: Image name to score under the gain map of all other parts.
        raw_fit: The threshold on raw scores, for comparison.
        raw_scores: The raw scores.
        raw_peaks: Raw scores of the defects that were tried, in order.
    """

    gain: GainMap
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


def check_gain_sample(count: int) -> None:
    """Refuse a sample that is too small for a gain map.

    Raises:
        CalibrationRefusedError: With the number needed.
    """
    if count < MIN_GAIN_SAMPLE:
        raise CalibrationRefusedError(
            f"{count} good part{'' if count == 1 else 's'} are too few for the gain map of --fixtured: {MIN_GAIN_SAMPLE} are needed, so that no part "
            "moves the mean map by more than 5 %; give more, or calibrate without --fixtured"
        )


def fit_product_gain(raw_scores: Mapping[str, float], maps: Sequence[AnomalyMap], max_frr: float, confidence: float) -> GainFit:
    """Return the gain map of a product with the score of each good part under the gain map of all others.

    Args:
        raw_scores: Image name to raw score of the good parts.
        maps: Their raw maps, in the same order.
        max_frr: As for :func:`snl_calibration.thresholds.fit_threshold`.
        confidence: Likewise.

    Raises:
        CalibrationRefusedError: If the model gives no usable maps, or the sample is too small for the promise.
    """
    raw_fit = fit_threshold(list(raw_scores.values()), max_frr, confidence)
    stack = np.stack(maps)
    try:
        gains = leave_one_out_gains(stack)
        scores = {name: gain.peak(anomaly_map) for name, gain, anomaly_map in zip(raw_scores, gains, stack)}
        return GainFit(gain=fit_gain(stack), scores=scores, raw_fit=raw_fit, raw_scores=dict(raw_scores))
    except GainError as error:
        raise CalibrationRefusedError(f"no gain map can be fitted: {error}") from error


def note_on_gain(found: GainFit, fit: ThresholdFit, detected: int, source: str) -> str | None:
    """Return what speaks against the gain map, one sentence; None if it finds more defects, or as many with good parts that scatter no more.

    Args:
        found: The gain map.
        fit: The threshold under it.
        detected: How many defects score above that threshold.
        source: What the defects are.
    """
    spread = _spread(fit, found.scores)
    if detected > found.raw_detected or (detected == found.raw_detected and spread <= found.raw_spread):
        return None
    return (
        f"the gain map does not help: {detected} of {len(found.raw_peaks)} {source} score above the pass threshold, {found.raw_detected} without the "
        f"gain map, and the threshold is {spread:.3g} times the median score of good parts, {found.raw_spread:.3g} times without; the parts may not "
        "lie in the same pose: calibrate without --fixtured"
    )


def render_gain(gain: GainMap) -> Image:
    """Return a picture of a gain map: dark where good parts score high and the map is lowered, bright where it is raised."""
    logarithm = np.log(gain.values)
    span = float(np.ptp(logarithm)) or 1.0
    grey = np.rint((logarithm - logarithm.min()) / span * 255).astype(np.uint8)
    times = max(1, PICTURE_PX // max(grey.shape))
    colored = cv2.applyColorMap(grey.repeat(times, 0).repeat(times, 1), cv2.COLORMAP_VIRIDIS)
    return np.ascontiguousarray(colored[..., ::-1])


def _spread(fit: ThresholdFit, scores: Mapping[str, float]) -> float:
    return fit.pass_threshold / median(scores.values())
