"""The gate between a model and a file that claims to score like it: an ONNX file and its checkpoint, an engine and its ONNX file.

A subject passes only if every limit of its precision holds on every frame. Differences are taken relative to the largest value that the
reference's map has on that frame, so that a quiet part is held to the same standard as a loud one.
"""

import datetime
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from snl_runtime.errors import InferenceError, ParityRefusedError
from snl_runtime.images.preprocess import InputSpec, prepare
from snl_runtime.model.golden import TOLERANCES, GoldenSamples
from snl_runtime.model.guard_band import guard_text
from snl_runtime.model.manifest import Decision, ParityReport
from snl_runtime.model.normalization_files import Normalizations
from snl_runtime.parity.frames import FrameSet
from snl_runtime.parity.verdicts import Guard, VerdictPairs

if TYPE_CHECKING:
    from snl_runtime.scorer import Scorer

FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]

_FLAT = 1e-6
"""Share of its largest value by which a map may vary and still be one value in float32."""


class Reference(Protocol):
    """What a subject is compared with: a checkpoint, or a :class:`snl_runtime.scorer.Scorer` of its ONNX file."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        ...

    def score_inputs(self, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return scores (N,) and maps (N, H, W) of (N, H, W, 3) uint8 RGB."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityLimits:
    """What a subject may differ by.

    Attributes:
        relative: Largest difference of map and score, as a share of the reference's largest map value on the same frame.
        correlation_min: Lowest correlation of a frame's map with the reference's; None if ``relative`` says enough.
        correlation_median: The same for the median of all frames.
        auroc_drift: Largest change of image AUROC, 0 to 1, where good and bad frames are told apart by folder.
        flips: Most frames whose verdict may change between PASS and REJECT; None for a subject that inherits the decisions: it is held to tightened
            thresholds instead, under which no verdict may be more lenient than the reference's.
    """

    relative: float
    correlation_min: float | None = None
    correlation_median: float | None = None
    auroc_drift: float = 0.002
    flips: int | None = 0


CORRELATION_MIN, CORRELATION_MEDIAN = 0.95, 0.99
"""What a precision below fp32 must keep of a map's pattern: nine tenths of the variance of every frame, 98 % of a typical one.

Values near a map's peak are held by ``relative``; correlation sees a pattern that is lost below it. Per frame, because over all maps at once the
differences between products hide a frame that lost everything."""

LIMITS: dict[str, ParityLimits] = {
    # Reordered fp32 sums of 512 to 4096 terms differ by about 1e-6 of the map; a hundred times that is no longer rounding. The self-test at load
    # allows ten times more, because another CPU or GPU sums in another order; this is the machine that made the reference.
    "fp32": ParityLimits(relative=1e-4),
    # Half has 11 bits: 5e-4 per value and about 5e-3 after twenty layers; at 2e-2 a map that lost its small values is refused.
    "fp16": ParityLimits(relative=TOLERANCES["fp16"], correlation_min=CORRELATION_MIN, correlation_median=CORRELATION_MEDIAN),
    # Eight bits move single values by more than rounding does; what must hold is the map as a whole, the ranking of parts and every verdict.
    "int8": ParityLimits(relative=TOLERANCES["int8"], correlation_min=CORRELATION_MIN, correlation_median=CORRELATION_MEDIAN),
}
"""Limits of an ONNX file, by precision."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ScoredFrame:
    """What reference and subject gave for one frame.

    Attributes:
        name: Name of the frame for messages.
        reference_score: Score of the reference.
        reference_map: (H, W) map of the reference.
        subject_score: Score of the file under test.
        subject_map: (H, W) map of the file under test.
        is_anomalous: What the folder says about the frame; None if it says nothing.
    """

    name: str
    reference_score: float
    reference_map: FloatArray
    subject_score: float
    subject_map: FloatArray
    is_anomalous: bool | None = None


