"""A per-product normalization map: what the anomaly map of a fixed-pose part is multiplied with before it is judged.

A part that always lies in the same pose raises the same places of the map on every good frame: edges, prints, reflections. Where good parts score
high anyway, the normalization is low, so that a defect elsewhere is not hidden below them.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from snl_runtime.errors import NormalizationError
from snl_runtime.images.opencv import load_opencv
from snl_runtime.model.map_factors import MapFactors
from snl_runtime.types import AnomalyMap

OFFSET = 1.0
"""What is added to the mean map before it divides, in units of its mean over all pixels; the larger, the flatter the normalization."""
SIGMA = 2 / 128
"""Deviation of the Gaussian that smooths the mean map, as a share of the map's side along that axis: 2 px at 128."""
_REACH = 4.0
"""Deviations after which the Gaussian is cut off."""

MeanMap: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class NormalizationMap(MapFactors):
    """A normalization per cell of the map.

    Attributes:
        values: (H, W) float32, finite and above 0, 1 where the map stays as it is; read-only.

    Raises:
        NormalizationError: If ``values`` is anything else.
    """

    def __post_init__(self) -> None:
        MapFactors.__post_init__(self)  # super() without arguments does not know a class with slots
        if self.values.min() <= 0:
            raise NormalizationError(
                "a normalization map must be finite and above 0 everywhere: a normalization of 0 would hide every defect below it"
            )


def fit_normalization(maps: npt.NDArray[np.float32] | Sequence[AnomalyMap]) -> NormalizationMap:
    """Return the normalization of a fixed-pose product from the maps of its good parts.

    mu = Gaussian(mean of the maps), g = c / (mu + OFFSET * mean(mu)), with c such that the mean over all pixels of g * mu is that of mu: scores stay
    in the model's units. The Gaussian has ``SIGMA`` of the side along each axis and mirrors at the edges.

    Args:
        maps: (n, H, W) float32 raw maps, one per good part.

    Raises:
        NormalizationError: If there is no map, their shapes differ, a value is not finite, or they are zero on the mean.
    """
    stack = _checked(maps)
    return _normalization_of(stack.mean(axis=0, dtype=np.float64))


def leave_one_out_normalizations(maps: npt.NDArray[np.float32] | Sequence[AnomalyMap]) -> Iterator[NormalizationMap]:
    """Yield, for each map in order, the normalization that is fitted on all the others.

    A part of the fit lowers the normalization where it scores high itself, which no part of the line does: judged with the common normalization, the
    calibration sample scores too low and its threshold would refuse more good parts than promised.

    Args:
        maps: As for :func:`fit_normalization`, two at least.

    Raises:
        NormalizationError: As :func:`fit_normalization`, and for a single map.
    """
    stack = _checked(maps)
    if len(stack) < 2:
        raise NormalizationError("leaving one map out needs at least 2 maps, got 1")
    return (_normalization_of(mean) for mean in _means_without_one(stack))


def _means_without_one(stack: npt.NDArray[np.float32]) -> Iterator[MeanMap]:
    total = stack.sum(axis=0, dtype=np.float64)
    for anomaly_map in stack:
        # A place where only this map is above 0 may come out a rounding below it.
        yield np.maximum((total - anomaly_map) / (len(stack) - 1), min(0.0, float(stack.min())))


def _normalization_of(mean_map: MeanMap) -> NormalizationMap:
    smooth = _smoothed(mean_map)
    level = float(smooth.mean())
    divisor = smooth + OFFSET * level
    if not (level > 0 and divisor.min() > 0):
        raise NormalizationError(f"the mean map of the good parts must be above 0, its mean is {level:.3g}; the model sees nothing of them")
    inverse = 1 / divisor
    scale = level / float((inverse * smooth).mean())
    return NormalizationMap((scale * inverse).astype(np.float32))


def _smoothed(mean_map: MeanMap) -> MeanMap:
    cv2 = load_opencv()
    vertical, horizontal = (_gaussian(side * SIGMA) for side in mean_map.shape)
    return np.asarray(cv2.sepFilter2D(mean_map, cv2.CV_64F, horizontal, vertical, borderType=cv2.BORDER_REFLECT), np.float64)


@functools.cache
def _gaussian(sigma: float) -> npt.NDArray[np.float64]:
    """Return the weights of a Gaussian on whole pixels."""
    radius = int(_REACH * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return np.asarray(weights / weights.sum(), np.float64)


def _checked(maps: npt.NDArray[np.float32] | Sequence[AnomalyMap]) -> npt.NDArray[np.float32]:
    if len(maps) == 0:
        raise NormalizationError("a normalization map needs the maps of good parts, got none")
    shapes = {np.shape(anomaly_map) for anomaly_map in maps}
    if len(shapes) > 1 or len(next(iter(shapes))) != 2 or 0 in next(iter(shapes)):
        raise NormalizationError(f"maps must all have one shape (H, W), got {', '.join(map(str, sorted(shapes)[:3]))}")
    stack = np.asarray(maps, np.float32)
    if not np.isfinite(stack).all():
        raise NormalizationError("a map of a good part holds NaN or infinity")
    return stack
