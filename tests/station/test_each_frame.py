"""Where every frame is a part: each captured frame is answered, a frame that nobody looks at is either no trigger or an ERROR."""

import threading

import pytest

from snl_runtime.errors import TriggerRefusedError
from snl_runtime.line.handoff import OverflowPolicy
from snl_runtime.line.sources.base import SourceCounters
from snl_runtime.station.line_state import StationState
from snl_runtime.station.station import Station, StationCamera
from snl_runtime.station.triggered import TriggerConfig
from snl_runtime.station.unit_config import UnitConfig


def each_frame(**changes):
    return UnitConfig(deadline_ms=30_000.0, **changes)


def test_every_frame_of_a_finite_source_is_a_trigger_and_the_station_ends_with_it(bench, fakes):
    camera = fakes.camera(policy=OverflowPolicy.EVERY, counters=SourceCounters(frames_announced=3))
    station = bench.start(camera, each_frame())
    for gray in (fakes.GOOD, fakes.BAD, fakes.GOOD):
        camera.send(gray)
    camera.end()
    assert station.wait(fakes.WAIT_S)
    assert bench.store.wait_answered(3) == [(1, "PASS", "pass"), (2, "REJECT", "reject"), (3, "PASS", "pass")]
    assert [bench.output.answer_to(n).verdict.value for n in (1, 2, 3)] == ["PASS", "REJECT", "PASS"]
    assert bench.output.states[-1].state is StationState.HALTED
    with pytest.raises(TriggerRefusedError, match="each_frame"):
        bench.top.trigger()


def test_a_camera_with_a_detector_of_its_own_and_no_deadline(bench, fakes):
    camera = fakes.camera(policy=OverflowPolicy.EVERY, counters=SourceCounters(frames_announced=1))
    own = fakes.detector()
    cameras = [StationCamera(name="top", source=camera, config=UnitConfig(deadline_ms=None), detector=own)]
    with Station(cameras, bench.detector, bench.store) as station:
        camera.send()
        camera.end()
        assert station.wait(fakes.WAIT_S)
    assert bench.store.outcomes == [(1, "PASS", "pass")]
    assert (own.calls.count, bench.detector.calls.count) == (1, 0)


def test_frames_of_a_free_running_camera_that_nobody_looks_at_are_no_triggers(bench, fakes):
    inspecting, release = threading.Event(), threading.Event()
    bench.detector.before = lambda image: (inspecting.set(), release.wait(fakes.WAIT_S))
    camera = fakes.camera()
    bench.start(camera, each_frame())
    camera.send()
    assert inspecting.wait(fakes.WAIT_S)
    for _ in range(5):
        camera.send(fakes.BAD)
    fakes.wait_until(lambda: bench.station.snapshot().cameras["top"].frames.captured == 6)
    release.set()
    assert bench.store.wait_answered(2) == [(1, "PASS", "pass"), (2, "REJECT", "reject")]
    frames = bench.station.snapshot().cameras["top"].frames
    assert (frames.dropped, frames.captured) == (4, 6)


def test_a_triggered_frame_that_is_dropped_gets_an_error_record(bench, fakes):
    inspecting, release = threading.Event(), threading.Event()
    bench.detector.before = lambda image: (inspecting.set(), release.wait(fakes.WAIT_S))
    camera = fakes.camera(policy=OverflowPolicy.EVERY)
    bench.start(camera, each_frame(policy=OverflowPolicy.DROP_OLDEST, frame_capacity=1))
    camera.send()
    assert inspecting.wait(fakes.WAIT_S)
    for _ in range(3):
        camera.send(fakes.BAD)
    fakes.wait_until(lambda: bench.station.snapshot().cameras["top"].frames.dropped == 2)
    release.set()
    outcomes = bench.store.wait_answered(4)
    assert sorted(outcomes) == [(1, "PASS", "pass"), (2, "ERROR", "frame_dropped"), (3, "ERROR", "frame_dropped"), (4, "REJECT", "reject")]


def test_frames_that_wait_behind_a_stuck_call_are_answered_by_their_deadlines(bench, fakes):
    release = threading.Event()
    bench.detector.before = lambda image: release.wait(fakes.WAIT_S)
    camera = fakes.camera(policy=OverflowPolicy.EVERY)
    bench.start(camera, UnitConfig(deadline_ms=200.0, record_margin_ms=20.0))
    for _ in range(3):
        camera.send()
    assert bench.store.wait_answered(3) == [(n, "ERROR", "deadline_missed") for n in (1, 2, 3)]
    release.set()
    counts = bench.station.snapshot().cameras["top"].triggers
    assert (counts.triggered, counts.answered, counts.open) == (3, 3, 0)
    assert not any(state.accept for state in bench.output.states)


def test_a_gap_in_the_counter_of_a_triggered_camera_gives_an_error_per_missing_frame(bench, fakes):
    camera = fakes.camera(policy=OverflowPolicy.EVERY)
    bench.start(camera, each_frame(trigger=TriggerConfig(count_gaps=True)))
    for device_frame_id in (7, 8, 11):
        camera.send(device_frame_id=device_frame_id)
    outcomes = bench.store.wait_answered(5)
    assert [outcome[1] for outcome in outcomes] == ["PASS", "PASS", "ERROR", "ERROR", "PASS"]
    assert [row.frame.device_frame_id for row in bench.store.rows] == [7, 8, 9, 10, 11]
