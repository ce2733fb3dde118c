"""Records of a line from where they were kept: a store, or files of records."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from snl_runtime.errors import DataError
from snl_runtime.line.record_query import RecordFilter, RecordReader
from snl_runtime.line.record_schema import is_store


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield every record of a store or of a file of records; the half line that a killed process leaves at the end of a file is passed over.

    Raises:
        DataError: If the file cannot be read, or a line in it is no record.
        SinkError: If a store cannot be read.
    """
    if is_store(path):
        with RecordReader(path) as reader:
            yield from reader.rows(RecordFilter())
        return
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    yield _parsed(line, path, number)
    except OSError as error:
        raise DataError(f"cannot read the records in {path}: {error.strerror or error}") from error


def _parsed(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
        if isinstance(record, dict) and "record" in record and "verdict" in record:
            return record
    except ValueError:
        pass
    raise DataError(f"{path}, line {number}, is no record of snl-run; name a file of records (--jsonl) or a station's store")
