"""What is known of a scored frame before any decision: handed on as it is from where it was scored to where the verdict is made."""

from dataclasses import dataclass

from snl_runtime.images.frame_outputs import Visualizations
from snl_runtime.types import AnomalyMap, AnomalyRegion
from snl_runtime.verdict.decision import MapSummary
from snl_runtime.verdict.frame_checks import FrameFormat, FrameStatistics


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ScoredFrame:
    """Score, map and measurements of one frame, unchecked.

    Attributes:
        score: The graph's score.
        anomaly_map: (h, w) float32 raw map; None where it stayed on the device.
        summary: Of the raw map; from a device also the peak of the normalized one.
        statistics: Of the network input.
        regions: As :func:`snl_runtime.verdict.regions.find_regions` gives them; None where they are still to be found.
        roi_xyxy: Part of the frame that the map covers, frame pixels.
        frame: Size and bit depth of the whole frame.
        visualizations: Map, mask and overlay at the resolution of that part, as chosen; None where the device drew nothing.
    """

    score: float
    anomaly_map: AnomalyMap | None
    summary: MapSummary
    statistics: FrameStatistics
    regions: tuple[AnomalyRegion, ...] | None
    roi_xyxy: tuple[int, int, int, int]
    frame: FrameFormat
    visualizations: Visualizations | None = None

    @property
    def evidence(self) -> AnomalyMap | MapSummary:
        """What the verdict is given of."""
        return self.summary if self.anomaly_map is None else self.anomaly_map
