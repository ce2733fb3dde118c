"""Each trigger gets one record and one answer within its deadline, in this order, and nothing but a recorded PASS in time is accepted."""

import threading

import pytest

from snl_runtime.errors import SinkError, SourceOpenError, TriggerRefusedError
from snl_runtime.station.line_state import StationState
from snl_runtime.types import Verdict


def assert_never_wrongly_accepted(states):
    """What must hold of everything that the line ever saw of one camera."""
    for state in states:
        assert not (state.ready and state.busy)
        if state.accept:
            assert state.result_valid
            assert state.verdict is Verdict.PASS
            assert not state.fault


def test_each_trigger_gets_one_record_and_the_line_is_told_after_it(bench, fakes):
    camera = fakes.software_camera()
    bench.start(camera)
    for trigger_id, gray in enumerate((fakes.GOOD, fakes.DOUBTFUL, fakes.BAD), 1):
        camera.on_trigger = lambda gray=gray: camera.take(gray)
        assert bench.top.trigger(part_id=f"part {trigger_id}", product="bottle") == trigger_id
        bench.output.answer_to(trigger_id)
    assert bench.store.wait_answered(3) == [(1, "PASS", "pass"), (2, "REVIEW", "review"), (3, "REJECT", "reject")]
    assert [(row.frame.part_id, row.result.product) for row in bench.store.rows] == [(f"part {n}", "bottle") for n in (1, 2, 3)]
    assert [bench.output.answer_to(n).accept for n in (1, 2, 3)] == [True, False, False]
    for number in (1, 2, 3):
        added = next(i for i, event in enumerate(bench.store.log) if event[0] == "add" and event[2] == number)
        told = next(i for i, event in enumerate(bench.store.log) if event[0] == "publish" and event[2] == number)
        assert added < told
    assert_never_wrongly_accepted(bench.output.states)


def test_a_trigger_while_busy_is_refused_and_has_no_record(bench, fakes):
    camera, fired = fakes.software_camera(), threading.Event()
    camera.on_trigger = fired.set
    bench.start(camera)
    bench.top.trigger()
    with pytest.raises(TriggerRefusedError, match="trigger 1 waits"):
        bench.top.trigger()
    assert fired.wait(fakes.WAIT_S)
    camera.take()
    assert bench.store.wait_answered(1) == [(1, "PASS", "pass")]
    snapshot = bench.station.snapshot().cameras["top"]
    assert (snapshot.refused, snapshot.triggers.triggered) == (1, 1)


def test_a_trigger_for_a_product_that_is_not_inspected_here_is_refused(bench, fakes):
    bench.start(fakes.software_camera(), fakes.command_config(products=("nut", "washer")))
    with pytest.raises(TriggerRefusedError, match="top inspects nut, washer, not 'bolt'"):
        bench.top.trigger(product="bolt")
    bench.top.trigger(product="nut")
    assert bench.store.wait_answered(1) == [(1, "PASS", "pass")]


def test_a_frame_that_does_not_come_is_an_error_and_no_fault(bench, fakes):
    camera = fakes.software_camera()
    camera.on_trigger = lambda: None
    bench.start(camera, fakes.command_config(trigger={"frame_timeout_ms": 30.0}))
    bench.top.trigger()
    state = bench.output.answer_to(1)
    assert (state.verdict, state.reason_code, state.fault, state.accept) == (Verdict.ERROR, "frame_fault", False, False)
    camera.opened.wait_for(2)  # opened again, so that a late frame cannot be taken for the next part
    camera.on_trigger = camera.take
    bench.top.trigger()
    assert bench.output.answer_to(2).verdict is Verdict.PASS


def test_a_bad_frame_is_an_error(bench, fakes):
    camera = fakes.software_camera()
    camera.on_trigger = lambda: camera.send(None, fault="broken buffer")
    bench.start(camera)
    bench.top.trigger()
    assert bench.output.answer_to(1).reason_code == "frame_fault"
    assert bench.store.wait_answered(1) == [(1, "ERROR", "frame_fault")]
    assert bench.store.rows[0].result.reason == "broken buffer"
    assert camera.opened.count == 1, "the frame was the trigger's own: no reason to open the camera again"


def test_a_camera_that_gives_only_bad_frames_is_a_fault(bench, fakes):
    camera = fakes.software_camera()
    camera.on_trigger = lambda: camera.send(None, fault="frozen camera")
    bench.start(camera, fakes.command_config(bad_frames_before_fault=3))
    for trigger_id in (1, 2):
        bench.top.trigger()
        assert not bench.output.answer_to(trigger_id).fault
    bench.top.trigger()
    assert bench.output.answer_to(3).fault_reason == "3 frames in a row did not come whole: frozen camera"


