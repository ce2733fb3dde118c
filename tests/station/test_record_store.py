"""The station's record: a row that was added is there, whole, whatever comes; every consumer gets every row once it is answered, in order."""

import importlib.util
import json
import math
import os
import sqlite3
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snl_runtime.errors import ConfigError, SinkError
from snl_runtime.line.record_schema import APPLICATION_ID, STORE_SCHEMA
from snl_runtime.line.record_store import RecordStoreConfig
from snl_runtime.types import Verdict

_spec = importlib.util.spec_from_file_location("snl_tests_record_fixtures", Path(__file__).with_name("record_fixtures.py"))
fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fixtures)
frame_of, result_of, rows_of, path, store = fixtures.frame_of, fixtures.result_of, fixtures.rows_of, fixtures.path, fixtures.store
opened, add = fixtures.opened, fixtures.add


IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""For tests of many stores whose subject is not the disk."""


def test_row_holds_the_record_and_its_columns(path, store):
    frame = frame_of(7, trigger_id=3, part_id="S-1", source_id="camera 0")
    assert store.add(frame, result_of(Verdict.REJECT, score=1.5, reason_code="above_reject_threshold"), camera="top") == 1
    columns = "camera, captured_at, product, verdict, reason_code, score, threshold, reject_threshold, trigger_id, part_id, source_id, answered"
    expected = ("top", "2023-11-14T22:13:27.000Z", "bottle", "REJECT", "above_reject_threshold", 1.5, 1.0, 1.25, 3, "S-1", "camera 0", 0)
    assert rows_of(path, columns) == [expected]
    (record,) = (json.loads(text) for text in rows_of(path, "record"))
    assert (record["frame_index"], record["verdict"], record["part_id"], record["score"]) == (7, "REJECT", "S-1", 1.5)
    assert rows_of(path, "latency_ms, model_sha256") == [(record["latency_ms"], "ab" * 32)]


def test_values_that_are_missing_are_null(path, store):
    store.add(frame_of(), result_of(Verdict.ERROR, score=math.nan, threshold=math.inf, product=None), camera="top")
    assert rows_of(path, "score, threshold, product, trigger_id, part_id") == [(None,) * 5]


def test_text_that_is_not_utf_8_is_stored_as_records_show_it(path, store):
    store.add(frame_of(source_id=os.fsdecode(b"\xff.png"), part_id="\ud83d"), result_of(), camera=os.fsdecode(b"\xe9"))
    assert rows_of(path, "source_id, part_id, camera") == [("\\xff.png", "\\ud83d", "\\xe9")]


def test_record_that_comes_as_from_any_sink_counts_as_answered(path):
    with opened(path, camera="left") as store:
        store.emit(frame_of(), result_of())
        assert [(each.row, each.camera) for each in store.read_after(0, 10)] == [(1, "left")]
    assert rows_of(path, "camera, answered") == [("left", 1)]


def test_rows_of_earlier_runs_stay_and_numbers_go_on(path):
    for _ in range(3):
        with opened(path) as store:
            add(store)
    assert list(path.parent.iterdir()) == [path], "the closed store is one file"
    assert rows_of(path) == [1, 2, 3]


def test_file_says_what_it_is(path, store):
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        assert database.execute("PRAGMA user_version").fetchone() == (STORE_SCHEMA,)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"path": ""}, "records.path must name a file"),
        ({"camera": ""}, "records.camera must name a camera"),
        ({"max_rows": 0}, "records.max_rows must be positive, got 0"),
        ({"max_age_days": -1.0}, "records.max_age_days must be positive, got -1.0"),
        ({"max_age_days": math.nan}, "records.max_age_days must be positive, got nan"),
        ({"max_mib": 0}, "records.max_mib must be positive, got 0"),
    ],
)
def test_bad_configuration_is_named_by_its_key(changes, said):
    with pytest.raises(ConfigError, match=said):
        RecordStoreConfig(**{"path": "x.sqlite", **changes})


# Amending


def test_amended_row_has_the_new_result_in_column_and_record_and_keeps_its_frame(path, store):
    row = store.add(frame_of(7, part_id="S-1"), result_of(), camera="top")
    before = json.loads(rows_of(path, "record")[0])
    late = result_of(Verdict.ERROR, reason_code="record_late", reason="the record came after the deadline; the verdict was PASS", score=math.nan)
    store.amend(row, late)
    assert rows_of(path, "verdict, reason_code, score, part_id, answered") == [("ERROR", "record_late", None, "S-1", 0)]
    after = json.loads(rows_of(path, "record")[0])
    assert list(after) == list(before)
    changed = {key for key in after if after[key] != before[key]}
    assert changed == {"verdict", "reason_code", "reason", "score"}


def test_row_that_consumers_may_have_is_not_amended(path, store):
    row = add(store)
    with pytest.raises(SinkError, match="row 1 .* was answered already"):
        store.amend(row, result_of(Verdict.ERROR))
    assert rows_of(path, "verdict") == ["PASS"]


def test_row_that_is_not_there_is_not_amended(store):
    with pytest.raises(SinkError, match="has no row 5 to amend"):
        store.amend(5, result_of(Verdict.ERROR))


# What consumers get


def test_consumers_get_answered_rows_up_to_the_first_that_is_not(store):
    rows = [add(store, index, answered=False) for index in range(4)]
    for row in (rows[0], rows[1], rows[3]):
        store.mark_answered(row)
    assert [each.row for each in store.read_after(0, 10)] == rows[:2]
    store.mark_answered(rows[2])
    assert [each.row for each in store.read_after(rows[1], 10)] == rows[2:]
    assert [each.row for each in store.read_after(0, 3)] == rows[:3]


def test_row_that_an_earlier_run_did_not_answer_is_delivered_as_not_announced(path):
    with opened(path) as store:
        add(store, answered=False)  # a PASS whose line may have been told ERROR record_late
        assert store.read_after(0, 10) == []
    with opened(path) as store:
        (left,) = store.read_after(0, 10)
        assert (left.row, left.announced, left.record["verdict"], left.record["announced"]) == (1, False, "PASS", False)
        add(store, answered=False)
        assert [each.row for each in store.read_after(0, 10)] == [1]
    assert rows_of(path, "answered") == [0, 0]


def test_delivered_record_is_the_one_in_the_file(path, store):
    add(store, 5)
    (stored,) = store.read_after(0, 1)
    assert stored.record == json.loads(rows_of(path, "record")[0])
    assert stored.announced


def test_cursor_of_each_consumer_is_kept_over_restarts_and_never_goes_back(path):
    with opened(path) as store:
        rows = [add(store, index) for index in range(3)]
        assert store.delivered("mqtt") == 0
        store.mark_delivered("mqtt", rows[1])
        store.mark_delivered("mqtt", rows[0])
        store.mark_delivered("webhook", 10_000)
    with opened(path) as store:
        assert (store.delivered("mqtt"), store.delivered("webhook"), store.delivered("new")) == (2, 3, 0)
        assert (store.backlog("mqtt"), store.backlog("webhook"), store.backlog("new")) == (1, 0, 3)


class Outbox:
    """What consumes rows: at least once, in order; it may die between the send and the note."""

    def __init__(self, waiting):
        self.sent, self.waiting = [], waiting

    def step(self, store, limit, dies):
        for stored in store.read_after(store.delivered("mqtt"), limit):
            self.sent.append((stored.row, stored.record["frame_index"], stored.record["verdict"]))
            assert stored.row not in self.waiting, "the line was not told yet"
            if dies:
                return
            store.mark_delivered("mqtt", stored.row)


STEPS = st.one_of(
    st.just(("add",)),
    st.just(("add",)),
    st.tuples(st.just("answer"), st.integers(0, 3)),
    st.tuples(st.just("answer"), st.integers(0, 3)),
    st.tuples(st.just("amend"), st.integers(0, 3)),
    st.tuples(st.just("send"), st.integers(1, 3), st.booleans()),
    st.just(("restart",)),
    st.just(("delete",)),
)


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(STEPS, min_size=10, max_size=40), max_rows=st.sampled_from([None, 1, 3]))
def test_no_row_is_skipped_lost_or_sent_out_of_order_whatever_the_order_of_events(steps, max_rows):
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        follow(Path(folder) / "records.sqlite", steps, max_rows)


def follow(path, steps, max_rows):
    final, waiting = {}, []
    outbox = Outbox(waiting)
    store = opened(path, max_rows=max_rows).__enter__()
    try:
        assert store.delivered("mqtt") == 0
        for step, *values in steps:
            if step == "add":
                row = store.add(frame_of(len(final)), result_of(), camera="top")
                final[row] = (row, len(final), "PASS")
                waiting.append(row)
            elif step == "answer" and waiting:
                store.mark_answered(waiting.pop(values[0] % len(waiting)))
            elif step == "amend" and waiting:
                row = waiting[values[0] % len(waiting)]
                store.amend(row, result_of(Verdict.ERROR))
                final[row] = (*final[row][:2], "ERROR")
            elif step == "send":
                outbox.step(store, *values)
            elif step == "restart":
                store.__exit__(None, None, None)
                store = opened(path, max_rows=max_rows).__enter__()
                waiting.clear()
            elif step == "delete":
                store.delete_old()
            assert store.backlog("mqtt") == sum(row > store.delivered("mqtt") for row in rows_of(path))
        while waiting:
            store.mark_answered(waiting.pop())
        outbox.step(store, 1000, False)
    finally:
        store.__exit__(None, None, None)
    assert set(outbox.sent) == set(final.values()), "each row, in its final form, and nothing else"
    firsts = list(dict.fromkeys(outbox.sent))
    assert firsts == sorted(firsts)
    repeats = [row for (row, *_), (later, *_) in zip(outbox.sent, outbox.sent[1:]) if later < row]
    assert not repeats, "a repeat is of the last row sent, never further back"


def test_threads_add_answer_and_read_at_the_same_time(path, store):
    count, got, failures = 25, [], []
    done = threading.Event()

    def guarded(work):
        def run():
            try:
                work()
            except BaseException as failure:  # noqa: BLE001 - shown by the test
                failures.append(failure)

        return run

    def camera(name):
        for index in range(count):
            add(store, index, camera=name)

    def consumer():
        while not (done.is_set() and store.backlog("mqtt") == 0):
            for stored in store.read_after(store.delivered("mqtt"), 7):
                got.append(stored.row)
                store.mark_delivered("mqtt", stored.row)

    cameras = [threading.Thread(target=guarded(lambda name=name: camera(name))) for name in ("a", "b", "c")]
    reader = threading.Thread(target=guarded(consumer))
    for thread in (*cameras, reader):
        thread.start()
    for thread in cameras:
        thread.join(60)
    done.set()
    reader.join(60)
    assert not failures
    assert got == list(range(1, 3 * count + 1))
    assert {name: rows_of(path, "camera").count(name) for name in "abc"} == dict.fromkeys("abc", count)


def test_others_read_while_the_station_writes(path, store):
    for index in range(5):
        add(store, index)
        assert len(rows_of(path)) == index + 1


def test_second_writer_is_refused(path, store):
    with pytest.raises(SinkError, match="in use by another writer of records"):
        opened(path).__enter__()


def test_store_that_is_not_open_says_so(path):
    store = opened(path)
    for use in (lambda: add(store), lambda: store.read_after(0, 1)):
        with pytest.raises(SinkError, match="is not open"):
            use()
    with store:
        add(store)
    with pytest.raises(SinkError, match="is not open"):
        add(store)
