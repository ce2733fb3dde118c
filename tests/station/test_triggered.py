"""A trigger gets the frame that belongs to it, or a fault; no frame is ever taken for another trigger's."""

import itertools
import threading
import time

import pytest

from snl_runtime.errors import ConfigError, SourceError, SourceOpenError
from snl_runtime.line.handoff import OverflowPolicy
from snl_runtime.line.sources.base import SourceCounters
from snl_runtime.station.triggered import MOST_MISSING_FRAMES, SoftwareTrigger, TriggerConfig, TriggeredSource, TriggerMode, TriggerRequest


class Asking:
    """A triggered source with the generator that the pipeline would iterate."""

    def __init__(self, camera, *, on_health=lambda reason: None, **config):
        config = TriggerConfig(mode=TriggerMode.COMMAND, **{"frame_timeout_ms": 10_000.0, **config})
        self.source = TriggeredSource(camera, config, on_health=on_health, reopen_pause_s=0.01)
        self.stop = threading.Event()
        self.ids = itertools.count(1)

    def __enter__(self):
        self.source.__enter__()
        self.frames = self.source.frames(self.stop)
        return self

    def __exit__(self, *details):
        self.stop.set()
        self.source.__exit__(*details)

    def ask(self, **details):
        request = TriggerRequest(trigger_id=next(self.ids), requested_ns=time.monotonic_ns(), **details)
        self.source.request(request)
        return request

    def answer(self):
        return next(self.frames)


def test_each_command_triggers_the_camera_once_and_gets_its_frame(fakes):
    camera = fakes.software_camera()
    assert isinstance(camera, SoftwareTrigger)
    with Asking(camera) as asking:
        asking.ask(product="bottle", part_id="A1")
        asking.ask()
        first, second = asking.answer(), asking.answer()
    assert (first.trigger_id, first.product, first.part_id, first.device_frame_id, first.index) == (1, "bottle", "A1", 1, 0)
    assert (second.trigger_id, second.product, second.part_id, second.device_frame_id, second.index) == (2, None, None, 2, 1)
    assert camera.triggers == 2


def test_a_frame_that_comes_after_its_time_is_never_taken_for_the_next_part(fakes):
    camera = fakes.software_camera()
    camera.on_trigger = lambda: None
    with Asking(camera, frame_timeout_ms=30.0) as asking:
        asking.ask()
        assert "no frame came within" in asking.answer().fault
        camera.send(fakes.BAD, device_frame_id=1)  # late: to the closed camera, or to the reopened one before the next trigger
        camera.on_trigger = lambda: camera.take(fakes.GOOD)
        camera.opened.wait_for(2)
        asking.ask()
        frame = asking.answer()
    assert (frame.trigger_id, frame.fault, int(frame.image[0, 0, 0])) == (2, None, fakes.GOOD)


def test_a_frame_whose_counter_does_not_follow_is_a_fault_and_the_camera_is_opened_again(fakes):
    camera = fakes.software_camera()
    with Asking(camera) as asking:
        asking.ask()
        assert asking.answer().fault is None
        camera.on_trigger = lambda: camera.take(skip=1)
        asking.ask()
        frame = asking.answer()
        assert frame.image is None
        assert "sent its frame 3 where 2 belongs" in frame.fault
        camera.opened.wait_for(2)


def test_a_source_that_tells_late_frames_itself_is_not_opened_again(fakes):
    camera = fakes.software_camera()
    camera.on_trigger = lambda: None
    camera.answers_from = time.monotonic_ns
    with Asking(camera, frame_timeout_ms=30.0) as asking:
        asking.ask()
        assert "no frame came within" in asking.answer().fault
    assert camera.opened.count == 1


def test_a_frame_older_than_the_time_that_the_trigger_returned_is_not_its_answer(fakes):
    camera = fakes.software_camera()
    late_ns = time.monotonic_ns() + 10**12
    camera.on_trigger = lambda: (camera.send(fakes.BAD, captured_ns=late_ns - 1), camera.send(fakes.GOOD, captured_ns=late_ns))
    camera.answers_from = lambda: late_ns
    with Asking(camera) as asking:
        asking.ask()
        assert int(asking.answer().image[0, 0, 0]) == fakes.GOOD
    assert asking.source.frames_unasked == 1


def test_frames_that_nobody_asked_for_are_counted_and_not_handed_over(fakes):
    camera = fakes.camera()
    with Asking(camera) as asking:
        for _ in range(4):
            camera.send(fakes.BAD)
        wait_until(lambda: asking.source.frames_unasked == 4)
        asking.ask()
        camera.send(fakes.GOOD)
        assert int(asking.answer().image[0, 0, 0]) == fakes.GOOD
    assert asking.source.frames_unasked == 4