def test_a_record_that_failed_is_written_at_the_stop_if_nobody_reset(bench, fakes):
    def full(frame, result):
        raise SinkError("disk full")

    bench.store.before = full
    station = bench.start(fakes.software_camera())
    bench.top.trigger()
    bench.output.wait_for(lambda state: state.fault)
    bench.store.before = lambda frame, result: None
    station.stop()
    assert bench.store.outcomes == [(1, "ERROR", "record_failed")]


def test_a_stuck_call_is_answered_at_the_deadline_and_its_late_result_is_discarded(bench, fakes):
    release = threading.Event()
    bench.detector.before = lambda image: release.wait(fakes.WAIT_S)
    bench.start(fakes.software_camera(), fakes.command_config(deadline_ms=150.0, trigger={"frame_timeout_ms": 50.0}))
    bench.top.trigger()
    state = bench.output.answer_to(1)
    assert (state.verdict, state.reason_code, state.fault) == (Verdict.ERROR, "deadline_missed", True)
    assert "detector has not answered" in state.fault_reason
    assert bench.store.wait_answered(1) == [(1, "ERROR", "deadline_missed")], "recorded although the call has not come back"
    bench.top.reset()
    assert bench.top.line_state.fault, "the cause is still there"
    with pytest.raises(TriggerRefusedError, match="fault"):
        bench.top.trigger()
    release.set()
    fakes.wait_until(lambda: bench.station.snapshot().cameras["top"].triggers.late_discarded == 1)
    fakes.wait_until(lambda: bench.top.try_reset() is None)
    bench.detector.before = lambda image: None
    bench.top.trigger()
    assert bench.output.answer_to(2).accept
    assert bench.store.outcomes == [(1, "ERROR", "deadline_missed"), (2, "PASS", "pass")]
    assert_never_wrongly_accepted(bench.output.states)


def test_a_record_that_is_late_gives_error_and_fault_and_never_the_verdict(bench, fakes):
    release = threading.Event()
    bench.store.before = lambda frame, result: release.wait(fakes.WAIT_S)
    bench.start(fakes.software_camera(), fakes.command_config(deadline_ms=150.0, trigger={"frame_timeout_ms": 50.0}))
    bench.top.trigger()
    state = bench.output.answer_to(1)
    assert (state.verdict, state.reason_code, state.fault, state.accept) == (Verdict.ERROR, "record_late", True, False)
    assert bench.top.try_reset() == "a record is still being written"
    release.set()
    assert bench.store.wait_answered(1) == [(1, "ERROR", "record_late")]
    assert "the verdict was PASS" in bench.store.rows[0].result.reason
    assert not any(state.accept for state in bench.output.states)


def test_a_late_record_that_cannot_be_changed_reaches_no_consumer_until_it_is(bench, fakes):
    def broken(row, result):
        raise SinkError("disk full")

    release, amend = threading.Event(), bench.store.amend
    bench.store.before = lambda frame, result: release.wait(fakes.WAIT_S)
    bench.store.amend = broken
    bench.start(fakes.software_camera(), fakes.command_config(deadline_ms=150.0, trigger={"frame_timeout_ms": 50.0}))
    bench.top.trigger()
    assert bench.output.answer_to(1).reason_code == "record_late"
    release.set()
    fakes.wait_until(lambda: bench.top.try_reset() == "a record cannot be written: disk full")
    assert [(row.outcome, row.answered) for row in bench.store.rows] == [((1, "PASS", "pass"), False)]
    bench.store.amend = amend
    assert bench.top.try_reset() is None
    assert bench.store.wait_answered(1) == [(1, "ERROR", "record_late")]


def test_a_store_that_fails_gives_error_and_fault_until_the_missing_record_is_written(bench, fakes):
    def full(frame, result):
        raise SinkError("disk full")

    bench.store.before = full
    bench.start(fakes.software_camera())
    bench.top.trigger()
    state = bench.output.answer_to(1)
    assert (state.verdict, state.reason_code, state.fault) == (Verdict.ERROR, "record_failed", True)
    fakes.wait_until(lambda: bench.top.try_reset() == "a record cannot be written: disk full")
    bench.store.before = lambda frame, result: None
    assert bench.top.try_reset() is None
    assert bench.store.wait_answered(1) == [(1, "ERROR", "record_failed")]
    assert not any(state.accept for state in bench.output.states)


def test_a_mark_that_fails_is_a_fault_and_is_written_by_the_reset(bench, fakes):
    """Otherwise no consumer would ever get this row, nor any later one."""
    camera = fakes.software_camera()
    bench.start(camera, fakes.command_config())
    mark, failures = bench.store.mark_answered, iter([True, True, False])

    def fails(row):
        if next(failures, False):
            raise SinkError("disk full")
        mark(row)

    bench.store.mark_answered = fails
    trigger_id = bench.top.trigger()
    assert bench.output.answer_to(trigger_id).verdict is Verdict.PASS
    assert "could not be marked" in bench.output.wait_for(lambda state: state.fault).fault_reason
    assert "disk full" in bench.top.try_reset()
    assert bench.top.try_reset() is None
    assert bench.store.wait_answered(1) == [(1, "PASS", "pass")]


