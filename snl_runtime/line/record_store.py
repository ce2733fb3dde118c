"""The station's record: one row per trigger or frame in a SQLite file, on the disk before its verdict is announced."""

import contextlib
import itertools
import json
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from snl_runtime.errors import ConfigError, SinkError
from snl_runtime.files import exclusive_lock
from snl_runtime.line.record_retention import Limits, delete_some
from snl_runtime.line.record_schema import COLUMNS, errors_of, open_for_reading, open_for_writing
from snl_runtime.line.records import amended_record, record_of
from snl_runtime.text import printable, to_json
from snl_runtime.types import AnomalyResult, Frame

UPKEEP_INTERVAL_S = 1.0
"""How often old rows are looked for and the write-ahead log is moved into the file, both beside the line."""
_INSERT = f"INSERT INTO records ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
_AMENDED = ("product", "verdict", "reason_code", "score", "threshold", "reject_threshold", "model_sha256")

_Answer = TypeVar("_Answer")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordStoreConfig:
    """Where the station's record lies and how long it is kept."""

    path: str
    """The SQLite file; made if it is not there, its folder must exist. Two files beside it, ``-wal`` and ``-shm``, belong to it while it is open."""
    camera: str = "camera"
    """Camera of the records that come through ``emit``, which names none."""
    max_rows: int | None = None
    """Most records; older ones are deleted once every consumer has them. None keeps all."""
    max_age_days: float | None = None
    """Days after which a record is deleted, by the time of its capture and the clock; None keeps all."""
    max_mib: int | None = None
    """Most MiB that the records take; older ones are deleted. None keeps all."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("records.path must name a file, got ''; e.g. records.sqlite")
        if not self.camera:
            raise ConfigError("records.camera must name a camera, got ''")
        for name, value in (("max_rows", self.max_rows), ("max_age_days", self.max_age_days), ("max_mib", self.max_mib)):
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"records.{name} must be positive, got {value}; leave it out to keep all records")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRecord:
    """One row as a consumer gets it.

    Attributes:
        row: Its number; a consumer that sees it twice got the same record twice.
        camera: Name of the camera.
        record: The record as in a file of records (``record_line``), with ``"announced": false`` where ``announced`` is false.
        announced: The line was told this verdict. False if the process that wrote it died before it could note that: the line may have been told
            this, ERROR or nothing, so nobody may take it for a PASS.
    """

    row: int
    camera: str
    record: dict[str, Any]
    announced: bool = True


class RecordStore:
    """Keeps the records of one station; one process writes, any number read, and every method may be called from any thread.

    A row is on the disk when :meth:`add` returns: neither ``kill -9`` nor a power cut takes it. Marks and cursors are not waited for; a power cut can
    take the last of them, and what it took is delivered once more. A row that was not marked as answered when its process ended is delivered as not
    announced afterwards: whether the line was told is unknown, and its consumers must know of it.

    Args:
        config: File and retention.

    Example:
        >>> with RecordStore(RecordStoreConfig(path="records.sqlite")) as store:  # doctest: +SKIP
        ...     row = store.add(frame, result, camera="top")
        ...     store.mark_answered(row)
    """

    def __init__(self, config: RecordStoreConfig) -> None:
        self.config = config
        self.path = Path(config.path)
        self._limits = Limits(
            max_rows=config.max_rows, max_age_days=config.max_age_days, max_bytes=None if config.max_mib is None else config.max_mib << 20
        )
        self._opened = contextlib.ExitStack()
        self._writing, self._reading = threading.Lock(), threading.Lock()
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._files: dict[Path, os.stat_result] = {}
        self._earlier_row = 0
        self._stopped = threading.Event()

    def __enter__(self) -> "RecordStore":
        with contextlib.ExitStack() as opened:
            opened.enter_context(exclusive_lock(self.path, what="writer of records", blocking=False))
            self._writer = opened.enter_context(contextlib.closing(open_for_writing(self.path)))
            self._reader = opened.enter_context(contextlib.closing(open_for_reading(self.path)))
            opened.callback(self._forget_connections)
            self._files = self._opened_files()
            self._earlier_row = int(self._read(lambda database: database.execute("SELECT ifnull(max(id), 0) FROM records").fetchone()[0]))
            self._stopped = threading.Event()
            upkeep = threading.Thread(target=self._keep_up, name="snl-record-upkeep", daemon=True)
            upkeep.start()
            opened.callback(upkeep.join)
            opened.callback(self._stopped.set)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        """Close the file; the write-ahead log is then part of it."""
        with errors_of(self.path, "close"):
            self._opened.close()

    def emit(self, frame: Frame, result: AnomalyResult) -> None:
        """Add one record of the configured camera that needs no further answer.

        Raises:
            SinkError: As for :meth:`add`.
        """
        self._insert(frame, result, self.config.camera, answered=True)

    def add(self, frame: Frame, result: AnomalyResult, *, camera: str) -> int:
        """Add one record and return its row number once it is on the disk; until :meth:`mark_answered` no consumer sees it or any later one.

        Raises:
            SinkError: If it could not be written; then nothing of it is there.
        """
        return self._insert(frame, result, camera, answered=False)

    def amend(self, row: int, result: AnomalyResult) -> None:
        """Replace the result of a row that was not announced; on the disk when this returns.

        Raises:
            SinkError: If it could not be written, there is no such row, or it was answered: consumers may have it already.
        """

        def change(database: sqlite3.Connection) -> None:
            found = database.execute("SELECT record, answered FROM records WHERE id = ?", (row,)).fetchone()
            if found is None:
                raise SinkError(f"{self.path} has no row {row} to amend")
            if found[1]:
                raise SinkError(f"row {row} of {self.path} was answered already; a record that consumers may have is not changed")
            record = amended_record(json.loads(found[0]), result)
            settings = ", ".join(f"{name} = ?" for name in (*_AMENDED, "record"))
            database.execute(f"UPDATE records SET {settings} WHERE id = ?", (*_values(record, _AMENDED), to_json(record), row))

        self._write(change)

    def mark_answered(self, row: int) -> None:
        """Let consumers have a row: the line was told, or nobody had to be.

        Raises:
            SinkError: If the mark could not be written.
        """
        self._write(lambda database: database.execute("UPDATE records SET answered = 1 WHERE id = ?", (row,)), durable=False)

    def read_after(self, row: int, limit: int) -> list[StoredRecord]:
        """Return the next rows after one, oldest first, at most ``limit``.

        It ends before the first row of this process that was not answered yet, so that a consumer which moves on never misses that one. Such a row
        of an earlier process is not ``announced``.

        Raises:
            SinkError: If the file cannot be read.
        """
        query = "SELECT id, camera, record, answered FROM records WHERE id > ? ORDER BY id LIMIT ?"
        found = self._read(lambda database: database.execute(query, (row, limit)).fetchall())
        ready = itertools.takewhile(lambda values: values[3] or values[0] <= self._earlier_row, found)
        return [_stored(number, camera, json.loads(record), announced=bool(answered)) for number, camera, record, answered in ready]

    def delivered(self, consumer: str) -> int:
        """Return the last row that a consumer has, 0 if it has none.

        A consumer that asks is known from then on: no row that it does not have is deleted until :meth:`forget`.

        Raises:
            SinkError: If the file cannot be read, or the consumer cannot be noted.
        """
        found = self._delivered(consumer)
        if found is not None:
            return found
        self._write(lambda database: database.execute("INSERT OR IGNORE INTO deliveries VALUES (?, 0)", (consumer,)))
        return 0

    def mark_delivered(self, consumer: str, row: int) -> None:
        """Note that a consumer has every row up to this one; its cursor never goes back.

        Raises:
            SinkError: If the note could not be written.
        """
        note = (
            "INSERT INTO deliveries VALUES (?, min(?, (SELECT ifnull(max(id), 0) FROM records))) "
            "ON CONFLICT (consumer) DO UPDATE SET last_id = max(last_id, excluded.last_id)"
        )
        self._write(lambda database: database.execute(note, (consumer, row)), durable=False)

    def backlog(self, consumer: str) -> int:
        """Return how many rows a consumer does not have yet, those included that are not answered.

        Raises:
            SinkError: If the file cannot be read.
        """
        # Rows are numbered without gaps and deleted from the oldest on, so the ends tell; counting them would take longer the longer the backlog.
        first, last = self._read(lambda database: database.execute("SELECT ifnull(min(id), 1), ifnull(max(id), 0) FROM records").fetchone())
        return max(0, int(last) - max(self._delivered(consumer) or 0, int(first) - 1))

    def consumers(self) -> dict[str, int]:
        """Return the last row that each known consumer has.

        Raises:
            SinkError: If the file cannot be read.
        """
        return dict(self._read(lambda database: database.execute("SELECT consumer, last_id FROM deliveries").fetchall()))

    def forget(self, consumer: str) -> None:
        """Remove a consumer for good, one that a station no longer has, so that its rows no longer have to be kept.

        Raises:
            SinkError: If the file cannot be written.
        """
        self._write(lambda database: database.execute("DELETE FROM deliveries WHERE consumer = ?", (consumer,)))

    def delete_old(self) -> bool:
        """Delete some of the oldest rows if a limit is exceeded and return whether there may be more; the upkeep thread does this until there is not.

        Raises:
            SinkError: If the file cannot be written.
        """
        if not self._limits.any:
            return False
        return self._write(lambda database: delete_some(database, self._limits, unanswered_after=self._earlier_row), durable=False)

    def _insert(self, frame: Frame, result: AnomalyResult, camera: str, *, answered: bool) -> int:
        record = record_of(frame, result)
        columns = {**record, "camera": printable(camera), "answered": int(answered), "record": to_json(record)}

        def insert(database: sqlite3.Connection) -> int:
            row = database.execute(_INSERT, _values(columns, COLUMNS)).lastrowid
            assert row is not None
            return row

        return self._write(insert)

    def _delivered(self, consumer: str) -> int | None:
        found = self._read(lambda database: database.execute("SELECT last_id FROM deliveries WHERE consumer = ?", (consumer,)).fetchone())
        return None if found is None else int(found[0])

    def _write(self, change: Callable[[sqlite3.Connection], _Answer], *, durable: bool = True) -> _Answer:
        """Run one change whole or not at all; unless ``durable`` the disk is not waited for."""
        with self._writing, errors_of(self.path, "write"):
            database = self._connected(self._writer)
            database.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            with _transaction(database):
                answer = change(database)
            self._require_files()
            return answer

    def _read(self, query: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        with self._reading, errors_of(self.path, "read"):
            return query(self._connected(self._reader))

    def _connected(self, connection: sqlite3.Connection | None) -> sqlite3.Connection:
        if connection is None:
            raise SinkError(f"{self.path} is not open; enter the store before it is used")
        return connection

    def _require_files(self) -> None:
        """Refuse to go on in files that no name leads to any more: what is written to them is gone with the process."""
        for path, before in self._files.items():
            try:
                is_there = os.path.samestat(before, path.stat())
            except OSError:
                is_there = False
            if not is_there:
                raise SinkError(f"{path} was deleted or replaced while records were written to it; stop the station before files are moved")

    def _forget_connections(self) -> None:
        with self._writing, self._reading:
            self._writer = self._reader = None

    def _opened_files(self) -> dict[Path, os.stat_result]:
        try:
            return {path: path.stat() for path in (self.path, self.path.with_name(f"{self.path.name}-wal"))}
        except OSError as error:
            raise SinkError(f"cannot open the records in {self.path}: {error.strerror or error}; check the folder and who else uses it") from error

    def _keep_up(self) -> None:
        has_failed = False
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as database:
            while not self._stopped.wait(UPKEEP_INTERVAL_S):
                try:
                    with errors_of(self.path, "tidy"):
                        # PASSIVE waits for nobody and nobody waits for it. A record itself does this only where a second brings more than 4 MiB.
                        database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                    while self.delete_old() and not self._stopped.wait(0.01):
                        pass
                except SinkError as error:
                    if not has_failed:
                        logger.warning("old records stay and the write-ahead log grows: %s", error)
                    has_failed = True


def _stored(row: int, camera: str, record: dict[str, Any], *, announced: bool) -> StoredRecord:
    return StoredRecord(row=row, camera=camera, record=record if announced else {**record, "announced": False}, announced=announced)


@contextlib.contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # some failures, a full disk for one, have taken it back already
            database.execute("ROLLBACK")
        raise


def _values(record: dict[str, Any], names: tuple[str, ...]) -> list[Any]:
    """Return values of a record as columns hold them: the same text as in the record, no lone surrogates."""
    return [printable(value) if isinstance(value, str) else value for value in (record[name] for name in names)]
