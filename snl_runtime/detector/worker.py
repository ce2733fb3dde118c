"""One thread that owns a device, so that a call which never returns does not take the caller with it."""

import logging
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from snl_runtime.errors import BackendTimeoutError, DetectorClosedError

T = TypeVar("T")
logger = logging.getLogger(__name__)


class _Job(Generic[T]):
    """One function to run and what became of it.

    A plain lock, and no Event: where a signal's handler interrupts the wait for an Event, whoever sets it may have to wait for the handler.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._value: T | None = None
        self._error: BaseException | None = None
        self._running = threading.Lock()
        self._running.acquire()
        self.is_finished = False

    def run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:  # noqa: BLE001  # raised again in the thread that waits
            self._error = error
        self.is_finished = True
        self._running.release()

    def wait(self, timeout_s: float | None) -> bool:
        """Wait and return whether it has run; for one thread, and the handlers of signals within it."""
        if not self.is_finished and self._running.acquire(timeout=-1 if timeout_s is None else timeout_s):
            self._running.release()
        return self.is_finished

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]


class BackendWorker:
    """A daemon thread that runs functions one after the other, in the order they came.

    CUDA contexts and some libraries belong to the thread that made them, so whoever owns a backend opens, calls and closes it in here.
    The thread does not keep the process alive: a call that hangs in a driver must not hang the exit as well.
    """

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[_Job[object] | None] = queue.SimpleQueue()
        self._abandoned: _Job[object] | None = None
        self._is_stopped = False
        self._thread = threading.Thread(target=_run_jobs, args=(self._jobs,), name=name, daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a call that timed out has still not come back."""
        if self._abandoned is not None and self._abandoned.is_finished:
            self._abandoned = None
        return self._abandoned is not None

    def call(self, function: Callable[[], T], timeout_s: float | None = None) -> T:
        """Run a function on the thread and return its value or raise its error. One caller at a time.

        Args:
            function: What to run.
            timeout_s: How long to wait; None waits for ever. What a late call returns is dropped.

        Raises:
            BackendTimeoutError: If it did not return in time; :attr:`busy` then says when it has.
            DetectorClosedError: If :meth:`stop` came first.
        """
        job = _Job(function)
        self._jobs.put(job)  # type: ignore[arg-type]  # Job is invariant, the queue only runs it
        if self._is_stopped:  # asked after the job was queued: it may lie behind the end
            raise DetectorClosedError("the detector was closed while a frame was waiting")
        if not job.wait(timeout_s):
            self._abandoned = job  # type: ignore[assignment]
            raise BackendTimeoutError(f"the backend did not answer within {timeout_s:g} s")
        return job.result()

    def stop(self, last: Callable[[], None], timeout_s: float) -> bool:
        """Run a last function after everything that is queued, end the thread and return whether it ended in time.

        A thread that hangs runs ``last`` when, and if, it comes back. A second call does nothing new.
        """
        self._is_stopped = True
        job = _Job(last)
        self._jobs.put(job)  # type: ignore[arg-type]
        self._jobs.put(None)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            logger.warning("%s is stuck in a call; its backend stays open until the call returns or the process ends", self._thread.name)
            return False
        job.result()
        return True


# A function and not a method: the thread must not keep its owner alive.
def _run_jobs(jobs: "queue.SimpleQueue[_Job[object] | None]") -> None:
    while (job := jobs.get()) is not None:
        job.run()
        del job  # frames and maps of the last call would live until the next one
