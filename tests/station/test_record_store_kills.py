"""kill -9 in the middle of thousands of adds: every row whose number was printed after ``add`` returned is there, with the same content."""

import importlib.util
import json
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from snl_runtime.line.record_store import RecordStore, RecordStoreConfig

_spec = importlib.util.spec_from_file_location("snl_tests_record_fixtures", Path(__file__).with_name("record_fixtures.py"))
fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fixtures)
rows_of, path = fixtures.rows_of, fixtures.path

LEAST_KILLED_AFTER = 5
WRITER = """
import sys, time
from snl_runtime.line.record_store import RecordStore, RecordStoreConfig
from snl_runtime.types import AnomalyResult, Frame, StageTimings, Verdict
path, run = sys.argv[1:]

def result(index, verdict):
    return AnomalyResult(verdict=verdict, reason_code="any", reason="any", score=index / 7, threshold=1.0, reject_threshold=2.0, product="bottle",
        anomaly_map=None, roi_xyxy=None, regions=(), timings=StageTimings(), model_sha256="ab" * 32)

with RecordStore(RecordStoreConfig(path=path)) as store:
    for index in range(100_000):
        frame = Frame(image=None, color="bgr", index=index, captured_ns=0, captured_at=1.7e9 + index, source_id="fake", part_id=f"{run}-{index}")
        row = store.add(frame, result(index, Verdict.PASS), camera="top")
        print("added", row, index, flush=True)
        if index % 5 == 0:
            store.amend(row, result(index, Verdict.ERROR))
            print("amended", row, index, flush=True)
        store.mark_answered(row)
        print("answered", row, index, flush=True)
"""


def write_until_killed(path, run, after_lines):
    """Start a real process, kill it once it has printed so many lines, and return the whole lines that it printed."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(run)], stdout=subprocess.PIPE, text=True) as process:
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        try:
            lines = [process.stdout.readline() for _ in range(after_lines)]
            process.kill()
            lines += process.stdout.read().splitlines(keepends=True)
            assert process.wait(10) == -9
        finally:
            watchdog.cancel()
    printed = [line.split() for line in lines if line.endswith("\n")]
    assert len(printed) >= after_lines, "the writer ended by itself"
    return [(what, int(row), int(index)) for what, row, index in printed]


def check(path, printed, run):
    """Every printed line is true of the file, and the file has at most one row that was not printed yet."""
    columns = {row: values for row, *values in rows_of(path, "id, part_id, score, verdict, answered, record")}
    for what, row, index in printed:
        part_id, score, verdict, answered, text = columns[row]
        record = json.loads(text)
        assert (part_id, score) == (record["part_id"], record["score"]) == (f"{run}-{index}", index / 7)
        assert verdict == record["verdict"]
        assert verdict == ("ERROR" if what == "amended" else verdict)
        assert answered or what != "answered"
    added = [row for what, row, _ in printed if what == "added"]
    assert added == list(range(added[0], added[-1] + 1))
    assert max(columns) - added[-1] in (0, 1)
    return max(columns)


def kill_often(path, kills, seed):
    rng = random.Random(seed)
    last = 0
    for run in range(kills):
        printed = write_until_killed(path, run, rng.randint(LEAST_KILLED_AFTER, 400))
        assert printed[0][:2] == ("added", last + 1), "numbers go on where the killed process ended"
        last = check(path, printed, run)
    with RecordStore(RecordStoreConfig(path=str(path))) as store:
        assert [each.row for each in store.read_after(0, last + 1)] == list(range(1, last + 1)), "consumers get what a killed process left"


def test_no_row_that_was_added_is_lost_when_the_process_is_killed(path):
    kill_often(path, 3, 1)


@pytest.mark.slow
def test_no_row_that_was_added_is_lost_in_twenty_kills(path):
    kill_often(path, 20, 2)
