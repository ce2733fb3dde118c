"""One camera of a station: its triggers, its pipeline, its deadline, what the line sees of it."""

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence

from snl_runtime.errors import SnlError, TriggerRefusedError
from snl_runtime.line.handoff import OverflowPolicy
from snl_runtime.line.pipeline import Detector, Pipeline, error_result
from snl_runtime.line.sources.base import FrameSource
from snl_runtime.station.announcer import Announcer
from snl_runtime.station.book import Expired, TriggerBook
from snl_runtime.station.delivery import Delivery, ResultStore, StationEvents
from snl_runtime.station.line_state import LineOutput, LineState
from snl_runtime.station.pending import PendingTriggers
from snl_runtime.station.snapshot import UnitSnapshot
from snl_runtime.station.states import LineStateMachine
from snl_runtime.station.triggered import TriggeredSource, TriggerMode, TriggerRequest
from snl_runtime.station.unit_config import UnitConfig
from snl_runtime.station.watched_detector import WatchedDetector
from snl_runtime.types import AnomalyResult, Frame

WAIT_S = 0.5
"""Longest uninterrupted wait; a wait without limit cannot be interrupted on Windows."""
LONGEST_STOP_S = 15.0
"""How long a stop waits for threads that are stuck in a camera or a detector."""

NO_DEADLINE_NS = 10**18
"""Thirty years, where nobody waits for an answer."""

logger = logging.getLogger(__name__)


