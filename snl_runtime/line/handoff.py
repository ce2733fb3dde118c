"""Bounded handoff between two threads that accounts for every item."""

import enum
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


class OverflowPolicy(enum.Enum):
    """What a full handoff does with the next item."""

    EVERY = "every"
    """Make the producer wait. For files and triggered cameras: every part is looked at."""
    LATEST = "latest"
    """Drop the oldest waiting item, and let only one wait. For free-running cameras: verdicts stay fresh."""
    DROP_OLDEST = "drop_oldest"
    """Drop the oldest waiting item, but let several wait. For cameras that send bursts: short ones are inspected whole."""

    @property
    def default_capacity(self) -> int:
        """Items that may wait where nobody says how many."""
        return 1 if self is OverflowPolicy.LATEST else 4


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoffCounts:
    """One consistent look at a handoff: ``offered == taken + dropped + waiting``.

    Attributes:
        offered: Items that a producer put, accepted or not.
        taken: Items that the consumer has received.
        dropped: Items that no consumer will ever receive.
        waiting: Items in the handoff, the one for which the producer waits included.
    """

    offered: int
    taken: int
    dropped: int
    waiting: int


class Handoff(Generic[T]):
    """A bounded queue with one producer and one consumer thread.

    The consumer iterates; iteration ends once the handoff is closed and empty. Unlike ``queue.Queue`` it can be closed from any thread, so that
    shutdown needs no sentinel item and never waits for room.

    Args:
        capacity: Most items that may wait. 1 with LATEST keeps only the newest.
        policy: What to do when ``capacity`` items already wait.
        on_drop: Called with each item that counts as dropped, on the thread that caused it, without the lock.
    """

    def __init__(self, capacity: int, policy: OverflowPolicy, *, on_drop: Callable[[T], None] | None = None) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self._capacity = capacity
        self._policy = policy
        self._on_drop = on_drop
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._offered = 0
        self._taken = 0
        self._dropped = 0
        self._blocked = 0

    def counts(self) -> HandoffCounts:
        """Return all counters at one moment."""
        with self._changed:
            return HandoffCounts(offered=self._offered, taken=self._taken, dropped=self._dropped, waiting=len(self._items) + self._blocked)

    def put(self, item: T) -> bool:
        """Hand over one item; waits for room with EVERY.

        Returns:
            Whether the item was accepted. False once the handoff is closed, also while waiting for room; the item then counts as dropped.
        """
        with self._changed:
            self._offered += 1
            if self._policy is OverflowPolicy.EVERY:
                self._blocked += 1
                self._changed.wait_for(lambda: self._closed or len(self._items) < self._capacity)
                self._blocked -= 1
            accepted = not self._closed
            lost = [] if accepted else [item]
            if accepted:
                if len(self._items) == self._capacity:
                    lost.append(self._items.popleft())
                self._items.append(item)
                self._changed.notify_all()
            self._dropped += len(lost)
        self._tell(lost)
        return accepted

    def close(self) -> None:
        """Accept no more items; items already waiting are still delivered."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Accept no more items and drop those waiting."""
        with self._changed:
            lost = list(self._items)
            self._dropped += len(lost)
            self._items.clear()
            self._closed = True
            self._changed.notify_all()
        self._tell(lost)

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._closed)
                if not self._items:
                    return
                item = self._items.popleft()
                self._taken += 1
                self._changed.notify_all()
            yield item

    def _tell(self, lost: Iterable[T]) -> None:
        if self._on_drop is not None:
            for item in lost:
                self._on_drop(item)
