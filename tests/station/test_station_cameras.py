"""Several cameras, observers and the configuration of a station: none holds back or changes what another camera's line is told."""

import threading

import pytest

from snl_runtime.errors import ConfigError, SourceOpenError
from snl_runtime.line.handoff import OverflowPolicy
from snl_runtime.station.station import Station, StationCamera
from snl_runtime.station.triggered import TriggerConfig, TriggerMode
from snl_runtime.station.unit_config import UnitConfig
from snl_runtime.types import Verdict


def test_two_cameras_share_one_detector_and_keep_their_triggers_apart(bench, fakes):
    left, right = fakes.software_camera(), fakes.software_camera()
    right.on_trigger = lambda: right.take(fakes.BAD)
    config = fakes.command_config()
    station = bench.start_cameras({"left": (left, config), "right": (right, config)})
    for _ in range(5):
        ids = {name: commands.trigger() for name, commands in station.commands.items()}
        assert len(set(ids.values())) == 1
        assert bench.output.answer_to(ids["left"], "left").accept
        assert bench.output.answer_to(ids["right"], "right").verdict is Verdict.REJECT
    bench.store.wait_answered(10)
    by_camera = {name: [row.outcome for row in bench.store.rows if row.camera == name] for name in ("left", "right")}
    assert by_camera == {"left": [(n, "PASS", "pass") for n in range(1, 6)], "right": [(n, "REJECT", "reject") for n in range(1, 6)]}


def test_a_fault_of_one_camera_leaves_the_other_running(bench, fakes):
    left, right = fakes.camera(), fakes.software_camera()
    config = fakes.command_config()
    station = bench.start_cameras({"left": (left, config), "right": (right, config)})
    left.fail_open = SourceOpenError("gone")
    left.die()
    bench.output.wait_for(lambda state: state.camera == "left" and state.fault)
    assert station.commands["right"].trigger() == 1
    assert bench.output.answer_to(1, "right").accept


def test_snapshot_and_events_show_the_final_results(bench, fakes):
    seen = []
    told = threading.Event()

    def event(frame, result, state):
        seen.append((frame.trigger_id, result.verdict, state.accept))
        if len(seen) == 2:
            told.set()

    camera = fakes.software_camera()
    station = bench.start(camera, events=[event])
    for trigger_id, gray in ((1, fakes.GOOD), (2, fakes.BAD)):
        camera.on_trigger = lambda gray=gray: camera.take(gray)
        bench.top.trigger()
        bench.store.wait_answered(trigger_id)
    assert told.wait(fakes.WAIT_S)
    assert seen == [(1, Verdict.PASS, True), (2, Verdict.REJECT, False)]
    top = station.snapshot().cameras["top"]
    assert dict(top.verdicts) == {Verdict.PASS: 1, Verdict.REVIEW: 0, Verdict.REJECT: 1, Verdict.ERROR: 0}
    assert [last.trigger_id for last in top.last] == [2, 1]
    assert 0 < top.latency_ms.p50 <= top.latency_ms.p99 <= top.latency_ms.max < 30_000
    assert top.line.trigger_id == 2


def test_an_observer_that_raises_or_hangs_holds_nothing_back(bench, fakes):
    release = threading.Event()

    def broken(frame, result, state):
        raise ValueError("no screen")

    camera = fakes.software_camera()
    station = bench.start(camera, events=[broken, lambda *_: release.wait(fakes.WAIT_S)])
    bench.resources.callback(release.set)
    for trigger_id in range(1, 31):
        bench.top.trigger()
        bench.store.wait_answered(trigger_id)
    snapshot = station.snapshot()
    assert snapshot.observations_lost > 0
    assert len(snapshot.observers_failed) == 1
    release.set()


def test_a_camera_that_cannot_be_opened_closes_what_was_opened(bench, fakes):
    good, bad = fakes.software_camera(), fakes.software_camera()
    bad.fail_open = SourceOpenError("cannot open it")
    config = fakes.command_config()
    with pytest.raises(SourceOpenError, match="cannot open it"):
        bench.start_cameras({"left": (good, config), "right": (bad, config)})
    assert good.closed.count == good.opened.count == 1
    assert bench.output.left == 1


def test_names_of_cameras_must_differ(fakes):
    cameras = [StationCamera(name="top", source=fakes.camera())] * 2
    with pytest.raises(ConfigError, match="a name of its own"):
        Station(cameras, fakes.detector(), fakes.store())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"deadline_ms": None, "trigger": TriggerConfig(mode=TriggerMode.COMMAND)}, "deadline_ms must be given with trigger.mode command"),
        ({"deadline_ms": 40.0}, "record_margin_ms must be 0 or more and less than deadline_ms"),
        ({"missed_before_fault": 0}, "missed_before_fault must be at least 1, got 0"),
        ({"frame_capacity": 0}, "frame_capacity must be at least 1, got 0"),
        ({"heartbeat_timeout_ms": 0.0}, "heartbeat_timeout_ms must be positive"),
        ({"trigger": TriggerConfig(mode=TriggerMode.COMMAND, frame_timeout_ms=960.0)}, "frame_timeout_ms must leave time"),
        ({"trigger": TriggerConfig(mode=TriggerMode.COMMAND), "policy": OverflowPolicy.LATEST}, "policy must be every"),
    ],
)
def test_a_configuration_that_cannot_keep_its_deadline_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        UnitConfig(**changes)
