"""Records of verdicts: one line of JSON each, the same in a file and on standard output, whatever the locale."""

import math
import sys
import time
from datetime import datetime, timezone
from types import TracebackType
from typing import TextIO

from snl_runtime.errors import SinkError
from snl_runtime.text import to_json
from snl_runtime.types import AnomalyResult, Frame

RECORD_SCHEMA = 1


def record_line(frame: Frame, result: AnomalyResult) -> str:
    r"""Return the record of one verdict as one line of strict JSON in ASCII, without the line end.

    Numbers that are not finite become null; bytes of a file name that are not UTF-8 become ``\xNN``. ``latency_ms`` runs from the capture of the
    frame to this call.
    """
    timings = result.timings
    record = {
        "record": RECORD_SCHEMA,
        "frame_index": frame.index,
        "source_id": frame.source_id,
        "device_frame_id": frame.device_frame_id,
        "trigger_id": frame.trigger_id,
        "part_id": frame.part_id,
        "captured_at": _iso_time(frame.captured_at),
        "product": result.product,
        "score": _number(result.score),
        "threshold": _number(result.threshold),
        "reject_threshold": _number(result.reject_threshold),
        "verdict": result.verdict.value,
        "reason_code": result.reason_code,
        "reason": result.reason,
        "regions": [
            {"box_xyxy": [int(edge) for edge in region.box_xyxy], "score": _number(region.score), "area_px": int(region.area_px)}
            for region in result.regions
        ],
        "stage_ms": {
            "preprocess": _number(timings.preprocess_ms, 3),
            "infer": _number(timings.infer_ms, 3),
            "decide": _number(timings.decide_ms, 3),
            "total": _number(timings.total_ms, 3),
        },
        "latency_ms": _number((time.monotonic_ns() - frame.captured_ns) / 1e6, 3),
        "model_sha256": result.model_sha256,
    }
    return to_json(record)


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


def _iso_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
