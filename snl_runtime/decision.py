"""The rules that turn a score into a verdict. PASS needs positive evidence; everything that is not PASS, REVIEW or REJECT is ERROR.

Pure functions: no clock, no file and no state in here, so every rule can be tested with any input.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from snl_runtime.errors import CalibrationRefusedError
from snl_runtime.gain import GainMap
from snl_runtime.manifest import Decision, FrameRange
from snl_runtime.opencv import load_opencv
from snl_runtime.types import AnomalyMap, Image, Verdict

REASON_CODES: Mapping[str, str] = MappingProxyType(
    {
        "below_threshold": "the score is at most the pass threshold and every check passed",
        "above_pass_threshold": "the score is above the pass threshold and at most the reject threshold",
        "above_reject_threshold": "the score is above the reject threshold",
        "frame_unusable": "the frame is missing or has the wrong type, shape or channels",
        "frame_flat": "the frame shows nothing: deviation below 2 grey levels",
        "frame_out_of_range": "the frame is outside the commissioned range",
        "no_manifest": "the model has no manifest",
        "no_golden_check": "no golden sample was scored in this process",
        "golden_mismatch": "the golden samples scored differently after a failure of the backend",
        "no_decision": "the model was never calibrated",
        "no_threshold_for_engine": "the calibration belongs to another file",
        "guard_band_too_wide": "the engine differs from its model by more than the thresholds of the decision leave room for",
        "unknown_product": "no decision exists for the product",
        "ambiguous_roi": "the calibrated products look at different parts of the frame and none was named",
        "decision_invalid": "the thresholds or dates of the decision make no sense",
        "decision_expired": "the decision is no longer valid",
        "clock_before_fit": "the clock is earlier than the calibration",
        "output_not_finite": "the score or the map is missing, NaN or infinite",
        "output_inconsistent": "the score is not the maximum of the map",
        "no_gain_map": "the decision needs a gain map that was not applied",
        "below_floor": "the score is lower than any good part can give",
        "backend_error": "the backend failed",
        "timeout": "the backend did not answer in time",
        "backend_busy": "an earlier call has not come back from the backend",
        "internal_error": "a bug in this package; the log has the traceback",
    }
)
"""Every ``reason_code`` that a result can carry, with its meaning; codes are stable across releases."""

MIN_DEVIATION = 2.0
"""Grey levels; a frame that varies less shows nothing (covered lens, light off, saturated sensor)."""
SCORE_TOLERANCE = 1e-5
"""Largest relative difference between the score and the maximum of the map; both come from one graph in float32."""
WHITE_LEVEL = 250
"""A pixel is white when every channel is at least this."""
BLACK_LEVEL = 5
"""A pixel is black when every channel is at most this."""
MIN_MARGIN_GREY = 10.0
"""Least widening of the ranges of mean and deviation on each side, grey levels: what a strong defect on 5 % of the frame changes.

