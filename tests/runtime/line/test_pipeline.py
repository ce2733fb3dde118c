"""Every captured frame is accounted for, no verdict is lost, and the first failure reaches the caller, wherever a part fails."""

import dataclasses
import signal
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snl_runtime.errors import InferenceError, SinkError, SourceEndedError, SourceOpenError, SourceStalledError
from snl_runtime.line.handoff import OverflowPolicy
from snl_runtime.line.pipeline import Pipeline, PipelineCounts
from snl_runtime.types import Verdict


def assert_accounted(counts):
    assert counts.waiting == 0
    assert counts.captured == counts.inspected + counts.dropped + counts.failed


def test_every_frame_of_a_finite_source_is_delivered_in_order(fakes):
    sink = fakes.sink()
    pipeline = Pipeline(fakes.source(50), fakes.detector(), [sink])
    pipeline.run()
    assert sink.indices == list(range(50))
    assert pipeline.counts == PipelineCounts(captured=50, inspected=50, dropped=0, failed=0, waiting=0)


def test_slow_sink_drops_frames_but_never_verdicts(fakes, wait_s):
    all_captured = threading.Event()
    source = fakes.source(200, policy=OverflowPolicy.LATEST)
    source.before_frame = lambda index: all_captured.set() if index == 199 else None
    sink, detector = fakes.sink(), fakes.detector()
    sink.before_emit = lambda index: all_captured.wait(wait_s)
    pipeline = Pipeline(source, detector, [sink], result_capacity=2)
    pipeline.run()
    assert len(sink.delivered) == detector.seen
    assert sink.indices == sorted(set(sink.indices))
    assert sink.indices[-1] == 199, "the newest frame is always inspected"
    assert pipeline.counts.dropped == 200 - detector.seen > 0


def test_counters_add_up_while_a_frame_is_being_inspected(fakes, wait_s):
    inspecting, may_go_on = threading.Event(), threading.Event()
    detector = fakes.detector()
    detector.before_frame = lambda index: (inspecting.set(), may_go_on.wait(wait_s)) if index == 3 else None
    pipeline = Pipeline(fakes.source(10), detector, [fakes.sink()])
    runner = threading.Thread(target=pipeline.run, daemon=True)
    runner.start()
    assert inspecting.wait(wait_s)
    counts = pipeline.counts
    may_go_on.set()
    runner.join(wait_s)
    assert counts.inspected == 3
    assert counts.waiting >= 1
    assert counts.captured == counts.inspected + counts.dropped + counts.failed + counts.waiting


def test_frame_fault_becomes_an_error_record_with_the_faults_words(fakes):
    sink = fakes.sink()
    pipeline = Pipeline(fakes.source(3, faults={1}), fakes.detector(), [sink])
    pipeline.run()
    result = sink.delivered[1][1]
    assert (result.verdict, result.reason_code, result.reason) == (Verdict.ERROR, "frame_fault", "broken buffer")
    assert pipeline.counts == PipelineCounts(captured=3, inspected=2, dropped=0, failed=1, waiting=0)


def test_frame_fault_is_an_error_even_if_the_detector_would_pass_nothing(fakes):
    class Careless:
        def detect(self, image, *, color="bgr", product=None):
            return fakes.result_of(Verdict.PASS)

    sink = fakes.sink()
    Pipeline(fakes.source(1, faults={0}), Careless(), [sink]).run()
    assert sink.delivered[0][1].verdict is Verdict.ERROR


def test_source_failure_comes_after_all_captured_frames_are_delivered(fakes):
    sink, source = fakes.sink(), fakes.source(9, fail_at=9, fail_with=SourceEndedError("ended early"))
    pipeline = Pipeline(source, fakes.detector(), [sink])
    with pytest.raises(SourceEndedError):
        pipeline.run()
    assert sink.indices == list(range(9))
    assert source.left == sink.left == 1


def test_the_frame_on_which_the_detector_breaks_still_gets_a_record(fakes):
    sink = fakes.sink()
    pipeline = Pipeline(fakes.source(1000), fakes.detector(fail_at=5, fail_with=InferenceError("execute failed")), [sink])
    with pytest.raises(InferenceError):
        pipeline.run()
    assert sink.indices == [0, 1, 2, 3, 4, 5]
    assert sink.delivered[5][1].verdict is Verdict.ERROR
    assert sink.delivered[5][1].reason == "the detector failed: execute failed"
    assert_accounted(pipeline.counts)


