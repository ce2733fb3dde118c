"""Old rows are deleted within the limits, and never one that waits for its answer or for a consumer."""

import importlib.util
import threading
from pathlib import Path

_spec = importlib.util.spec_from_file_location("snl_tests_record_fixtures", Path(__file__).with_name("record_fixtures.py"))
fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fixtures)
frame_of, result_of, rows_of, path, store = fixtures.frame_of, fixtures.result_of, fixtures.rows_of, fixtures.path, fixtures.store
opened, add, add_all = fixtures.opened, fixtures.add, fixtures.add_all


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
