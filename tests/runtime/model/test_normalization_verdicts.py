"""A product with a normalization map is judged by its normalized map, everywhere and by nothing else; the checks of the raw output stay."""

import dataclasses
import math
from datetime import datetime, timezone
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import ManifestError
from snl_runtime.model.manifest import read_manifest, write_manifest
from snl_runtime.model.normalization import NormalizationMap
from snl_runtime.model.normalization_files import encode_normalization, open_normalizations
from snl_runtime.types import OutputRequest, Verdict
from snl_runtime.verdict.decision import MapSummary, summarize_map
from snl_runtime.verdict.scored_frame import ScoredFrame, ScoredMap
from snl_runtime.verdict.selection import DecisionBook
from tolerances import TINY_MODEL_ABS, TINY_MODEL_REL

SIZE = 32
BAR = np.s_[20:26]  # rows of a print that every good part has: the network scores it high
NOW = datetime(2025, 1, 1, tzinfo=timezone.utc)


def normalization_values(low=0.2, high=1.1):
    values = np.full((SIZE, SIZE), high, np.float32)
    values[18:28] = low
    return values


def printed(frame):
    """The frame with a striped print in the same place of every part, BGR."""
    frame = frame.copy()
    frame[BAR, 4:28:2] -= 60
    return frame


@pytest.fixture
def write_model(model_folder):
    """Write the tiny model; each decision is a dict of changes, its ``normalization`` an array."""

    def write(*decisions):
        normalizations = [changes.pop("normalization", None) for changes in decisions]
        model = model_folder.write(decisions=list(decisions))
        for changes, values in zip(decisions, normalizations):
            if values is not None:
                model_folder.give_normalization(values, changes.get("product", "bottle"))
        return model

    return write


def rgb(frame):
    return np.ascontiguousarray(frame[:, :, ::-1])


def limits(scores, reject=1.0):
    threshold = max(scores) * 1.02
    return {"pass_threshold": threshold, "reject_threshold": threshold * reject, "floor": min(scores) / 2}


@pytest.fixture
def parts(fixtures):
    """Good and bad printed parts; the scratch of a bad one stays far below the print."""
    good = [printed(fixtures.good_frame(seed)) for seed in range(8)]
    bad = [printed(fixtures.bad_frame(seed)) for seed in range(8)]
    return good, bad


def test_only_the_normalized_map_tells_bad_parts_from_good_ones(write_model, fixtures, parts):
    good, bad = parts
    wide = {"frame_range": fixtures.ANY_FRAME}
    raw = [float(fixtures.reference_map(rgb(frame)).max()) for frame in good]
    normalized = [float((fixtures.reference_map(rgb(frame)) * normalization_values()).max()) for frame in good]
    model = write_model({**limits(raw), **wide}, {"product": "printed", **limits(normalized), **wide, "normalization": normalization_values()})
    with SnlDetector(model) as detector:
        for frame in good:
            assert detector.detect(frame, product="printed").verdict is Verdict.PASS
        for frame in bad:
            assert detector.detect(frame, product="bottle").verdict is Verdict.PASS  # the print hides the scratch
            result = detector.detect(frame, product="printed", outputs=OutputRequest(frame_map=True, mask=True))
            expected = fixtures.reference_map(rgb(frame)) * normalization_values()
            assert result.verdict is Verdict.REJECT
            assert result.score == pytest.approx(expected.max(), rel=TINY_MODEL_REL)
            assert np.allclose(result.anomaly_map, expected, atol=TINY_MODEL_ABS)
            assert result.score == result.anomaly_map.max() == max(region.score for region in result.regions)
            assert all(region.box_xyxy[1] >= 8 and region.box_xyxy[3] <= 14 for region in result.regions)  # the scratch, not the print
            assert np.allclose(result.frame_map, expected, atol=TINY_MODEL_ABS)
            assert np.array_equal(result.mask, result.frame_map > np.float32(result.threshold))


def test_map_and_score_agree_also_without_the_map(write_model, fixtures):
    model = write_model({"normalization": normalization_values()})
    with SnlDetector(model) as full, SnlDetector(model, keep_maps=False) as lean:
        for seed in range(4):
            a, b = full.detect(fixtures.bad_frame(seed)), lean.detect(fixtures.bad_frame(seed))
            assert (a.verdict, a.score, a.regions) == (b.verdict, b.score, b.regions)
            assert b.anomaly_map is None


