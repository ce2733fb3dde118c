"""What one camera of a station tells the line, as a state machine: no thread, no clock, no camera."""

import dataclasses
import math

from snl_runtime.station.line_state import LineState, StationState
from snl_runtime.types import Verdict

HEARTBEAT_LOST = "heartbeat lost"
"""How the fault of a line that no longer listens begins."""

_STOPPED = (StationState.INITIALIZED, StationState.HALTED)


class LineStateMachine:
    """The states of one camera after OPC 40100-1, and the bits that follow from them.

    Every event returns whether it changed anything; :attr:`line_state` is what the line must see afterwards. Not thread-safe: the owner holds a
    lock, because what is published must follow in the same order.

    ``accept`` is true only between the PASS that answers the current trigger and the next event that ends it; ``ready`` and ``busy`` are never
    both true, and exactly one of them is while the camera runs without a fault.

    Args:
        camera: Name of the camera.
        continuous: Whether every frame is a part.
        heartbeat_timeout_ns: Longest time between two heartbeats of the line; None if it sends none.
    """

    def __init__(self, camera: str, *, continuous: bool = False, heartbeat_timeout_ns: int | None = None) -> None:
        self._continuous = continuous
        self._heartbeat_timeout_ns = heartbeat_timeout_ns
        self._heard_ns = 0
        self._is_running = False
        self._line = LineState(camera=camera)

    @property
    def line_state(self) -> LineState:
        """What the line must see now."""
        return self._line

    @property
    def takes_triggers(self) -> bool:
        """Whether it runs without a fault, also while busy."""
        return self._is_running and not self._line.fault

    def start(self, now_ns: int) -> bool:
        """Become ready; the time until the first heartbeat counts from here. Does nothing in a fault, which only a reset ends."""
        if self._line.state not in _STOPPED:
            return False
        self._is_running = True
        self._heard_ns = now_ns
        self._line = self._resting()
        return True

    def stop(self) -> bool:
        """Take no further trigger. One under way is still answered, but never accepted: a stopped station accepts nothing."""
        if self._line.state is StationState.HALTED and not self._is_running:
            return False
        self._is_running = False
        self._line = dataclasses.replace(self._line, ready=False, accept=False)
        if not self._line.busy and not self._line.fault:
            self._line = dataclasses.replace(self._line, state=StationState.HALTED)
        return True

    def trigger(self, trigger_id: int, *, product: str | None = None) -> bool:
        """Begin the inspection of one part; forgets the answer before it. Refused while busy, in a fault and while stopped."""
        line = self._line
        if not self._is_running or line.fault or line.busy or trigger_id <= line.trigger_id:
            return False
        state = StationState.CONTINUOUS_EXECUTION if self._continuous else StationState.SINGLE_EXECUTION
        self._line = LineState(camera=line.camera, state=state, busy=True, trigger_id=trigger_id, product=product)
        return True

    def answer(self, trigger_id: int, verdict: Verdict, *, reason_code: str = "", score: float | None = None, product: str | None = None) -> bool:
        """Answer the current trigger once. An answer to an older trigger, or a second one, changes nothing; in a fault nothing is accepted."""
        line = self._line
        if not line.busy or trigger_id != line.trigger_id:
            return False
        self._line = dataclasses.replace(
            line,
            state=line.state if line.fault else self._resting_state(),
            ready=self._is_running and not line.fault,
            busy=False,
            result_valid=True,
            accept=verdict is Verdict.PASS and self._is_running and not line.fault,
            verdict=verdict,
            reason_code=reason_code,
            score=score if score is not None and math.isfinite(score) else None,
            product=product if product is not None else line.product,
        )
        return True

    def fault(self, reason: str) -> bool:
        """Accept nothing and take no trigger until :meth:`reset`. The first reason stays: later faults often follow from it.

        Raises:
            ValueError: If ``reason`` is empty.
        """
        if not reason:
            raise ValueError("a fault needs a reason")
        if self._line.fault:
            return False
        self._line = dataclasses.replace(self._line, state=StationState.ERROR, ready=False, accept=False, fault=True, fault_reason=reason)
        return True

    def reset(self, now_ns: int) -> bool:
        """End a fault, unless a trigger still waits for its answer or the line's heartbeat is still missing. The last answer is forgotten."""
        if not self._line.fault or self._line.busy or (self._is_running and self._is_heartbeat_lost(now_ns)):
            return False
        self._line = self._resting()
        return True

    def heartbeat(self, now_ns: int) -> bool:
        """Note that the line listens."""
        is_later = now_ns > self._heard_ns
        self._heard_ns = max(self._heard_ns, now_ns)
        return is_later

    def check_heartbeat(self, now_ns: int) -> bool:
        """Fault if the line has been silent for too long."""
        if not self._is_running or not self._is_heartbeat_lost(now_ns):
            return False
        return self.fault(f"{HEARTBEAT_LOST}: nothing from the line for {(now_ns - self._heard_ns) / 1e9:.1f} s")

    def _is_heartbeat_lost(self, now_ns: int) -> bool:
        return self._heartbeat_timeout_ns is not None and now_ns - self._heard_ns > self._heartbeat_timeout_ns

    def _resting_state(self) -> StationState:
        if not self._is_running:
            return StationState.HALTED
        return StationState.CONTINUOUS_EXECUTION if self._continuous else StationState.READY

    def _resting(self) -> LineState:
        return LineState(camera=self._line.camera, state=self._resting_state(), ready=self._is_running, trigger_id=self._line.trigger_id)
