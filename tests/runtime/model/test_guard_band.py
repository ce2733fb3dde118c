"""An engine that inherits a decision is never more lenient than its model, whatever the scores, as long as they differ by no more than reported."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from snl_runtime.model.guard_band import tightened
from snl_runtime.model.manifest import NormalizationFile
from snl_runtime.model.normalization import NormalizationMap
from snl_runtime.types import Verdict
from snl_runtime.verdict.decision import compare_with_thresholds

STRICTNESS = {Verdict.PASS: 0, Verdict.REVIEW: 1, Verdict.REJECT: 2, Verdict.ERROR: 3}
HIGHEST = 8.0

scores = st.floats(0, HIGHEST, width=32)
values = st.floats(2.0**-10, HIGHEST, width=32)


@pytest.fixture(scope="module")
def make_decision(fixtures):
    def make(thresholds, **changes):
        floor, pass_threshold, reject_threshold = sorted(thresholds)
        return fixtures.make_decision(floor=floor, pass_threshold=pass_threshold, reject_threshold=reject_threshold, **changes)

    return make


def ruled(score, floor, pass_threshold, reject_threshold):
    """The rule of the docs, in exact numbers: a second derivation of what the line compares."""
    score, floor, low, high = (Fraction(value) for value in (score, floor, pass_threshold, reject_threshold))
    if score < floor:
        return Verdict.ERROR
    return Verdict.PASS if score <= low else Verdict.REVIEW if score <= high else Verdict.REJECT


def never_more_lenient(model_score, engine_score, decision, inherited):
    expected = ruled(model_score, decision.floor, decision.pass_threshold, decision.reject_threshold)
    actual = Verdict.ERROR if inherited is None else compare_with_thresholds(engine_score, engine_score, inherited).verdict
    assert compare_with_thresholds(model_score, model_score, decision).verdict is expected
    assert STRICTNESS[actual] >= STRICTNESS[expected], (expected, actual)


@given(thresholds=st.tuples(values, values, values), model_score=scores, engine_score=scores, more=st.floats(0, 1))
@example((1.0, 2.0, 2.0), 2.0000002384185791015625, 2.0, 0.0)
@example((1.0, 2.0, 3.0), 0.999999940395355224609375, 1.0, 0.0)
@settings(max_examples=500, deadline=None)
def test_no_score_within_the_guard_band_is_judged_more_leniently(make_decision, thresholds, model_score, engine_score, more):
    decision = make_decision(thresholds)
    band = abs(model_score - engine_score) + more * 0.5
    never_more_lenient(model_score, engine_score, decision, tightened(decision, guard_band=band, map_max_abs=0.0))


@given(
    threshold=st.floats(1.0, HIGHEST),
    steps=st.integers(-2, 3),
    moved=st.one_of(st.floats(-HIGHEST, HIGHEST), st.floats(-1e-12, 1e-12)),
    which=st.integers(0, 2),
)
@settings(max_examples=1000, deadline=None)
def test_model_score_a_rounding_away_from_a_threshold_is_no_exception(make_decision, threshold, steps, moved, which):
    thresholds = ((threshold, 20.0, 30.0), (2.0**-20, threshold, 30.0), (2.0**-20, 2.0**-19, threshold))[which]
    model_score = threshold
    for _ in range(abs(steps)):
        model_score = math.nextafter(model_score, math.copysign(math.inf, steps))
    engine_score = model_score + moved
    decision = make_decision(thresholds)
    band = abs(model_score - engine_score)
    never_more_lenient(model_score, engine_score, decision, tightened(decision, guard_band=band, map_max_abs=0.0))


@given(
    normalization=st.floats(0.5, 2.0, width=32),
    model=st.floats(1.0, HIGHEST, width=32),
    moved=st.floats(-0.5, 0.5, width=32),
    steps=st.integers(-1, 1),
)
@settings(max_examples=500, deadline=None)
def test_normalized_model_score_a_rounding_away_from_a_threshold_is_no_exception(make_decision, normalization, model, moved, steps):
    """Products in float32 are rounded: the normalized scores may differ by more than normalization times the difference of the maps."""
    before, after = (np.array([[value]], np.float32) for value in (model, np.float32(model) + np.float32(moved)))
    normalization_map = NormalizationMap(np.array([[normalization]], np.float32))
    peak = normalization_map.peak(before)
    threshold = peak if steps == 0 else math.nextafter(peak, math.copysign(math.inf, steps))
    file = NormalizationFile(file="a.npz", sha256="a" * 64, highest=float(normalization_map.values.max()))
    map_max_abs = abs(float(after[0, 0]) - float(before[0, 0]))
    for thresholds in ((2.0**-20, threshold, 100.0), (2.0**-20, 2.0**-19, threshold), (threshold, 100.0, 200.0)):
        decision = make_decision(thresholds, normalization=file)
        never_more_lenient(peak, normalization_map.peak(after), decision, tightened(decision, guard_band=0.0, map_max_abs=map_max_abs))


@given(thresholds=st.tuples(*[st.integers(1, 24)] * 3), band=st.integers(0, 6))
@settings(max_examples=60, deadline=None)
def test_brute_force_over_a_grid_of_scores(make_decision, thresholds, band):
    """Every pair of scores in steps of an eighth that differ by the band or less: exact in floating point, so nothing is lost to rounding."""
    decision = make_decision([value / 8 for value in thresholds])
    inherited = tightened(decision, guard_band=band / 8, map_max_abs=0.0)
    for model in range(32):
        for engine in range(max(model - band, 0), model + band + 1):
            never_more_lenient(model / 8, engine / 8, decision, inherited)


@given(thresholds=st.tuples(values, values, values), cells=st.lists(st.tuples(values, scores, st.floats(-1, 1)), min_size=1, max_size=6), band=scores)
@settings(max_examples=500, deadline=None)
def test_no_map_within_the_reported_difference_is_judged_more_leniently_under_a_normalization_map(make_decision, thresholds, cells, band):
    normalizations, model, moves = (np.array(each, np.float32)[None] for each in zip(*cells))
    engine = np.maximum(model + moves * np.float32(band / 8), 0)
    map_max_abs = float(np.abs(engine.astype(np.float64) - model).max())
    normalization = NormalizationMap(normalizations)
    decision = make_decision(thresholds, normalization=NormalizationFile(file="a.npz", sha256="a" * 64, highest=float(normalizations.max())))
    inherited = tightened(decision, guard_band=0.0, map_max_abs=map_max_abs)
    never_more_lenient(normalization.peak(model), normalization.peak(engine), decision, inherited)


@given(thresholds=st.tuples(values, values, values), band=st.floats(0, HIGHEST))
@settings(max_examples=200, deadline=None)
def test_tightened_thresholds_are_in_order_and_cost_no_more_than_the_band(make_decision, thresholds, band):
    decision = make_decision(thresholds)
    inherited = tightened(decision, guard_band=band, map_max_abs=0.0)
    if inherited is None:
        assert decision.floor + band >= (decision.pass_threshold - band) * (1 - 1e-12) - 1e-12
        return
    assert 0 < inherited.floor <= inherited.pass_threshold <= inherited.reject_threshold
    for name, moved in (("floor", band), ("pass_threshold", -band), ("reject_threshold", -band)):
        assert getattr(inherited, name) == pytest.approx(getattr(decision, name) + moved, rel=1e-12, abs=1e-12)
    assert dataclasses.replace(inherited, **{name: getattr(decision, name) for name in ("floor", "pass_threshold", "reject_threshold")}) == decision


def test_engine_without_any_difference_keeps_the_thresholds(make_decision):
    normalized = make_decision((1.0, 2.0, 3.0), normalization=NormalizationFile(file="a.npz", sha256="a" * 64, highest=2.0))
    for decision in (make_decision((1.0, 2.0, 3.0)), normalized):
        assert tightened(decision, guard_band=0.0, map_max_abs=0.0) is decision


@pytest.mark.parametrize("thresholds", [(0.0, 2.0, 3.0), (1.0, 2.0, math.inf), (1.0, math.inf, math.inf)])
def test_decision_that_the_model_may_not_use_does_not_become_valid(make_decision, thresholds):
    decision = make_decision(thresholds)
    assert tightened(decision, guard_band=0.25, map_max_abs=0.25) is decision


def test_review_never_becomes_pass(make_decision):
    """The case that was no flip: the model reviews, the engine scores lower by the band."""
    decision = make_decision((0.5, 2.0, 3.0))
    for model_score in np.linspace(2.001, 2.999, 50):
        inherited = tightened(decision, guard_band=0.125, map_max_abs=0.0)
        assert compare_with_thresholds(model_score - 0.125, model_score - 0.125, inherited).verdict is Verdict.REVIEW
