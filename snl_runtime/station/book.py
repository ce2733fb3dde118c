"""Which triggers still wait for their answer, and who may give it: exactly one answer each, whatever comes first."""

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BookCounts:
    """One consistent look at a book: ``triggered == answered + open``.

    Attributes:
        triggered: Triggers opened.
        answered: Triggers whose one answer was given, in time or as ERROR at the deadline.
        missed: Triggers of these for which no result came in time, or whose record was not durable in time.
        late_discarded: Results that came for a trigger that was already answered; nobody was told of them.
        open: Triggers that wait.
    """

    triggered: int
    answered: int
    missed: int
    late_discarded: int
    open: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Expired:
    """A trigger that the deadline thread must act on.

    Attributes:
        trigger_id: The trigger.
        needs_record: No result came: the caller now holds the claim and must record an ERROR for it.
        needs_answer: The deadline has passed: the line must be told ERROR now, recorded or not; the answer counts as given.
    """

    trigger_id: int
    needs_record: bool
    needs_answer: bool


@dataclass(slots=True)
class _Entry:
    deadline_ns: int
    is_claimed: bool = False
    is_missed: bool = False


class TriggerBook:
    """Gives each trigger one answer: open, claim (record it), answer (tell the line), or expire.

    A result is first claimed, then recorded, then answered. Between the first and the last the deadline may pass, because a disk may take as long as
    it likes: then :meth:`expire` has given the answer and :meth:`answer` says no. A trigger without a result is cut ``record_margin_ns`` before its
    deadline, so that the record of its ERROR is durable too before the line is told. Usable from any thread; times are monotonic and injected.

    Args:
        record_margin_ns: How long before the deadline a trigger without a result becomes an ERROR.

    Example:
        >>> book = TriggerBook()
        >>> book.open(1, deadline_ns=100)
        >>> book.claim(1), book.answer(1, now_ns=99), book.expire(now_ns=200)
        (True, True, [])
    """

    def __init__(self, record_margin_ns: int = 0) -> None:
        if record_margin_ns < 0:
            raise ValueError(f"record_margin_ns must not be negative, got {record_margin_ns}")
        self._margin_ns = record_margin_ns
        self._lock = threading.Lock()
        self._entries: dict[int, _Entry] = {}
        self._newest = 0
        self._triggered = 0
        self._answered = 0
        self._missed = 0
        self._late_discarded = 0

    @property
    def counts(self) -> BookCounts:
        """All counters at one moment."""
        with self._lock:
            return BookCounts(
                triggered=self._triggered,
                answered=self._answered,
                missed=self._missed,
                late_discarded=self._late_discarded,
                open=len(self._entries),
            )

    def open(self, trigger_id: int, deadline_ns: int) -> None:
        """Note a trigger that must be answered before ``deadline_ns``.

        Raises:
            ValueError: If the number is not above all before it.
        """
        with self._lock:
            if trigger_id <= self._newest:
                raise ValueError(f"trigger ids must rise, got {trigger_id} after {self._newest}")
            self._newest = trigger_id
            self._triggered += 1
            self._entries[trigger_id] = _Entry(deadline_ns)

    def waits(self, trigger_id: int) -> bool:
        """Return whether the trigger has no answer yet."""
        with self._lock:
            return trigger_id in self._entries

    def claim(self, trigger_id: int) -> bool:
        """Return whether the caller may record and then answer; if not, its result is late and counted as discarded."""
        with self._lock:
            entry = self._entries.get(trigger_id)
            if entry is None or entry.is_claimed:
                self._late_discarded += 1
                return False
            entry.is_claimed = True
            return True

    def answer(self, trigger_id: int, now_ns: int) -> bool:
        """Return whether the holder of the claim may tell the line its verdict; False once the deadline has come: then ERROR is the answer.

        A False leaves the answer to :meth:`expire`, which gives it at once or has given it already, and which counts the verdict as discarded.
        """
        with self._lock:
            entry = self._entries.get(trigger_id)
            if entry is None or not entry.is_claimed or now_ns >= entry.deadline_ns:
                return False
            del self._entries[trigger_id]
            self._answered += 1
            return True

    def expire(self, now_ns: int) -> list[Expired]:
        """Return the triggers that ran out of time since the last call, oldest first; the caller records and answers as each of them says."""
        with self._lock:
            expired = []
            for trigger_id, entry in list(self._entries.items()):
                is_cut = not entry.is_claimed and now_ns >= entry.deadline_ns - self._margin_ns
                is_over = now_ns >= entry.deadline_ns
                if is_cut or is_over:
                    expired.append(Expired(trigger_id=trigger_id, needs_record=is_cut, needs_answer=is_over))
                    self._expire(trigger_id, entry, is_cut=is_cut, is_over=is_over)
            return expired

    def next_ns(self) -> int | None:
        """Return when :meth:`expire` will next have something to say; None while nothing waits."""
        with self._lock:
            times = (entry.deadline_ns - (0 if entry.is_claimed else self._margin_ns) for entry in self._entries.values())
            return min(times, default=None)

    def _expire(self, trigger_id: int, entry: _Entry, *, is_cut: bool, is_over: bool) -> None:
        if is_cut:
            self._missed += 1
            entry.is_claimed = True
            entry.is_missed = True
        if is_over:
            if not entry.is_missed:
                self._missed += 1
                self._late_discarded += 1
            del self._entries[trigger_id]
            self._answered += 1
