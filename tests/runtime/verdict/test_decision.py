"""PASS needs every piece of evidence; whatever is missing is ERROR with its reason code."""

import dataclasses
import math
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snl_runtime.types import Verdict
from snl_runtime.verdict.decision import decide, parse_time, strictest
from snl_runtime.verdict.ruling import REASON_CODES, Ruling

NOW = datetime(2025, 6, 1, 12, tzinfo=timezone.utc)
RANGE = {"mean": (80.0, 120.0), "deviation": (10.0, 30.0), "white_share": (0.0, 0.2), "black_share": (0.0, 0.2), "green": (-5.0, 5.0)}
HASH = "a" * 64


def map_with_peak(peak):
    anomaly_map = np.zeros((4, 4), np.float32)
    anomaly_map[1, 2] = peak
    return anomaly_map


@pytest.fixture(scope="module")
def ruling_for(fixtures):
    """Return the ruling on a frame; ``changes`` are of the decision, ``statistics`` and ``frame`` of a gray frame of 32 x 32 pixels."""

    def rule(changes=None, score=5.0, *, anomaly_map=None, statistics=None, frame=None, golden_checked=True, accepted=(HASH,)):
        changes = dict(changes or {})
        if "frame_range" in changes:
            changes["frame_range"] = dataclasses.replace(fixtures.ANY_FRAME, **changes["frame_range"])
        return decide(
            score,
            map_with_peak(score) if anomaly_map is None else anomaly_map,
            fixtures.make_decision(**changes),
            frame=dataclasses.replace(fixtures.FORMAT, **(frame or {})),
            statistics=dataclasses.replace(fixtures.GRAY, **(statistics or {})),
            golden_checked=golden_checked,
            accepted_sha256=accepted,
            now=NOW,
        )

    return rule


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
def test_thresholds_are_inclusive_below_and_everything_odd_is_an_error(ruling_for, score, verdict, code):
    assert ruling_for({}, score)[:2] == (verdict, code)


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
        ({"frame_range": RANGE}, {"statistics": {"mean": 121.0, "deviation": 20, "white_share": 0, "black_share": 0}}, "frame_out_of_range"),
        ({"frame_range": RANGE}, {"statistics": {"mean": 100, "deviation": 31, "white_share": 0, "black_share": 0}}, "frame_out_of_range"),
        ({"frame_range": RANGE}, {"statistics": {"mean": 100, "deviation": 20, "white_share": 0.3, "black_share": 0}}, "frame_out_of_range"),
        ({"frame_range": RANGE}, {"statistics": {"mean": 100, "deviation": 20, "white_share": 0, "black_share": 0.3}}, "frame_out_of_range"),
        ({}, {"statistics": {"mean": 100, "deviation": 1.99, "white_share": 0, "black_share": 0}}, "frame_flat"),
        ({}, {"statistics": {"mean": 100, "deviation": math.nan, "white_share": 0, "black_share": 0}}, "frame_flat"),
        ({"frame_range": RANGE}, {"statistics": {"mean": math.nan, "deviation": 20, "white_share": 0, "black_share": 0}}, "frame_out_of_range"),
        ({"frame_range": RANGE}, {"statistics": {"green": 5.1}}, "frame_out_of_range"),
        ({"frame_range": RANGE}, {"statistics": {"green": math.nan}}, "frame_out_of_range"),
        ({"frame_range": RANGE}, {"frame": {"size_hw": (3, 1 << 17)}}, "frame_size"),
        ({"bit_depth": 12}, {}, "frame_bit_depth"),
        ({}, {"frame": {"bit_depth": 16}}, "frame_bit_depth"),
        ({}, {"anomaly_map": np.full((4, 4), np.nan, np.float32)}, "output_not_finite"),
        ({}, {"anomaly_map": np.empty((0, 4), np.float32)}, "output_not_finite"),
        ({}, {"anomaly_map": np.array([[5, -np.inf]], np.float32)}, "output_not_finite"),
        ({}, {"anomaly_map": map_with_peak(5.001)}, "output_inconsistent"),
        ({}, {"anomaly_map": map_with_peak(0)}, "output_inconsistent"),
    ],
)
def test_each_missing_piece_of_evidence_is_an_error(ruling_for, changes, arguments, code):
    verdict, reason_code, reason = ruling_for(changes, **arguments)
    assert (verdict, reason_code) == (Verdict.ERROR, code)
    assert reason_code in REASON_CODES
    assert reason
    assert ruling_for().verdict is Verdict.PASS, "the control row"


def test_no_decision_and_no_map_are_errors(fixtures):
    common = {"frame": fixtures.FORMAT, "statistics": fixtures.GRAY, "golden_checked": True, "accepted_sha256": (HASH,), "now": NOW}
    assert decide(5.0, map_with_peak(5), None, **common)[:2] == (Verdict.ERROR, "no_decision")
    assert decide(5.0, None, fixtures.make_decision(), **common)[:2] == (Verdict.ERROR, "output_not_finite")


def test_a_decision_is_valid_until_the_moment_it_expires(ruling_for):
    assert ruling_for({"fitted_at": "2025-06-01T12:00:00Z", "expires_at": "2025-06-01T12:00:01Z"}).verdict is Verdict.PASS


def test_a_rounding_between_score_and_map_never_decides_for_pass(ruling_for):
    above = map_with_peak(np.float32(10) * np.float32(1 + 5e-6))
    assert ruling_for({}, 10.0, anomaly_map=above).verdict is Verdict.REVIEW


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
    ruling_for, score, peak, floor, pass_threshold, reject_threshold, mean, deviation, golden_checked, same_hash, fitted, expires
):
    def stamp(days):
        return (NOW + timedelta(days=days)).isoformat() if isinstance(days, int) else days

    changes = {
        "floor": floor,
        "pass_threshold": pass_threshold,
        "reject_threshold": reject_threshold,
        "frame_range": RANGE,
        "fitted_at": stamp(fitted),
        "expires_at": stamp(expires),
    }
    with np.errstate(over="ignore"):
        anomaly_map = np.full((2, 2), score if peak is None else peak, np.float32)
    verdict, code, _ = ruling_for(
        changes,
        score,
        anomaly_map=anomaly_map,
        statistics={"mean": mean, "deviation": deviation},
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
def test_the_evidence_is_also_enough_for_pass(ruling_for, score):
    verdict = ruling_for({"frame_range": RANGE}, score).verdict
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
    reason = strictest(rulings).reason
    assert expected in reason
    assert reason.startswith("no product named")
    assert ("name the product (--product" in reason) == (expected != "PASS")


def test_without_any_ruling_the_answer_is_an_error():
    assert strictest({})[:2] == (Verdict.ERROR, "no_decision")


@pytest.mark.parametrize("text", ["2025-06-01T14:00:00+02:00", "2025-06-01T12:00:00Z", "2025-06-01T12:00:00"])
def test_times_are_read_as_utc(text):
    assert parse_time(text) == NOW
