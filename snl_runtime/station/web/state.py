"""What the page shows, as plain values for JSON: built at most a few times per second, whoever looks."""

import enum
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

from snl_runtime.station.line_state import LineState, StationState
from snl_runtime.station.outbox import OutboxCounts
from snl_runtime.station.snapshot import LastVerdict, StationSnapshot, UnitSnapshot
from snl_runtime.station.web.feed import ResultFeed, ScorePoint, Shot
from snl_runtime.station.web.panels import WebPanels
from snl_runtime.text import printable
from snl_runtime.types import Verdict

MOST_REGIONS = 20
"""Regions of a part in its table; the picture shows all."""


class Shown(enum.Enum):
    """What stands in large letters for one camera."""

    PASS = "pass"
    """The last part passed."""
    REVIEW = "review"
    """A person looks at the last part."""
    REJECT = "reject"
    """The last part was rejected."""
    ERROR = "error"
    """The last part was not inspected."""
    FAULT = "fault"
    """The station cannot be trusted until it is reset."""
    BUSY = "busy"
    """A part is inspected on command."""
    WAITING = "waiting"
    """Ready, and no part has an answer yet."""
    STARTING = "starting"
    """Not yet able to take a part."""
    STOPPED = "stopped"
    """Takes no part."""


class Snapshots(Protocol):
    """What the page needs of a ``Station``."""

    def snapshot(self) -> StationSnapshot:
        """Return counters, states, latencies and last verdicts."""
        ...


class StateBuilder:
    """Builds what the page shows; called by one thread, regularly, also while nobody looks.

    Args:
        station: Asked for a snapshot each time.
        feed: For the age of the last result.
        panels: What the station does not know itself.
        stale_after_s: From which age on a verdict is not current.
        takes_commands: Whether the page may trigger and reset.
    """

    def __init__(self, station: Snapshots, feed: ResultFeed, panels: WebPanels, *, stale_after_s: float, takes_commands: bool) -> None:
        self._station = station
        self._feed = feed
        self._panels = panels
        self._stale_after_s = stale_after_s
        self._takes_commands = takes_commands
        self._outdated: dict[str, int] = {}

    def build(self) -> dict[str, Any]:
        """Return everything but the scores of the chart and the parts that did not pass."""
        snapshot = self._station.snapshot()
        reasons = unhealthy_reasons(snapshot)
        notes: list[str] = []
        return {
            "title": self._panels.title,
            "now": time.time(),
            "started_at": snapshot.started_at,
            "elapsed_s": snapshot.elapsed_s,
            "stale_after_s": self._stale_after_s,
            "takes_commands": self._takes_commands,
            "healthy": not reasons,
            "unhealthy_reasons": reasons,
            "cameras": [self._camera(name, unit) for name, unit in snapshot.cameras.items()],
            "drift": self._asked(lambda: self._drift(), "drift", notes),
            "consumers": self._asked(lambda: [_consumer(counts()) for counts in self._panels.outboxes], "consumers", notes) or [],
            "observers": {"lost": snapshot.observations_lost, "failed": list(snapshot.observers_failed)},
            "notes": [*(self._asked(lambda: [printable(note) for note in self._panels.notes()], "notes", notes) or []), *notes],
        }

    def _camera(self, name: str, unit: UnitSnapshot) -> dict[str, Any]:
        latest = self._feed.latest(name)
        last = unit.last[0] if unit.last else None
        age_s = None if latest is None else max(0.0, (time.monotonic_ns() - latest.frame.captured_ns) / 1e9)
        return {
            "name": printable(name),
            "shown": self._shown(unit.line, last).value,
            "last": None if last is None else _last_values(last),
            "age_s": age_s,
            "picture": None if latest is None else latest.number,
            "line": _line_values(unit.line),
            "frames": asdict(unit.frames),
            "triggers": asdict(unit.triggers),
            "refused": unit.refused,
            "frames_unasked": unit.frames_unasked,
            "source": asdict(unit.source),
            "source_fault": printable(unit.source_fault),
            "verdicts": {verdict.value: count for verdict, count in unit.verdicts.items()},
            "yield": _yield(unit.verdicts),
            "latency_ms": {name: finite(value) for name, value in asdict(unit.latency_ms).items()},
        }

    def _shown(self, line: LineState, last: LastVerdict | None) -> Shown:
        shown = shown_without_verdict(line)
        if shown is not None:
            # What was answered before a stop, a fault or a reset must not come back when the station runs again.
            if shown is not Shown.BUSY:
                self._outdated[line.camera] = line.trigger_id
            return shown
        verdict = line.verdict if line.result_valid else None
        if verdict is None and last is not None and last.trigger_id > self._outdated.get(line.camera, 0):
            verdict = last.verdict
        return Shown.WAITING if verdict is None else Shown(verdict.value.lower())

    def _drift(self) -> list[dict[str, str]] | None:
        if self._panels.drift is None:
            return None
        lines = self._panels.drift()
        return [{"product": printable(line.product), "figure": line.figure, "level": line.level.value, "text": line.text} for line in lines]

    def _asked(self, ask: Callable[[], Any], panel: str, notes: list[str]) -> Any:
        try:
            return ask()
        except Exception as failure:  # noqa: BLE001  # one panel that fails must not blind the others
            notes.append(f"the panel {panel} failed: {failure or type(failure).__name__}")
            return None