def test_an_output_that_fails_is_a_fault_that_the_others_see(bench, fakes):
    def unplugged(state):
        if state.result_valid or state.fault:
            raise OSError("unplugged")

    broken = fakes.output()
    broken.before = unplugged
    bench.start(fakes.software_camera(), outputs=[bench.output, broken])
    bench.top.trigger()
    state = bench.output.wait_for(lambda state: state.fault)
    assert "could not tell the line: unplugged" in state.fault_reason
    assert not state.accept
    with pytest.raises(TriggerRefusedError):
        bench.top.trigger()
    bench.store.wait_answered(1)
    broken.before = lambda state: None
    fakes.wait_until(lambda: bench.top.try_reset() is None)
    bench.top.trigger()
    assert bench.output.answer_to(2).accept
    assert broken.answer_to(2).accept


def test_a_detector_that_raises_is_an_error_and_a_fault_but_not_the_end(bench, fakes):
    def broken(image):
        raise RuntimeError("driver gone")

    bench.detector.before = broken
    bench.start(fakes.software_camera())
    bench.top.trigger()
    assert bench.output.wait_for(lambda state: state.fault).fault_reason == "the detector failed: driver gone"
    assert bench.store.wait_answered(1) == [(1, "ERROR", "detector_failed")]
    bench.detector.before = lambda image: None
    fakes.wait_until(lambda: bench.top.try_reset() is None)
    bench.top.trigger()
    assert bench.output.answer_to(2).accept


def test_a_camera_that_dies_gives_errors_and_a_fault_until_it_is_back(bench, fakes):
    camera = fakes.camera()
    bench.start(camera)
    camera.fail_open = SourceOpenError("still unplugged")
    bench.top.trigger()
    camera.die()
    state = bench.output.answer_to(1)
    assert (state.verdict, state.reason_code) == (Verdict.ERROR, "frame_fault")
    assert bench.output.wait_for(lambda state: state.fault).fault_reason == "the camera gives no frames: unplugged"
    assert "the camera gives no frames" in bench.top.try_reset()
    camera.fail_open = None
    camera.opened.wait_for(2)
    fakes.wait_until(lambda: bench.top.try_reset() is None)
    bench.top.trigger()
    camera.send()
    assert bench.output.answer_to(2).accept


def test_a_stop_in_the_middle_answers_the_trigger_under_way_and_accepts_nothing_more(bench, fakes):
    inspecting, release = threading.Event(), threading.Event()
    bench.detector.before = lambda image: (inspecting.set(), release.wait(fakes.WAIT_S))
    station = bench.start(fakes.software_camera())
    bench.top.trigger()
    assert inspecting.wait(fakes.WAIT_S)
    stopper = threading.Thread(target=station.stop, daemon=True)
    stopper.start()
    fakes.wait_until(lambda: not bench.top._announcer.takes_triggers)
    with pytest.raises(TriggerRefusedError):
        bench.top.trigger()
    release.set()
    stopper.join(fakes.WAIT_S)
    assert not stopper.is_alive()
    assert bench.store.outcomes == [(1, "PASS", "pass")]
    last = bench.output.states[-1]
    assert (last.state, last.accept, last.ready, last.busy) == (StationState.HALTED, False, False, False)
    assert bench.output.left == 1


def test_a_lost_heartbeat_ends_the_accept_and_is_a_fault(bench, fakes):
    bench.start(fakes.software_camera(), fakes.command_config(heartbeat_timeout_ms=300.0))
    bench.top.heartbeat()
    bench.top.trigger()
    state = bench.output.wait_for(lambda state: state.fault)
    assert state.fault_reason.startswith("heartbeat lost")
    assert not state.accept
    bench.top.heartbeat()
    assert bench.top.try_reset() is None


def test_a_verdict_that_comes_in_a_fault_is_not_given(bench, fakes):
    inspecting, release = threading.Event(), threading.Event()
    bench.detector.before = lambda image: (inspecting.set(), release.wait(fakes.WAIT_S))
    station = bench.start(fakes.software_camera())
    bench.top.trigger()
    assert inspecting.wait(fakes.WAIT_S)
    report = station.on_fault("broker")
    report("the broker has been down for 60 s")
    release.set()
    assert bench.store.wait_answered(1) == [(1, "ERROR", "station_fault")]
    assert bench.output.answer_to(1).verdict is Verdict.ERROR
    fakes.wait_until(lambda: bench.top.try_reset() == "the broker has been down for 60 s")
    report(None)
    assert bench.top.try_reset() is None
