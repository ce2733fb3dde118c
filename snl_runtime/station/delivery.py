"""One final result per trigger: claimed, recorded, told to the line, in this order."""

import dataclasses
import logging
import threading
from collections.abc import Callable
from typing import Protocol

from snl_runtime.station.announcer import Announcer
from snl_runtime.station.answers import replaced_by_error
from snl_runtime.station.book import TriggerBook
from snl_runtime.station.line_state import LineState
from snl_runtime.station.snapshot import VerdictTally
from snl_runtime.types import AnomalyResult, Frame, Verdict

logger = logging.getLogger(__name__)


class ResultStore(Protocol):
    """What delivery needs of a ``RecordStore``; used by several threads."""

    def add(self, frame: Frame, result: AnomalyResult, *, camera: str) -> int:
        """Write one record and return its row once it is durable."""
        ...

    def amend(self, row: int, result: AnomalyResult) -> None:
        """Replace the result of a row."""
        ...

    def mark_answered(self, row: int) -> None:
        """Note that the line was told; need not be durable."""
        ...


class StationEvents(Protocol):
    """Is told each final result, after the line and the record; see ``Observers``."""

    def __call__(self, frame: Frame, result: AnomalyResult, state: LineState) -> None:
        """Take one result with what the line saw right after it."""
        ...


class Delivery:
    """Records each claimed result and only then tells the line, if the deadline still allows it; any thread.

    * A record that is not durable by the deadline: the deadline thread has told the line ERROR with a fault; the row becomes ERROR ``record_late``.
    * A record that cannot be written: ERROR ``record_failed`` with a fault. It is kept and written by :meth:`write_missing` before a reset.
    * A verdict that comes in a fault is ERROR ``station_fault``: a station that cannot be trusted gives none.

    Args:
        camera: Name of the camera in the records.
        book: Who may answer.
        announcer: Tells the line.
        store: Where records become durable.
        events: Told at last; must not wait.
        clock_ns: Monotonic time.
    """

    def __init__(
        self,
        camera: str,
        *,
        book: TriggerBook,
        announcer: Announcer,
        store: ResultStore,
        events: StationEvents,
        clock_ns: Callable[[], int],
    ) -> None:
        self._camera = camera
        self._book = book
        self._announcer = announcer
        self._store = store
        self._events = events
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._under_way = 0
        self._missing: list[tuple[Frame, AnomalyResult]] = []
        self.tally = VerdictTally()
        self.tally_lock = threading.Lock()

    @property
    def is_under_way(self) -> bool:
        """Whether a record is being written; a store that hangs stays under way."""
        return self._under_way > 0

    def finish(self, frame: Frame, result: AnomalyResult, *, began_ns: int, answered: bool = False) -> AnomalyResult:
        """Record a claimed result, tell the line and return what became of it.

        Args:
            frame: With its trigger id.
            result: What the caller claimed the trigger for.
            began_ns: When the trigger came.
            answered: Whether the deadline thread has told the line already; then it is only recorded.
        """
        with self._lock:
            self._under_way += 1
        try:
            final, told_ns = self._finish(frame, result, answered=answered)
        finally:
            with self._lock:
                self._under_way -= 1
        with self.tally_lock:
            self.tally.add(frame, final, (told_ns - began_ns) / 1e6)
        self._events(frame, final, self._announcer.line_state)
        return final

    def write_missing(self) -> str | None:
        """Write the records that failed; return why it failed again, None if none is missing any more."""
        with self._lock:
            missing = list(self._missing)
        for frame, result in missing:
            try:
                row = self._store.add(frame, result, camera=self._camera)
            except Exception as failure:  # noqa: BLE001  # a store may be a plug-in
                return f"a record cannot be written: {failure or type(failure).__name__}"
            with self._lock:
                self._missing.remove((frame, result))
            self._mark(row)
        return None

    def _finish(self, frame: Frame, result: AnomalyResult, *, answered: bool) -> tuple[AnomalyResult, int]:
        trigger_id = frame.trigger_id or 0
        if result.verdict is not Verdict.ERROR and not self._announcer.takes_triggers and self._announcer.line_state.fault:
            result = replaced_by_error(result, "station_fault", f"the station is in a fault: {self._announcer.line_state.fault_reason}")
        row, failure = self._record(frame, result)
        if failure:
            result = replaced_by_error(result, "record_failed", failure)
        if not answered and not self._announcer.announce(
            trigger_id, result, may_answer=lambda: self._book.answer(trigger_id, self._clock_ns()), fault=failure
        ):
            result = replaced_by_error(result, "record_late", "the record was not durable before the deadline")
            self._amend(row, result)
        told_ns = self._clock_ns()
        if row is None:
            with self._lock:
                self._missing.append((dataclasses.replace(frame, image=None), dataclasses.replace(result, anomaly_map=None)))
        else:
            self._mark(row)
        return result, told_ns

    def _record(self, frame: Frame, result: AnomalyResult) -> tuple[int | None, str]:
        try:
            return self._store.add(frame, result, camera=self._camera), ""
        except Exception as failure:  # noqa: BLE001  # a store may be a plug-in; the line must get its answer
            return None, f"the record could not be written: {failure or type(failure).__name__}"

    def _amend(self, row: int | None, result: AnomalyResult) -> None:
        if row is None:
            return
        try:
            self._store.amend(row, result)
        except Exception as failure:  # noqa: BLE001
            # The row keeps a verdict that the line was not given: nothing may be trusted until a person has looked.
            self._announcer.fault(f"row {row} could not be turned into ERROR record_late: {failure or type(failure).__name__}")

    def _mark(self, row: int) -> None:
        try:
            self._store.mark_answered(row)
        except Exception as failure:  # noqa: BLE001
            self._announcer.fault(f"row {row} could not be marked as answered: {failure or type(failure).__name__}")
