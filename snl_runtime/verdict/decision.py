"""The rules that turn a score into a verdict. PASS needs positive evidence; everything that is not PASS, REVIEW or REJECT is ERROR.

Pure functions: no clock, no file and no state in here, so every rule can be tested with any input.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np

from snl_runtime.images.preprocess import FrameFormat
from snl_runtime.model.manifest import Decision
from snl_runtime.model.map_factors import MapFactors
from snl_runtime.types import AnomalyMap, Verdict
from snl_runtime.verdict.frame_checks import FrameStatistics, check_format, check_frame
from snl_runtime.verdict.ruling import NAME_THE_PRODUCT, Ruling, error

SCORE_TOLERANCE = 1e-5
"""Largest relative difference between the score and the maximum of the map; both come from one graph in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MapSummary:
    """What a verdict needs to know of an anomaly map; counted where the map lies, so that the map need not be fetched.

    Attributes:
        peak: Largest value; NaN if there is none.
        is_finite: Whether the map has cells and every one of them is finite.
        normalized_peak: Largest value of the map as it is judged, under the product's normalization map and ignore mask; None if there is neither.
    """

    peak: float
    is_finite: bool
    normalized_peak: float | None = None


def decide(  # noqa: PLR0913  # all evidence on one frame
    score: float,
    anomaly_map: AnomalyMap | MapSummary | None,
    decision: Decision | None,
    *,
    frame: FrameFormat,
    statistics: FrameStatistics,
    golden_checked: bool,
    accepted_sha256: Collection[str],
    now: datetime,
) -> Ruling:
    """Return the verdict on one frame under one decision.

    Checks in this order, and the first that fails is the reason: golden check, decision, its file, its dates, size and bit depth of the frame, its
    look, the raw output, the normalized map, the floor. PASS therefore implies all of them. A frame that cannot be read never gets here: a wrong
    type, shape or channels, a value above its bit depth, a ROI outside it.

    Args:
        score: The graph's ``anomaly_score``.
        anomaly_map: (H, W) float32 raw map or its summary, None if there is none. For a decision with a normalization map or
            an ignore mask the summary that :func:`summarize_map` makes with it: floor and thresholds are compared with that peak.
        decision: None if the file has none.
        frame: Size and bit depth of the whole frame, before the ROI.
        statistics: Of the network input, from :func:`snl_runtime.verdict.frame_checks.frame_statistics`.
        golden_checked: Whether the golden samples were scored in this process on this backend and agreed.
        accepted_sha256: Hashes of the files whose decisions hold for the file that scored.
        now: Current time with a time zone.
    """
    if not golden_checked:
        return error("no_golden_check", "the model has no golden samples that were checked in this process; export it again with snl-export")
    if decision is None:
        return error("no_decision", "the model was never calibrated; run snl-calibrate on this file")
    summary = summarize_map(anomaly_map)
    fault = (
        _check_decision(decision, accepted_sha256)
        or _check_dates(decision, now)
        or check_format(frame, decision.frame_sizes, decision.bit_depth)
        or check_frame(statistics, decision.frame_range)
        or check_output(score, summary)
    )
    if fault is not None:
        return fault
    if not decision.map_files:
        return compare_with_thresholds(score, summary.peak, decision)
    judged = summary.normalized_peak
    if judged is None:
        files = " and ".join(file.file for file in decision.map_files)
        return error("no_normalization_map", f"{files} of product {decision.product!r} was not applied; open the model again")
    if not math.isfinite(judged):
        return error("output_not_finite", f"the anomaly map is {judged} under the normalization map of product {decision.product!r}")
    return compare_with_thresholds(judged, judged, decision)


def summarize_map(anomaly_map: AnomalyMap | MapSummary | None, normalization: MapFactors | None = None) -> MapSummary:
    """Return what a verdict needs to know of a map, with its peak under factors if some are given; no map, or an empty one, is not finite."""
    if isinstance(anomaly_map, MapSummary):
        return anomaly_map
    if anomaly_map is None or anomaly_map.size == 0:
        return MapSummary(peak=math.nan, is_finite=False)
    normalized_peak = None if normalization is None else normalization.peak(anomaly_map)
    return MapSummary(peak=float(anomaly_map.max()), is_finite=bool(np.isfinite(anomaly_map).all()), normalized_peak=normalized_peak)


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
    remedy = "" if ruling.verdict is Verdict.PASS else f": {NAME_THE_PRODUCT}"  # before the reason, which may be another product's
    return ruling._replace(reason=f"no product named{remedy}; strictest is {product!r}: {ruling.reason}")


def check_output(score: float, anomaly_map: AnomalyMap | MapSummary | None) -> Ruling | None:
    """Return why a raw output may not be used, None if score and map are finite and the score is the maximum of the map."""
    summary = summarize_map(anomaly_map)
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
