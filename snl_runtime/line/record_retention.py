"""Which records of a store are old enough to go, a few at a time."""

import logging
import sqlite3
import time
from dataclasses import dataclass

from snl_runtime.line.records import iso_time

ROWS_A_STEP = 200
"""Most rows deleted in one transaction: a record that comes meanwhile waits for a few milliseconds at most."""
_PAGES_A_STEP = 256
"""Most pages of 4 KiB given back in one transaction."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a store may hold; None for no limit."""

    max_rows: int | None = None
    max_age_days: float | None = None
    max_bytes: int | None = None

    @property
    def any(self) -> bool:
        """Whether there is any limit."""
        return self.max_rows is not None or self.max_age_days is not None or self.max_bytes is not None


def delete_some(database: sqlite3.Connection, limits: Limits, *, unanswered_after: int) -> bool:
    """Delete up to :data:`ROWS_A_STEP` of the oldest rows inside a transaction or give pages back, and return whether it did anything.

    Args:
        database: A store.
        limits: What it may hold.
        unanswered_after: Rows later than this one stay from the first on that was not answered. Rows that a consumer does not have stay, too.
    """
    first, last = database.execute("SELECT min(id), max(id) FROM records").fetchone()
    if first is None:
        return False
    (received,) = database.execute("SELECT min(last_id) FROM deliveries").fetchone()
    # The newest row stays whatever the limits are, so that the numbers of rows can be told from their ends.
    end = min(last, first + ROWS_A_STEP, first + _too_many(database, limits, first, last), last if received is None else received + 1)
    query = "SELECT min(id) FROM records WHERE id < ? AND id > ? AND NOT answered"
    (unanswered,) = database.execute(query, (end, unanswered_after)).fetchone()
    end = end if unanswered is None else unanswered
    deleted = database.execute("DELETE FROM records WHERE id < ?", (end,)).rowcount if end > first else 0
    (free,) = database.execute("PRAGMA freelist_count").fetchone()
    database.execute(f"PRAGMA incremental_vacuum({_PAGES_A_STEP})").fetchall()
    return deleted > 0 or free > 0


def _too_many(database: sqlite3.Connection, limits: Limits, first: int, last: int) -> int:
    """Return how many of the oldest rows exceed the limits, as far as one step looks."""
    excess = 0
    if limits.max_rows is not None:
        excess = max(excess, last - first + 1 - limits.max_rows)
    if limits.max_age_days is not None:
        oldest_kept = iso_time(max(0.0, time.time() - limits.max_age_days * 86_400))
        query = "SELECT id FROM records WHERE id < ? AND captured_at >= ? ORDER BY id LIMIT 1"
        young = database.execute(query, (first + ROWS_A_STEP, oldest_kept)).fetchone()
        excess = max(excess, ROWS_A_STEP if young is None else young[0] - first)
    if limits.max_bytes is not None:
        pages, free, page_bytes = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size"))
        bytes_too_many = (pages - free) * page_bytes - limits.max_bytes
        if bytes_too_many > 0:
            bytes_per_row = (pages - free) * page_bytes / (last - first + 1)
            excess = max(excess, int(bytes_too_many / bytes_per_row) + 1)
    return excess
