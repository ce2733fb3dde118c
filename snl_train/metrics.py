"""Exact detection and localization metrics: sorted, no bins, no sigmoid, ties as scikit-learn treats them.

Every metric is read from one curve: how many normal and how many anomalous elements score at or above each threshold. An element is an image or a
pixel; for AUPRO an anomalous pixel weighs one over the size of its region. Only thresholds at anomalous scores can change a metric, so the curve is
found by sorting the normal scores and looking the few anomalous ones up in them: no permutation of all pixels is built. All metrics depend on the
order of the scores alone and so stay the same under any strictly increasing transform.

A metric that is not defined (no masks, or only one of the two classes present) is None, never zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from snl_runtime.images.opencv import load_opencv

Flags: TypeAlias = npt.NDArray[np.bool_]
Scores: TypeAlias = npt.NDArray[np.floating[Any]]
Floats: TypeAlias = npt.NDArray[np.float64]

FPR_LIMIT = 0.3
"""False-positive rate up to which AUPRO integrates (MVTec AD's convention)."""


class Interval(NamedTuple):
    """Lower and upper end of a confidence interval."""

    low: float
    high: float


class F1Max(NamedTuple):
    """The best F1 score and the threshold that gives it: an element is called anomalous when its score is >= ``threshold``."""

    value: float
    threshold: float


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Curve:
    """What scores at or above each threshold, from (0, 0) to (``normal``, ``anomalous``).

    Neighboring points are joined by straight lines, which counts a tie between a normal and an anomalous element as one half.

    Attributes:
        thresholds: (K,) descending, from +inf to -inf.
        false_alarms: (..., K) number of normal elements at or above each threshold; leading axes are bootstrap resamples.
        detected: (..., K) weight of the anomalous elements at or above each threshold.
        normal: (...) number of normal elements.
        anomalous: (...) weight of all anomalous elements.
    """

    thresholds: Floats
    false_alarms: Floats
    detected: Floats
    normal: Floats
    anomalous: Floats


class RocCurve(NamedTuple):
    """Corners of the ROC curve: all (K,), thresholds descending from +inf to -inf."""

    false_positive_rate: Floats
    true_positive_rate: Floats
    thresholds: Floats


def roc_curve(is_anomalous: npt.ArrayLike, scores: npt.ArrayLike) -> RocCurve | None:
    """Return the ROC curve; None unless both classes are present.

    Raises:
        ValueError: If the lengths differ or a score is not finite.
    """
    curve = _image_curve(is_anomalous, scores)
    if curve is None:
        return None
    return RocCurve(curve.false_alarms / curve.normal, curve.detected / curve.anomalous, curve.thresholds)


def roc_auc(is_anomalous: npt.ArrayLike, scores: npt.ArrayLike) -> float | None:
    """Return the area under the ROC curve, a tie counting one half; None unless both classes are present.

    >>> roc_auc([False, False, True, True], [0.1, 0.4, 0.35, 0.8])
    0.75

    Raises:
        ValueError: If the lengths differ or a score is not finite.
    """
    curve = _image_curve(is_anomalous, scores)
    return None if curve is None else float(area_under_curve(curve))


def average_precision(is_anomalous: npt.ArrayLike, scores: npt.ArrayLike) -> float | None:
    """Return the step-wise sum of precision over recall (scikit-learn's ``average_precision_score``); None unless both classes are present.

    Raises:
        ValueError: If the lengths differ or a score is not finite.
    """
    curve = _image_curve(is_anomalous, scores)
    return None if curve is None else float(precision_sum(curve))


def f1_max(is_anomalous: npt.ArrayLike, scores: npt.ArrayLike) -> F1Max | None:
    """Return the highest F1 score over all thresholds, the highest threshold among equals; None unless both classes are present.

    The threshold is chosen on the very data it is measured on: it orders images in a report and is no decision for a line.

    Raises:
        ValueError: If the lengths differ or a score is not finite.
    """
    curve = _image_curve(is_anomalous, scores)
    return None if curve is None else best_f1(curve)


def aupro(maps: npt.ArrayLike, masks: npt.ArrayLike, *, fpr_limit: float = FPR_LIMIT) -> float | None:
    """Return the area under the per-region-overlap curve up to a false-positive rate, divided by that rate.

    The overlap of a region (8-connected component of a mask) is the share of its pixels at or above the threshold; regions count alike whatever
    their size. The false-positive rate is taken over the normal pixels of all images together. The curve is exact and interpolated at the limit.

    Args:
        maps: (N, H, W) float anomaly maps.
        masks: (N, H, W) bool, True where anomalous; all False for a good image.
        fpr_limit: Upper end of the integral, in (0, 1].

    Returns:
        A value in [0, 1], None when there is no region or no normal pixel.

    Raises:
        ValueError: If shapes differ, a value is not finite or the limit is outside (0, 1].
    """
    if not 0 < fpr_limit <= 1:
        raise ValueError(f"fpr_limit must be above 0 and at most 1, got {fpr_limit}")
    curves = pixel_curves(np.asarray(maps, dtype=_float_type(maps)), np.asarray(masks, dtype=np.bool_))
    return None if curves is None else float(area_under_curve(curves.by_region, limit=fpr_limit))


class PixelCurves(NamedTuple):
    """Two curves over the pixels of one set of images: each anomalous pixel weighs 1, or 1 / size of its region."""

    by_pixel: Curve
    by_region: Curve


def pixel_curves(maps: Scores | Sequence[Scores], masks: Flags | Sequence[Flags], judged: Sequence[Flags | None] | None = None) -> PixelCurves | None:
    """Return the curves behind pixel AUROC, average precision, F1 (``by_pixel``) and AUPRO (``by_region``).

    Costs one sort of the normal pixels (a copy of the maps) and one permutation of the anomalous ones.

    Args:
        maps: N maps of (H, W).
        masks: N masks of (H, W), bool.
        judged: N masks of (H, W), bool, of the pixels that count, None for all of an image; ``masks`` must lie within them. None for all of all.

    Returns:
        None when no pixel is anomalous or none is normal.

    Raises:
        ValueError: If shapes differ or a value is not finite.
    """
    if len(maps) != len(masks) or any(np.shape(m) != np.shape(t) for m, t in zip(maps, masks)):
        raise ValueError(f"maps and masks must have the same shapes, got {len(maps)} maps and {len(masks)} masks or different sizes")
    if not all(np.isfinite(one).all() for one in maps):
        raise ValueError("maps must be finite, got NaN or infinity")
    anomalous, weights = anomalous_pixels(maps, masks)
    counted = [None] * len(maps) if judged is None else judged
    normal = np.concatenate([normal_pixels(*each) for each in zip(maps, masks, counted)]) if len(maps) else np.zeros(0)
    if not anomalous.size or not normal.size:
        return None
    normal.sort()
    order = np.argsort(anomalous)[::-1]
    anomalous = anomalous[order]
    by_pixel = _sorted_curve(normal, anomalous)
    return PixelCurves(by_pixel, _reweighted(by_pixel, anomalous, weights[order]))


def normal_pixels(one: Scores, mask: Flags, judged: Flags | None) -> Scores:
    """Return the scores of the pixels of one map that are not anomalous and, unless ``judged`` is None, lie within it; (P,)."""
    return one[~mask] if judged is None else one[judged & ~mask]


def anomalous_pixels(maps: Scores | Sequence[Scores], masks: Flags | Sequence[Flags]) -> tuple[Scores, Floats]:
    """Return the scores of all anomalous pixels, (P,), and the weight of each: 1 / size of its 8-connected region."""
    scores, weights = [np.zeros(0, np.float32)], [np.zeros(0)]
    for one, mask in zip(maps, masks):
        if not mask.any():
            continue
        _, labels = load_opencv().connectedComponents(mask.astype(np.uint8), connectivity=8)
        inside = labels[mask]
        scores.append(np.asarray(one[mask]))
        weights.append(1.0 / np.bincount(inside)[inside])
    return np.concatenate(scores), np.concatenate(weights)


def area_under_curve(curve: Curve, *, limit: float = 1.0) -> Floats:
    """Return the area under detection rate over false-positive rate from 0 to ``limit``, divided by ``limit``; (...) one value per resample."""
    x = curve.false_alarms / curve.normal[..., None]
    y = curve.detected / curve.anomalous[..., None]
    x_0, y_0 = x[..., :-1], y[..., :-1]
    width = np.diff(x, axis=-1)
    taken = np.clip(limit - x_0, 0.0, width)
    share = np.divide(taken, width, out=np.zeros_like(width), where=width > 0)
    y_end = y_0 + share * np.diff(y, axis=-1)
    area: Floats = (taken * (y_0 + y_end) / 2).sum(axis=-1) / limit
    return area


def precision_sum(curve: Curve) -> Floats:
    """Return the average precision, sum of (recall step) x precision; (...) one value per resample."""
    called = curve.detected + curve.false_alarms
    precision = np.divide(curve.detected, called, out=np.zeros_like(called), where=called > 0)
    total: Floats = (np.diff(curve.detected, axis=-1) * precision[..., 1:]).sum(axis=-1) / curve.anomalous
    return total


def f1_scores(curve: Curve) -> Floats:
    """Return F1 at every point of the curve, (..., K)."""
    scores: Floats = 2 * curve.detected / (curve.detected + curve.false_alarms + curve.anomalous[..., None])
    return scores


def best_f1(curve: Curve) -> F1Max:
    """Return the highest F1 of a curve without resamples, the highest threshold among equals."""
    scores = f1_scores(curve)
    best = int(np.argmax(scores))
    return F1Max(float(scores[best]), float(curve.thresholds[best]))


def bootstrap_interval(replicates: npt.ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Return the percentile interval of bootstrap replicates: equal shares of them lie below and above it.

    Raises:
        ValueError: If there are no replicates or the confidence is outside (0, 1).
    """
    values = np.asarray(replicates, dtype=np.float64)
    if not values.size or not 0 < confidence < 1:
        raise ValueError(f"an interval needs replicates and a confidence between 0 and 1, got {values.size} replicates and {confidence}")
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def _image_curve(is_anomalous: npt.ArrayLike, scores: npt.ArrayLike) -> Curve | None:
    flags = np.asarray(is_anomalous, dtype=np.bool_).ravel()
    values = np.asarray(scores, dtype=_float_type(scores)).ravel()
    if flags.size != values.size:
        raise ValueError(f"is_anomalous and scores must have the same length, got {flags.size} and {values.size}")
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite, got NaN or infinity")
    if flags.all() or not flags.any():
        return None
    anomalous = np.sort(values[flags])[::-1]
    return _sorted_curve(np.sort(values[~flags]), anomalous)


def _float_type(values: npt.ArrayLike) -> npt.DTypeLike:
    """Return the dtype to compare in: that of the input if it is floating, so that no two values become equal, else float64."""
    dtype = np.asarray(values).dtype
    return dtype if np.issubdtype(dtype, np.floating) else np.float64


def _sorted_curve(normal: Scores, anomalous: Scores) -> Curve:
    """Return the exact curve of (M,) ascending normal and (P,) descending anomalous scores: two corners for each distinct anomalous score."""
    is_last = _is_last_of_ties(anomalous)
    values = anomalous[is_last]  # (K,) distinct, descending
    # Looked up ascending: neighboring queries then touch neighboring memory, several times faster on millions of pixels.
    above = (normal.size - np.searchsorted(normal, values[::-1], side="right"))[::-1]
    at_or_above = (normal.size - np.searchsorted(normal, values[::-1], side="left"))[::-1]
    return Curve(
        thresholds=np.concatenate([[np.inf], _interleave(np.nextafter(values, values.dtype.type(np.inf)), values), [-np.inf]]),
        false_alarms=np.concatenate([[0.0], _interleave(above, at_or_above), [normal.size]]),
        detected=_corners(np.nonzero(is_last)[0].astype(np.float64) + 1),
        normal=np.asarray(normal.size, dtype=np.float64),
        anomalous=np.asarray(anomalous.size, dtype=np.float64),
    )


def _reweighted(curve: Curve, anomalous: Scores, weights: Floats) -> Curve:
    """Return the curve of the same (P,) descending anomalous scores with other weights."""
    detected = np.cumsum(weights)[_is_last_of_ties(anomalous)]
    return replace(curve, detected=_corners(detected), anomalous=np.asarray(detected[-1]))


def _is_last_of_ties(descending: Scores) -> Flags:
    return np.append(descending[1:] != descending[:-1], True)


def _corners(detected: Floats) -> Floats:
    """Return the detected weight along the curve from that at each distinct score, (K,) -> (2 K + 2,)."""
    return np.concatenate([[0.0], _interleave(np.append(0.0, detected[:-1]), detected), detected[-1:]])


def _interleave(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> Floats:
    """Return first[0], second[0], first[1], second[1], ... as float64."""
    both: Floats = np.stack([first, second], axis=1).astype(np.float64).ravel()
    return both
