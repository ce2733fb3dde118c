"""Fakes of the line's tests, and a store in a folder of its own, for the tests of the record."""

import importlib.util
import sqlite3
from pathlib import Path

import pytest

from snl_runtime.line.record_store import RecordStore, RecordStoreConfig

RUNTIME = Path(__file__).parents[1] / "runtime"


def _load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


line = _load("snl_tests_station_line", RUNTIME / "line" / "conftest.py")
runtime = _load("snl_tests_station_runtime", RUNTIME / "conftest.py")
frame_of, result_of, fakes = line.frame_of, line.result_of, line.fakes
engine, parts = runtime.engine, runtime.parts


@pytest.fixture
def path(tmp_path):
    return tmp_path / "records.sqlite"


@pytest.fixture
def store(path):
    with RecordStore(RecordStoreConfig(path=str(path))) as opened:
        yield opened


def rows_of(path, columns="id"):
    """What any other tool reads from the file."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        found = database.execute(f"SELECT {columns} FROM records ORDER BY id").fetchall()
    database.close()
    return [row[0] if len(row) == 1 else row for row in found]


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
