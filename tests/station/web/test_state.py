"""The page shows a verdict only while it answers the newest part of a station that runs; after a fault or a stop it does not come back."""

import dataclasses
import json
import math
import time

import pytest

from snl_runtime.line.pipeline import PipelineCounts
from snl_runtime.line.sources.base import SourceCounters
from snl_runtime.station.book import BookCounts
from snl_runtime.station.line_state import LineState, StationState
from snl_runtime.station.outbox import OutboxCounts
from snl_runtime.station.snapshot import LastVerdict, Latencies, StationSnapshot, UnitSnapshot
from snl_runtime.station.states import LineStateMachine
from snl_runtime.station.web.feed import ResultFeed, Shot
from snl_runtime.station.web.live import to_strict_json
from snl_runtime.station.web.panels import DriftLevel, DriftLine, WebPanels
from snl_runtime.station.web.state import StateBuilder, reject_values, unhealthy_reasons
from snl_runtime.types import AnomalyRegion, AnomalyResult, Frame, StageTimings, Verdict


def last_of(trigger_id, verdict=Verdict.PASS, **changes):
    values = {
        "trigger_id": trigger_id,
        "part_id": None,
        "product": None,
        "captured_at": 1.7e9,
        "verdict": verdict,
        "reason_code": "x",
        "reason": "x",
        "score": 0.5,
        "threshold": 1.0,
    }
    return LastVerdict(**(values | changes))


def unit_of(line, *, last=(), **changes):
    values = {
        "line": line,
        "frames": PipelineCounts(captured=0, inspected=0, dropped=0, failed=0, waiting=0),
        "triggers": BookCounts(triggered=0, answered=0, missed=0, late_discarded=0, open=0),
        "refused": 0,
        "frames_unasked": 0,
        "source": SourceCounters(),
        "source_fault": "",
        "verdicts": dict.fromkeys(Verdict, 0),
        "latency_ms": Latencies(p50=math.nan, p95=math.nan, p99=math.nan, max=math.nan),
        "last": tuple(last),
    }
    return UnitSnapshot(**(values | changes))


def result_of(verdict):
    return AnomalyResult(
        verdict=verdict,
        reason_code="x",
        reason="x",
        score=0.5,
        threshold=1.0,
        reject_threshold=1.0,
        product=None,
        anomaly_map=None,
        roi_xyxy=None,
        regions=(),
        timings=StageTimings(),
        model_sha256="",
    )


class FixedStation:
    def __init__(self, line, **unit):
        self.show(line, **unit)

    def show(self, line, **unit):
        self.units = {line.camera: unit_of(line, **unit)}

    def snapshot(self):
        return StationSnapshot(started_at=1.7e9, elapsed_s=1.0, cameras=self.units, observations_lost=2, observers_failed=("JsonlSink",))


def builder_of(station, panels=None, feed=None):
    feed = feed or ResultFeed(tuple(station.units), max_rejects=4, max_reject_bytes=1 << 20)
    return StateBuilder(station, feed, panels or WebPanels(), stale_after_s=10.0, takes_commands=False)


def shown(builder):
    return builder.build()["cameras"][0]["shown"]


def running(**changes):
    values = {"camera": "top", "state": StationState.READY, "ready": True}
    return LineState(**(values | changes))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (LineState(camera="top"), "starting"),
        (running(), "waiting"),
        (running(state=StationState.CONTINUOUS_EXECUTION), "waiting"),
        (running(state=StationState.SINGLE_EXECUTION, ready=False, busy=True, trigger_id=5), "busy"),
        (running(state=StationState.HALTED, ready=False), "stopped"),
        (running(state=StationState.HALTED, ready=False, result_valid=True, verdict=Verdict.PASS, trigger_id=4), "stopped"),
        (running(state=StationState.ERROR, ready=False, fault=True, fault_reason="x"), "fault"),
        (
            running(state=StationState.ERROR, ready=False, fault=True, fault_reason="x", result_valid=True, verdict=Verdict.PASS, trigger_id=4),
            "fault",
        ),
        *[(running(result_valid=True, verdict=verdict, trigger_id=4), verdict.value.lower()) for verdict in Verdict],
    ],
)
def test_each_state_of_the_line_has_one_word(line, expected):
    assert shown(builder_of(FixedStation(line, last=[last_of(4)]))) == expected


def test_while_the_next_part_is_inspected_a_running_camera_shows_the_last_one():
    busy = running(state=StationState.CONTINUOUS_EXECUTION, ready=False, busy=True, trigger_id=5)
    assert shown(builder_of(FixedStation(busy, last=[last_of(4, Verdict.REVIEW)]))) == "review"
    assert shown(builder_of(FixedStation(busy))) == "waiting"


def test_a_pass_from_before_a_fault_does_not_come_back_after_the_reset():
    machine = LineStateMachine("top", continuous=True)
    machine.start(0)
    machine.trigger(1)
    machine.answer(1, Verdict.PASS)
    station = FixedStation(machine.line_state, last=[last_of(1)])
    builder = builder_of(station)
    words = [shown(builder)]
    for event in (lambda: machine.fault("stuck"), lambda: machine.reset(1), lambda: machine.trigger(2)):
        assert event()
        station.show(machine.line_state, last=[last_of(1)])
        words.append(shown(builder))
    machine.answer(2, Verdict.REJECT)
    station.show(machine.line_state, last=[last_of(2, Verdict.REJECT), last_of(1)])
    words.append(shown(builder))
    assert words == ["pass", "fault", "waiting", "waiting", "reject"]


