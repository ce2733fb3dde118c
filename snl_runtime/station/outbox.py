"""Hands the record to consumers elsewhere, each row at least once and in order, without ever holding the line back."""

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from snl_runtime.errors import ConfigError, DeliveryError, SnlError

CLOSE_TIMEOUT_S = 10.0
_IDLE_LOOK_S = 1.0
"""How often the store is read while nobody says that it has a new row."""
_DRAIN_LOOK_S = 0.02
"""How often a drain looks whether it is over."""
_FAILURES_TO_GIVE_UP = 2
"""Calls that fail in a row while nothing is acknowledged, after which a drain waits no longer; a connection that was only stale costs one."""

logger = logging.getLogger(__name__)


class StoredRow(Protocol):
    """One row of the record store; ``row`` tells repeats."""

    @property
    def row(self) -> int:
        """Number of the row, rising."""
        ...

    @property
    def camera(self) -> str:
        """Name of the camera."""
        ...

    @property
    def record(self) -> Mapping[str, Any]:
        """The record, as in a file of records."""
        ...


class DeliveryStore(Protocol):
    """What an outbox needs of the record store; every method may raise ``SinkError`` and may be called from any thread."""

    def read_after(self, row: int, limit: int) -> Sequence[StoredRow]:
        """Return at most ``limit`` rows after ``row``, oldest first, all of them answered."""
        ...

    def delivered(self, consumer: str) -> int:
        """Return the last row that a consumer has, 0 for none."""
        ...

    def mark_delivered(self, consumer: str, row: int) -> None:
        """Note that a consumer has every row up to this one."""
        ...

    def backlog(self, consumer: str) -> int:
        """Return how many rows a consumer does not have yet."""
        ...


