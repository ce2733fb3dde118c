"""Verdicts that the station gives itself: always ERROR, with the reason codes that only a station has."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from snl_runtime.types import AnomalyResult, Verdict

STATION_REASON_CODES: Mapping[str, str] = MappingProxyType(
    {
        "deadline_missed": "no verdict came before the deadline of the trigger; a later one was discarded",
        "record_late": "the record of the verdict was not durable before the deadline; the verdict was not given",
        "record_failed": "the record of the verdict could not be written; the verdict was not given",
        "station_fault": "the station was in a fault when the verdict came; it was not given",
        "frame_dropped": "the frame was dropped because the detector was too slow",
        "frame_fault": "the frame did not arrive, or not whole",
        "detector_failed": "the detector raised an error",
        "delivery_failed": "the verdict could not be delivered",
    }
)
"""Every ``reason_code`` beside those of the detector, with its meaning; codes are stable across releases."""


def replaced_by_error(result: AnomalyResult, reason_code: str, reason: str) -> AnomalyResult:
    """Return a result whose verdict is ERROR; the one before stays readable in the reason."""
    told = f"{reason}; the verdict was {result.verdict.value} ({result.reason_code}: {result.reason})"
    return dataclasses.replace(result, verdict=Verdict.ERROR, reason_code=reason_code, reason=told, frame_map=None, mask=None, overlay=None)
