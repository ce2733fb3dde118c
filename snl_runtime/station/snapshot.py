"""What a station did so far, as frozen values for a screen, a health check or a report."""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from snl_runtime.line.histogram import LatencyHistogram
from snl_runtime.line.pipeline import PipelineCounts
from snl_runtime.line.sources.base import SourceCounters
from snl_runtime.station.book import BookCounts
from snl_runtime.station.line_state import LineState
from snl_runtime.types import AnomalyResult, Frame, Verdict

LAST_VERDICTS = 20
"""Verdicts of each camera that a screen can show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    """Milliseconds from the trigger to its answer; NaN before the first.

    Attributes:
        p50: Median.
        p95: 95th percentile.
        p99: 99th percentile.
        max: Longest.
    """

    p50: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LastVerdict:
    """One final verdict, without its image.

    Attributes:
        trigger_id: The trigger it answers.
        part_id: What the line calls the part.
        product: Product it was judged as.
        captured_at: Seconds since the epoch, UTC.
        verdict: The verdict as recorded.
        reason_code: Its cause.
        reason: The same for a person.
        score: Raw anomaly score; NaN without one.
        threshold: Highest score that passes; NaN without one.
    """

    trigger_id: int
    part_id: str | None
    product: str | None
    captured_at: float
    verdict: Verdict
    reason_code: str
    reason: str
    score: float
    threshold: float


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSnapshot:
    """One camera at one moment.

    Attributes:
        line: What the line sees.
        frames: The pipeline's counters.
        triggers: The book's counters.
        refused: Frames and commands that came while no trigger was taken.
        frames_unasked: Frames that came without a command.
        source: The camera's counters.
        source_fault: Why the camera gives no frames; empty if it does.
        verdicts: How often each verdict was recorded.
        latency_ms: From trigger to answer.
        last: The newest verdicts, newest first.
    """

    line: LineState
    frames: PipelineCounts
    triggers: BookCounts
    refused: int
    frames_unasked: int
    source: SourceCounters
    source_fault: str
    verdicts: Mapping[Verdict, int]
    latency_ms: Latencies
    last: tuple[LastVerdict, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StationSnapshot:
    """A whole station at one moment; cheap, from any thread.

    Attributes:
        started_at: Seconds since the epoch, UTC, when it started.
        elapsed_s: Seconds since then.
        cameras: Each camera by its name.
        observations_lost: Results that observers were too slow for; their records are in the store.
        observers_failed: Observers that raised an error and get nothing more.
    """

    started_at: float
    elapsed_s: float
    cameras: Mapping[str, UnitSnapshot]
    observations_lost: int
    observers_failed: tuple[str, ...]


class VerdictTally:
    """Counts the final verdicts of one camera; the owner holds a lock."""

    def __init__(self) -> None:
        self._verdicts: Counter[Verdict] = Counter()
        self._latency = LatencyHistogram()
        self._last: deque[LastVerdict] = deque(maxlen=LAST_VERDICTS)

    def add(self, frame: Frame, result: AnomalyResult, latency_ms: float) -> None:
        """Count one verdict with the time that its answer took."""
        self._verdicts[result.verdict] += 1
        self._latency.record(max(0.0, latency_ms))
        self._last.appendleft(
            LastVerdict(
                trigger_id=frame.trigger_id or 0,
                part_id=frame.part_id,
                product=result.product,
                captured_at=frame.captured_at,
                verdict=result.verdict,
                reason_code=result.reason_code,
                reason=result.reason,
                score=result.score,
                threshold=result.threshold,
            )
        )

    @property
    def verdicts(self) -> Mapping[Verdict, int]:
        """How often each verdict was given, all four of them."""
        return MappingProxyType({verdict: self._verdicts[verdict] for verdict in Verdict})

    @property
    def latencies(self) -> Latencies:
        """Percentiles so far."""
        histogram = self._latency
        return Latencies(p50=histogram.percentile(50), p95=histogram.percentile(95), p99=histogram.percentile(99), max=histogram.max_ms)

    @property
    def last(self) -> tuple[LastVerdict, ...]:
        """The newest verdicts, newest first."""
        return tuple(self._last)
