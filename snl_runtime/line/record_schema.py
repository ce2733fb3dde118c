"""The schema of a store of records: one SQLite file that any tool can query, and how it is opened."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from snl_runtime.errors import SinkError

APPLICATION_ID = 0x534E4C52
"""``PRAGMA application_id`` of a store of records: the letters SNLR."""
STORE_SCHEMA = 1
"""``PRAGMA user_version``; a file of a newer one is refused."""
COLUMNS = (
    "camera", "captured_at", "product", "verdict", "reason_code", "score", "threshold", "reject_threshold", "trigger_id", "part_id", "source_id",
    "latency_ms", "model_sha256", "answered", "record",
)  # fmt: skip
"""Columns of ``records`` after ``id``."""
BUSY_TIMEOUT_S = 2.0
"""How long a step waits for another process that holds the file, e.g. a tool that changes it."""

_SCHEMA = """
CREATE TABLE records (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    camera TEXT NOT NULL,
    captured_at TEXT NOT NULL,
    product TEXT,
    verdict TEXT NOT NULL,
    reason_code TEXT NOT NULL,
    score REAL,
    threshold REAL,
    reject_threshold REAL,
    trigger_id INTEGER,
    part_id TEXT,
    source_id TEXT NOT NULL,
    latency_ms REAL,
    model_sha256 TEXT NOT NULL,
    answered INTEGER NOT NULL DEFAULT 0,
    record TEXT NOT NULL
);
CREATE INDEX records_by_time ON records (captured_at);
CREATE INDEX records_by_part ON records (part_id) WHERE part_id IS NOT NULL;
CREATE INDEX records_not_passed ON records (captured_at) WHERE verdict <> 'PASS';
CREATE TABLE deliveries (
    consumer TEXT PRIMARY KEY,
    last_id INTEGER NOT NULL
) WITHOUT ROWID;
"""


def open_for_writing(path: Path) -> sqlite3.Connection:
    """Open a store that this process alone writes, made if it is not there.

    Raises:
        SinkError: If the file is no store of records, of a newer schema, damaged, or cannot be written.
    """
    with contextlib.ExitStack() as opened, errors_of(path, "open"):
        # Left on its own, sqlite3 would begin transactions by itself; here every step says where one begins.
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        opened.callback(connection.close)
        if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] and _pragma(connection, "application_id") == 0:
            _create(connection)
        _check(connection, path)
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise SinkError(f"{path} lies on a file system without shared memory, which a store of records needs; put it on a local disk")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")  # says now what the first record would meet: a read-only file, a full disk
        connection.execute(f"PRAGMA user_version = {STORE_SCHEMA}")
        connection.execute("COMMIT")
        opened.pop_all()
        return connection


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Open a store read-only; a station may write to it meanwhile.

    Raises:
        SinkError: If there is no such file, or it is no store of records, of a newer schema or damaged.
    """
    if not path.is_file():
        raise SinkError(f"there is no store of records {path}; name the file that a station writes")
    with contextlib.ExitStack() as opened, errors_of(path, "read"):
        connection = sqlite3.connect(_uri(path), uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        opened.callback(connection.close)
        _check(connection, path)
        opened.pop_all()
        return connection


@contextlib.contextmanager
def errors_of(path: Path, action: str) -> Iterator[None]:
    """Turn what SQLite raises into one line that names the file.

    Args:
        path: The store.
        action: What was tried, e.g. ``write``.
    """
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise SinkError(_explained(path, action, error)) from error


def is_store(path: str | os.PathLike[str]) -> bool:
    """Return whether a file begins as every SQLite file does; one that cannot be read does not."""
    try:
        with Path(path).open("rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except OSError:
        return False


def _create(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # has no effect once there are tables
    connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {STORE_SCHEMA}; COMMIT;")


def _check(connection: sqlite3.Connection, path: Path) -> None:
    if _pragma(connection, "application_id") != APPLICATION_ID:
        raise SinkError(f"{path} is a database of another program, not a store of records; name another file")
    schema = _pragma(connection, "user_version")
    if schema > STORE_SCHEMA:
        raise SinkError(f"{path} has schema {schema}, this version of snl-edge reads schema {STORE_SCHEMA}; install the version that wrote it")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _uri(path: Path) -> str:
    uri = f"{path.absolute().as_uri()}?mode=ro"
    # A reader of a file in WAL mode makes a small index beside it; where it may not, and nobody writes, the file alone is all there is.
    can_make_index = os.access(path.absolute().parent, os.W_OK)
    return uri if can_make_index or path.with_name(f"{path.name}-wal").exists() else f"{uri}&immutable=1"


def _explained(path: Path, action: str, error: sqlite3.DatabaseError) -> str:
    # sqlite_errorname is there from Python 3.11 on; the words have not changed in twenty years.
    text = str(error)
    name = str(getattr(error, "sqlite_errorname", ""))
    if "not a database" in text:
        return f"{path} exists and is not a store of records; name another file"
    if "malformed" in text or name.startswith("SQLITE_CORRUPT"):
        return f"cannot {action} the records in {path}: the file is damaged ({text}); move it away and keep it, a new one is made"
    if "locked" in text:
        return f"cannot {action} the records in {path}: another program holds the file ({text}); end it"
    detail = f"{text}, {name}" if name else text
    return f"cannot {action} the records in {path}: {detail}; check the folder, its permissions and the free space"