The range guards against cover, light and camera faults. A part with a clear local defect must stay inside it, so that it is REJECT and not ERROR."""
MIN_MARGIN_SHARE = 0.05
"""Least widening of the ranges of the white and black share on each side: a white or black defect on 5 % of the frame."""


class Ruling(NamedTuple):
    """A verdict with its cause; compares equal to the plain tuple."""

    verdict: Verdict
    reason_code: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameStatistics:
    """What the commissioned range is made of, computed on the network input.

    Attributes:
        mean: Mean of all values, grey levels.
        deviation: Spread over positions, grey levels: root of the channels' mean variance, so a frame of one colour has 0.
        white_share: Share of pixels whose three channels are all >= 250, 0 to 1.
        black_share: Share of pixels whose three channels are all <= 5, 0 to 1.
    """

    mean: float
    deviation: float
    white_share: float
    black_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MapSummary:
    """What a verdict needs to know of an anomaly map; counted where the map lies, so that the map need not be fetched.

    Attributes:
        peak: Largest value; NaN if there is none.
        is_finite: Whether the map has cells and every one of them is finite.
        gained_peak: Largest value under the product's gain map; None if none was applied.
    """

    peak: float
    is_finite: bool
    gained_peak: float | None = None


def decide(
    score: float,
    anomaly_map: AnomalyMap | MapSummary | None,
    decision: Decision | None,
    *,
    statistics: FrameStatistics,
    golden_checked: bool,
    accepted_sha256: Collection[str],
    now: datetime,
) -> Ruling:
    """Return the verdict on one frame under one decision.

    Checks in this order, and the first that fails is the reason: golden check, decision, its file, its dates, the frame, the raw output, the gained
    map, the floor. PASS therefore implies all of them.

    Args:
        score: The graph's ``anomaly_score``.
        anomaly_map: (H, W) float32 raw map or its summary, None if there is none. For a decision with a gain map the summary that
            :func:`summarise_map` makes with it: floor and thresholds are compared with the gained peak.
        decision: None if the file has none.
        statistics: Of the network input, from :func:`frame_statistics`.
        golden_checked: Whether the golden samples were scored in this process on this backend and agreed.
        accepted_sha256: Hashes of the files whose decisions hold for the file that scored.
        now: Current time with a time zone.
    """
    if not golden_checked:
        return error("no_golden_check", "the model has no golden samples that were checked in this process; export it again with snl-export")
    if decision is None:
        return error("no_decision", "the model was never calibrated; run snl-calibrate on this file")
    summary = summarise_map(anomaly_map)
    fault = (
        _check_decision(decision, accepted_sha256)
        or _check_dates(decision, now)
        or check_frame(statistics, decision.frame_range)
        or check_output(score, summary)
    )
    if fault is not None:
        return fault
    if decision.gain is None:
        return compare_with_thresholds(score, summary.peak, decision)
    gained = summary.gained_peak
    if gained is None:
        return error("no_gain_map", f"the gain map {decision.gain.file} of product {decision.product!r} was not applied; open the model again")
    if not math.isfinite(gained):
        return error("output_not_finite", f"the anomaly map is {gained} under the gain map of product {decision.product!r}")
    return compare_with_thresholds(gained, gained, decision)


def summarise_map(anomaly_map: AnomalyMap | MapSummary | None, gain: GainMap | None = None) -> MapSummary:
    """Return what a verdict needs to know of a map, with its peak under a gain map if one is given; no map, or an empty one, is not finite."""
    if isinstance(anomaly_map, MapSummary):
        return anomaly_map
    if anomaly_map is None or anomaly_map.size == 0:
        return MapSummary(peak=math.nan, is_finite=False)
    gained_peak = None if gain is None else gain.peak(anomaly_map)
    return MapSummary(peak=float(anomaly_map.max()), is_finite=bool(np.isfinite(anomaly_map).all()), gained_peak=gained_peak)


def strictest(rulings: Mapping[str, Ruling]) -> Ruling:
    """Return the ruling for a frame of unnamed product: PASS only where every product would pass.

    ERROR outweighs REJECT, REJECT outweighs REVIEW, so a score is judged by the lowest of the products' thresholds and the highest of their floors.
    """
    order = (Verdict.ERROR, Verdict.REJECT, Verdict.REVIEW, Verdict.PASS)
    if not rulings:
        return error("no_decision", "the model was never calibrated; run snl-calibrate on this file")
    product, ruling = min(rulings.items(), key=lambda item: order.index(item[1].verdict))
    if len(rulings) == 1:
        return ruling
    return ruling._replace(reason=f"no product named, strictest is {product!r}: {ruling.reason}")


def error(reason_code: str, reason: str) -> Ruling:
    """Return an ERROR ruling."""
    return Ruling(Verdict.ERROR, reason_code, reason)


def frame_statistics(image_rgb: Image) -> FrameStatistics:
    """Return the statistics of a prepared frame.

    They are taken on the network input, (H, W, 3) uint8 after cropping and resizing: cheap, and the same in calibration and on the line.
    """
    cv2 = load_opencv()
    means, deviations = cv2.meanStdDev(image_rgb)
    pixels = image_rgb.shape[0] * image_rgb.shape[1]
    white = cv2.inRange(image_rgb, (WHITE_LEVEL,) * 3, (255,) * 3)
    black = cv2.inRange(image_rgb, (0,) * 3, (BLACK_LEVEL,) * 3)
    return FrameStatistics(
        mean=float(means.mean()),
        deviation=float(np.sqrt(np.mean(deviations**2))),
        white_share=cv2.countNonZero(white) / pixels,
        black_share=cv2.countNonZero(black) / pixels,
    )


def fit_frame_range(statistics: Sequence[FrameStatistics]) -> FrameRange:
    """Return the commissioned range of a product: what its good frames span, widened on each side.

    Each range grows on both sides by half of its width, at least by 10 grey levels (mean, deviation) or 0.05 (shares), because a handful of frames
    under steady light spans almost nothing. Ends are clipped to what the statistic can be: 0 to 255, or 0 to 1.

    Args:
        statistics: Of the network inputs of good parts, one per part.

    Raises:
        CalibrationRefusedError: If the sample is empty.
    """
    if not statistics:
        raise CalibrationRefusedError("the commissioned range needs at least one good frame, got 0")
    return FrameRange(
        mean=_widened([s.mean for s in statistics], MIN_MARGIN_GREY, 255.0),
        deviation=_widened([s.deviation for s in statistics], MIN_MARGIN_GREY, 255.0),
        white_share=_widened([s.white_share for s in statistics], MIN_MARGIN_SHARE, 1.0),
        black_share=_widened([s.black_share for s in statistics], MIN_MARGIN_SHARE, 1.0),
    )


def check_frame(statistics: FrameStatistics, frame_range: FrameRange) -> Ruling | None:
    """Return why a frame may not be judged, None if it lies inside the commissioned range."""
    if not statistics.deviation >= MIN_DEVIATION:  # written so that NaN fails
        return error(
            "frame_flat", f"the frame shows nothing: its deviation is {statistics.deviation:.3g} grey levels, expected at least {MIN_DEVIATION:g}"
        )
    for name in ("mean", "deviation", "white_share", "black_share"):
        value = getattr(statistics, name)
        low, high = getattr(frame_range, name)
        if not low <= value <= high:
            title = name.replace("_", " ")
            return error(
                "frame_out_of_range", f"the frame's {title} is {value:.4g}, commissioned range {low:.4g} to {high:.4g}; check light and lens"
            )
    return None


def check_output(score: float, anomaly_map: AnomalyMap | MapSummary | None) -> Ruling | None:
    """Return why a raw output may not be used, None if score and map are finite and the score is the maximum of the map."""
    summary = summarise_map(anomaly_map)
    if not (summary.is_finite and math.isfinite(summary.peak)):
        return error("output_not_finite", "the anomaly map is missing, unwritten or holds NaN or infinity")
    if not math.isfinite(score):
        return error("output_not_finite", f"the anomaly score is {score}, expected a finite number")
    peak = summary.peak
    if not abs(score - peak) <= SCORE_TOLERANCE * max(abs(score), abs(peak)):
        return error("output_inconsistent", f"the anomaly score is {score:.6g}, but the maximum of the map is {peak:.6g}")
    return None


def compare_with_thresholds(score: float, peak: float, decision: Decision) -> Ruling:
    """Return the verdict on a score that every check let through; where score and peak differ by a rounding, the one further from PASS counts."""
    if not min(score, peak) >= decision.floor:
        return error("below_floor", f"the score {score:.6g} is below {decision.floor:.6g}, half of the lowest score of any calibrated good part")
    score = max(score, peak)
    if score <= decision.pass_threshold:
        return Ruling(Verdict.PASS, "below_threshold", f"the score {score:.6g} is at most the pass threshold {decision.pass_threshold:.6g}")
    if score <= decision.reject_threshold:
        reason = f"the score {score:.6g} is above the pass threshold {decision.pass_threshold:.6g}, not above {decision.reject_threshold:.6g}"
        return Ruling(Verdict.REVIEW, "above_pass_threshold", reason)
    return Ruling(Verdict.REJECT, "above_reject_threshold", f"the score {score:.6g} is above the reject threshold {decision.reject_threshold:.6g}")


def _check_decision(decision: Decision, accepted_sha256: Collection[str]) -> Ruling | None:
    if decision.model_sha256 not in accepted_sha256:
        return error(
            "no_threshold_for_engine", f"no threshold for this engine: the decision was fitted on {decision.model_sha256[:12]}; run snl-calibrate"
        )
    floor, low, high = decision.floor, decision.pass_threshold, decision.reject_threshold
    # A floor of 0 would let an all-zero map pass.
    if not (0 < floor <= low <= high < math.inf):
        return error("decision_invalid", f"expected 0 < floor <= pass <= reject threshold, got {floor}, {low}, {high}; run snl-calibrate again")
    return None


def _check_dates(decision: Decision, now: datetime) -> Ruling | None:
    try:
        fitted_at = parse_time(decision.fitted_at)
        expires_at = None if decision.expires_at is None else parse_time(decision.expires_at)
    except ValueError:
        return error("decision_invalid", f"expected ISO dates, got fitted_at {decision.fitted_at!r} and expires_at {decision.expires_at!r}")
    if now < fitted_at:
        return error(
            "clock_before_fit", f"the clock says {now:%Y-%m-%d %H:%M} UTC, before the calibration of {fitted_at:%Y-%m-%d %H:%M}; set the clock"
        )
    if expires_at is not None and now >= expires_at:
        return error("decision_expired", f"the decision expired on {expires_at:%Y-%m-%d %H:%M} UTC; run snl-calibrate again")
    return None


def parse_time(text: str) -> datetime:
    """Return an ISO 8601 time in UTC; a text without time zone is UTC already.

    Raises:
        ValueError: If the text is not an ISO 8601 time.
    """
    if not isinstance(text, str):
        raise ValueError(f"expected an ISO 8601 time, got {text!r}")
    moment = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)  # Python 3.10 does not read the Z
    if moment.tzinfo is None:
        return moment.replace(tzinfo=timezone.utc)
    try:
        return moment.astimezone(timezone.utc)
    except OverflowError as error:  # year 1 or 9999 near midnight
        raise ValueError(f"{text!r} is outside the calendar") from error


def _widened(values: Sequence[float], min_margin: float, limit: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = max((high - low) / 2, min_margin)
    return max(low - margin, 0.0), min(high + margin, limit)
