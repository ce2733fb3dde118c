"""Bootstrap replicates of every metric by resampling whole images within strata (product, good or anomalous).

Pixels of one image are not independent, so the image is what is drawn, with replacement, as often as there are images of its stratum. A replicate is
a matrix product of draw counts with per-image counts at or above each threshold.

* Image metrics use every distinct score: replicates are exact.
* Pixel metrics use corners of the exact curve chosen by rank (`rank_thresholds`), so replicates too stay the same under a monotone transform. With
  at most `RANKS` distinct anomalous values they are exact; else an area is off by about 1 / (2 * RANKS) = 0.001 at worst and 0.00003 in practice,
  far below the width of the intervals. The reported values themselves never use these thresholds.

Intervals see the test images that exist and nothing else: with perfect separation they collapse to a point, so read them with the counts beside them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from snl_train.metrics import Curve, Flags, Floats, PixelCurves, Scores, anomalous_pixels, normal_pixels

RANKS = 512
"""How many scores are chosen by the rank of the anomalous pixels, of the regions and of the normal pixels each."""
_CHUNK = 128  # resamples at once: bounds memory at a few hundred megabytes for thousands of images


def draw_counts(strata: npt.NDArray[np.int64], resamples: int, generator: np.random.Generator) -> Floats:
    """Return how often each image is drawn, (resamples, N), for (N,) stratum numbers: every row keeps the size of every stratum."""
    counts = np.zeros((resamples, strata.size))
    for stratum in np.unique(strata):
        (members,) = np.nonzero(strata == stratum)
        counts[:, members] = generator.multinomial(members.size, np.full(members.size, 1 / members.size), size=resamples)
    return counts


def image_curves(is_anomalous: Flags, scores: Scores, counts: Floats) -> Curve:
    """Return the exact curve of every resample, for (N,) images and (B, N) draw counts."""
    order = np.argsort(scores)[::-1]
    values = scores[order]
    ends = np.nonzero(np.append(values[1:] != values[:-1], True))[0]
    drawn = counts[:, order]
    false_alarms = np.cumsum(drawn * ~is_anomalous[order], axis=1)[:, ends]
    detected = np.cumsum(drawn * is_anomalous[order], axis=1)[:, ends]
    return _with_origin(values[ends].astype(np.float64), false_alarms, detected)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PixelCounts:
    """Per image and threshold, how much scores at or above it.

    Attributes:
        thresholds: (K,) descending, the last one -inf.
        normal: (N, K) float32, normal pixels.
        anomalous: (N, K) float32, anomalous pixels.
        regions: (N, K) float32, sum over the image's regions of the share of each.
    """

    thresholds: Floats
    normal: npt.NDArray[np.float32]
    anomalous: npt.NDArray[np.float32]
    regions: npt.NDArray[np.float32]


def count_pixels(maps: Sequence[Scores], masks: Sequence[Flags], curves: PixelCurves, judged: Sequence[Flags | None] | None = None) -> PixelCounts:
    """Return the counts that pixel replicates are made of, for N maps and masks of (H, W) and the exact curves over them.

    ``judged`` is what the curves were made with, see :func:`snl_train.metrics.pixel_curves`.
    """
    thresholds = rank_thresholds(curves)
    shape = (len(maps), thresholds.size)
    normal, anomalous, regions = np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for row, (one, mask, counted) in enumerate(zip(maps, masks, [None] * len(maps) if judged is None else judged)):
        normal[row] = _at_or_above(normal_pixels(one, mask, counted), thresholds)
        if mask.any():
            scores, weights = anomalous_pixels([one], [mask])
            anomalous[row] = _at_or_above(scores, thresholds)
            regions[row] = _weight_at_or_above(scores, weights, thresholds)
    return PixelCounts(thresholds=thresholds, normal=normal, anomalous=anomalous, regions=regions)


def pixel_replicates(table: PixelCounts, counts: Floats) -> tuple[Curve, Curve]:
    """Return the curves of every resample by pixel and by region, for (B, N) draw counts."""
    drawn = counts.astype(np.float32)
    false_alarms = (drawn @ table.normal).astype(np.float64)
    by_pixel = _with_origin(table.thresholds, false_alarms, (drawn @ table.anomalous).astype(np.float64))
    by_region = _with_origin(table.thresholds, false_alarms, (drawn @ table.regions).astype(np.float64))
    return by_pixel, by_region


def chunks(counts: Floats) -> list[Floats]:
    """Split (B, N) draw counts into groups of resamples that fit in memory together."""
    return [counts[start : start + _CHUNK] for start in range(0, len(counts), _CHUNK)]


def rank_thresholds(curves: PixelCurves) -> Floats:
    """Return thresholds, descending and ending in -inf, that follow the ranks of the pixels.

    They are corners of the exact curve, two for each chosen anomalous score: scores at even steps of the detected pixels, at even steps of the
    detected regions, and at even ratios of the false alarms, dense where few normal pixels score higher and precision is decided.
    """
    by_pixel, by_region = curves
    steps = np.linspace(0, 1, RANKS)
    ratios = np.geomspace(1, float(by_pixel.normal), RANKS)
    chosen = np.concatenate([
        np.searchsorted(by_pixel.detected[2:-1:2], steps * by_pixel.anomalous),
        np.searchsorted(by_region.detected[2:-1:2], steps * by_region.anomalous),
        np.searchsorted(by_pixel.false_alarms[2:-1:2], ratios),
    ])  # fmt: skip
    distinct = (by_pixel.thresholds.size - 2) // 2
    if distinct <= RANKS:
        chosen = np.arange(distinct)
    chosen = np.unique(np.minimum(chosen, distinct - 1))
    corners = np.stack([1 + 2 * chosen, 2 + 2 * chosen], axis=1).ravel()
    return np.append(by_pixel.thresholds[corners], -np.inf)


def _at_or_above(scores: Scores, thresholds: Floats) -> npt.NDArray[np.int64]:
    """Return the number of scores at or above each of the descending thresholds, (K,)."""
    # The thresholds are scores (or their neighbors) of the same dtype, so the cast is exact and spares a float64 copy of the scores.
    below: npt.NDArray[np.int64] = np.searchsorted(np.sort(scores), thresholds.astype(scores.dtype), side="left")
    return scores.size - below


def _weight_at_or_above(scores: Scores, weights: Floats, thresholds: Floats) -> Floats:
    """Return the weight of the scores at or above each of the descending thresholds, (K,)."""
    order = np.argsort(scores)[::-1]
    cumulated = np.append(0.0, np.cumsum(weights[order]))
    total: Floats = cumulated[_at_or_above(scores, thresholds)]
    return total


def _with_origin(thresholds: Floats, false_alarms: Floats, detected: Floats) -> Curve:
    start = np.zeros((len(false_alarms), 1))
    return Curve(
        thresholds=np.append(np.inf, thresholds),
        false_alarms=np.concatenate([start, false_alarms], axis=1),
        detected=np.concatenate([start, detected], axis=1),
        normal=false_alarms[:, -1],
        anomalous=detected[:, -1],
    )
