"""The numbers of the register map are complete and unique."""

from snl_runtime import REASON_CODES
from snl_runtime.station.answers import STATION_REASON_CODES
from snl_runtime.station.line_state import StationState
from snl_runtime.station.outputs.modbus_map import REASON_NUMBERS, STATE_NUMBERS, UNKNOWN_REASON, VERDICT_NUMBERS
from snl_runtime.types import Verdict


def test_every_reason_code_has_its_own_number():
    assert set(REASON_CODES) | set(STATION_REASON_CODES) <= set(REASON_NUMBERS)
    assert len(set(REASON_NUMBERS.values())) == len(REASON_NUMBERS)
    assert all(0 <= number < UNKNOWN_REASON for number in REASON_NUMBERS.values())


def test_every_state_and_verdict_has_its_own_number():
    assert sorted(STATE_NUMBERS.values()) == list(range(len(StationState)))
    assert sorted(VERDICT_NUMBERS.values()) == list(range(len(Verdict) + 1))
