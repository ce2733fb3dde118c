"""A clock triggers each of its cameras once per interval, makes up for nothing, and ends with the station."""

import threading

import pytest

from snl_runtime.errors import TriggerRefusedError
from snl_runtime.station.line_state import LineState
from snl_runtime.station.timer import TimerTrigger

WAIT_S = 10.0


class Camera:
    """Counts triggers, lets a test wait for the n-th, and refuses where told."""

    def __init__(self, *, refuses=()):
        self.count = 0
        self.refuses = refuses
        self.changed = threading.Condition()

    def trigger(self, *, product=None, part_id=None):
        with self.changed:
            self.count += 1
            self.changed.notify_all()
            if self.count in self.refuses:
                raise TriggerRefusedError("top is not ready: trigger 1 waits for its answer")
            return self.count

    def wait_for(self, count):
        with self.changed:
            return self.changed.wait_for(lambda: self.count >= count, WAIT_S)


def test_each_camera_with_an_interval_is_triggered_and_no_other():
    top, side, other = Camera(), Camera(), Camera()
    timer = TimerTrigger({"top": 5, "side": 10})
    timer.bind({"top": top, "side": side, "other": other})
    with timer:
        timer.publish(LineState(camera="top"))
        assert top.wait_for(4)
        assert side.wait_for(2)
    counts = top.count, side.count
    assert other.count == 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("snl-timer")]
    assert (top.count, side.count) == counts, "nothing is triggered after the end"


def test_refused_trigger_is_counted_and_the_next_one_comes(caplog):
    top = Camera(refuses=(1, 2))
    timer = TimerTrigger({"top": 5})
    timer.bind({"top": top})
    with timer:
        assert top.wait_for(3)
    assert timer.refused == {"top": 2}
    assert len([record for record in caplog.records if "refused" in record.message]) == 1


@pytest.mark.parametrize(("slept", "expected"), [(0.0, 2), (7.5, 2)])
def test_machine_that_slept_makes_up_for_nothing(slept, expected):
    """At 1 s per trigger, a clock that jumps ahead by some intervals gives one trigger, and the next one on the old grid."""
    now = [0.0]
    waits = []

    class Event(threading.Event):
        def wait(self, timeout=None):
            waits.append(timeout)
            now[0] += timeout
            return len(waits) > expected

    top = Camera()
    timer = TimerTrigger({"top": 1000}, clock_s=lambda: now[0])
    timer._stop = Event()
    real = top.trigger

    def trigger(**_):
        now[0] += slept if top.count == 0 else 0.0
        return real()

    top.trigger = trigger
    timer.bind({"top": top})
    with timer:
        timer._threads[0].join(WAIT_S)
    assert top.count == expected
    assert waits[0] == 1.0
    assert waits[1] == pytest.approx(1.0 if slept == 0 else 0.5), "on the grid of whole seconds"