def test_a_failing_sink_keeps_nothing_from_the_others_and_what_it_missed_is_known(fakes):
    records, saved_images = fakes.sink(), fakes.sink(fail_at=2, fail_with=SinkError("disk full"))
    pipeline = Pipeline(fakes.source(1000), fakes.detector(), [records, saved_images])
    with pytest.raises(SinkError):
        pipeline.run()
    counts = pipeline.counts
    assert_accounted(counts)
    assert records.indices == list(range(counts.inspected))
    assert saved_images.indices == [0, 1]
    assert [missed.frame.index for missed in pipeline.undelivered] == records.indices[2:]
    assert all(missed.sink is saved_images for missed in pipeline.undelivered)


def test_nothing_is_captured_when_a_sink_cannot_be_opened(fakes):
    source, other = fakes.source(10), fakes.sink()
    pipeline = Pipeline(source, fakes.detector(), [other, fakes.sink(fail_open=SinkError("no permission"))])
    with pytest.raises(SinkError):
        pipeline.run()
    assert source.entered == 0
    assert other.left == 1


def test_each_part_is_opened_used_and_closed_on_one_thread(fakes):
    source, detector, sink = fakes.source(5), fakes.detector(), fakes.sink()
    Pipeline(source, detector, [sink]).run()
    threads = [source.threads, detector.threads, sink.threads]
    assert [len(part) for part in threads] == [1, 1, 1]
    assert len(set.union(*threads, {threading.get_ident()})) == 4


class SilentCamera:
    policy = OverflowPolicy.LATEST

    def __init__(self):
        self.waiting, self.closed = threading.Event(), False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed = True

    def frames(self, stop):
        self.waiting.set()
        stop.wait()
        yield from ()


def test_stop_ends_a_run_whose_camera_delivers_nothing(fakes, wait_s):
    camera, sink = SilentCamera(), fakes.sink()
    pipeline = Pipeline(camera, fakes.detector(), [sink])
    runner = threading.Thread(target=pipeline.run, daemon=True)
    runner.start()
    assert camera.waiting.wait(wait_s)
    pipeline.stop()
    runner.join(wait_s)
    assert not runner.is_alive()
    assert camera.closed
    assert sink.left == 1


def test_ctrl_c_delivers_what_is_under_way_and_is_raised(fakes, wait_s):
    source, sink = fakes.source(10_000), fakes.sink()
    pipeline = Pipeline(source, fakes.detector(), [sink])
    stopping, stop = threading.Event(), pipeline.stop
    pipeline.stop = lambda: (stop(), stopping.set())

    def interrupt(index):
        if index == 20:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        if index == 21:  # more frames are under way when the interrupt arrives
            assert stopping.wait(wait_s)

    source.before_frame = interrupt
    with pytest.raises(KeyboardInterrupt):
        pipeline.run()
    counts = pipeline.counts
    assert_accounted(counts)
    assert counts.dropped == 0
    assert sink.indices == list(range(counts.captured))
    assert counts.captured < 10_000


def test_max_frames_ends_the_run_after_that_many_captured_frames(fakes):
    source, sink = fakes.source(100), fakes.sink()
    Pipeline(source, fakes.detector(), [sink], max_frames=7).run()
    assert sink.indices == list(range(7))
    assert source.handed_over == 7


def test_a_pipeline_runs_once(fakes):
    pipeline = Pipeline(fakes.source(1), fakes.detector(), [])
    pipeline.run()
    with pytest.raises(RuntimeError, match="runs once"):
        pipeline.run()


class Hooks:
    """Counts the frames it takes, gives them trigger ids and turns every second verdict into an ERROR."""

    def __init__(self, *, fail_at=None):
        self.taken, self.dropped, self.fail_at = 0, [], fail_at

    def take(self, frame):
        self.taken += 1
        return dataclasses.replace(frame, trigger_id=self.taken)

    def drop(self, frame):
        self.dropped.append(frame.index)

    def deliver(self, frame, result):
        if frame.trigger_id == self.fail_at:
            raise SinkError("not delivered")
        if frame.trigger_id % 2:
            return result
        return dataclasses.replace(result, verdict=Verdict.ERROR, reason_code="deadline_missed")


