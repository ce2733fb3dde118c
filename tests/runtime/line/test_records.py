"""A record is one line of strict JSON in ASCII, the same in a file and on any stream."""

import io
import json
import math
import os

import numpy as np
import pytest

from snl_runtime.errors import SinkError
from snl_runtime.line.records import StreamSink, record_line
from snl_runtime.types import Verdict

RECORD_KEYS = [
    "record",
    "frame_index",
    "source_id",
    "device_frame_id",
    "trigger_id",
    "part_id",
    "captured_at",
    "product",
    "score",
    "threshold",
    "reject_threshold",
    "ignored_share",
    "verdict",
    "reason_code",
    "reason",
    "regions",
    "stage_ms",
    "latency_ms",
    "model_sha256",
]


def strict(line):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(line, parse_constant=refuse)


def test_record_holds_what_the_readme_promises(fakes):
    region = fakes.region(box_xyxy=(np.int64(1), 2, 3, 4), score=0.75, area_px=np.int64(9))
    line = record_line(fakes.frame_of(7, device_frame_id=70), fakes.result_of(Verdict.REJECT, regions=(region,)))
    record = strict(line)
    assert "\n" not in line
    assert list(record) == RECORD_KEYS
    assert record["record"] == 1
    assert record["frame_index"] == 7
    assert record["device_frame_id"] == 70
    assert record["captured_at"] == "2023-11-14T22:13:27.000Z"  # 1 700 000 007 s after the epoch
    assert record["verdict"] == "REJECT"
    assert record["regions"] == [{"box_xyxy": [1, 2, 3, 4], "score": 0.75, "area_px": 9, "area_mm2": None}]
    assert record["stage_ms"] == {"preprocess": 1.0, "infer": 2.0, "decide": 0.5, "total": 3.5}
    assert record["latency_ms"] >= 0


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_know_become_null(fakes, number):
    record = strict(record_line(fakes.frame_of(), fakes.result_of(Verdict.ERROR, score=number, threshold=number, reject_threshold=number)))
    assert record["score"] is record["threshold"] is record["reject_threshold"] is None


def test_file_name_of_another_encoding_is_recorded_with_escapes(fakes):
    name = os.fsdecode("Prüfling_".encode() + b"\xff.png")
    line = record_line(fakes.frame_of(source_id=name), fakes.result_of(product=name, reason=f"{name} is dark"))
    record = strict(line.encode("ascii"))
    assert record["source_id"] == record["product"] == "Prüfling_\\xff.png"
    assert record["reason"] == "Prüfling_\\xff.png is dark"


def test_half_of_a_pair_in_a_name_is_recorded_with_escapes(fakes):
    assert strict(record_line(fakes.frame_of(source_id="\ud83d.png"), fakes.result_of()))["source_id"] == "\\ud83d.png"


def test_line_breaks_in_a_reason_stay_inside_the_record(fakes):
    line = record_line(fakes.frame_of(), fakes.result_of(reason="first\nsecond\u2028third"))
    assert len(line.split("\n")) == 1
    assert strict(line)["reason"] == "first\nsecond\u2028third"


def test_stream_sink_writes_one_line_per_verdict(fakes):
    stream = io.StringIO()
    with StreamSink(stream) as sink:
        sink.emit(fakes.frame_of(0), fakes.result_of())
        sink.emit(fakes.frame_of(1), fakes.result_of())
    assert [strict(line)["frame_index"] for line in stream.getvalue().splitlines()] == [0, 1]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8", "utf-16"])
def test_the_bytes_on_a_stream_do_not_depend_on_its_encoding(fakes, encoding):
    binary = io.BytesIO()
    with StreamSink(io.TextIOWrapper(binary, encoding=encoding)) as sink:
        sink.emit(fakes.frame_of(source_id="b_螺丝.png"), fakes.result_of())
        assert strict(binary.getvalue().decode("ascii"))["source_id"] == "b_螺丝.png"


def test_missing_standard_output_is_an_error_before_any_verdict(monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    with pytest.raises(SinkError, match="no standard output to write records to; use --jsonl FILE"):
        StreamSink().__enter__()
