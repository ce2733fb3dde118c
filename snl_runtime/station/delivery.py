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

    def __call__(self, frame: Frame, result: AnomalyResult, state: LineState, /) -> None:
        """Take one result with what the line saw right after it."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Missing:
    """What the store does not hold yet: a record, the change of a row whose verdict the line was not given, or only the mark that it was told."""

    row: int | None
    frame: Frame
    result: AnomalyResult
    needs_amend: bool = False


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
        self._missing: list[_Missing] = []
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
        """Write and change the records that failed; return why it failed again, None if none is missing any more."""
        with self._lock:
            missing = list(self._missing)
        for each in missing:
            try:
                self._write(each)
            except Exception as failure:  # noqa: BLE001  # a store may be a plug-in
                return f"a record cannot be written: {failure or type(failure).__name__}"
        return None

    def _write(self, missing: _Missing) -> None:
        """Bring one missing record into the store; what was done of it is not done again after a failure."""
        row = missing.row
        if row is None:
            row = self._store.add(missing.frame, missing.result, camera=self._camera)
        elif missing.needs_amend:
            self._store.amend(row, missing.result)
        marked_only = dataclasses.replace(missing, row=row, needs_amend=False)
        with self._lock:
            self._missing[self._missing.index(missing)] = marked_only
        self._store.mark_answered(row)
        with self._lock:
            self._missing.remove(marked_only)

    def _finish(self, frame: Frame, result: AnomalyResult, *, answered: bool) -> tuple[AnomalyResult, int]:
        trigger_id = frame.trigger_id or 0
        if result.verdict is not Verdict.ERROR and not self._announcer.takes_triggers and self._announcer.line_state.fault:
            result = replaced_by_error(result, "station_fault", f"the station is in a fault: {self._announcer.line_state.fault_reason}")
        row, failure = self._record(frame, result)
        is_written = row is not None
        if answered and failure:
            self._announcer.fault(failure)
        elif not answered:
            told = self._tell(trigger_id, result, failure)
            is_written = is_written and (told is result or self._amend(row or 0, told))
            result = told
        told_ns = self._clock_ns()
        if row is None or not is_written or not self._mark(row):
            missing = _Missing(row, dataclasses.replace(frame, image=None), dataclasses.replace(result, anomaly_map=None), not is_written)
            with self._lock:
                self._missing.append(missing)
        return result, told_ns

    def _tell(self, trigger_id: int, result: AnomalyResult, failure: str) -> AnomalyResult:
        """Tell the line, and return what it was told: this, or the ERROR that the deadline thread tells."""
        if failure:
            result = replaced_by_error(result, "record_failed", failure)
        if not self._announcer.announce(trigger_id, result, may_answer=lambda: self._book.answer(trigger_id, self._clock_ns()), fault=failure):
            result = replaced_by_error(result, "record_late", "the record was not durable before the deadline")
        return result

    def _record(self, frame: Frame, result: AnomalyResult) -> tuple[int | None, str]:
        try:
            return self._store.add(frame, result, camera=self._camera), ""
        except Exception as failure:  # noqa: BLE001  # a store may be a plug-in; the line must get its answer
            return None, f"the record could not be written: {failure or type(failure).__name__}"

    def _amend(self, row: int, result: AnomalyResult) -> bool:
        try:
            self._store.amend(row, result)
        except Exception as failure:  # noqa: BLE001
            # Until it is changed the row is not marked as answered, so that no consumer gets a verdict that the line was not given.
            self._announcer.fault(f"row {row} could not be turned into ERROR record_late: {failure or type(failure).__name__}")
            return False
        return True

    def _mark(self, row: int) -> bool:
        try:
            self._store.mark_answered(row)
        except Exception as failure:  # noqa: BLE001
            self._announcer.fault(f"row {row} could not be marked as answered: {failure or type(failure).__name__}")
            return False
        return True