class ParityMeter:
    """Collects frames one at a time, so that a folder of any size fits in memory, and judges them at the end.

    Args:
        limits: What the subject may differ by.
        decisions: Thresholds at which the verdicts of both sides are compared.
        normalizations: Their normalization maps, by hash: a frame is judged under each decision's own, as on the line.

    Raises:
        ManifestError: If the normalization map of a decision is not among ``normalizations``.
    """

    def __init__(self, limits: ParityLimits, decisions: Sequence[Decision] = (), normalizations: Normalizations = MappingProxyType({})) -> None:
        self._limits = limits
        self._verdicts = VerdictPairs(decisions, normalizations)
        self._failures: list[str] = []
        self._map_max: list[float] = []
        self._map_p99: list[float] = []
        self._score_difference: list[float] = []
        self._reference_scores: list[float] = []
        self._subject_scores: list[float] = []
        self._labels: list[bool | None] = []
        self._map_scale = 0.0
        self._correlations: list[float] = []

    def add(self, frame: ScoredFrame) -> None:
        """Take one frame into account."""
        reference, subject = np.asarray(frame.reference_map, np.float64), np.asarray(frame.subject_map, np.float64)
        fault = _unusable(frame, reference, subject)
        if fault:
            self._failures.append(f"{frame.name}: {fault}")
            return
        difference = np.abs(subject - reference)
        scale = float(reference.max())
        score_difference = abs(frame.subject_score - frame.reference_score)
        self._map_max.append(float(difference.max()))
        self._map_p99.append(float(np.quantile(difference, 0.99)))
        self._score_difference.append(score_difference)
        self._reference_scores.append(frame.reference_score)
        self._subject_scores.append(frame.subject_score)
        self._labels.append(frame.is_anomalous)
        maps = (np.asarray(frame.reference_map, np.float32), np.asarray(frame.subject_map, np.float32))
        self._verdicts.add((frame.reference_score, frame.subject_score), maps)
        self._map_scale = max(self._map_scale, scale)
        self._correlations.append(correlation_of(reference, subject))
        allowed = self._limits.relative * scale
        for what, value in (("map", self._map_max[-1]), ("score", score_difference)):
            if not value <= allowed:
                self._failures.append(
                    f"{frame.name}: {what} differs by {value:.3g}, allowed is {allowed:.3g} ({self._limits.relative:g} x {scale:.4g})"
                )

    def fail(self, failure: str) -> None:
        """Record something that no figure shows."""
        self._failures.append(failure)

    def report(self, *, subject_file: str, subject_sha256: str, reference: str, frames_source: str, verified_on: str) -> ParityReport:
        """Return the figures and whether every limit held."""
        failures = [*self._failures, *self._correlation_failures()]
        drift = self._auroc_drift()
        if drift is not None and not drift <= self._limits.auroc_drift:
            failures.append(f"image AUROC changes by {100 * drift:.2f} points, allowed are {100 * self._limits.auroc_drift:.2f}")
        flips = self._verdicts.flips()
        if self._limits.flips is not None and flips > self._limits.flips:
            failures.append(f"{flips} frames change between PASS and REJECT, allowed are {self._limits.flips}")
        guard = Guard(band=None) if self._limits.flips is not None else self._verdicts.guard(max(self._map_max, default=0.0))
        if guard.more_lenient:
            failures.append(f"{guard.more_lenient} verdicts are more lenient than the reference's in spite of the guard band, allowed are none")
        if not self._map_max and not failures:
            failures.append("no frame was compared")
        return ParityReport(
            subject_file=subject_file,
            subject_sha256=subject_sha256,
            reference=reference,
            frames_source=frames_source,
            frame_count=len(self._map_max),
            score_max_abs=max(self._score_difference, default=0.0),
            score_p99_abs=float(np.quantile(self._score_difference, 0.99)) if self._score_difference else 0.0,
            map_max_abs=max(self._map_max, default=0.0),
            map_p99_abs=max(self._map_p99, default=0.0),
            map_scale=self._map_scale,
            map_correlation_min=min(self._correlations, default=None),
            map_correlation_median=float(np.median(self._correlations)) if self._correlations else None,
            tolerance=self._limits.relative,
            auroc_drift=drift,
            flips=flips,
            guard_band=guard.band,
            more_lenient=guard.more_lenient,
            passed_by_reference=guard.passed_by_reference,
            refused_by_guard_band=guard.refused,
            passed=not failures,
            failures=failures,
            verified_on=verified_on,
            created_at=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        )

    def _correlation_failures(self) -> Iterator[str]:
        checks = (("of a frame", self._limits.correlation_min, np.min), ("of the median frame", self._limits.correlation_median, np.median))
        for which, needed, reduce in checks:
            if needed is not None and self._correlations and not (found := float(reduce(self._correlations))) >= needed:
                yield f"the map {which} correlates by {found:.4f}, at least {needed:g} is needed"

    def _auroc_drift(self) -> float | None:
        known = [i for i, label in enumerate(self._labels) if label is not None]
        labels = np.array([bool(self._labels[i]) for i in known])
        if not known:
            return None
        before, after = (_auroc(labels, np.array(scores)[known]) for scores in (self._reference_scores, self._subject_scores))
        return None if before is None or after is None else abs(after - before)


