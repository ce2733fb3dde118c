"""The measurements of one model as plain values for JSON, as lines of a table, and as plots."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from snl_runtime.bench.loads import Batches, Cameras, Load, SingleFrames
from snl_runtime.bench.memory import ProcessMemory
from snl_runtime.bench.start import Start
from snl_runtime.plots import Curve, CurvePlot

PERCENTILES = ("p50", "p95", "p99", "max")


@dataclass(kw_only=True)
class EngineTimes:
    """Everything that was measured of one model.

    Attributes:
        single: One frame at a time.
        batches: Several frames in one call, a load for each size.
        cameras: Several cameras at once, a load for each number.
        device_bytes: What it held on its GPU; None on a CPU.
        starts: Processes of its own, none if they were not asked for.
    """

    single: SingleFrames
    batches: Sequence[Batches]
    cameras: Sequence[Cameras]
    device_bytes: int | None = None
    starts: list[Start] = field(default_factory=list)

    @property
    def loads(self) -> list[Load]:
        """Every kind of call, in the order in which they take turns."""
        return [self.single, *self.batches, *self.cameras]

    def plain(self) -> dict[str, Any]:
        """Return the values; times in milliseconds or seconds, memory in bytes."""
        subject = self.single.subject
        stages = {**self.single.stage_ms, "total": self.single.call_ms}
        return {
            "engine": subject.name,
            "model_sha256": subject.detector.model_sha256,
            "model_bytes": Path(subject.name).stat().st_size,
            "backend": subject.detector.backend_name,
            "device": subject.detector.device,
            "cuda_graph": subject.detector.has_cuda_graph,
            "stage_ms": {stage: summary(values) for stage, values in stages.items()},
            "frames_per_s": _frames_per_s(self.single),
            "batches": [
                {
                    "batch": load.frames_per_call,
                    "backend_calls": load.backend_calls,
                    "call_ms": summary(load.call_ms),
                    "frames_per_s": _frames_per_s(load),
                }
                for load in self.batches
            ],
            "cameras": [
                {"cameras": load.frames_per_call, "verdict_ms": summary(load.verdict_ms), "frames_per_s": _frames_per_s(load)}
                for load in self.cameras
            ],
            "device_bytes": self.device_bytes,
            "start": _plain_starts(self.starts),
        }


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return median, 95th and 99th percentile and maximum, to four decimals."""
    p50, p95, p99 = np.percentile(values, [50, 95, 99])
    return dict(zip(PERCENTILES, (round(float(value), 4) for value in (p50, p95, p99, max(values))), strict=True))


def plain_memory(memory: ProcessMemory | None) -> dict[str, int] | None:
    """Return the memory of a process for JSON."""
    return None if memory is None else {"resident_bytes": memory.resident_bytes, "peak_bytes": memory.peak_bytes}


def engine_lines(engine: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a table from what :meth:`EngineTimes.plain` returned."""
    yield f"{engine['engine']}  {engine['backend']} on {engine['device']}, model {engine['model_sha256'][:12]}"
    yield f"  {'stage':<12}" + "".join(f"{f'{name} ms':>10}" for name in PERCENTILES)
    for stage, values in engine["stage_ms"].items():
        yield _row(stage, values)
    yield f"  {engine['frames_per_s']:.4g} frames/s, one at a time"
    for batch in engine["batches"]:
        calls = "" if batch["backend_calls"] == 1 else f", in {batch['backend_calls']} calls of the backend"
        row = _row(f"batch {batch['batch']}", batch["call_ms"])
        yield f"{row}  {batch['frames_per_s']:.4g} frames/s{calls}"
    for cameras in engine["cameras"]:
        row = _row(f"cameras {cameras['cameras']}", cameras["verdict_ms"])
        yield f"{row}  {cameras['frames_per_s']:.4g} frames/s"
    if engine["device_bytes"] is not None:
        yield f"  {engine['device_bytes'] / 1e6:.0f} MB on the GPU"
    if (start := engine["start"]) is not None:
        peak = "" if start["memory"] is None else f", peak {start['memory']['peak_bytes'] / 1e6:.0f} MB"
        elapsed_s = start["first_verdict_s"]["p50"]
        yield f"  first verdict {elapsed_s:.2f} s after a process began, {start['processor_s']:.2f} s of processor time{peak}"


def curve_plots(engines: Sequence[EngineTimes]) -> list[CurvePlot]:
    """Return the share of verdicts within a time, and what was measured against batch size and number of cameras."""
    plots = [CurvePlot("Verdicts, one frame at a time", "ms", "share of verdicts within that time", [_shares(engine.single) for engine in engines])]
    with_batches = [engine for engine in engines if engine.batches]
    if with_batches:
        curves = [_against_count(engine.batches, [load.call_ms for load in engine.batches], 50) for engine in with_batches]
        plots.append(CurvePlot("A call with several frames", "frames in the call", "ms for the call", curves))
    with_cameras = [engine for engine in engines if engine.cameras]
    if with_cameras:
        curves = [
            _against_count(engine.cameras, [load.verdict_ms for load in engine.cameras], percent) for engine in with_cameras for percent in (50, 99)
        ]
        plots.append(CurvePlot("A verdict beside other cameras", "cameras triggered together", "ms from trigger to verdict", curves))
    return plots


def _against_count(loads: Sequence[Load], times_ms: Sequence[Sequence[float]], percent: int) -> Curve:
    """Return a percentile of the times of each load against its number of frames."""
    points = sorted(zip((load.frames_per_call for load in loads), (float(np.percentile(times, percent)) for times in times_ms), strict=True))
    return Curve(f"{_label(loads[0])}, p{percent}", [count for count, _ in points], [time_ms for _, time_ms in points])


def _shares(single: SingleFrames) -> Curve:
    times_ms = sorted(single.call_ms)
    return Curve(_label(single), times_ms, [(rank + 1) / len(times_ms) for rank in range(len(times_ms))])


def _label(load: Load) -> str:
    detector = load.subject.detector
    return f"{Path(load.subject.name).name}, {detector.backend_name} on {detector.device}"


def _frames_per_s(load: Load) -> float:
    return round(load.frames_per_s, 3)


def _plain_starts(starts: Sequence[Start]) -> dict[str, Any] | None:
    if not starts:
        return None
    memories = [start.memory for start in starts if start.memory is not None]
    return {
        "processes": len(starts),
        "first_verdict_s": summary([start.elapsed_s for start in starts]),
        "processor_s": summary([start.processor_s for start in starts])["p50"],
        "memory": plain_memory(max(memories, key=lambda memory: memory.peak_bytes, default=None)),
    }


def _row(name: str, values: Mapping[str, float]) -> str:
    return f"  {name:<12}" + "".join(f"{values[percentile]:>10.3f}" for percentile in PERCENTILES)
