"""The parity report states the differences, and every limit can refuse on its own."""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import pytest

from snl_runtime.errors import ManifestError, ParityRefusedError
from snl_runtime.model.manifest import Decision, ParityReport
from snl_runtime.model.normalization import NormalizationMap
from snl_runtime.model.normalization_files import encode_normalization
from snl_runtime.parity.meter import LIMITS, ParityLimits, ParityMeter, ScoredFrame, refuse_unless_passed
from tolerances import FLOAT32_ABS

MakeDecision: TypeAlias = Callable[..., Decision]
WIDE = ParityLimits(relative=10.0)


def frame(reference: list[float], subject: list[float], *, is_anomalous: bool | None = None, name: str = "a") -> ScoredFrame:
    maps = [np.array([values], np.float32) for values in (reference, subject)]
    return ScoredFrame(
        name=name,
        reference_score=max(reference),
        reference_map=maps[0],
        subject_score=max(subject),
        subject_map=maps[1],
        is_anomalous=is_anomalous,
    )


def judge(meter: ParityMeter) -> ParityReport:
    return meter.report(subject_file="x.onnx", subject_sha256="0" * 64, reference="checkpoint x.pt", frames_source="s", verified_on="v")


@pytest.fixture
def decision(fixtures: ModuleType) -> MakeDecision:
    def decide(pass_threshold: float, reject_threshold: float) -> Decision:
        return fixtures.make_decision(product="bolt", pass_threshold=pass_threshold, reject_threshold=reject_threshold, floor=0.0)

    return decide


@pytest.fixture
def normalized_decision(decision: MakeDecision) -> Callable[[float, NormalizationMap], tuple[Decision, dict[str, NormalizationMap]]]:
    def decide(pass_threshold: float, normalization: NormalizationMap) -> tuple[Decision, dict[str, NormalizationMap]]:
        file, _ = encode_normalization("x.onnx", "bolt", normalization)
        return dataclasses.replace(decision(pass_threshold, pass_threshold), normalization=file), {file.sha256: normalization}

    return decide


def test_figures_are_the_largest_differences_of_all_frames() -> None:
    meter = ParityMeter(WIDE)
    meter.add(frame([1.0, 2.0, 4.0], [1.0, 2.5, 4.0]))
    meter.add(frame([8.0, 1.0, 1.0], [7.75, 1.0, 1.0]))
    report = judge(meter)
    assert (report.map_max_abs, report.score_max_abs, report.map_scale, report.frame_count) == (0.5, 0.25, 8.0, 2)
    assert report.passed


def test_99th_percentile_of_maps_is_the_worst_frames_and_of_scores_that_over_frames() -> None:
    meter = ParityMeter(WIDE)
    offsets = [np.arange(101) / 1000, np.arange(101) / 500]
    for offset in offsets:
        meter.add(frame(list(np.ones(101)), list(1 + offset)))
    report = judge(meter)
    assert report.map_p99_abs == pytest.approx(0.198, abs=FLOAT32_ABS)  # the 100th of 101 values in order
    assert report.score_p99_abs == pytest.approx(0.1 + 0.99 * 0.1, abs=FLOAT32_ABS)  # between the only two, 0.1 and 0.2
    assert report.map_max_abs == pytest.approx(0.2, abs=FLOAT32_ABS)


def test_tolerance_is_relative_to_each_frame_so_that_a_quiet_frame_is_not_excused_by_a_loud_one() -> None:
    meter = ParityMeter(LIMITS["fp32"])
    meter.add(frame([1000.0], [1000.0], name="loud"))
    meter.add(frame([0.01], [0.010002], name="quiet"))
    report = judge(meter)
    assert not report.passed
    assert all(failure.startswith("quiet: ") for failure in report.failures)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("side", ["reference", "subject"])
def test_value_that_is_not_finite_is_refused_on_either_side(bad: float, side: str) -> None:
    meter = ParityMeter(WIDE)
    values = {"reference": [1.0, 2.0], "subject": [1.0, 2.0]} | {side: [bad, 2.0]}
    meter.add(frame(values["reference"], values["subject"]))
    report = judge(meter)
    assert not report.passed
    assert "not finite" in report.failures[0]


def test_map_of_another_shape_is_refused() -> None:
    meter = ParityMeter(WIDE)
    meter.add(frame([1.0, 2.0], [2.0]))
    assert "shape" in judge(meter).failures[0]


def test_no_frame_at_all_is_no_proof() -> None:
    assert judge(ParityMeter(WIDE)).failures == ["no frame was compared"]


def test_correlation_is_that_of_each_frame_by_numpy() -> None:
    generator = np.random.default_rng(0)
    pairs = [np.float32(generator.random((2, 50))) for _ in range(5)]
    meter = ParityMeter(dataclasses.replace(WIDE, correlation_min=0.99, correlation_median=0.98))
    for reference, subject in pairs:
        meter.add(frame(list(reference), list(subject)))
    expected = [np.corrcoef(pair)[0, 1] for pair in pairs]
    report = judge(meter)
    assert report.map_correlation_min == pytest.approx(min(expected), abs=1e-9)
    assert report.map_correlation_median == pytest.approx(sorted(expected)[2], abs=1e-9)
    assert report.failures == [
        f"the map of a frame correlates by {min(expected):.4f}, at least 0.99 is needed",
        f"the map of the median frame correlates by {sorted(expected)[2]:.4f}, at least 0.98 is needed",
    ]


