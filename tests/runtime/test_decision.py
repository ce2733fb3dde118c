"""PASS needs every piece of evidence; whatever is missing is ERROR with its reason code."""

import math
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snl_runtime.decision import (
    REASON_CODES,
    FrameStatistics,
    Ruling,
    check_frame,
    decide,
    fit_frame_range,
    frame_statistics,
    parse_time,
    strictest,
)
from snl_runtime.errors import CalibrationRefusedError
from snl_runtime.manifest import FrameRange
from snl_runtime.types import Verdict

NOW = datetime(2025, 6, 1, 12, tzinfo=timezone.utc)
STATISTICS = FrameStatistics(mean=100.0, deviation=20.0, white_share=0.1, black_share=0.1)
RANGE = FrameRange(mean=(80.0, 120.0), deviation=(10.0, 30.0), white_share=(0.0, 0.2), black_share=(0.0, 0.2))
HASH = "a" * 64


def map_with_peak(peak):
    anomaly_map = np.zeros((4, 4), np.float32)
    anomaly_map[1, 2] = peak
    return anomaly_map


def ruling_for(decision, score=5.0, *, anomaly_map=None, statistics=STATISTICS, golden_checked=True, accepted=(HASH,), now=NOW):
    return decide(
        score,
        map_with_peak(score) if anomaly_map is None else anomaly_map,
        decision,
        statistics=statistics,
        golden_checked=golden_checked,
        accepted_sha256=accepted,
        now=now,
    )


@pytest.mark.parametrize(
    ("score", "verdict", "code"),
    [
        (2.0, Verdict.PASS, "below_threshold"),
        (10.0, Verdict.PASS, "below_threshold"),
        (10.001, Verdict.REVIEW, "above_pass_threshold"),
        (11.0, Verdict.REVIEW, "above_pass_threshold"),
        (11.001, Verdict.REJECT, "above_reject_threshold"),
        (1.999, Verdict.ERROR, "below_floor"),
        (0.0, Verdict.ERROR, "below_floor"),
        (-5.0, Verdict.ERROR, "output_inconsistent"),
        (math.nan, Verdict.ERROR, "output_not_finite"),
        (math.inf, Verdict.ERROR, "output_not_finite"),
    ],
)
def test_thresholds_are_inclusive_below_and_everything_odd_is_an_error(fixtures, score, verdict, code):
    assert ruling_for(fixtures.make_decision(), score)[:2] == (verdict, code)


@pytest.mark.parametrize(
    ("changes", "arguments", "code"),
    [
        ({}, {"golden_checked": False}, "no_golden_check"),
        ({}, {"accepted": ("c" * 64,)}, "no_threshold_for_engine"),
        ({}, {"accepted": ()}, "no_threshold_for_engine"),
        ({"expires_at": "2025-06-01T12:00:00+00:00"}, {}, "decision_expired"),
        ({"expires_at": "2025-06-01T13:59:59+02:00"}, {}, "decision_expired"),
        ({"fitted_at": "2025-06-01T12:00:01Z"}, {}, "clock_before_fit"),
        ({"fitted_at": "yesterday"}, {}, "decision_invalid"),
        ({"fitted_at": None}, {}, "decision_invalid"),
        ({"fitted_at": "0001-01-01T00:00:00+05:00"}, {}, "decision_invalid"),
        ({"expires_at": "never"}, {}, "decision_invalid"),
        ({"floor": 0.0}, {}, "decision_invalid"),
        ({"floor": 10.5}, {}, "decision_invalid"),
        ({"floor": math.nan}, {}, "decision_invalid"),
        ({"pass_threshold": math.nan}, {}, "decision_invalid"),
        ({"pass_threshold": math.inf, "reject_threshold": math.inf}, {}, "decision_invalid"),
        ({"reject_threshold": 9.0}, {}, "decision_invalid"),
        ({"frame_range": RANGE}, {"statistics": FrameStatistics(mean=121.0, deviation=20, white_share=0, black_share=0)}, "frame_out_of_range"),
        ({"frame_range": RANGE}, {"statistics": FrameStatistics(mean=100, deviation=31, white_share=0, black_share=0)}, "frame_out_of_range"),
        ({"frame_range": RANGE}, {"statistics": FrameStatistics(mean=100, deviation=20, white_share=0.3, black_share=0)}, "frame_out_of_range"),
        ({"frame_range": RANGE}, {"statistics": FrameStatistics(mean=100, deviation=20, white_share=0, black_share=0.3)}, "frame_out_of_range"),
        ({}, {"statistics": FrameStatistics(mean=100, deviation=1.99, white_share=0, black_share=0)}, "frame_flat"),
        ({}, {"statistics": FrameStatistics(mean=100, deviation=math.nan, white_share=0, black_share=0)}, "frame_flat"),
        ({"frame_range": RANGE}, {"statistics": FrameStatistics(mean=math.nan, deviation=20, white_share=0, black_share=0)}, "frame_out_of_range"),
        ({}, {"anomaly_map": np.full((4, 4), np.nan, np.float32)}, "output_not_finite"),
        ({}, {"anomaly_map": np.empty((0, 4), np.float32)}, "output_not_finite"),
        ({}, {"anomaly_map": np.array([[5, -np.inf]], np.float32)}, "output_not_finite"),
        ({}, {"anomaly_map": map_with_peak(5.001)}, "output_inconsistent"),
        ({}, {"anomaly_map": map_with_peak(0)}, "output_inconsistent"),
    ],
)
def test_each_missing_piece_of_evidence_is_an_error(fixtures, changes, arguments, code):
    verdict, reason_code, reason = ruling_for(fixtures.make_decision(**changes), **arguments)
    assert (verdict, reason_code) == (Verdict.ERROR, code)
    assert reason_code in REASON_CODES
    assert reason
    assert ruling_for(fixtures.make_decision()).verdict is Verdict.PASS, "the control row"