class Unit:
    """One camera; made and run by a :class:`Station`. Its line commands may come from any thread.

    Args:
        name: Name of the camera in records and outputs.
        source: The camera; the unit opens and closes it.
        config: See :class:`UnitConfig`.
        detector: Opened; shared by all cameras.
        store: Opened; shared by all cameras.
        outputs: Opened by the station.
        events: Told each final result.
        run_later: Runs a function on the station's recording thread.
        wake: Makes the deadline thread look at the book.
        clock_ns: Monotonic time.
    """

    def __init__(  # noqa: PLR0913  # wired in one place, by the station
        self,
        name: str,
        source: FrameSource,
        config: UnitConfig,
        *,
        detector: Detector,
        store: ResultStore,
        outputs: Sequence[LineOutput],
        events: StationEvents,
        run_later: Callable[[Callable[[], object]], None],
        wake: Callable[[], None],
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.name = name
        self._config = config
        self._clock_ns = clock_ns
        self._wake = wake
        self._run_later = run_later
        self._deadline_ns = NO_DEADLINE_NS if config.deadline_ms is None else round(config.deadline_ms * 1e6)
        self._book = TriggerBook(round(config.record_margin_ms * 1e6))
        heartbeat_ns = None if config.heartbeat_timeout_ms is None else round(config.heartbeat_timeout_ms * 1e6)
        self._is_continuous = config.trigger.mode is TriggerMode.EACH_FRAME
        machine = LineStateMachine(name, continuous=self._is_continuous, heartbeat_timeout_ns=heartbeat_ns)
        self._announcer = Announcer(machine, outputs, clock_ns=clock_ns)
        self._delivery = Delivery(name, book=self._book, announcer=self._announcer, store=store, events=events, clock_ns=clock_ns)
        self._detector = WatchedDetector(detector, self._announcer.fault)
        self._source = TriggeredSource(source, config.trigger, admit=self._admit, on_health=self._on_health)
        policy = config.policy or self._source.policy
        self._numbers_late = policy is OverflowPolicy.LATEST  # a frame that nobody looks at is then no trigger
        self._pipeline = Pipeline(self._source, self._detector, [], policy=policy, frame_capacity=config.frame_capacity, hooks=self)
        self._thread = threading.Thread(target=self._run, name=f"snl-unit-{name}", daemon=True)
        self._lock = threading.Lock()
        self._pending = PendingTriggers(name, clock_ns=clock_ns)
        self._refused = 0
        self._missed_in_row = 0
        self._bad_in_row = 0
        self._source_fault = ""
        self._resetting = threading.Lock()
        self._causes: dict[str, str] = {}
        self._failure: BaseException | None = None
        self._opened = threading.Event()
        self._may_begin = threading.Event()
        self._ended = threading.Event()

    # Life, called by the station.

    def open(self) -> None:
        """Start the threads and wait until the camera is open; nothing is taken before :meth:`begin`.

        Raises:
            SnlError: If the camera could not be opened.
        """
        self._announcer.publish()
        self._thread.start()
        while not self._opened.wait(WAIT_S):
            pass
        if self._failure is not None:
            raise self._failure

    def begin(self) -> None:
        """Take triggers from now on."""
        self._announcer.start()
        self._may_begin.set()

    def stop_taking(self) -> None:
        """Refuse further triggers; those under way are answered."""
        self._announcer.stop()

    def stop(self) -> None:
        """Answer what is under way and end; returns within the deadline and ``LONGEST_STOP_S``."""
        self.stop_taking()
        self._announcer.wait_idle()
        self._pipeline.stop()
        self._may_begin.set()
        if self._thread.ident is not None:
            self._thread.join(LONGEST_STOP_S)
        if self._thread.is_alive():
            logger.error("%s: a call did not come back from the camera, the detector or the store; its thread is left behind", self.name)
        elif (failure := self._delivery.write_missing()) is not None:
            logger.error("%s: %s", self.name, failure)

    def wait(self, timeout_s: float) -> bool:
        """Return whether the camera has ended: stopped, or the last image of a folder or video was answered."""
        return self._ended.wait(timeout_s)

    # What the line may ask.

    def trigger(self, *, product: str | None = None, part_id: str | None = None) -> int:
        """Begin one inspection and return its trigger id.

        Raises:
            TriggerRefusedError: If the camera is busy, stopped, in a fault or not triggered by command, or the product is none of its own.
        """
        if self._is_continuous:
            raise TriggerRefusedError(f"{self.name} inspects every frame of its camera (trigger.mode each_frame) and takes no command")
        if product is not None and self._config.products and product not in self._config.products:
            self._count_refused()
            raise TriggerRefusedError(f"{self.name} inspects {', '.join(self._config.products)}, not {product!r}")
        now_ns = self._clock_ns()
        frame = self._pending.frame_to_come(product=product, part_id=part_id)
        trigger_id = self._announcer.begin(lambda: self._number(frame, now_ns), product=product)
        if trigger_id is None:
            self._count_refused()
            raise TriggerRefusedError(f"{self.name} is not ready: {_why_not_ready(self._announcer.line_state)}")
        self._source.request(TriggerRequest(trigger_id=trigger_id, requested_ns=now_ns, product=product, part_id=part_id))
        return trigger_id

    def _count_refused(self) -> None:
        with self._lock:
            self._refused += 1

    def reset(self) -> None:
        """End a fault if its cause is gone; one line in the log says what is in the way."""
        if (cause := self.try_reset()) is not None:
            logger.warning("%s: the fault stays: %s", self.name, cause)

    def try_reset(self) -> str | None:
        """End a fault; return what is in the way, None if there is no fault any more."""
        with self._resetting:  # two at once would write a missing record twice
            if not self._announcer.line_state.fault:
                return None
            cause = self._cause() or self._delivery.write_missing()
            if cause is not None:
                return cause
            if not self._announcer.reset():
                line = self._announcer.line_state
                return "a trigger still waits for its answer" if line.busy else line.fault_reason
            self._missed_in_row = self._bad_in_row = 0
            return None

    def heartbeat(self) -> None:
        """Note that the line listens."""
        self._announcer.heartbeat()

    def fault(self, reason: str) -> None:
        """Fault for a cause outside this camera that is over."""
        self._announcer.fault(reason)

    def set_cause(self, cause: str, reason: str | None) -> None:
        """Fault for a cause outside this camera; no reset works until the reason is None again."""
        with self._lock:
            if reason is None:
                self._causes.pop(cause, None)
                return
            self._causes[cause] = reason
        self._announcer.fault(reason)

    @property
    def line_state(self) -> LineState:
        """What the line sees."""
        return self._announcer.line_state

    def snapshot(self) -> UnitSnapshot:
        """Return everything that is counted, at one moment each."""
        with self._delivery.tally_lock:
            tally = self._delivery.tally
            verdicts, latencies, last = tally.verdicts, tally.latencies, tally.last
        return UnitSnapshot(
            line=self._announcer.line_state,
            frames=self._pipeline.counts,
            triggers=self._book.counts,
            refused=self._refused,
            frames_unasked=self._source.frames_unasked,
            source=self._source.counters,
            source_fault=self._source_fault,
            verdicts=verdicts,
            latency_ms=latencies,
            last=last,
        )

    # Hooks of the pipeline.

    def take(self, frame: Frame) -> Frame:
        """Begin the inspection of a frame; with ``each_frame`` one after the other, so that each answer is seen before the next trigger."""
        if not self._is_continuous:
            self._pending.note(frame)
            return frame
        self._announcer.wait_idle()
        if frame.trigger_id is None:
            return self._numbered_now(frame)
        trigger_id = frame.trigger_id
        begun = self._announcer.begin(lambda: trigger_id if self._book.waits(trigger_id) else None, product=frame.product)
        if begun is None and not self._book.waits(trigger_id):
            return dataclasses.replace(frame, image=None, fault="its deadline passed before the detector was free")
        return frame

    def drop(self, frame: Frame) -> None:
        """Answer a trigger whose frame was dropped; a frame without a number is none."""
        if frame.trigger_id is not None:
            result = error_result(frame, "frame_dropped", "the frame was dropped because the detector was too slow")
            self._run_later(lambda: self.deliver(frame, result))

    def deliver(self, frame: Frame, result: AnomalyResult) -> AnomalyResult:
        """Return the final result: the given one if it is recorded and told in time, else the ERROR that took its place."""
        if frame.trigger_id is None or not self._book.claim(frame.trigger_id):
            return error_result(frame, "deadline_missed", "the answer was given before this result came")
        self._missed_in_row = 0
        self._count_bad_frames(frame)
        return self._finish(frame, result)

    # The deadline thread.

    def on_time(self, now_ns: int) -> None:
        """Answer what has run out of time, and look for the line's heartbeat."""
        for expired in self._book.expire(now_ns):
            self._expire(expired)
        self._announcer.check_heartbeat()

    def next_ns(self) -> int | None:
        """Return when :meth:`on_time` has something to do at the latest; None if only the heartbeat matters."""
        return self._book.next_ns()

    def _expire(self, expired: Expired) -> None:
        frame = self._pending.get(expired.trigger_id).frame  # a record that came late may have ended it meanwhile
        if not expired.needs_record:
            late = error_result(frame, "record_late", "the record was not durable before the deadline")
            reason = f"the record of trigger {expired.trigger_id} was not durable within {self._deadline_ns / 1e6:g} ms"
            self._announcer.announce(expired.trigger_id, late, may_answer=_always, fault=reason)
            return
        cause = f"no verdict on trigger {expired.trigger_id} within {self._deadline_ns / 1e6:g} ms: {self._where(frame)}"
        missed = error_result(frame, "deadline_missed", cause)
        self._missed_in_row += 1
        if self._missed_in_row >= self._config.missed_before_fault:
            self._announcer.fault(cause)
        if expired.needs_answer:
            self._announcer.announce(expired.trigger_id, missed, may_answer=_always)
        self._run_later(lambda: self._finish(frame, missed, answered=expired.needs_answer))

    def _count_bad_frames(self, frame: Frame) -> None:
        limit = self._config.bad_frames_before_fault
        self._bad_in_row = 0 if frame.fault is None else self._bad_in_row + 1
        # Damaged files in a folder say nothing about a camera.
        if limit is not None and self._bad_in_row >= limit and self._source.counters.frames_announced is None:
            self._announcer.fault(f"{self._bad_in_row} frames in a row did not come whole: {frame.fault}")

    def _where(self, frame: Frame) -> str:
        if self._detector.is_calling:
            return "the detector has not answered"
        return "no frame came from the camera" if frame.image is None and frame.fault is None else "its frame still waits"

    # The rest.

    def _finish(self, frame: Frame, result: AnomalyResult, *, answered: bool = False) -> AnomalyResult:
        trigger_id = frame.trigger_id or 0
        final = self._delivery.finish(frame, result, began_ns=self._pending.get(trigger_id).began_ns, answered=answered)
        self._pending.end(trigger_id)
        return final

    def _run(self) -> None:
        try:
            self._pipeline.run()
        except BaseException as failure:  # noqa: BLE001  # open() raises it, or it is a fault
            self._failure = failure
            if self._opened.is_set():
                log = logger.error if isinstance(failure, SnlError) else logger.exception
                log("%s: the pipeline ended: %s", self.name, failure)
                self.set_cause("pipeline", f"the pipeline ended: {failure or type(failure).__name__}")
        self._announcer.stop()
        self._opened.set()
        self._ended.set()

    def _on_health(self, reason: str | None) -> None:
        self._source_fault = reason or ""
        if reason is not None:
            self._announcer.fault(f"the camera gives no frames: {reason}")
            return
        self._opened.set()
        while not self._may_begin.wait(WAIT_S):
            pass

    def _cause(self) -> str | None:
        if self._source_fault:
            return f"the camera gives no frames: {self._source_fault}"
        if self._detector.is_calling:
            return "a call has not come back from the detector"
        if self._delivery.is_under_way:
            return "a record is still being written"
        with self._lock:
            return next(iter(self._causes.values()), None)

    def _admit(self, frame: Frame) -> Frame | None:
        if self._numbers_late:
            admitted = frame if self._announcer.takes_triggers else None
        else:
            trigger_id = self._announcer.if_taking(lambda: self._number(frame, frame.captured_ns))
            admitted = None if trigger_id is None else self._pending.get(trigger_id).frame
        if admitted is None:
            self._count_refused()
        return admitted

    def _numbered_now(self, frame: Frame) -> Frame:
        trigger_id = self._announcer.begin(lambda: self._number(frame, frame.captured_ns), product=frame.product)
        if trigger_id is not None:
            return self._pending.get(trigger_id).frame
        self._count_refused()
        return dataclasses.replace(frame, image=None, fault="the station was stopped or in a fault when the frame's turn came")

    def _number(self, frame: Frame, began_ns: int) -> int:
        trigger_id = self._pending.number(frame, began_ns).trigger_id or 0
        self._book.open(trigger_id, began_ns + self._deadline_ns)
        self._wake()
        return trigger_id


def _always() -> bool:
    return True


def _why_not_ready(line: LineState) -> str:
    if line.fault:
        return f"fault: {line.fault_reason}; reset it"
    return f"trigger {line.trigger_id} waits for its answer" if line.busy else f"its state is {line.state.value}"