def compare(
    reference: Reference,
    subject: "Scorer",
    golden: GoldenSamples | None,
    frames: FrameSet,
    *,
    meter: ParityMeter,
    on_frame: Callable[[], None] = lambda: None,
) -> None:
    """Score the golden samples and all frames with both sides and hand the pairs to ``meter``.

    Golden samples go straight into the network, in the largest batch the file takes. Frames go through everything that runs on the line: decoded
    image in BGR order, as a camera gives it, color order, resize, backend, checks. The reference's side never leaves RGB, so a swapped order
    shows.

    Args:
        reference: The checkpoint or the ONNX file.
        subject: The file under test, opened as users open it but for the golden check.
        golden: Golden samples with what the reference gave; None if there are none.
        frames: More images.
        meter: Collects the differences.
        on_frame: Called after each image, golden or not.

    Raises:
        DataError: If a frame cannot be read.
    """
    if golden is not None:
        _compare_golden(subject, golden, meter, on_frame)
    spec = InputSpec(size_hw=reference.size_hw)
    for frame in frames:
        expected_scores, expected_maps = reference.score_inputs(prepare(frame.image_rgb, "rgb", spec)[None])
        try:
            scored = subject.score(np.ascontiguousarray(frame.image_rgb[:, :, ::-1]), color="bgr")
        except InferenceError as error:
            meter.fail(f"{frame.name}: {error}")
            continue
        meter.add(
            ScoredFrame(
                name=frame.name,
                reference_score=float(expected_scores[0]),
                reference_map=expected_maps[0],
                subject_score=scored.score,
                subject_map=scored.anomaly_map,
                is_anomalous=frame.is_anomalous,
            )
        )
        on_frame()


def _compare_golden(subject: "Scorer", golden: GoldenSamples, meter: ParityMeter, on_frame: Callable[[], None]) -> None:
    scores, maps = subject.infer(golden.images)
    for i in range(len(golden.images)):
        meter.add(
            ScoredFrame(
                name=f"golden {i}",
                reference_score=float(golden.scores[i]),
                reference_map=golden.maps[i],
                subject_score=float(scores[i]),
                subject_map=maps[i],
            )
        )
        on_frame()


def refuse_unless_passed(report: ParityReport, *, advice: str) -> None:
    """Raise the report's failures and figures as one sentence.

    Raises:
        ParityRefusedError: If the report did not pass.
    """
    if report.passed:
        return
    shown = "; ".join(report.failures[:3])
    more = f"; and {len(report.failures) - 3} more" if len(report.failures) > 3 else ""
    raise ParityRefusedError(f"{report.subject_file} does not score like {report.reference}: {shown}{more}; {figures(report)}; {advice}")


def figures(report: ParityReport) -> str:
    """Return what a gate measured, whether it passed or not, as part of a sentence."""
    auroc = "not known without labeled --frames" if report.auroc_drift is None else f"changes by {100 * report.auroc_drift:.2f} points"
    return (
        f"over {report.frame_count} frames {correlation_text(report)}, map values differ by up to {report.map_max_abs:.3g} of "
        f"{report.map_scale:.3g}, image AUROC {auroc}, {report.flips} verdicts flip{guard_text(report)}"
    )


def correlation_text(report: ParityReport) -> str:
    """Return how maps correlate, as part of a sentence."""
    if report.map_correlation_min is None or report.map_correlation_median is None:
        return "no map was correlated"
    return f"maps correlate by {report.map_correlation_min:.4f} or more (median {report.map_correlation_median:.4f})"


def correlation_of(reference: FloatArray, subject: FloatArray) -> float:
    """Return Pearson's correlation of two maps of one shape; 1 if both are flat, 0 if one is."""
    off_mean = [(values - values.mean()).ravel() for values in (reference, subject)]
    deviations = [float(np.sqrt(off @ off / off.size)) for off in off_mean]
    is_flat = [deviation <= _FLAT * float(np.abs(values).max()) for deviation, values in zip(deviations, (reference, subject))]
    if any(is_flat):
        return float(all(is_flat))
    return float(off_mean[0] @ off_mean[1] / off_mean[0].size / (deviations[0] * deviations[1]))


def _unusable(frame: ScoredFrame, reference: FloatArray, subject: FloatArray) -> str | None:
    if reference.shape != subject.shape:
        return f"the map has shape {subject.shape}, the reference's has {reference.shape}"
    if not (np.isfinite(reference).all() and np.isfinite(frame.reference_score)):
        return "the reference itself gives a score or map that is not finite"
    if not (np.isfinite(subject).all() and np.isfinite(frame.subject_score)):
        return "the file gives a score or map that is not finite"
    return None


def _auroc(labels: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64]) -> float | None:
    """Return the share of (good, bad) pairs in the right order, ties as one half; None unless there are both."""
    good, bad = np.sort(scores[~labels]), scores[labels]
    if not len(good) or not len(bad):
        return None
    wins = np.searchsorted(good, bad, side="left") + np.searchsorted(good, bad, side="right")
    return float(wins.sum() / (2 * len(good) * len(bad)))