def test_no_decision_and_no_map_are_errors(fixtures):
    common = {"statistics": STATISTICS, "golden_checked": True, "accepted_sha256": (HASH,), "now": NOW}
    assert decide(5.0, map_with_peak(5), None, **common)[:2] == (Verdict.ERROR, "no_decision")
    assert decide(5.0, None, fixtures.make_decision(), **common)[:2] == (Verdict.ERROR, "output_not_finite")


def test_a_decision_is_valid_until_the_moment_it_expires(fixtures):
    decision = fixtures.make_decision(fitted_at="2025-06-01T12:00:00Z", expires_at="2025-06-01T12:00:01Z")
    assert ruling_for(decision).verdict is Verdict.PASS


def test_a_rounding_between_score_and_map_never_decides_for_pass(fixtures):
    above = map_with_peak(np.float32(10) * np.float32(1 + 5e-6))
    assert ruling_for(fixtures.make_decision(), 10.0, anomaly_map=above).verdict is Verdict.REVIEW


NUMBERS = st.one_of(st.floats(), st.floats(0, 20), st.sampled_from([0.0, -0.0, 1.0, 5.0, 10.0, math.nan, math.inf, -math.inf]))
TIMES = st.one_of(st.none(), st.integers(-3, 3), st.just("garbage"))


@given(
    score=NUMBERS,
    peak=st.one_of(st.none(), NUMBERS),
    floor=NUMBERS,
    pass_threshold=NUMBERS,
    reject_threshold=NUMBERS,
    mean=NUMBERS,
    deviation=NUMBERS,
    golden_checked=st.booleans(),
    same_hash=st.booleans(),
    fitted=TIMES,
    expires=TIMES,
)
@settings(max_examples=600, deadline=None)
def test_pass_implies_every_piece_of_evidence(
    fixtures, score, peak, floor, pass_threshold, reject_threshold, mean, deviation, golden_checked, same_hash, fitted, expires
):
    def stamp(days):
        return (NOW + timedelta(days=days)).isoformat() if isinstance(days, int) else days

    decision = fixtures.make_decision(
        floor=floor,
        pass_threshold=pass_threshold,
        reject_threshold=reject_threshold,
        frame_range=RANGE,
        fitted_at=stamp(fitted),
        expires_at=stamp(expires),
    )
    with np.errstate(over="ignore"):
        anomaly_map = np.full((2, 2), score if peak is None else peak, np.float32)
    verdict, code, _ = ruling_for(
        decision,
        score,
        anomaly_map=anomaly_map,
        statistics=FrameStatistics(mean=mean, deviation=deviation, white_share=0.0, black_share=0.0),
        golden_checked=golden_checked,
        accepted=(HASH,) if same_hash else ("c" * 64,),
    )
    assert code in REASON_CODES
    if verdict is Verdict.PASS:
        assert golden_checked
        assert same_hash
        assert math.isfinite(score)
        assert np.isfinite(anomaly_map).all()
        assert math.isclose(score, anomaly_map.max(), rel_tol=1e-5)
        assert 0 < floor <= pass_threshold <= reject_threshold < math.inf
        assert score <= pass_threshold
        assert anomaly_map.max() <= pass_threshold
        assert score >= floor
        assert isinstance(fitted, int)
        assert fitted <= 0
        assert expires is None or (isinstance(expires, int) and expires > 0)
        assert 80 <= mean <= 120
        assert 10 <= deviation <= 30


