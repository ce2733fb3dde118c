"""The station's record: a row that was added is there, whole, whatever comes; every consumer gets every row once it is answered, in order."""

import importlib.util
import json
import math
import os
import sqlite3
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snl_runtime.errors import ConfigError, SinkError
from snl_runtime.line.record_schema import APPLICATION_ID, STORE_SCHEMA
from snl_runtime.line.record_store import RecordStore, RecordStoreConfig
from snl_runtime.types import Verdict

_spec = importlib.util.spec_from_file_location("snl_tests_record_fixtures", Path(__file__).with_name("record_fixtures.py"))
fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fixtures)
frame_of, result_of, rows_of, path, store = fixtures.frame_of, fixtures.result_of, fixtures.rows_of, fixtures.path, fixtures.store


IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""For tests of many stores whose subject is not the disk."""


def opened(path, **changes):
    return RecordStore(RecordStoreConfig(path=str(path), **changes))


def add(store, index=0, *, answered=True, camera="top", **changes):
    row = store.add(frame_of(index), result_of(**changes), camera=camera)
    if answered:
        store.mark_answered(row)
    return row


def add_all(store, count, added=None):
    """Add records and note each row once it is there."""
    for index in range(count):
        row = add(store, index)
        if added is not None:
            added.append(row)


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


# Retention


def test_oldest_rows_beyond_the_limit_are_deleted_and_the_newest_stay(path):
    with opened(path, max_rows=3) as store:
        for index in range(10):
            add(store, index)
        while store.delete_old():
            pass
        assert rows_of(path) == [8, 9, 10]
        assert add(store) == 11


def test_rows_that_a_consumer_does_not_have_are_not_deleted(path):
    with opened(path, max_rows=2) as store:
        for index in range(6):
            add(store, index)
        store.mark_delivered("mqtt", 6)
        store.mark_delivered("webhook", 3)
        while store.delete_old():
            pass
        assert rows_of(path) == [4, 5, 6]
        assert store.delivered("new") == 0
        add(store)
        while store.delete_old():
            pass
        assert rows_of(path) == [4, 5, 6, 7], "a consumer that has nothing yet keeps everything"
        store.forget("new")
        store.mark_delivered("webhook", 7)
        store.mark_delivered("mqtt", 7)
        while store.delete_old():
            pass
        assert rows_of(path) == [6, 7]


def test_row_that_waits_for_its_answer_is_not_deleted(path):
    with opened(path, max_rows=1) as store:
        add(store, 0)
        waiting = add(store, 1, answered=False)
        add(store, 2)
        while store.delete_old():
            pass
        assert rows_of(path) == [waiting, waiting + 1]


def test_rows_older_than_the_limit_are_deleted_by_their_time_of_capture(path, monkeypatch):
    with opened(path, max_age_days=2) as store:
        for day in range(5):
            store.emit(frame_of(day, captured_at=1_700_000_000.0 + 86_400 * day), result_of())
        monkeypatch.setattr("snl_runtime.line.record_retention.time.time", lambda: 1_700_000_000.0 + 86_400 * 4 + 1)
        while store.delete_old():
            pass
        assert rows_of(path) == [4, 5]  # of day 3 and day 4; day 2 is older by a second


def test_file_shrinks_to_the_limit_of_its_size(path):
    with opened(path, max_mib=1) as store:
        long = "x" * 20_000
        for index in range(120):
            store.emit(frame_of(index), result_of(reason=long))
        while store.delete_old():
            pass
        kept = rows_of(path)
    assert kept == list(range(kept[0], 121))
    assert 30 <= len(kept) <= 52  # 1 MiB / 20 000 bytes = 52
    assert path.stat().st_size <= 1.1 * 2**20


# Faults: one line, and nothing half written


def test_file_of_something_else_is_refused_and_left_alone(path):
    path.write_bytes(b"something else, long enough to be no header" * 100)
    with pytest.raises(SinkError, match="is not a store of records; name another file"):
        opened(path).__enter__()
    assert path.read_bytes().startswith(b"something else")


def test_database_of_another_program_is_refused_and_left_alone(path):
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE mine (x)")
    database.close()
    before = path.read_bytes()
    with pytest.raises(SinkError, match="database of another program"):
        opened(path).__enter__()
    assert path.read_bytes() == before


def test_newer_schema_is_refused(path):
    with opened(path) as store:
        add(store)
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {STORE_SCHEMA + 1}")
    database.close()
    with pytest.raises(SinkError, match=f"has schema {STORE_SCHEMA + 1}, this version of snl-edge reads schema {STORE_SCHEMA}"):
        opened(path).__enter__()


@pytest.mark.parametrize("fault", ["no folder", "a folder", "read-only"])
def test_place_that_cannot_be_written_is_one_line(tmp_path, read_only, fault):
    path = {"no folder": tmp_path / "gone" / "x.sqlite", "a folder": tmp_path}.get(fault, tmp_path / "x.sqlite")
    if fault == "read-only":
        read_only(tmp_path)
    with pytest.raises(SinkError, match="cannot (write|open)") as raised:
        opened(path).__enter__()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_deleted_file_is_seen_at_the_next_record(path, store, suffix):
    add(store)
    Path(f"{path}{suffix}").unlink()
    with pytest.raises(SinkError, match="was deleted or replaced while records were written"):
        add(store)


def test_damaged_file_is_one_line(path):
    with opened(path) as store:
        for index in range(200):
            store.emit(frame_of(index), result_of())
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)  # all but the header's page
    path.write_bytes(data)
    with pytest.raises(SinkError, match="the file is damaged") as raised, opened(path) as store:
        add(store)
    assert "\n" not in str(raised.value)


def test_file_that_may_not_grow_takes_no_half_record_and_goes_on_when_it_may(path, store, file_size_limit):
    add(store, 0)
    size_bytes = Path(f"{path}-wal").stat().st_size
    with file_size_limit(size_bytes + 5000), pytest.raises(SinkError, match="cannot write the records"):
        add_all(store, 50)
    kept = rows_of(path)
    assert kept == list(range(1, len(kept) + 1))
    assert add(store) == len(kept) + 1
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


@pytest.fixture
def small_disk(tmp_path):
    """A real disk of 512 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("needs to mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk_is_one_line_and_every_row_that_was_added_is_there(small_disk):
    path, added = small_disk / "records.sqlite", []
    with opened(path) as store:
        with pytest.raises(SinkError, match="check the folder, its permissions and the free space") as raised:
            add_all(store, 5000, added)
        assert "\n" not in str(raised.value)
        kept = rows_of(path)
        assert kept[: len(added)] == added
        assert len(kept) - len(added) in (0, 1), "a row whose mark did not fit is there as well"
    assert rows_of(path) == kept


def test_upkeep_moves_the_log_into_the_file_beside_the_line(path, monkeypatch):
    monkeypatch.setattr("snl_runtime.line.record_store.UPKEEP_INTERVAL_S", 0.001)
    with opened(path, max_rows=5) as store:
        for index in range(50):
            add(store, index)
        deadline = threading.Event()
        for _ in range(2000):
            if len(rows_of(path)) <= 6 and path.stat().st_size > 4096:
                break
            deadline.wait(0.005)  # bounded: 10 s
        assert len(rows_of(path)) <= 6
        assert path.stat().st_size > 4096
