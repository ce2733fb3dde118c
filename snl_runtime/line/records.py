"""Records of verdicts: one line of JSON each, the same in a file and on standard output, whatever the locale."""

import math
import sys
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, TextIO

from snl_runtime.errors import SinkError
from snl_runtime.text import to_json
from snl_runtime.types import AnomalyResult, Frame

RECORD_SCHEMA = 1


def record_line(frame: Frame, result: AnomalyResult) -> str:
    r"""Return the record of one verdict as one line of strict JSON in ASCII, without the line end.

    Numbers that are not finite become null; bytes of a file name that are not UTF-8 become ``\xNN``. ``latency_ms`` runs from the capture of the
    frame to this call.
    """
    return to_json(record_of(frame, result))


def record_of(frame: Frame, result: AnomalyResult) -> dict[str, Any]:
    """Return the record of one verdict as plain values, in the order of the line; ``latency_ms`` ends now."""
    return {
        "record": RECORD_SCHEMA,
        "frame_index": frame.index,
        "source_id": frame.source_id,
        "device_frame_id": frame.device_frame_id,
        "trigger_id": frame.trigger_id,
        "part_id": frame.part_id,
        "captured_at": iso_time(frame.captured_at),
        **_result_fields(result),
        "latency_ms": _number((time.monotonic_ns() - frame.captured_ns) / 1e6, 3),
        "model_sha256": result.model_sha256,
    }


def amended_record(record: Mapping[str, Any], result: AnomalyResult) -> dict[str, Any]:
    """Return a record with another result of the same frame; where the frame came from and ``latency_ms`` stay."""
    return {**record, **_result_fields(result), "model_sha256": result.model_sha256}


def iso_time(seconds: float) -> str:
    """Return a wall clock time in UTC as records hold it, in milliseconds; such texts sort by time.

    Example:
        >>> iso_time(1_700_000_007.0)
        '2023-11-14T22:13:27.000Z'
    """
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class StreamSink:
    """Writes one JSON record per line to a stream, flushed after each; standard output if none is given.

    The bytes are ASCII whatever the encoding of the stream. The stream stays open: it belongs to the process.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stdout

    def __enter__(self) -> "StreamSink":
        if self._stream is None:  # a windowed host program, or a process started with a closed standard output
            raise SinkError("there is no standard output to write records to; use --jsonl FILE")
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        """Leave the stream open."""

    def emit(self, frame: Frame, result: AnomalyResult) -> None:
        """Write one record."""
        line = record_line(frame, result) + "\n"
        try:
            if (binary := getattr(self._stream, "buffer", None)) is not None:
                binary.write(line.encode("ascii"))
                binary.flush()
                return
            self._stream.write(line)
            self._stream.flush()
        except (OSError, ValueError) as error:
            raise SinkError(f"cannot write records to standard output: {error}; use --jsonl FILE") from error


def _number(value: float, digits: int | None = None) -> float | None:
    value = float(value)
    if not math.isfinite(value):
        return None
    return value if digits is None else round(value, digits)


def _result_fields(result: AnomalyResult) -> dict[str, Any]:
    timings = result.timings
    return {
        "product": result.product,
        "score": _number(result.score),
        "threshold": _number(result.threshold),
        "reject_threshold": _number(result.reject_threshold),
        "ignored_share": _number(result.ignored_share),
        "verdict": result.verdict.value,
        "reason_code": result.reason_code,
        "reason": result.reason,
        "regions": [
            {
                "box_xyxy": [int(edge) for edge in region.box_xyxy],
                "score": _number(region.score),
                "area_px": int(region.area_px),
                "area_mm2": None if region.area_mm2 is None else _number(region.area_mm2),
            }
            for region in result.regions
        ],
        "stage_ms": {
            "preprocess": _number(timings.preprocess_ms, 3),
            "infer": _number(timings.infer_ms, 3),
            "decide": _number(timings.decide_ms, 3),
            "total": _number(timings.total_ms, 3),
        },
    }
