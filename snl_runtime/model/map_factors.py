"""What the anomaly map of a product is multiplied with before it is judged: a normalization map, an ignore mask, or both."""

from dataclasses import dataclass

import numpy as np

from snl_runtime.errors import NormalizationError
from snl_runtime.types import AnomalyMap, Mask


@dataclass(frozen=True, slots=True, eq=False)
class MapFactors:
    """A factor per cell of the map.

    Attributes:
        values: (H, W) float32, finite and at least 0, above 0 somewhere; 1 where the map stays as it is, 0 where it is not judged; read-only.

    Raises:
        NormalizationError: If ``values`` is anything else.
    """

    values: AnomalyMap

    def __post_init__(self) -> None:
        if self.values.dtype != np.float32 or self.values.ndim != 2 or self.values.size == 0:
            raise NormalizationError(f"the factors of a map must be float32 of shape (H, W), got {self.values.dtype} of {self.values.shape}")
        if not (np.isfinite(self.values).all() and self.values.min() >= 0 and self.values.max() > 0):
            raise NormalizationError("the factors of a map must be finite, at least 0 everywhere and above 0 somewhere: else nothing would be judged")
        own = np.ascontiguousarray(self.values).copy()
        own.flags.writeable = False
        object.__setattr__(self, "values", own)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the maps they are for."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def ignored(self) -> Mask | None:
        """(H, W) bool, the cells that are not judged; None if every cell is."""
        ignored: Mask = self.values == 0
        return ignored if ignored.any() else None

    @property
    def ignored_share(self) -> float:
        """Share of the cells that are not judged, 0 to below 1."""
        return float((self.values == 0).mean())

    def apply(self, anomaly_map: AnomalyMap) -> AnomalyMap:
        """Return the map as it is judged: one product in float32 per cell, as the CUDA kernel rounds it.

        Raises:
            NormalizationError: If the map has another shape.
        """
        if anomaly_map.shape != self.values.shape:
            raise NormalizationError(
                f"the normalization map or ignore mask is for maps of shape {self.values.shape}, got one of {anomaly_map.shape}; "
                "calibrate this model again"
            )
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found by whoever judges
            judged: AnomalyMap = np.multiply(anomaly_map.astype(np.float32, copy=False), self.values)
        return judged

    def peak(self, anomaly_map: AnomalyMap) -> float:
        """Return the score that is judged: the largest value of the judged map; NaN if there is one in it."""
        return float(self.apply(anomaly_map).max())


def multiply_factors(first: MapFactors | None, second: MapFactors | None) -> MapFactors | None:
    """Return the factors that stand for both, None for none.

    Raises:
        NormalizationError: If their sizes differ.
    """
    if first is None or second is None:
        return first or second
    return MapFactors(first.apply(second.values))