def shown_without_verdict(line: LineState) -> Shown | None:
    """Return what is shown in place of a verdict; None where the last verdict is current.

    A camera whose every frame is a part is nearly always busy: there the answer before counts until the next one.
    """
    if line.fault:
        return Shown.FAULT
    if line.state is StationState.HALTED:
        return Shown.STOPPED
    if line.state in (StationState.INITIALIZED, StationState.ERROR):
        return Shown.STARTING
    if line.state is StationState.SINGLE_EXECUTION:
        return Shown.BUSY
    if not line.result_valid and not line.busy:
        return Shown.WAITING
    return None


def unhealthy_reasons(snapshot: StationSnapshot) -> list[str]:
    """Return why the station does not inspect, one sentence for each camera that does not; empty if it does."""
    reasons = []
    for name, unit in snapshot.cameras.items():
        line = unit.line
        if line.fault:
            reasons.append(f"{printable(name)} is in a fault: {printable(line.fault_reason)}")
        elif not line.ready and not line.busy:
            reasons.append(f"{printable(name)} takes no part, its state is {line.state.value}")
    return reasons


def score_values(points: Mapping[str, list[ScorePoint]]) -> dict[str, list[list[Any]]]:
    """Return the points of the chart: number, trigger id, time, verdict, score, pass threshold, reject threshold."""
    return {
        printable(camera): [
            [
                point.number,
                point.trigger_id,
                point.captured_at,
                point.verdict.value,
                finite(point.score),
                finite(point.threshold),
                finite(point.reject_threshold),
            ]
            for point in of_camera
        ]
        for camera, of_camera in points.items()
    }


def reject_values(shot: Shot) -> dict[str, Any]:
    """Return one part that did not pass, with its ``MOST_REGIONS`` highest regions in pixels of the frame."""
    frame, result = shot.frame, shot.result
    return {
        "number": shot.number,
        "camera": printable(shot.camera),
        "trigger_id": frame.trigger_id,
        "part_id": _text(frame.part_id),
        "product": _text(result.product),
        "captured_at": frame.captured_at,
        "verdict": result.verdict.value,
        "reason_code": result.reason_code,
        "reason": printable(result.reason),
        "score": finite(result.score),
        "threshold": finite(result.threshold),
        "reject_threshold": finite(result.reject_threshold),
        "regions": [
            {"box_xyxy": list(region.box_xyxy), "score": finite(region.score), "area_px": region.area_px} for region in result.regions[:MOST_REGIONS]
        ],
        "regions_in_all": len(result.regions),
        "has_image": frame.image is not None,
    }


def finite(value: float) -> float | None:
    """Return a number that JSON can hold, None for NaN and infinities."""
    return float(value) if math.isfinite(value) else None


def _last_values(last: LastVerdict) -> dict[str, Any]:
    values = asdict(last) | {"verdict": last.verdict.value, "score": finite(last.score), "threshold": finite(last.threshold)}
    return values | {name: _text(values[name]) for name in ("part_id", "product", "reason")}


def _line_values(line: LineState) -> dict[str, Any]:
    verdict = None if line.verdict is None else line.verdict.value
    return {
        "state": line.state.value,
        "ready": line.ready,
        "busy": line.busy,
        "result_valid": line.result_valid,
        "fault": line.fault,
        "accept": line.accept,
        "trigger_id": line.trigger_id,
        "verdict": verdict,
        "fault_reason": printable(line.fault_reason),
    }


def _consumer(counts: OutboxCounts) -> dict[str, Any]:
    return asdict(counts) | {"last_error": printable(counts.last_error)}


def _yield(verdicts: Mapping[Verdict, int]) -> float | None:
    total = sum(verdicts.values())
    return verdicts.get(Verdict.PASS, 0) / total if total else None


def _text(text: str | None) -> str | None:
    return None if text is None else printable(text)
