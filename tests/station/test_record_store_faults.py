"""Faults of the record store's file and disk: one line each, nothing half written, and nothing of other programs touched."""

import importlib.util
import os
import sqlite3
import subprocess
from pathlib import Path

import pytest

from snl_runtime.errors import SinkError
from snl_runtime.line.record_schema import STORE_SCHEMA

_spec = importlib.util.spec_from_file_location("snl_tests_record_fixtures", Path(__file__).with_name("record_fixtures.py"))
fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fixtures)
frame_of, result_of, rows_of, path, store = fixtures.frame_of, fixtures.result_of, fixtures.rows_of, fixtures.path, fixtures.store
opened, add, add_all = fixtures.opened, fixtures.add, fixtures.add_all


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
