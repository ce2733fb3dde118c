"""What the line sees follows from the events alone: accept only for the PASS of the current trigger, whatever the order."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from snl_runtime.station.line_state import LineState, StationState
from snl_runtime.station.states import LineStateMachine
from snl_runtime.types import Verdict

TIMEOUT_NS = 1_000


def running(**options):
    machine = LineStateMachine("top", **options)
    assert machine.start(0)
    return machine


def test_before_start_nothing_is_ready_accepted_or_valid():
    assert LineStateMachine("top").line_state == LineState(camera="top")


def test_single_execution_is_busy_then_ready_with_the_answer():
    machine = running()
    assert machine.trigger(1, product="bottle")
    line = machine.line_state
    assert (line.state, line.busy, line.ready, line.accept, line.result_valid) == (StationState.SINGLE_EXECUTION, True, False, False, False)
    assert machine.answer(1, Verdict.PASS, reason_code="below_threshold", score=0.5)
    assert machine.line_state == LineState(
        camera="top",
        state=StationState.READY,
        ready=True,
        result_valid=True,
        accept=True,
        trigger_id=1,
        verdict=Verdict.PASS,
        reason_code="below_threshold",
        score=0.5,
        product="bottle",
    )


@pytest.mark.parametrize("verdict", [Verdict.REVIEW, Verdict.REJECT, Verdict.ERROR])
def test_only_a_pass_is_accepted(verdict):
    machine = running()
    machine.trigger(1)
    machine.answer(1, verdict)
    assert machine.line_state.result_valid
    assert not machine.line_state.accept


def test_a_new_trigger_ends_the_accept_of_the_one_before():
    machine = running()
    machine.trigger(1)
    machine.answer(1, Verdict.PASS)
    machine.trigger(2)
    assert (machine.line_state.accept, machine.line_state.result_valid, machine.line_state.verdict) == (False, False, None)


def test_a_late_answer_to_an_older_trigger_changes_nothing():
    machine = running()
    machine.trigger(1)
    machine.answer(1, Verdict.ERROR, reason_code="deadline_missed")
    machine.trigger(2)
    before = machine.line_state
    assert not machine.answer(1, Verdict.PASS)
    assert machine.line_state == before


def test_a_fault_ends_the_accept_and_keeps_its_first_reason():
    machine = running()
    machine.trigger(1)
    machine.answer(1, Verdict.PASS)
    assert machine.fault("disk full")
    assert not machine.fault("another")
    line = machine.line_state
    assert (line.state, line.fault_reason, line.accept, line.ready) == (StationState.ERROR, "disk full", False, False)
    assert not machine.trigger(2)


def test_a_fault_while_busy_still_gets_its_answer_but_no_accept():
    machine = running()
    machine.trigger(1)
    machine.fault("output failed")
    assert not machine.reset(1), "a trigger still waits"
    assert machine.answer(1, Verdict.PASS)
    assert (machine.line_state.result_valid, machine.line_state.accept, machine.line_state.busy) == (True, False, False)
    assert machine.reset(1)
    assert machine.line_state == LineState(camera="top", state=StationState.READY, ready=True, trigger_id=1)


def test_a_stop_accepts_nothing_even_if_the_last_part_passes():
    machine = running()
    machine.trigger(1)
    machine.stop()
    machine.answer(1, Verdict.PASS)
    line = machine.line_state
    assert (line.state, line.result_valid, line.accept, line.ready) == (StationState.HALTED, True, False, False)


def test_a_silent_line_is_a_fault_until_it_is_heard_again():
    machine = running(heartbeat_timeout_ns=TIMEOUT_NS)
    machine.heartbeat(500)
    assert not machine.check_heartbeat(500 + TIMEOUT_NS)
    assert machine.check_heartbeat(501 + TIMEOUT_NS)
    assert machine.line_state.fault_reason.startswith("heartbeat lost")
    assert not machine.reset(5 * TIMEOUT_NS)
    machine.heartbeat(5 * TIMEOUT_NS)
    assert machine.reset(5 * TIMEOUT_NS)


def test_a_fault_needs_a_reason():
    with pytest.raises(ValueError, match="reason"):
        running().fault("")


class MachineAgainstRules(RuleBasedStateMachine):
    """Random orders of events; what must hold is derived from the history of events, not from the machine's own fields."""

    @initialize(continuous=st.booleans())
    def build(self, continuous):
        self.machine = LineStateMachine("top", continuous=continuous, heartbeat_timeout_ns=TIMEOUT_NS)
        self.now_ns = 0
        self.heard_ns = None
        self.is_running = False
        self.faults = []
        self.current, self.verdicts = 0, []  # the answers to the current trigger since it began, without those that a reset forgot
        self.used = 0
        self.waits = False

    @rule(step=st.integers(0, 700))
    def time_passes(self, step):
        self.now_ns += step

    @rule()
    def start(self):
        if self.machine.start(self.now_ns):
            assert not self.faults
            self.is_running, self.heard_ns, self.verdicts = True, self.now_ns, []
        else:
            assert self.faults or self.is_running or self.waits

    @rule()
    def stop(self):
        self.machine.stop()
        self.is_running = False

    @rule()
    def trigger(self):
        self.used += 1
        may = self.is_running and not self.faults and not self.waits
        assert self.machine.trigger(self.used) is may
        if may:
            self.current, self.verdicts, self.waits = self.used, [], True

    @rule(back=st.integers(0, 3), verdict=st.sampled_from(Verdict))
    def answer(self, back, verdict):
        trigger_id = self.used - back
        is_current = trigger_id == self.current and self.waits
        before = self.machine.line_state
        assert self.machine.answer(trigger_id, verdict) is is_current
        if is_current:
            self.verdicts.append((verdict, self.is_running and not self.faults))
            self.waits = False
        else:
            assert self.machine.line_state == before

    @rule(reason=st.sampled_from(["disk full", "camera unplugged"]))
    def fault(self, reason):
        self.machine.fault(reason)
        self.faults.append(reason)

    @rule()
    def reset(self):
        is_silent = self.is_running and self.now_ns - self.heard_ns > TIMEOUT_NS
        may = bool(self.faults) and not self.waits and not is_silent
        assert self.machine.reset(self.now_ns) is may
        if may:
            self.faults, self.verdicts = [], [None]

    @rule()
    def heartbeat(self):
        self.machine.heartbeat(self.now_ns)
        if self.heard_ns is not None:
            self.heard_ns = self.now_ns

    @rule()
    def check_heartbeat(self):
        is_silent = self.is_running and self.now_ns - self.heard_ns > TIMEOUT_NS
        assert self.machine.check_heartbeat(self.now_ns) is (is_silent and not self.faults)
        if is_silent:
            self.faults.append("heartbeat lost")

    @invariant()
    def rules_hold(self):
        if not hasattr(self, "machine"):
            return
        line = self.machine.line_state
        answered = self.verdicts[-1] if self.verdicts else None
        if line.accept:
            assert answered == (Verdict.PASS, True), "accepted without a PASS of the current trigger, given while running and sound"
            assert self.is_running
            assert not self.faults
        if line.result_valid:
            assert answered is not None
            assert line.verdict is answered[0]
            assert line.trigger_id == self.current
        else:
            assert line.verdict is None
            assert line.score is None
        assert line.busy is self.waits
        assert not (line.ready and line.busy)
        if self.is_running and not self.faults:
            assert line.ready is not line.busy
        assert line.ready is (self.is_running and not self.faults and not line.busy)
        assert line.fault is bool(self.faults)
        assert line.fault is (line.state is StationState.ERROR)
        assert not line.fault or line.fault_reason.startswith(self.faults[0])
        assert line.fault or not line.fault_reason


TestMachineAgainstRules = MachineAgainstRules.TestCase
TestMachineAgainstRules.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