def test_hooks_see_every_frame_and_have_the_last_word_on_its_result(fakes, wait_s):
    all_captured = threading.Event()
    source, sink, hooks = fakes.source(50, policy=OverflowPolicy.DROP_OLDEST), fakes.sink(), Hooks()
    source.before_frame = lambda index: all_captured.set() if index == 49 else None
    sink.before_emit = lambda index: all_captured.wait(wait_s)
    pipeline = Pipeline(source, fakes.detector(), [sink], result_capacity=2, hooks=hooks)
    pipeline.run()
    assert [frame.trigger_id for frame, _ in sink.delivered] == list(range(1, hooks.taken + 1))
    assert [result.verdict for _, result in sink.delivered[:2]] == [Verdict.PASS, Verdict.ERROR]
    assert sorted(hooks.dropped + sink.indices) == list(range(50))
    assert pipeline.counts.dropped == len(hooks.dropped) > 0


def test_a_hook_that_fails_on_delivery_leaves_an_error_and_ends_the_run(fakes):
    sink = fakes.sink()
    pipeline = Pipeline(fakes.source(1), fakes.detector(), [sink], hooks=Hooks(fail_at=1))
    with pytest.raises(SinkError):
        pipeline.run()
    assert [(result.verdict, result.reason_code) for _, result in sink.delivered] == [(Verdict.ERROR, "delivery_failed")]


@st.composite
def failures(draw):
    """Where the run may break: any part, at any point, any number of them."""
    count = draw(st.integers(0, 12))
    point = st.one_of(st.none(), st.integers(0, count))
    maybe = st.sampled_from([False, False, False, True])
    return {
        "count": count,
        "faults": draw(st.sets(st.integers(0, max(0, count - 1)), max_size=3)),
        "source_open": draw(maybe),
        "source_at": draw(point),
        "source_close": draw(maybe),
        "detector_at": draw(point),
        "sink_open": draw(maybe),
        "sink_at": draw(point),
        "sink_close": draw(maybe),
        "stop_at": draw(point),
        "policy": draw(st.sampled_from(OverflowPolicy)),
        "frame_capacity": draw(st.integers(1, 3)),
        "result_capacity": draw(st.integers(1, 3)),
    }


@settings(max_examples=300, deadline=None)
@given(plan=failures())
def test_every_frame_is_accounted_for_whatever_fails(fakes, plan):
    def fails(condition, error):
        return error if condition else None

    source = fakes.source(
        plan["count"],
        policy=plan["policy"],
        faults=plan["faults"],
        fail_open=fails(plan["source_open"], SourceOpenError("open")),
        fail_at=plan["source_at"],
        fail_with=fails(plan["source_at"] is not None, SourceStalledError("stalled")),
        fail_close=fails(plan["source_close"], SourceEndedError("close")),
    )
    detector = fakes.detector(fail_at=plan["detector_at"], fail_with=fails(plan["detector_at"] is not None, InferenceError("execute")))
    records = fakes.sink()
    broken = fakes.sink(
        fail_open=fails(plan["sink_open"], SinkError("open")),
        fail_at=plan["sink_at"],
        fail_with=fails(plan["sink_at"] is not None, SinkError("full")),
        fail_close=fails(plan["sink_close"], SinkError("close")),
    )
    pipeline = Pipeline(source, detector, [records, broken], frame_capacity=plan["frame_capacity"], result_capacity=plan["result_capacity"])
    source.before_frame = lambda index: pipeline.stop() if index == plan["stop_at"] else None
    raised = None
    try:
        pipeline.run()
    except (SourceOpenError, SourceStalledError, SourceEndedError, InferenceError, SinkError) as error:
        raised = error

    counts = pipeline.counts
    assert_accounted(counts)
    assert counts.captured == source.handed_over
    assert len(records.delivered) == counts.inspected + counts.failed, "one record for every frame that was not dropped"
    assert records.indices == sorted(set(records.indices))
    assert broken.indices + [missed.frame.index for missed in pipeline.undelivered] == records.indices
    assert counts.dropped == 0 or plan["policy"] is not OverflowPolicy.EVERY or plan["detector_at"] is not None
    for part in (source, records, broken):
        assert part.left == part.entered
    if plan["sink_open"] or plan["sink_close"]:
        assert raised is not None
    if raised is None:
        assert len(records.delivered) + counts.dropped == counts.captured
        assert plan["stop_at"] is not None or counts.captured == plan["count"]
