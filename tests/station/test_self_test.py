"""The golden samples are scored again on schedule or on demand, and never while a trigger is open."""

import json

import pytest

from snl_runtime.errors import BackendTimeoutError, ConfigError
from snl_runtime.station.self_test import SelfTestConfig, SelfTestSchedule
from snl_runtime.types import SelfTestResult

PASSED = SelfTestResult(passed=True, samples=3, largest_difference=1e-5, tolerance=1e-3, reason="", elapsed_ms=30.0)
FAILED = SelfTestResult(passed=False, samples=3, largest_difference=0.5, tolerance=1e-3, reason="golden sample 0 differs", elapsed_ms=30.0)


class _Line:
    """A clock and a detector whose self-test answers what it is told."""

    def __init__(self, **config):
        self.now_s = 1000.0
        self.answer = PASSED
        self.runs = []
        self.schedule = SelfTestSchedule(SelfTestConfig(**config), self._self_test, lambda: self.now_s)

    def _self_test(self):
        self.runs.append(self.now_s)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def poll(self, after_s, *, has_open_trigger=False):
        self.now_s += after_s
        return self.schedule.run_if_due(has_open_trigger=has_open_trigger)


def test_it_runs_each_time_the_period_has_passed():
    line = _Line(every_s=60, quiet_s=0)
    assert [line.poll(20) for _ in range(6)] == [None, None, PASSED, None, None, PASSED]
    assert line.runs == [1060.0, 1120.0]


def test_without_a_period_it_runs_on_demand_only():
    line = _Line(quiet_s=0)
    assert line.poll(1e6) is None
    line.schedule.ask()
    assert line.poll(1) is PASSED
    assert line.poll(1) is None


def test_it_never_runs_while_a_trigger_is_open():
    line = _Line(every_s=60, quiet_s=0)
    line.schedule.ask()
    assert [line.poll(100, has_open_trigger=True) for _ in range(5)] == [None] * 5
    assert line.runs == []
    assert line.poll(1) is PASSED


def test_it_waits_until_the_line_was_quiet_long_enough():
    line = _Line(every_s=60, quiet_s=2)
    line.poll(100, has_open_trigger=True)
    assert [line.poll(1), line.poll(1)] == [None, PASSED]


def test_one_that_could_not_run_stays_due():
    line = _Line(every_s=60, quiet_s=0)
    line.answer = BackendTimeoutError("the self-test did not run: frames took all of its time")
    assert line.poll(60) is None
    assert "did not run" in line.schedule.state()["reason"]
    line.answer = PASSED
    assert line.poll(1) is PASSED
    assert line.schedule.state()["reason"] == ""


def test_a_failure_is_returned_and_kept(caplog):
    line = _Line(every_s=60, quiet_s=0)
    line.answer = FAILED
    assert line.poll(60) is FAILED
    assert line.schedule.last is FAILED
    assert "golden sample 0 differs" in caplog.text


def test_the_state_for_a_screen_is_plain_json():
    line = _Line(every_s=60, quiet_s=0)
    line.poll(60)
    line.now_s += 20
    state = json.loads(json.dumps(line.schedule.state()))
    assert (state["passed"], state["next_in_s"], state["elapsed_ms"]) == (True, 40.0, 30.0)


@pytest.mark.parametrize(("field", "value"), [("every_s", 0.5), ("every_s", float("nan")), ("quiet_s", -1.0)])
def test_an_impossible_setting_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=rf"self_test\.{field}"):
        SelfTestConfig(**{field: value})