@given(score=st.floats(2, 20, width=32))
@settings(max_examples=100, deadline=None)
def test_the_evidence_is_also_enough_for_pass(fixtures, score):
    verdict = ruling_for(fixtures.make_decision(frame_range=RANGE), score).verdict
    assert verdict is (Verdict.PASS if score <= 10 else Verdict.REVIEW if score <= 11 else Verdict.REJECT)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ("PASS PASS", "PASS"),
        ("PASS REVIEW", "REVIEW"),
        ("REVIEW REJECT", "REJECT"),
        ("REJECT ERROR", "ERROR"),
        ("ERROR PASS", "ERROR"),
    ],
)
def test_without_a_named_product_the_strictest_ruling_counts(verdicts, expected):
    rulings = {f"p{i}": Ruling(Verdict[name], "timeout", name) for i, name in enumerate(verdicts.split())}
    assert strictest(rulings).verdict is Verdict[expected]
    assert expected in strictest(rulings).reason


def test_without_any_ruling_the_answer_is_an_error():
    assert strictest({})[:2] == (Verdict.ERROR, "no_decision")


@pytest.mark.parametrize("text", ["2025-06-01T14:00:00+02:00", "2025-06-01T12:00:00Z", "2025-06-01T12:00:00"])
def test_times_are_read_as_utc(text):
    assert parse_time(text) == NOW


def test_statistics_equal_sums_by_hand():
    image = np.random.default_rng(3).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    image[0, :5] = 255
    image[1, :3] = 2
    image[2, 0] = (250, 250, 249)
    image[2, 1] = (5, 5, 6)
    pixels = [[int(value) for value in pixel] for row in image for pixel in row]
    count = len(pixels)
    mean = sum(sum(pixel) for pixel in pixels) / (3 * count)
    channel_means = [sum(pixel[c] for pixel in pixels) / count for c in range(3)]
    variance = sum((pixel[c] - channel_means[c]) ** 2 for pixel in pixels for c in range(3)) / (3 * count)
    statistics = frame_statistics(image)
    assert statistics.mean == pytest.approx(mean, rel=1e-9)
    assert statistics.deviation == pytest.approx(math.sqrt(variance), rel=1e-9)
    assert statistics.white_share == sum(min(pixel) >= 250 for pixel in pixels) / count
    assert statistics.black_share == sum(max(pixel) <= 5 for pixel in pixels) / count


def test_a_frame_of_one_strong_colour_has_no_deviation():
    assert frame_statistics(np.full((8, 8, 3), (255, 0, 0), np.uint8)).deviation == 0


def test_the_range_grows_by_half_of_its_width_on_each_side_and_is_clipped():
    sample = [
        FrameStatistics(mean=100, deviation=10, white_share=0.9, black_share=0.0),
        FrameStatistics(mean=140, deviation=30, white_share=0.96, black_share=0.2),
        FrameStatistics(mean=120, deviation=20, white_share=0.95, black_share=0.1),
    ]
    fitted = fit_frame_range(sample)
    assert fitted.mean == (80.0, 160.0)
    assert fitted.deviation == (0.0, 40.0)
    assert fitted.white_share == pytest.approx((0.85, 1.0))  # half of the width is 0.03, less than the least margin
    assert fitted.black_share == pytest.approx((0.0, 0.3))


def test_one_frame_or_steady_light_still_leaves_a_margin():
    fitted = fit_frame_range([STATISTICS])
    assert fitted.mean == (90.0, 110.0)
    assert fitted.deviation == (10.0, 30.0)
    assert fitted.white_share == pytest.approx((0.05, 0.15))


def test_a_local_defect_of_any_colour_on_three_percent_of_the_frame_stays_inside():
    rng = np.random.default_rng(5)
    good = [(90 + 40 * rng.standard_normal((64, 64, 1)) + np.zeros(3)).clip(0, 255).astype(np.uint8) for _ in range(30)]
    fitted = fit_frame_range([frame_statistics(image) for image in good])
    for value in (0, 255):
        bad = good[0].copy()
        bad[20:31, 20:31] = value  # 121 of 4096 pixels
        assert check_frame(frame_statistics(bad), fitted) is None


def test_every_frame_of_the_sample_is_inside_its_own_range():
    rng = np.random.default_rng(4)
    sample = [frame_statistics(rng.integers(60, 200, (16, 16, 3)).astype(np.uint8)) for _ in range(20)]
    fitted = fit_frame_range(sample)
    assert [check_frame(statistics, fitted) for statistics in sample] == [None] * 20


def test_an_empty_sample_is_refused():
    with pytest.raises(CalibrationRefusedError, match="at least one good frame"):
        fit_frame_range([])