def test_a_frame_captured_before_the_command_never_answers_it(fakes):
    camera = fakes.camera()
    with Asking(camera) as asking:
        request = asking.ask()
        camera.send(fakes.BAD, captured_ns=request.requested_ns - 1)
        camera.send(fakes.GOOD, captured_ns=request.requested_ns)
        assert int(asking.answer().image[0, 0, 0]) == fakes.GOOD


def test_frames_whose_exposure_may_be_older_can_be_skipped(fakes):
    camera = fakes.camera()
    with Asking(camera, skip_frames=1) as asking:
        asking.ask()
        answers = []
        asker = threading.Thread(target=lambda: answers.append(asking.answer()), daemon=True)
        asker.start()
        ticker = threading.Event()
        while asker.is_alive():  # a free-running camera
            camera.send(fakes.BAD if asking.source.frames_unasked == 0 else fakes.GOOD)
            ticker.wait(0.01)
    assert answers[0].fault is None
    assert asking.source.frames_unasked >= 1


def test_a_folder_gives_its_next_image_to_each_command_and_then_faults(fakes):
    camera = fakes.camera(policy=OverflowPolicy.EVERY, counters=SourceCounters(frames_announced=2))
    with Asking(camera) as asking:
        camera.send(fakes.GOOD, captured_ns=time.monotonic_ns() + 10**12)  # a file is read when it is asked for
        camera.send(fakes.BAD, captured_ns=time.monotonic_ns() + 10**12)
        camera.end()
        grays = []
        for _ in range(2):
            asking.ask()
            grays.append(int(asking.answer().image[0, 0, 0]))
        asking.ask()
        assert asking.answer().fault == "the source has ended"
        assert next(asking.frames, None) is None
    assert grays == [fakes.GOOD, fakes.BAD]
    assert asking.source.frames_unasked == 0


def test_a_camera_that_refuses_its_trigger_is_a_fault(fakes):
    def refuse():
        raise SourceError("trigger mode is off")

    camera = fakes.software_camera()
    camera.on_trigger = refuse
    with Asking(camera, frame_timeout_ms=5_000.0) as asking:
        asking.ask()
        assert asking.answer().fault == "the camera took no image: trigger mode is off"


def test_a_dead_camera_faults_its_triggers_and_is_opened_again(fakes):
    camera, health = fakes.camera(), []
    with Asking(camera, on_health=health.append, frame_timeout_ms=5_000.0) as asking:
        camera.fail_open = SourceOpenError("no such device")
        camera.die()
        wait_until(lambda: "no such device" in health)
        asking.ask()
        assert asking.answer().fault == "no such device"
        camera.fail_open = None
        camera.opened.wait_for(2)
        wait_until(lambda: health[-1] is None)
        asking.ask()
        camera.send()
        assert asking.answer().fault is None
    assert health[:3] == [None, "unplugged", "no such device"]


def test_a_camera_that_cannot_be_opened_at_first_is_an_error(fakes):
    camera = fakes.camera()
    camera.fail_open = SourceOpenError("no such device")
    with pytest.raises(SourceOpenError, match="no such device"):
        Asking(camera).__enter__()


def test_a_gap_stands_for_a_bounded_number_of_frames_and_a_counter_that_begins_anew_for_none(fakes):
    camera = fakes.camera(policy=OverflowPolicy.EVERY, counters=SourceCounters(frames_announced=4))
    source = TriggeredSource(camera, TriggerConfig(count_gaps=True))
    with source:
        frames = source.frames(threading.Event())
        opener = threading.Thread(target=lambda: [camera.opened.wait_for(1), *map(send, (1, 10**9, 0, 2)), camera.end()], daemon=True)

        def send(device_frame_id):
            camera.send(device_frame_id=device_frame_id)

        opener.start()
        faults = [frame.fault is not None for frame in frames]
    assert faults == [False, *[True] * MOST_MISSING_FRAMES, False, False, True, False]
    assert source.counters.frames_missing == MOST_MISSING_FRAMES + 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frame_timeout_ms": 0.0}, "trigger.frame_timeout_ms must be positive, got 0"),
        ({"skip_frames": -1}, "trigger.skip_frames must be 0 or more, got -1"),
    ],
)
def test_values_out_of_range_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        TriggerConfig(**changes)


def wait_until(holds):
    """Look again and again, for things that announce nothing."""
    ticker, attempts = threading.Event(), 0
    while not holds():
        attempts += 1
        assert attempts < 4_000
        ticker.wait(0.005)
