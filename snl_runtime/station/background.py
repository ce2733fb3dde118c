"""The threads that all cameras of a station share: one for deadlines, one for records of what ran out of time."""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

TICK_S = 0.05
"""How often heartbeats are looked for, and the longest that a deadline thread sleeps."""

logger = logging.getLogger(__name__)


class Timed(Protocol):
    """Something with deadlines."""

    def on_time(self, now_ns: int) -> None:
        """Do what is due; never waits."""
        ...

    def next_ns(self) -> int | None:
        """Return when something is due; None if nothing is."""
        ...

    def fault(self, reason: str) -> None:
        """Note that its deadlines cannot be trusted."""
        ...


class DeadlineThread:
    """Calls ``on_time`` of each unit when it is due. It must never wait for anything else: it is what answers when everything else hangs.

    Args:
        units: Returns what has deadlines.
        clock_ns: Monotonic time.
    """

    def __init__(self, units: Callable[[], Sequence[Timed]], *, clock_ns: Callable[[], int]) -> None:
        self._units = units
        self._clock_ns = clock_ns
        self._changed = threading.Event()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="snl-deadlines", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Look again: a trigger was opened."""
        self._changed.set()

    def stop(self) -> None:
        """End, after a last look."""
        self._is_stopping = True
        self._changed.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._is_stopping:
            self._changed.clear()
            self._look()
            due_ns = min((due for unit in self._units() if (due := unit.next_ns()) is not None), default=None)
            left_s = TICK_S if due_ns is None else min(TICK_S, (due_ns - self._clock_ns()) / 1e9)
            if left_s > 0:
                self._changed.wait(left_s)
        self._look()

    def _look(self) -> None:
        now_ns = self._clock_ns()
        for unit in self._units():
            try:
                unit.on_time(now_ns)
            except Exception as failure:
                logger.exception("a deadline could not be kept")
                unit.fault(f"a deadline could not be kept: {failure or type(failure).__name__}")


class RecordingThread:
    """Runs what may wait for the store, one after the other, so that the deadline thread never does."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="snl-late-records", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def run_later(self, job: Callable[[], object]) -> None:
        """Run a function after those before it; returns at once."""
        self._jobs.put(job)

    def stop(self, timeout_s: float) -> bool:
        """End after everything that was asked for; return whether it ended in time, which it does not if the store hangs."""
        self._jobs.put(None)
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:
                logger.exception("a record could not be delivered")
            del job  # frames would live until the next one
