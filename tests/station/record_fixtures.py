"""Fakes of the line's tests, and a store in a folder of its own, for the tests of the record."""

import importlib.util
import sqlite3
from pathlib import Path

import pytest

from snl_runtime.line.record_store import RecordStore, RecordStoreConfig

_spec = importlib.util.spec_from_file_location("snl_tests_station_line", Path(__file__).parents[1] / "runtime" / "line" / "conftest.py")
line = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(line)

frame_of, result_of, fakes, model, engine, parts = line.frame_of, line.result_of, line.fakes, line.model, line.engine, line.parts


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