def test_one_frame_that_lost_its_pattern_is_refused_though_all_values_together_correlate() -> None:
    """Peaks stay within the tolerance; over all values at once the two levels of the frames give 0.99."""
    generator = np.random.default_rng(1)
    meter = ParityMeter(LIMITS["int8"])
    maps = [level + generator.uniform(0, level / 12, 400) for level in (1.0, 5.0)]
    for index, values in enumerate((*maps, *(level + generator.uniform(0, level, 400) for level in (1.0, 5.0, 1.0)))):
        subject = generator.permutation(values) if index < 1 else values
        meter.add(frame(list(values), list(subject), name=str(index)))
    report = judge(meter)
    (failure,) = report.failures
    assert failure.startswith("the map of a frame correlates by ")
    assert report.map_correlation_median == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("reference", "subject", "expected"), [([1.0, 2.0], [0.0, 0.0], 0.0), ([2.0, 2.0], [1.0, 3.0], 0.0), ([2.0, 2.0], [3.0, 3.0], 1.0)]
)
def test_flat_map_correlates_with_a_flat_one_only(reference: list[float], subject: list[float], expected: float) -> None:
    meter = ParityMeter(dataclasses.replace(WIDE, correlation_min=0.5))
    meter.add(frame(reference, subject))
    report = judge(meter)
    assert report.map_correlation_min == expected
    assert report.passed is (expected == 1.0)


def test_every_precision_below_fp32_is_held_to_the_pattern_of_its_maps() -> None:
    assert {name: (limits.correlation_min, limits.correlation_median) for name, limits in LIMITS.items()} == {
        "fp32": (None, None),
        "fp16": (0.95, 0.99),
        "int8": (0.95, 0.99),
    }


def test_one_swapped_pair_of_ten_moves_auroc_by_its_share() -> None:
    meter = ParityMeter(WIDE)
    for i in range(5):
        meter.add(frame([1.0 + i / 10], [1.0 + i / 10], is_anomalous=False))
    meter.add(frame([2.0], [1.35], is_anomalous=True))  # above all five good ones, then above four
    meter.add(frame([3.0], [3.0], is_anomalous=True))
    report = judge(meter)
    assert report.auroc_drift == pytest.approx(0.1)
    assert "AUROC changes by 10.00 points" in report.failures[0]


def test_without_bad_frames_there_is_no_auroc() -> None:
    meter = ParityMeter(WIDE)
    meter.add(frame([1.0], [1.0], is_anomalous=False))
    assert judge(meter).auroc_drift is None


@pytest.mark.parametrize(
    ("before", "after", "reject_threshold", "flips"),
    [(0.9, 1.1, 1.0, 1), (1.1, 0.9, 1.0, 1), (0.9, 1.0, 1.0, 0), (0.9, 1.05, 1.1, 0), (1.05, 1.2, 1.1, 0), (0.9, 1.2, 1.1, 1)],
)
def test_flip_is_a_change_between_pass_and_reject(before: float, after: float, reject_threshold: float, flips: int, decision: MakeDecision) -> None:
    meter = ParityMeter(WIDE, [decision(1.0, reject_threshold)])
    meter.add(frame([before], [after]))
    report = judge(meter)
    assert report.flips == flips
    assert report.passed == (flips == 0)


def test_refusal_names_file_reference_figures_and_what_to_do() -> None:
    meter = ParityMeter(LIMITS["fp32"])
    meter.add(frame([1.0], [1.5], name="golden 0"))
    with pytest.raises(
        ParityRefusedError,
        match=r"x\.onnx does not score like checkpoint x\.pt: golden 0: map differs by 0\.5.*; over 1 frames maps correlate.*; do this",
    ):
        refuse_unless_passed(judge(meter), advice="do this")


def test_verdicts_flip_under_the_normalization_map_of_the_decision(decision: MakeDecision, normalized_decision: Callable[..., Any]) -> None:
    """By hand: normalization [0.5, 3] makes [4, 1] a score of max(2, 3) = 3 and [4, 1.5] one of 4.5; the raw score is 4 both times."""
    judged_by, normalizations = normalized_decision(4.0, NormalizationMap(np.float32([[0.5, 3.0]])))
    meter = ParityMeter(WIDE, [judged_by], normalizations)
    meter.add(frame([4.0, 1.0], [4.0, 1.5]))  # 3 passes, 4.5 does not
    meter.add(frame([4.0, 1.0], [8.0, 1.0], name="b"))  # the raw score flips, the normalized one is 3 and then 4
    assert judge(meter).flips == 1
    plain = ParityMeter(WIDE, [decision(4.0, 4.0)])
    plain.add(frame([4.0, 1.0], [4.0, 1.5]))
    plain.add(frame([4.0, 1.0], [8.0, 1.0], name="b"))
    assert judge(plain).flips == 1


def test_each_decision_is_asked_under_its_own_normalization_map(decision: MakeDecision, normalized_decision: Callable[..., Any]) -> None:
    judged_by, normalizations = normalized_decision(4.0, NormalizationMap(np.float32([[0.5, 3.0]])))
    meter = ParityMeter(WIDE, [decision(4.0, 4.0), judged_by], normalizations)
    meter.add(frame([4.0, 1.0], [4.0, 1.5]))
    meter.add(frame([4.0, 1.0], [8.0, 1.0], name="b"))
    meter.add(frame([4.0, 1.0], [3.0, 1.0], name="c"))
    assert judge(meter).flips == 2


def test_decision_is_not_compared_without_its_normalization_map(normalized_decision: Callable[..., Any]) -> None:
    judged_by, _ = normalized_decision(4.0, NormalizationMap(np.float32([[0.5, 3.0]])))
    with pytest.raises(ManifestError, match="was not opened"):
        ParityMeter(WIDE, [judged_by])
