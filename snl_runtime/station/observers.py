"""Who wants to see each final result: files, screens, plug-ins. None of them can hold the line back."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from snl_runtime.line.handoff import Handoff, OverflowPolicy
from snl_runtime.line.sinks import Sink
from snl_runtime.station.delivery import StationEvents
from snl_runtime.station.line_state import LineState
from snl_runtime.types import AnomalyResult, Frame

CAPACITY = 16
"""Results that may wait, each with its image; the oldest is lost to the observers then, never to the store."""
CLOSE_TIMEOUT_S = 10.0
"""How long close() waits for an observer that hangs."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Observation:
    frame: Frame
    result: AnomalyResult
    state: LineState


class Observers:
    """Hands final results to sinks and callables on one thread, on which sinks are also opened and closed.

    One that raises gets nothing more; it is named in :attr:`failed` and logged once, and the line goes on: the record is in the store.

    Args:
        sinks: JSONL, image folders, plug-ins.
        events: Called with frame, result and what the line saw.
        capacity: Most results that wait.
    """

    def __init__(self, sinks: Sequence[Sink] = (), events: Iterable[StationEvents] = (), *, capacity: int = CAPACITY) -> None:
        self._sinks = tuple(sinks)
        self._events = list(events)
        self._waiting = Handoff[_Observation](capacity, OverflowPolicy.DROP_OLDEST)
        self._failed: list[str] = []
        self._failure: Exception | None = None
        self._opened = threading.Event()
        self._thread = threading.Thread(target=self._run, name="snl-observers", daemon=True)

    @property
    def lost(self) -> int:
        """Results that they were too slow for."""
        return self._waiting.counts().dropped

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of those that raised an error."""
        return tuple(self._failed)

    def subscribe(self, events: StationEvents) -> None:
        """Add one, also while the station runs."""
        self._events.append(events)

    def open(self) -> None:
        """Open the sinks and begin.

        Raises:
            SinkError: If a sink cannot be opened.
        """
        self._thread.start()
        self._opened.wait()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Hand over what waits and close the sinks."""
        self._waiting.close()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_TIMEOUT_S)

    def __call__(self, frame: Frame, result: AnomalyResult, state: LineState) -> None:
        """Take one final result; never waits."""
        self._waiting.put(_Observation(frame, result, state))

    def _run(self) -> None:
        try:
            self._observe()
        except Exception:
            logger.exception("an observer could not be closed")
        finally:
            self._opened.set()

    def _observe(self) -> None:
        with contextlib.ExitStack() as opened:
            try:
                for sink in self._sinks:
                    opened.enter_context(sink)
            except Exception as failure:  # noqa: BLE001  # open() raises it in the caller's thread
                self._failure = failure
                return
            finally:
                self._opened.set()
            sinks = list(self._sinks)
            for each in self._waiting:
                self._show(each, sinks)

    def _show(self, each: _Observation, sinks: list[Sink]) -> None:
        for sink in tuple(sinks):
            if not self._worked(sink, lambda sink=sink: sink.emit(each.frame, each.result)):  # type: ignore[misc]
                sinks.remove(sink)
        for events in tuple(self._events):
            if not self._worked(events, lambda events=events: events(each.frame, each.result, each.state)):  # type: ignore[misc]
                self._events.remove(events)

    def _worked(self, observer: object, call: Callable[[], None]) -> bool:
        try:
            call()
        except Exception:
            name = getattr(observer, "__qualname__", type(observer).__name__)
            self._failed.append(name)
            logger.exception("the observer %s gets nothing more", name)
            return False
        return True
