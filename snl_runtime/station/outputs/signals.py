"""The signals of a line state as every output shows them."""

from snl_runtime.station.line_state import LineState
from snl_runtime.types import Verdict

_UINT32 = 0xFFFFFFFF


def shown_trigger_id(state: LineState) -> int:
    """Return the current trigger id in 32 bits, which is what PLCs count in; 0 before the first trigger."""
    return state.trigger_id & _UINT32


def accepted_trigger_id(state: LineState) -> int:
    """Return the trigger id whose part is accepted, 0 if none is.

    The last look before the line: an accept that is not the valid PASS of a trigger, without a fault, is not shown, whatever ``state.accept`` says.
    """
    is_pass = state.accept and state.result_valid and state.verdict is Verdict.PASS and not state.fault
    return shown_trigger_id(state) if is_pass else 0