@pytest.mark.parametrize("value", [1.0, 0.5, 4.0])  # powers of two: no product rounds
def test_constant_normalization_gives_the_verdicts_of_none(write_model, fixtures, value):
    model = write_model({}, {"product": "normalized", "normalization": np.full((SIZE, SIZE), value, np.float32)})
    manifest = read_manifest(model.with_suffix(".json"))
    plain, normalized = manifest.decisions
    scaled = {name: getattr(plain, name) * value for name in ("pass_threshold", "reject_threshold", "floor")}
    write_manifest(model.with_suffix(".json"), dataclasses.replace(manifest, decisions=[plain, dataclasses.replace(normalized, **scaled)]))
    with SnlDetector(model) as detector:
        for frame in [make(seed) for seed in range(12) for make in (fixtures.good_frame, fixtures.bad_frame)] + [fixtures.good_frame(1) // 2]:
            a, b = detector.detect(frame, product="bottle"), detector.detect(frame, product="normalized")
            assert (a.verdict, a.reason_code) == (b.verdict, b.reason_code)
            assert [region.box_xyxy for region in a.regions] == [region.box_xyxy for region in b.regions]
            assert np.array_equal(a.score * value, b.score, equal_nan=True)


def test_with_no_product_named_no_verdict_is_laxer_than_that_of_any(write_model, fixtures, parts):
    order = [Verdict.PASS, Verdict.REVIEW, Verdict.REJECT, Verdict.ERROR]
    good, bad = parts
    wide = {"frame_range": fixtures.ANY_FRAME, "floor": 0.01}
    model = write_model(
        {**wide, "pass_threshold": 60.0, "reject_threshold": 70.0},
        {"product": "printed", **wide, "pass_threshold": 9.0, "reject_threshold": 14.0, "normalization": normalization_values()},
        {"product": "other", **wide, "pass_threshold": 30.0, "reject_threshold": 80.0, "normalization": normalization_values(low=1.3, high=0.7)},
    )
    verdicts = set()
    with SnlDetector(model) as detector:
        for frame in [*good, *bad, *map(fixtures.good_frame, range(4)), *map(fixtures.bad_frame, range(4))]:
            named = [detector.detect(frame, product=product) for product in detector.products]
            unnamed = detector.detect(frame)
            verdicts.add(unnamed.verdict)
            assert unnamed.product is None
            assert order.index(unnamed.verdict) == max(order.index(result.verdict) for result in named)
            assert (unnamed.score > unnamed.threshold * (1 + 1e-6)) == any(result.score > result.threshold for result in named)
            expected = max(result.score / result.threshold for result in named)
            assert unnamed.score / unnamed.threshold == pytest.approx(expected, rel=TINY_MODEL_REL)
            assert unnamed.score == unnamed.anomaly_map.max()
            assert bool(unnamed.regions) == (unnamed.verdict is not Verdict.PASS)
            assert unnamed.reject_threshold / unnamed.threshold == pytest.approx(70 / 60)
    assert verdicts == {Verdict.PASS, Verdict.REVIEW, Verdict.REJECT} or verdicts == {Verdict.PASS, Verdict.REJECT}


@given(seed=st.integers(0, 10**6), count=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_strictest_ruling_counts_with_any_mixture_of_normalizations(fixtures, seed, count):
    rng = np.random.default_rng(seed)
    order = [Verdict.PASS, Verdict.REVIEW, Verdict.REJECT, Verdict.ERROR]
    decisions, normalizations, expected = {}, {}, []
    anomaly_map = rng.gamma(2, 1, (6, 5)).astype(np.float32)
    for index in range(count):
        values = rng.uniform(0.2, 3, (6, 5)).astype(np.float32) if rng.random() < 0.7 else None
        threshold = float(rng.uniform(1, 12))
        changes = {"product": f"p{index}", "pass_threshold": threshold, "reject_threshold": threshold * 1.2, "floor": 0.01}
        if values is not None:
            changes["normalization"] = encode_normalization("line.onnx", f"p{index}", NormalizationMap(values))[0]
            normalizations[changes["normalization"].sha256] = NormalizationMap(values)
        peak = float((anomaly_map if values is None else anomaly_map * values).max())
        expected.append(Verdict.PASS if peak <= threshold else Verdict.REVIEW if peak <= threshold * 1.2 else Verdict.REJECT)
        decisions[f"p{index}"] = fixtures.make_decision(**changes)
    book = make_book(decisions, normalizations)
    selection = book.select()
    scored = scored_frame(fixtures, summarize_map(anomaly_map, selection.normalization), anomaly_map)
    ruling = selection.rule(scored, golden_checked=True, now=NOW)
    assert ruling.verdict is max(expected, key=order.index), ruling.reason


def scored_frame(fixtures, summary, anomaly_map=None):
    """A gray frame whose score is the peak of its map."""
    scored_map = ScoredMap(score=summary.peak, anomaly_map=anomaly_map, summary=summary)
    return ScoredFrame(map=scored_map, statistics=fixtures.GRAY, roi_xyxy=(0, 0, *fixtures.FORMAT.size_hw), frame=fixtures.FORMAT)


def make_book(decisions, normalizations):
    """A book of decisions as of an opened file, without the file."""
    manifest = SimpleNamespace(decisions=list(decisions.values()), decisions_for=lambda sha256: decisions, products_without_room=lambda sha256: [])
    return DecisionBook(manifest, "a" * 64, normalizations)


def test_summary_without_a_normalized_peak_passes_nothing_of_a_normalized_product(fixtures):
    normalization = NormalizationMap(np.ones((2, 2), np.float32))
    file, _ = encode_normalization("line.onnx", "bottle", normalization)
    book = make_book({"bottle": fixtures.make_decision(normalization=file)}, {file.sha256: normalization})
    for normalized_peak, code in (
        (None, "no_normalization_map"),
        (5.0, "below_threshold"),
        (math.inf, "output_not_finite"),
        (math.nan, "output_not_finite"),
    ):
        summary = MapSummary(peak=4.0, is_finite=True, normalized_peak=normalized_peak)
        assert book.select().rule(scored_frame(fixtures, summary), golden_checked=True, now=NOW).reason_code == code


def test_normalized_peak_of_a_merged_map_judges_no_product(fixtures):
    normalization = NormalizationMap(np.ones((2, 2), np.float32))
    file, _ = encode_normalization("line.onnx", "bottle", normalization)
    decisions = {name: fixtures.make_decision(product=name, normalization=file) for name in ("bottle", "cap")}
    selection = make_book(decisions, {file.sha256: normalization}).select()
    assert selection.needs_map
    summary = MapSummary(peak=4.0, is_finite=True, normalized_peak=4.0)
    ruling = selection.rule(scored_frame(fixtures, summary), golden_checked=True, now=NOW)
    assert ruling.reason_code == "no_normalization_map"


def test_decision_whose_normalization_map_was_not_opened_has_no_book(fixtures):
    file, _ = encode_normalization("line.onnx", "bottle", NormalizationMap(np.ones((2, 2), np.float32)))
    with pytest.raises(ManifestError, match="was not opened"):
        make_book({"bottle": fixtures.make_decision(normalization=file)}, {})


def test_normalization_that_overflows_is_an_error_without_a_score(write_model, fixtures):
    model = write_model({"normalization": np.full((SIZE, SIZE), 3e38, np.float32)})
    with SnlDetector(model) as detector:
        result = detector.detect(fixtures.bad_frame(1))
    assert (result.verdict, result.reason_code) == (Verdict.ERROR, "output_not_finite")
    assert math.isnan(result.score)
    assert result.regions == ()


@pytest.mark.parametrize(("value", "code"), [(0.0, "below_floor"), (math.nan, "output_not_finite"), (math.inf, "output_not_finite")])
def test_checks_of_the_raw_output_stay(write_model, fixtures, value, code):
    def fault(image, anomaly_map, anomaly_score):
        anomaly_map[:] = value
        anomaly_score[:] = value

    model = write_model({"normalization": normalization_values()})
    with SnlDetector(model, backend=fixtures.FakeBackend(fault, healthy_calls=3)) as detector:
        result = detector.detect(fixtures.good_frame(1))
    assert (result.verdict, result.reason_code) == (Verdict.ERROR, code)


def test_score_that_is_not_the_maximum_of_the_raw_map_is_an_error(write_model, fixtures):
    def fault(image, anomaly_map, anomaly_score):
        anomaly_map[:] = 5
        anomaly_score[:] = 4

    model = write_model({"normalization": normalization_values(low=0.8, high=0.8)})  # the normalized peak equals the raw score
    with SnlDetector(model, backend=fixtures.FakeBackend(fault, healthy_calls=3)) as detector:
        assert detector.detect(fixtures.good_frame(1)).reason_code == "output_inconsistent"


def test_decisions_of_another_file_need_no_normalization_map(write_model, fixtures):
    """History: the normalization map of a decision that no longer applies may be gone."""
    model = write_model({"product": "old", "model_sha256": "c" * 64, "normalization": normalization_values()}, {})
    for path in model.parent.glob("*.normalization.*"):
        path.unlink()
    with SnlDetector(model) as detector:
        assert detector.detect(fixtures.good_frame(1), product="bottle").verdict is Verdict.PASS


def test_normalization_maps_are_opened_for_each_product(write_model):
    model = write_model({"normalization": normalization_values()}, {"product": "cap", "normalization": normalization_values(0.3)})
    decisions = read_manifest(model.with_suffix(".json")).decisions
    assert len(open_normalizations(model, decisions, (SIZE, SIZE))) == 2