def test_the_age_of_a_verdict_is_that_of_its_frame():
    feed = ResultFeed(("top",), max_rejects=4, max_reject_bytes=1 << 20)
    station = FixedStation(running(result_valid=True, verdict=Verdict.PASS, trigger_id=4), last=[last_of(4)])
    builder = builder_of(station, feed=feed)
    assert builder.build()["cameras"][0]["age_s"] is None
    captured_ns = time.monotonic_ns() - 60_000_000_000
    frame = Frame(image=None, fault="x", color="bgr", index=0, captured_ns=captured_ns, captured_at=1.0, source_id="fake", trigger_id=4)
    feed(frame, result_of(Verdict.PASS), LineState(camera="top"))
    assert 60 <= builder.build()["cameras"][0]["age_s"] < 90


@pytest.mark.parametrize(
    ("line", "healthy"),
    [
        (running(), True),
        (running(ready=False, busy=True, state=StationState.SINGLE_EXECUTION), True),
        (running(state=StationState.CONTINUOUS_EXECUTION), True),
        (LineState(camera="top"), False),
        (running(ready=False, state=StationState.HALTED), False),
        (running(ready=False, fault=True, state=StationState.ERROR, fault_reason="unplugged"), False),
        (running(ready=False, busy=True, fault=True, state=StationState.ERROR, fault_reason="unplugged"), False),
    ],
)
def test_a_station_is_healthy_only_while_it_takes_parts_without_a_fault(line, healthy):
    reasons = unhealthy_reasons(FixedStation(line).snapshot())
    assert (reasons == []) is healthy
    assert all("top" in reason for reason in reasons)


def test_the_whole_state_is_strict_json_without_names_that_no_text_can_hold():
    line = running(camera="t\udcffp", fault=True, fault_reason="caf\udce9")
    station = FixedStation(line, last=[last_of(4, Verdict.ERROR, score=math.nan, threshold=math.nan, part_id="\udc80", reason="\udc80")])
    panels = WebPanels(notes=lambda: ["note \udc80"])
    text = to_strict_json(builder_of(station, panels).build())
    assert text.isascii()
    state = json.loads(text)
    assert state["cameras"][0]["last"]["score"] is None
    assert state["cameras"][0]["latency_ms"] == {"p50": None, "p95": None, "p99": None, "max": None}
    assert state["cameras"][0]["name"] == "t\\xffp"
    assert state["observers"] == {"lost": 2, "failed": ["JsonlSink"]}


def test_the_yield_is_the_share_of_parts_that_passed():
    verdicts = {Verdict.PASS: 6, Verdict.REVIEW: 1, Verdict.REJECT: 2, Verdict.ERROR: 1}
    station = FixedStation(running(), verdicts=verdicts)
    assert builder_of(station).build()["cameras"][0]["yield"] == 0.6
    assert builder_of(FixedStation(running())).build()["cameras"][0]["yield"] is None


def test_panels_show_what_they_are_given():
    counts = OutboxCounts(consumer="mqtt", connected=False, delivered=3, backlog=2, failures=1, last_error="refused", fault="")
    drift = DriftLine(product="washer", figure="brightness", level=DriftLevel.DRIFT, text="141, was 118")
    state = builder_of(FixedStation(running()), WebPanels(drift=lambda: [drift], outboxes=[lambda: counts], notes=lambda: ["a note"])).build()
    assert state["consumers"] == [dataclasses.asdict(counts)]
    assert state["drift"] == [{"product": "washer", "figure": "brightness", "level": "drift", "text": "141, was 118"}]
    assert state["notes"] == ["a note"]


def test_a_panel_that_is_not_configured_is_told_from_an_empty_one():
    assert builder_of(FixedStation(running())).build()["drift"] is None
    assert builder_of(FixedStation(running()), WebPanels(drift=list)).build()["drift"] == []


def test_a_panel_that_fails_does_not_blind_the_others():
    def fails():
        raise RuntimeError("no reference")

    state = builder_of(FixedStation(running()), WebPanels(drift=fails, notes=lambda: ["a note"])).build()
    assert state["drift"] is None
    assert state["notes"] == ["a note", "the panel drift failed: no reference"]


def test_a_part_full_of_regions_tells_of_the_highest():
    regions = tuple(AnomalyRegion(box_xyxy=(0, 0, 1, 1), score=100.0 - number, area_px=1) for number in range(50))
    frame = Frame(image=None, fault="x", color="bgr", index=0, captured_ns=1, captured_at=1.0, source_id="fake", trigger_id=4)
    result = dataclasses.replace(result_of(Verdict.REJECT), regions=regions)
    values = reject_values(Shot(number=1, camera="top", frame=frame, result=result))
    assert ([region["score"] for region in values["regions"]], values["regions_in_all"]) == ([100.0 - number for number in range(20)], 50)
