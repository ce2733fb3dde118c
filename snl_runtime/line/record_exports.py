"""Tables of records for other programs: CSV and Parquet, written whole or not at all."""

import csv
import importlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from snl_runtime.errors import BackendUnavailableError
from snl_runtime.files import atomic_path
from snl_runtime.line.record_query import EXPORTED
from snl_runtime.text import to_json

_ROWS_AT_ONCE = 10_000
_KINDS = {
    "row": "int64",
    "trigger_id": "int64",
    "answered": "bool_",
    "score": "float64",
    "threshold": "float64",
    "reject_threshold": "float64",
    "latency_ms": "float64",
}
"""Types of Parquet columns that hold no text."""


def write_csv(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write one line per record below a line of names and return how many; a value that is missing is empty.

    Args:
        path: The file; replaced when all is written.
        rows: As ``RecordReader.rows`` yields them.

    Raises:
        SinkError: If the file cannot be written.
    """
    count = 0
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(EXPORTED)
        for values in _tabulated(rows):
            writer.writerow(values)
            count += 1
    return count


def write_parquet(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write one row per record and return how many; the columns are those of CSV, typed.

    Raises:
        BackendUnavailableError: If the package pyarrow is missing.
        SinkError: If the file cannot be written.
    """
    arrow, parquet = need_pyarrow()
    kinds = [getattr(arrow, _KINDS.get(name, "string"))() for name in EXPORTED]
    schema = arrow.schema(list(zip(EXPORTED, kinds)))
    count, values = 0, _tabulated(rows)
    with atomic_path(path) as temporary, parquet.ParquetWriter(str(temporary), schema) as writer:
        while batch := list(itertools.islice(values, _ROWS_AT_ONCE)):
            columns = [arrow.array(column, type=kind) for column, kind in zip(zip(*batch), kinds)]
            writer.write_table(arrow.Table.from_arrays(columns, schema=schema))
            count += len(batch)
    return count


def need_pyarrow() -> tuple[Any, Any]:
    """Return the modules that write Parquet.

    Raises:
        BackendUnavailableError: If the package pyarrow is missing.
    """
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise BackendUnavailableError("--parquet needs the package pyarrow: pip install pyarrow; --csv needs none") from error


def _tabulated(rows: Iterable[dict[str, Any]]) -> Iterator[list[Any]]:
    for row in rows:
        record = {name: value for name, value in row.items() if name not in ("row", "camera", "answered")}
        yield [to_json(record) if name == "record" else row[name] for name in EXPORTED]
