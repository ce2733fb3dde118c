"""What a run amounts to: counts, latencies, and what was lost."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any

from snl_runtime.line.histogram import LatencyHistogram
from snl_runtime.line.image_folders import ImageFolder
from snl_runtime.line.pipeline import PipelineCounts
from snl_runtime.line.sources.base import FrameSource
from snl_runtime.progress import Steps
from snl_runtime.types import AnomalyResult, Frame, Verdict

STAGES = ("preprocess", "infer", "decide", "total")


class RunTally:
    """A sink that counts verdicts and reasons, keeps latency histograms and reports progress.

    Args:
        source: Where the frames come from; asked for its counters.
        progress: Advanced by one for each verdict; the caller closes it.
    """

    def __init__(self, source: FrameSource, *, progress: Steps | None = None) -> None:
        self._source = source
        self._progress = progress
        self._verdicts: Counter[Verdict] = Counter()
        self._reasons: Counter[str] = Counter()
        self._latency = LatencyHistogram()
        self._stages = {stage: LatencyHistogram() for stage in STAGES}
        self._started_s = time.monotonic()

    def __enter__(self) -> "RunTally":
        self._started_s = time.monotonic()
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        """Nothing is held."""

    @property
    def verdicts(self) -> dict[str, int]:
        """How often each verdict was given, all four of them."""
        return {verdict.value: self._verdicts[verdict] for verdict in Verdict}

    @property
    def all_passed(self) -> bool:
        """Whether there was at least one verdict and every one was PASS."""
        return self._verdicts.total() == self._verdicts[Verdict.PASS] > 0

    def emit(self, frame: Frame, result: AnomalyResult) -> None:
        """Count one verdict; frames that could not be scored have no stage times worth counting."""
        self._verdicts[result.verdict] += 1
        self._reasons[result.reason_code] += 1
        self._latency.record(max(0, time.monotonic_ns() - frame.captured_ns) / 1e6)
        if math.isfinite(result.score):
            for stage, histogram in self._stages.items():
                histogram.record(getattr(result.timings, f"{stage}_ms"))
        if self._progress is not None:
            if self._progress.total is None:
                self._progress.total = self._source.counters.frames_announced
            self._progress.advance(**{name: count for name, count in self.verdicts.items() if count})

    def summary(self, counts: PipelineCounts, *, saved_images: Sequence[ImageFolder] = ()) -> dict[str, Any]:
        """Return the whole run as plain values; numbers that nothing was measured for are None.

        ``latency_ms`` runs from the capture of a frame until the sinks before this one have taken its verdict.
        """
        elapsed_s = time.monotonic() - self._started_s
        source = self._source.counters
        return {
            "captured": counts.captured,
            "inspected": counts.inspected,
            "dropped": counts.dropped,
            "failed": counts.failed,
            "waiting": counts.waiting,
            "verdicts": self.verdicts,
            "reasons": dict(self._reasons.most_common()),
            "latency_ms": {
                "p50": _rounded(self._latency.percentile(50)),
                "p95": _rounded(self._latency.percentile(95)),
                "p99": _rounded(self._latency.percentile(99)),
                "max": _rounded(self._latency.max_ms),
            },
            "stage_median_ms": {stage: _rounded(histogram.percentile(50)) for stage, histogram in self._stages.items()},
            "elapsed_s": _rounded(elapsed_s),
            "frames_per_s": _rounded((counts.inspected + counts.failed) / elapsed_s) if elapsed_s > 0 else None,
            "source": {
                "announced": source.frames_announced,
                "faulty": source.frames_faulty,
                "missing": source.frames_missing,
                "reconnects": source.reconnects,
            },
            "saved_images": {str(folder.folder): asdict(folder.counts) for folder in saved_images},
        }


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """Return a summary as lines for a person."""
    latency, stages, source = summary["latency_ms"], summary["stage_median_ms"], summary["source"]
    lines = [
        f"frames: {summary['captured']} captured, {summary['inspected']} inspected, {summary['dropped']} dropped, {summary['failed']} failed"
        f" in {_shown(summary['elapsed_s'])} s ({_shown(summary['frames_per_s'])} frames/s)",
        "verdicts: " + ", ".join(f"{name} {count}" for name, count in summary["verdicts"].items()),
        "reasons: " + (", ".join(f"{code} {count}" for code, count in summary["reasons"].items()) or "none"),
        "latency ms: " + ", ".join(f"{name} {_shown(value)}" for name, value in latency.items()),
        "stage medians ms: " + ", ".join(f"{stage} {_shown(value)}" for stage, value in stages.items()),
    ]
    notes = [f"{source[name]} {words}" for name, words in _SOURCE_NOTES.items() if source[name]]
    if notes:
        lines.append("source: " + ", ".join(notes))
    for folder, saved_images in summary["saved_images"].items():
        lost = f", {saved_images['lost']} LOST, the first because: {saved_images['why_lost']}" if saved_images["lost"] else ""
        lines.append(f"images in {folder}: {saved_images['saved']} saved{lost}")
    return lines


_SOURCE_NOTES = {
    "faulty": "frames without an image (each has an ERROR record)",
    "missing": "announced frames never came",
    "reconnects": "reconnects",
}


def _rounded(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