class Consumer(Protocol):
    """Something elsewhere that takes rows: a broker, a web server. Its methods are called on the outbox's thread, one at a time."""

    @property
    def name(self) -> str:
        """Stable name; the store keeps the cursor under it."""
        ...

    def connect(self) -> None:
        """Reach the peer; called before the first row and again after every failure.

        Raises:
            SinkError: If it cannot be reached, within a bounded time.
        """
        ...

    def send(self, batch: Sequence[StoredRow]) -> None:
        """Send rows in order and return once the peer has acknowledged all of them.

        Raises:
            DeliveryError: If it has not, within a bounded time; it says how many it has acknowledged, from the first on.
        """
        ...

    def close(self) -> None:
        """Let go of the peer; also after a failure, and more than once."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxConfig:
    """How rows are sent, and from when on a consumer that takes none is a fault."""

    max_backlog_rows: int = 10_000
    """Most rows that may wait before the station faults."""
    max_stall_s: float = 600.0
    """Longest time in seconds that rows may wait while none is acknowledged, before the station faults."""
    batch_rows: int = 100
    """Most rows in memory at a time."""
    first_retry_s: float = 0.5
    """Wait after the first failure, in seconds; it doubles with each further one and is cut by up to a half at random."""
    longest_retry_s: float = 30.0
    """Longest wait between two tries, in seconds."""
    max_drain_s: float = 10.0
    """Longest wait in seconds, once every camera has ended by itself, for consumers that still take rows; what they did not take waits for the next
    start. 0 waits for none, and a signal never waits."""

    def __post_init__(self) -> None:
        for name in ("max_backlog_rows", "max_stall_s", "batch_rows", "first_retry_s", "longest_retry_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"outbox.{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.max_drain_s < math.inf:
            raise ConfigError(f"outbox.max_drain_s must be 0 or more and finite, got {self.max_drain_s}")
        if self.longest_retry_s < self.first_retry_s:
            raise ConfigError(f"outbox.longest_retry_s must be at least first_retry_s ({self.first_retry_s:g}), got {self.longest_retry_s:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxCounts:
    """One look at an outbox.

    Attributes:
        consumer: Name of the consumer.
        connected: The last call of the peer succeeded.
        delivered: Rows that the peer acknowledged since the outbox was entered, repeats included.
        backlog: Rows that wait, at the last look.
        failures: Calls that failed since the outbox was entered.
        last_error: What the last failure said; empty before the first.
        fault: Why the station faults because of this consumer; empty if it does not.
    """

    consumer: str
    connected: bool
    delivered: int
    backlog: int
    failures: int
    last_error: str
    fault: str


class Outbox:
    """Sends the rows of the store to one consumer on a thread of its own.

    The cursor moves only after the peer has acknowledged, so a row may arrive twice and none is left out, whatever is killed in between. A second
    thread watches the limits, so that a consumer which hangs in a call is noticed too.

    Args:
        consumer: Where rows go.
        store: Where they come from.
        on_fault: Called with the reason when a limit is exceeded, and with None when the backlog is within its limits again; on the outbox's threads.
        config: Limits and waits.
    """

    def __init__(
        self, consumer: Consumer, store: DeliveryStore, *, on_fault: Callable[[str | None], None], config: OutboxConfig | None = None
    ) -> None:
        self._consumer, self._store, self._on_fault = consumer, store, on_fault
        self._config = OutboxConfig() if config is None else config
        self._wake, self._stopped = threading.Event(), threading.Event()
        self._draining, self._drained = threading.Event(), threading.Event()
        self._guard = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._connected, self._delivered, self._failures, self._last_error, self._backlog = False, 0, 0, "", 0
        self._failures_in_vain = 0
        self._fault = ""
        self._ended = ""
        self._progress_s = time.monotonic()

    def __enter__(self) -> "Outbox":
        self._progress_s = time.monotonic()
        for work, role in ((self._deliver, "outbox"), (self._watch, "outbox-watch")):
            thread = threading.Thread(target=work, name=f"snl-{role}-{self._consumer.name}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        """Stop after the call that is under way; what was not acknowledged stays in the store for the next start."""
        self._stopped.set()
        self._draining.set()
        self._wake.set()
        for thread in self._threads:
            thread.join(CLOSE_TIMEOUT_S)
            if thread.is_alive():
                logger.warning("%s did not end within %.0f s", thread.name, CLOSE_TIMEOUT_S)

    @property
    def counts(self) -> OutboxCounts:
        """What was delivered and what waits; any thread."""
        with self._guard:
            return OutboxCounts(
                consumer=self._consumer.name,
                connected=self._connected,
                delivered=self._delivered,
                backlog=self._backlog,
                failures=self._failures,
                last_error=self._last_error,
                fault=self._fault,
            )

    def notify(self) -> None:
        """Say that the store has new rows, which are then read at once; any thread, returns at once."""
        self._wake.set()

    def begin_drain(self) -> None:
        """Say that the store gets no further row: what waits is sent without sitting out a pause between two tries; any thread, returns at once."""
        with self._guard:
            self._failures_in_vain = 0
        self._draining.set()
        self._wake.set()

    @property
    def is_drained(self) -> bool:
        """Whether nothing is left to wait for since :meth:`begin_drain`: the peer has every row, or takes none."""
        return self._drained.is_set()

    def _deliver(self) -> None:
        try:
            self._deliver_until_stopped()
        except Exception as error:  # a bug must not end the deliveries unseen
            logger.exception("deliveries to %s ended", self._consumer.name)
            with self._guard:
                self._ended = f"deliveries to {self._consumer.name} ended: {error}"
        finally:
            self._drained.set()
            self._consumer.close()

    def _deliver_until_stopped(self) -> None:
        failures_in_a_row = 0
        while not self._stopped.is_set():
            is_draining = self._draining.is_set()  # before the store is read: it may get a row in between
            try:
                is_idle = self._deliver_batch()
                failures_in_a_row = 0
            except (SnlError, OSError) as error:
                failures_in_a_row += 1
                in_vain = self._note_failure(error)
                if is_draining:
                    self._pause_in_drain(in_vain)
                else:
                    self._draining.wait(self._retry_s(failures_in_a_row))
                continue
            if is_idle:
                if is_draining:
                    self._drained.set()
                self._wake.wait(_IDLE_LOOK_S)
                self._wake.clear()

    def _pause_in_drain(self, failures_in_vain: int) -> None:
        if failures_in_vain >= _FAILURES_TO_GIVE_UP:
            self._drained.set()
        self._stopped.wait(self._retry_s(failures_in_vain))

    def _deliver_batch(self) -> bool:
        """Send the next rows and move the cursor; return whether there were none.

        Raises:
            SnlError: If store or peer failed; the cursor did not move past what the peer acknowledged.
        """
        name = self._consumer.name
        if not self._connected:
            self._consumer.connect()
            self._set_connected()
        batch = self._store.read_after(self._store.delivered(name), self._config.batch_rows)
        if not batch:
            return True
        try:
            self._consumer.send(batch)
        except DeliveryError as error:
            self._note_delivered(batch[: error.acknowledged])
            raise
        self._note_delivered(batch)
        return False

    def _note_delivered(self, batch: Sequence[StoredRow]) -> None:
        if not batch:
            return
        self._store.mark_delivered(self._consumer.name, batch[-1].row)
        with self._guard:
            self._delivered += len(batch)
            self._failures_in_vain = 0
            self._progress_s = time.monotonic()

    def _set_connected(self) -> None:
        with self._guard:
            self._connected = True
            failures = self._failures
        logger.info("consumer %s is connected, after %d failures", self._consumer.name, failures)

    def _note_failure(self, error: Exception) -> int:
        """Count a failure and return how many there are since a row was acknowledged or the drain began."""
        message = str(error) or type(error).__name__
        with self._guard:
            is_new = self._connected or message != self._last_error
            self._connected, self._last_error = False, message
            self._failures += 1
            self._failures_in_vain += 1
            in_vain = self._failures_in_vain
        if is_new:  # once per outage, not per try
            logger.warning("consumer %s failed, its records wait: %s", self._consumer.name, message)
        self._consumer.close()
        return in_vain

    def _retry_s(self, failures_in_a_row: int) -> float:
        longest_s = min(self._config.longest_retry_s, self._config.first_retry_s * 2.0 ** min(failures_in_a_row - 1, 30))
        return longest_s * random.uniform(0.5, 1.0)  # several stations must not come back in step

    def _watch(self) -> None:
        period_s = min(1.0, self._config.max_stall_s / 4)
        while True:
            self._look()
            if self._stopped.wait(period_s):
                return

    def _look(self) -> None:
        try:
            backlog = self._store.backlog(self._consumer.name)
        except SnlError as error:
            logger.debug(
                "cannot tell what waits for consumer %s: %s", self._consumer.name, error
            )  # a store that fails is its writer's fault to raise
            return
        with self._guard:
            self._backlog = backlog
            if backlog == 0:
                self._progress_s = time.monotonic()
            before, self._fault = self._fault, self._fault_now(backlog)
            after = self._fault
        if bool(before) != bool(after):
            logger.warning("consumer %s: %s", self._consumer.name, after or "the backlog is within its limits again")
            self._on_fault(after or None)

    def _fault_now(self, backlog: int) -> str:
        stalled_s = time.monotonic() - self._progress_s
        name, why = self._consumer.name, f": {self._last_error}" if self._last_error else ""
        if self._ended:
            return self._ended
        if backlog > self._config.max_backlog_rows:
            return f"{backlog} records wait for {name}, more than {self._config.max_backlog_rows}{why}"
        if backlog and stalled_s > self._config.max_stall_s:
            return f"{name} has taken none of {backlog} records for {self._config.max_stall_s:g} s{why}"
        return ""


def drain(outboxes: Sequence[Outbox], *, timeout_s: float, stopped: threading.Event) -> None:
    """Wait until every outbox has delivered what the store holds, or its peer takes none, at most ``timeout_s`` for all of them together.

    Args:
        outboxes: Entered.
        timeout_s: Longest wait in seconds, from 0.
        stopped: Ends the wait at once when it is set.
    """
    end_s = time.monotonic() + timeout_s
    if stopped.is_set():
        return
    for outbox in outboxes:
        outbox.begin_drain()
    while not all(outbox.is_drained for outbox in outboxes) and time.monotonic() < end_s:
        if stopped.wait(_DRAIN_LOOK_S):
            return
