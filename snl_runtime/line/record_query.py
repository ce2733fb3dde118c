"""Questions to a store of records, read-only, also while a station writes to it."""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from snl_runtime.errors import ConfigError
from snl_runtime.line.record_schema import COLUMNS, errors_of, open_for_reading
from snl_runtime.line.records import iso_time
from snl_runtime.text import printable

_AGE = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_ROWS_AT_ONCE = 1000
EXPORTED = ("row", *COLUMNS[:-2], "reason", "answered", "record")
"""Columns of an exported table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFilter:
    """Which records are asked for; everything that is given must hold, and one of several values must.

    Attributes:
        since: First time of capture, as in records.
        until: Time of capture that no longer belongs to them.
        cameras: Names of cameras; empty for all.
        products: Names of products; empty for all.
        verdicts: Verdicts; empty for all.
        reason_codes: Reason codes; empty for all.
        part_ids: Parts; empty for all.
        trigger_ids: Triggers; empty for all.
    """

    since: str | None = None
    until: str | None = None
    cameras: Sequence[str] = ()
    products: Sequence[str] = ()
    verdicts: Sequence[str] = ()
    reason_codes: Sequence[str] = ()
    part_ids: Sequence[str] = ()
    trigger_ids: Sequence[int] = ()

    def where(self) -> tuple[str, list[Any]]:
        """Return a condition in SQL and its values."""
        conditions, values = ["1"], list[Any]()
        for condition, time in (("captured_at >= ?", self.since), ("captured_at < ?", self.until)):
            if time is not None:
                conditions.append(condition)
                values.append(time)
        chosen: dict[str, Sequence[Any]] = {
            "camera": self.cameras,
            "product": self.products,
            "verdict": self.verdicts,
            "reason_code": self.reason_codes,
            "part_id": self.part_ids,
            "trigger_id": self.trigger_ids,
        }
        for column, wanted in chosen.items():
            if wanted:
                conditions.append(f"{column} IN ({', '.join('?' * len(wanted))})")
                values += [printable(value) if isinstance(value, str) else value for value in wanted]
        return " AND ".join(conditions), values


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductCounts:
    """Records of one product.

    Attributes:
        product: Its name; None for records that name none.
        records: How many.
        verdicts: How many of each verdict.
        parts: First inspections: each part that has an id counts once for each camera, each record without one is a part of its own.
        parts_passed: First inspections with the verdict PASS that the line was told; a row that was not answered may have been ERROR for the line.
    """

    product: str | None
    records: int
    verdicts: dict[str, int]
    parts: int
    parts_passed: int

    @property
    def first_pass_yield(self) -> float:
        """Share of the parts that passed at their first inspection; REVIEW, REJECT and ERROR did not."""
        return self.parts_passed / self.parts


class RecordReader:
    """Reads one store.

    Args:
        path: The file that a station writes, or wrote.

    Example:
        >>> with RecordReader("records.sqlite") as reader:  # doctest: +SKIP
        ...     bad = [row["part_id"] for row in reader.rows(RecordFilter(verdicts=["REJECT"]))]
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._opened = contextlib.ExitStack()

    def __enter__(self) -> "RecordReader":
        self._database = self._opened.enter_context(contextlib.closing(open_for_reading(self.path)))
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        self._opened.close()

    def count(self, chosen: RecordFilter) -> int:
        """Return how many records there are.

        Raises:
            SinkError: If the file cannot be read.
        """
        where, values = chosen.where()
        with errors_of(self.path, "read"):
            return int(self._database.execute(f"SELECT count(*) FROM records WHERE {where}", values).fetchone()[0])

    def rows(self, chosen: RecordFilter, *, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """Yield records in the order in which they were added.

        Each is the record itself with ``row``, ``camera`` and ``answered`` in front.

        Args:
            chosen: Which.
            limit: The newest so many; None for all.

        Raises:
            SinkError: If the file cannot be read.
        """
        where, values = chosen.where()
        newest = f"SELECT id FROM records WHERE {where} ORDER BY id DESC LIMIT ?"
        query = f"SELECT id, camera, answered, record FROM records WHERE id IN ({newest}) ORDER BY id"
        with errors_of(self.path, "read"), contextlib.closing(self._database.execute(query, [*values, -1 if limit is None else limit])) as cursor:
            while found := cursor.fetchmany(_ROWS_AT_ONCE):
                for row, camera, answered, record in found:
                    yield {"row": row, "camera": camera, "answered": bool(answered), **json.loads(record)}

    def summary(self, chosen: RecordFilter) -> list[ProductCounts]:
        """Return the counts of each product, sorted by name.

        Raises:
            SinkError: If the file cannot be read.
        """
        where, values = chosen.where()
        query = (
            "SELECT product, verdict, count(*), sum(is_first), sum(is_first AND answered) FROM (SELECT product, verdict, answered, "
            "part_id IS NULL OR id = min(id) OVER (PARTITION BY camera, product, part_id) AS is_first "
            f"FROM records WHERE {where}) GROUP BY product, verdict ORDER BY product, verdict"
        )
        with errors_of(self.path, "read"):
            found = self._database.execute(query, values).fetchall()
        counts = []
        for product in dict.fromkeys(row[0] for row in found):
            rows = [row for row in found if row[0] == product]
            counts.append(
                ProductCounts(
                    product=product,
                    records=sum(count for _, _, count, *_ in rows),
                    verdicts={verdict: count for _, verdict, count, *_ in rows},
                    parts=sum(firsts for *_, firsts, _ in rows),
                    parts_passed=sum(told for _, verdict, *_, told in rows if verdict == "PASS"),
                )
            )
        return counts


def parse_time(text: str, *, option: str, now_s: float) -> str:
    """Return a time as records hold it.

    Args:
        text: ISO 8601, UTC where it names no zone, or an age: a number and s, m, h, d or w.
        option: Where it was given, for the message.
        now_s: The clock, seconds since the epoch.

    Raises:
        ConfigError: If it is neither.

    Example:
        >>> parse_time("2h", option="--since", now_s=1_700_007_207.0)
        '2023-11-14T22:13:27.000Z'
        >>> parse_time("2023-11-14T23:13:27+01:00", option="--since", now_s=0)
        '2023-11-14T22:13:27.000Z'
    """
    try:
        if (age := _AGE.fullmatch(text.strip())) is not None:
            time = datetime.fromtimestamp(now_s, timezone.utc) - timedelta(seconds=float(age[1]) * _SECONDS[age[2]])
        else:
            time = datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text.strip()))
        return iso_time((time if time.tzinfo is not None else time.replace(tzinfo=timezone.utc)).timestamp())
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{option} must be a time such as 2026-11-28T06:30 (UTC) or an age such as 90m, 2h or 7d, got {text!r}") from error
