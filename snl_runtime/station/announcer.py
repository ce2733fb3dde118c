"""Tells the line: one state machine, one lock, every output, in the order of the events."""

import logging
import threading
from collections.abc import Callable, Sequence

from snl_runtime.station.line_state import LineOutput, LineState
from snl_runtime.station.states import LineStateMachine
from snl_runtime.types import AnomalyResult

WAIT_S = 0.5
"""Longest uninterrupted wait; a wait without limit cannot be interrupted on Windows."""

logger = logging.getLogger(__name__)


class Announcer:
    """Applies events to the state machine of one camera and publishes each change to every output; any thread.

    An output that raises is a fault of the camera: the others are told at once, and it is tried again with the next change.

    Args:
        machine: The state machine; nobody else may use it.
        outputs: What tells the line; each returns at once.
        clock_ns: Monotonic time.
    """

    def __init__(self, machine: LineStateMachine, outputs: Sequence[LineOutput], *, clock_ns: Callable[[], int]) -> None:
        self._machine = machine
        self._outputs = tuple(outputs)
        self._clock_ns = clock_ns
        self._changed = threading.Condition(threading.RLock())

    @property
    def line_state(self) -> LineState:
        """What the line was told last."""
        return self._machine.line_state

    @property
    def takes_triggers(self) -> bool:
        """Whether the camera runs without a fault."""
        return self._machine.takes_triggers

    def publish(self) -> None:
        """Tell the line the state as it is, e.g. the first one."""
        with self._changed:
            self._publish()

    def start(self) -> None:
        """Become ready."""
        with self._changed:
            self._publish_if(self._machine.start(self._clock_ns()))

    def stop(self) -> None:
        """Take no further trigger."""
        with self._changed:
            self._publish_if(self._machine.stop())

    def fault(self, reason: str) -> None:
        """Accept nothing until a reset."""
        with self._changed:
            self._publish_if(self._fault(reason))

    def reset(self) -> bool:
        """End a fault; return whether it has ended, also for the outputs."""
        with self._changed:
            self._publish_if(self._machine.reset(self._clock_ns()))
            return not self.line_state.fault

    def heartbeat(self) -> None:
        """Note that the line listens; nothing changes for it."""
        with self._changed:
            self._machine.heartbeat(self._clock_ns())

    def check_heartbeat(self) -> None:
        """Fault if the line has been silent for too long."""
        with self._changed:
            if self._machine.check_heartbeat(self._clock_ns()):
                logger.error("%s: fault: %s", self.line_state.camera, self.line_state.fault_reason)
                self._publish_if(True)

    def begin(self, number: Callable[[], int | None], *, product: str | None) -> int | None:
        """Begin the inspection of one part if a trigger would be taken; ``number`` opens it and may refuse with None.

        Returns:
            Its trigger id; None if it was refused. It is open even where an output failed meanwhile.
        """
        with self._changed:
            line = self.line_state
            trigger_id = number() if line.ready else None
            if trigger_id is not None:
                self._publish_if(self._machine.trigger(trigger_id, product=product))
            return trigger_id

    def if_taking(self, number: Callable[[], int]) -> int | None:
        """Open a trigger that will begin later (a frame that waits), unless the camera is stopped or in a fault."""
        with self._changed:
            return number() if self._machine.takes_triggers else None

    def wait_idle(self) -> None:
        """Wait until no trigger is under way; the deadline thread answers each of them."""
        with self._changed:
            while self.line_state.busy:
                self._changed.wait(WAIT_S)

    def announce(self, trigger_id: int, result: AnomalyResult, *, may_answer: Callable[[], bool], fault: str = "") -> bool:
        """Answer a trigger, with a fault at the same moment if a reason is given; return what ``may_answer`` said.

        A trigger that has not begun, because its frame still waited, begins and ends here; while another is under way the line is not told of it.
        """
        with self._changed:
            if not may_answer():
                return False
            if fault:
                self._fault(fault)
            if trigger_id > self.line_state.trigger_id and not self.line_state.busy:
                self._machine.trigger(trigger_id, product=result.product)
            is_current = self._machine.answer(trigger_id, result.verdict, reason_code=result.reason_code, score=result.score, product=result.product)
            self._publish_if(is_current or bool(fault))
            return True

    def _fault(self, reason: str) -> bool:
        is_new = self._machine.fault(reason)
        if is_new:
            logger.error("%s: fault: %s", self.line_state.camera, reason)
        return is_new

    def _publish_if(self, changed: bool) -> None:
        if changed:
            self._publish()
            self._changed.notify_all()

    def _publish(self) -> None:
        if self._told_all():
            return
        self._told_all()  # of the fault that the failing output is

    def _told_all(self) -> bool:
        """Publish to every output; return whether nothing new is to be told."""
        line = self.line_state
        for output in self._outputs:
            try:
                output.publish(line)
            except Exception as failure:  # noqa: BLE001  # an output may be a plug-in
                self._fault(f"the output {type(output).__name__} could not tell the line: {failure or type(failure).__name__}")
        return self.line_state is line
