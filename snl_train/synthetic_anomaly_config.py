"""Settings of synthetic anomalies in the student's input. Imports no torch, so that ``-h`` is instant."""

from dataclasses import dataclass

from snl_train.config_checks import check


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticAnomalyConfig:
    """Synthetic anomalies in the student's input, see ``snl_train.synthetic_anomalies``; the paper has none."""

    share: float = 0.0
    """Share of the training images that get a synthetic anomaly; 0 trains as the paper does."""
    opacity_min: float = 0.3
    """Faintest synthetic anomaly; opacities are drawn evenly from here to 1."""
    area_min: float = 0.01
    """Smallest share of the image that a synthetic anomaly covers, before it is cut to a disc half of the time."""
    area_max: float = 0.15
    """Largest share of the image that a synthetic anomaly covers."""
    foreign_share: float = 0.5
    """Share of the synthetic anomalies filled from another image of the batch, of whatever product; the rest is the image itself, moved, or flat
    color."""

    def __post_init__(self) -> None:
        check("synthetic_anomalies.share", self.share, "in [0, 1]", 0 <= self.share <= 1)
        check("synthetic_anomalies.opacity_min", self.opacity_min, "in (0, 1]", 0 < self.opacity_min <= 1)
        check("synthetic_anomalies.area_min", self.area_min, "in (0, 1)", 0 < self.area_min < 1)
        check("synthetic_anomalies.area_max", self.area_max, "in [area_min, 1)", self.area_min <= self.area_max < 1)
        check("synthetic_anomalies.foreign_share", self.foreign_share, "in [0, 1]", 0 <= self.foreign_share <= 1)
