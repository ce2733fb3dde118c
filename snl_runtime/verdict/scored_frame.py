"""What is known of a scored frame before any decision: handed on as it is from where it was scored to where the verdict is made."""

from dataclasses import dataclass

from snl_runtime.images.frame_outputs import Visualizations
from snl_runtime.images.preprocess import FrameFormat
from snl_runtime.types import AnomalyMap, AnomalyRegion, StageTimings
from snl_runtime.verdict.decision import MapSummary
from snl_runtime.verdict.frame_checks import FrameStatistics


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ScoredMap:
    """Score and map, with what was measured of the map.

    Attributes:
        score: The graph's score, unchecked; in a result the normalized one where the product has a normalization map.
        anomaly_map: (h, w) float32 raw map, the caller's own; in a result the normalized one. None where it stayed on the device.
        summary: Of the raw map, with the peak of the normalized one.
        regions: As :func:`snl_runtime.verdict.regions.find_regions` gives them; None where they are still to be found.
    """

    score: float
    anomaly_map: AnomalyMap | None
    summary: MapSummary
    regions: tuple[AnomalyRegion, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ScoredFrame:
    """Score, map and measurements of one frame, unchecked.

    Attributes:
        map: What the network said.
        statistics: Of the network input.
        roi_xyxy: Part of the frame that the map covers, frame pixels.
        frame: Size and bit depth of the whole frame.
        visualizations: Map, mask and overlay at the resolution of that part, as chosen; None where nothing was drawn.
    """

    map: ScoredMap
    statistics: FrameStatistics
    roi_xyxy: tuple[int, int, int, int]
    frame: FrameFormat
    visualizations: Visualizations | None = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Scored:
    """What the model says about one frame, before any decision.

    Attributes:
        score: Raw image-level anomaly score, equal to the maximum of the map.
        anomaly_map: (H, W) float32 raw scores at network resolution.
        statistics: Of what the network saw.
        timings: Preprocessing, inference and total; on a device path preprocessing counts as inference.
    """

    score: float
    anomaly_map: AnomalyMap
    statistics: FrameStatistics
    timings: StageTimings
