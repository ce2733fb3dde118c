"""The register map of one camera: how a line state becomes registers and bits. docs/guides/plc.md is its other half."""

import math
import struct
from collections.abc import Mapping
from types import MappingProxyType

from snl_runtime.station.line_state import LineState, StationState
from snl_runtime.station.outputs.signals import accepted_trigger_id, shown_trigger_id
from snl_runtime.types import Verdict

MAP_VERSION = 1
STRIDE = 100
"""Addresses from one camera to the next, in every table."""
BLOCK_REGISTERS = 16
"""Input registers of one camera, to be read in one request."""

TRIGGER_ID = 0
STATUS_BITS = 2
STATE = 3
VERDICT = 4
REASON = 5
SCORE = 6
PRODUCT = 8
COUNTER_ECHO = 9
ACCEPTED_TRIGGER_ID = 10
HEARTBEAT = 12
VERSION = 13
TRIGGER_ID_AGAIN = 14

PRODUCT_REQUEST = 0
TRIGGER_COUNTER = 1
HEARTBEAT_COUNTER = 2
RESET_COUNTER = 3
COMMAND_REGISTERS = 4
"""Holding registers of one camera, which the PLC writes."""

READY, BUSY, RESULT_VALID, FAULT, ACCEPT = range(5)
BITS = 5
"""Discrete inputs of one camera; the same bits are in ``STATUS_BITS``."""

STATE_NUMBERS: Mapping[StationState, int] = MappingProxyType(
    {
        StationState.INITIALIZED: 0,
        StationState.READY: 1,
        StationState.SINGLE_EXECUTION: 2,
        StationState.CONTINUOUS_EXECUTION: 3,
        StationState.HALTED: 4,
        StationState.ERROR: 5,
    }
)
VERDICT_NUMBERS: Mapping[Verdict | None, int] = MappingProxyType({None: 0, Verdict.PASS: 1, Verdict.REVIEW: 2, Verdict.REJECT: 3, Verdict.ERROR: 4})
UNKNOWN_REASON = 65535
REASON_NUMBERS: Mapping[str, int] = MappingProxyType(
    {
        "": 0,
        "below_threshold": 1,
        "above_pass_threshold": 2,
        "above_reject_threshold": 3,
        "frame_unusable": 10,
        "frame_flat": 11,
        "frame_size": 12,
        "frame_bit_depth": 13,
        "frame_color_order": 14,
        "frame_out_of_range": 15,
        "no_manifest": 20,
        "no_golden_check": 21,
        "golden_mismatch": 22,
        "no_decision": 23,
        "no_threshold_for_engine": 24,
        "guard_band_too_wide": 25,
        "unknown_product": 26,
        "ambiguous_product": 27,
        "decision_invalid": 28,
        "decision_expired": 29,
        "clock_before_fit": 30,
        "output_not_finite": 40,
        "output_inconsistent": 41,
        "no_normalization_map": 42,
        "below_floor": 43,
        "backend_error": 50,
        "timeout": 51,
        "backend_busy": 52,
        "internal_error": 53,
        "deadline_missed": 60,
        "record_late": 61,
        "record_failed": 62,
        "station_fault": 63,
        "frame_dropped": 64,
        "frame_fault": 65,
        "detector_failed": 66,
        "delivery_failed": 67,
    }
)
"""Number of each reason code, stable across releases; a code without one is 65535."""


def status_bits(state: LineState) -> list[bool]:
    """Return the discrete inputs of a camera."""
    return [state.ready, state.busy, state.result_valid, state.fault, accepted_trigger_id(state) != 0]


def input_block(state: LineState, *, product: int, counter: int, heartbeat: int) -> list[int]:
    """Return the input registers of a camera, most significant word first.

    Args:
        state: What is shown.
        product: Number of its product, 0 if it has none.
        counter: Trigger counter of the PLC that began the current trigger, 0 if the PLC did not.
        heartbeat: Moving number, 0 to 65535.
    """
    block = [0] * BLOCK_REGISTERS
    trigger_id = _words(">I", shown_trigger_id(state))
    block[TRIGGER_ID : TRIGGER_ID + 2] = trigger_id
    block[STATUS_BITS] = sum(bit << place for place, bit in enumerate(status_bits(state)))
    block[STATE] = STATE_NUMBERS[state.state]
    block[VERDICT] = VERDICT_NUMBERS[state.verdict]
    block[REASON] = REASON_NUMBERS.get(state.reason_code, UNKNOWN_REASON)
    block[SCORE : SCORE + 2] = _words(">f", _float32(state.score))
    block[PRODUCT] = product
    block[COUNTER_ECHO] = counter
    block[ACCEPTED_TRIGGER_ID : ACCEPTED_TRIGGER_ID + 2] = _words(">I", accepted_trigger_id(state))
    block[HEARTBEAT] = heartbeat
    block[VERSION] = MAP_VERSION
    block[TRIGGER_ID_AGAIN : TRIGGER_ID_AGAIN + 2] = trigger_id
    return block


def _float32(score: float | None) -> float:
    if score is None:
        return math.nan
    try:
        struct.pack(">f", score)
    except OverflowError:  # beyond what 32 bits hold
        return math.copysign(math.inf, score)
    return score


def _words(kind: str, value: float) -> list[int]:
    return list(struct.unpack(">HH", struct.pack(kind, value)))
