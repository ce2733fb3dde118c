"""Capture, detect and deliver on three threads.

    source --[frames: bounded, may drop]--> detector --[verdicts: bounded, never drops]--> sinks

Frames can be dropped at one place only, between capture and detection, and every drop is counted. A verdict is never dropped: a slow sink holds the
detector back, and the frames it then misses are counted like any other drop.
"""

import contextlib
import dataclasses
import itertools
import logging
import math
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Protocol

from snl_runtime.line.handoff import Handoff, OverflowPolicy
from snl_runtime.line.sinks import Sink
from snl_runtime.line.sources.base import FrameSource
from snl_runtime.types import AnomalyResult, ColorOrder, Frame, StageTimings, Verdict

JOIN_INTERVAL_S = 0.5
"""How often run() wakes while it waits; a wait without limit cannot be interrupted on Windows."""

logger = logging.getLogger(__name__)


class Detector(Protocol):
    """What the pipeline needs of an ``SnlDetector``."""

    def detect(self, image: object, *, color: ColorOrder = "bgr", product: str | None = None) -> AnomalyResult:
        """Return the verdict on one frame."""
        ...


def judge_frame(detector: Detector, frame: Frame) -> AnomalyResult:
    """Return the verdict on a frame; one without an image is ERROR ``frame_fault`` with its fault as the reason."""
    if frame.fault is None:
        return detector.detect(frame.image, color=frame.color, product=frame.product)
    result = detector.detect(None, color=frame.color, product=frame.product)
    return dataclasses.replace(result, verdict=Verdict.ERROR, reason_code="frame_fault", reason=frame.fault)


class PipelineHooks(Protocol):
    """What a host does between the stages, e.g. a station that owes each trigger one answer. What a hook raises ends the run like any failure."""

    def take(self, frame: Frame) -> Frame:
        """Return the frame to inspect in place of the one that leaves the hand-off; on the detection thread, may block."""
        ...

    def drop(self, frame: Frame) -> None:
        """Note a frame that the hand-off dropped; on the thread that caused it, must not block."""
        ...

    def deliver(self, frame: Frame, result: AnomalyResult) -> AnomalyResult:
        """Return the result that the sinks get in place of the detector's; on the delivery thread, before the sinks, may block."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PipelineCounts:
    """One consistent look at a run: ``captured == inspected + dropped + failed + waiting``; waiting is 0 when the run has ended.

    They count what the detector said; a hook may still turn a verdict into an ERROR.

    Attributes:
        captured: Frames that the source handed over.
        inspected: Frames with a verdict PASS, REVIEW or REJECT.
        dropped: Frames that nobody looked at; they have no record.
        failed: Frames that could not be inspected; each has an ERROR record.
        waiting: Frames on their way to a verdict.
    """

    captured: int
    inspected: int
    dropped: int
    failed: int
    waiting: int


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class UndeliveredVerdict:
    """A verdict that one sink did not take because the sink had failed."""

    sink: Sink
    frame: Frame
    result: AnomalyResult


class Pipeline:
    """Runs one source through one detector into any number of sinks, once.

    The source is opened and closed on the capture thread and the sinks on the delivery thread. The detector is opened and closed by the caller. The
    source is opened last, so that no frame is captured before everything behind it is ready.

    Args:
        source: Where frames come from.
        detector: What judges them.
        sinks: Where verdicts go, in this order for each verdict.
        policy: What a full hand-off does; the source's own policy if None.
        frame_capacity: Most frames that wait for the detector; 1 with LATEST and 4 with EVERY and DROP_OLDEST if None.
        result_capacity: Most verdicts that wait for the sinks.
        max_frames: Stop after this many captured frames; None for no limit.
        hooks: What happens between the stages; None for nothing.

    Example:
        >>> with SnlDetector("line.onnx") as detector:  # doctest: +SKIP
        ...     Pipeline(CameraSource(0), detector, [JsonlSink("verdicts.jsonl")]).run()
    """

    def __init__(  # noqa: PLR0913  # all but the first three are options
        self,
        source: FrameSource,
        detector: Detector,
        sinks: Sequence[Sink],
        *,
        policy: OverflowPolicy | None = None,
        frame_capacity: int | None = None,
        result_capacity: int = 8,
        max_frames: int | None = None,
        hooks: PipelineHooks | None = None,
    ) -> None:
        policy = policy or source.policy
        self._source = source
        self._detector = detector
        self._sinks = tuple(sinks)
        self._max_frames = max_frames
        self._hooks = hooks
        self._frames = Handoff[Frame](frame_capacity or policy.default_capacity, policy, on_drop=None if hooks is None else hooks.drop)
        self._verdicts = Handoff[tuple[Frame, AnomalyResult]](result_capacity, OverflowPolicy.EVERY)
        self._stop = threading.Event()
        self._may_capture = threading.Event()
        self._has_run = False
        self._lock = threading.Lock()
        self._failures: list[BaseException] = []
        self._undelivered: list[UndeliveredVerdict] = []
        self._inspected = 0
        self._failed = 0

    @property
    def counts(self) -> PipelineCounts:
        """Frame counters, consistent with each other, also while the run goes on."""
        with self._lock:  # before the hand-off's counters: every judged frame must already count as taken
            inspected, failed = self._inspected, self._failed
        frames = self._frames.counts()
        under_way = frames.taken - inspected - failed
        return PipelineCounts(captured=frames.offered, inspected=inspected, dropped=frames.dropped, failed=failed, waiting=frames.waiting + under_way)

    @property
    def undelivered(self) -> tuple[UndeliveredVerdict, ...]:
        """Verdicts that a failed sink did not take, oldest first; empty unless a sink failed."""
        return tuple(self._undelivered)

    def run(self) -> None:
        """Run until the source ends, :meth:`stop` is called or a part fails.

        Whatever ends the run, frames already captured are inspected (unless the detector failed) and verdicts already made are delivered
        first. A sink that failed gets nothing more; the others get the rest. Ctrl-C does the same and is then raised; a second Ctrl-C waits
        for nothing.

        Raises:
            SnlError: The first failure of any part; later ones are logged.
            RuntimeError: If called a second time.
        """
        if self._has_run:
            raise RuntimeError("a Pipeline runs once; make a new one")
        self._has_run = True
        stages = (self._capture, self._detect, self._deliver)
        threads = [threading.Thread(target=stage, name=f"snl-{stage.__name__[1:]}", daemon=True) for stage in stages]
        try:
            for thread in threads:
                thread.start()
            _join(threads)
        except BaseException:
            self.stop()
            _join(threads)
            raise
        if self._failures:
            first, *later = self._failures
            for failure in later:
                logger.error("a further part failed: %s", failure)
            raise first

    def stop(self) -> None:
        """Stop capturing; frames and verdicts already under way are still delivered. May be called from any thread."""
        self._stop.set()
        self._may_capture.set()  # capture may still be waiting for the sinks; it looks at _stop next

    def _fail(self, failure: BaseException) -> None:
        with self._lock:
            self._failures.append(failure)
        self.stop()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Turn an exception of the block into a failure of the run, which run() raises in the caller's thread."""
        try:
            yield
        except BaseException as failure:  # noqa: BLE001 - nothing may end a stage without the run knowing
            self._fail(failure)

    def _capture(self) -> None:
        with contextlib.closing(self._frames), self._failing():
            self._may_capture.wait()
            if self._stop.is_set():
                return
            with self._source as source, contextlib.ExitStack() as opened:
                frames = source.frames(self._stop)
                if isinstance(frames, Generator):  # end it on this thread, not where the garbage collector happens to run
                    opened.callback(frames.close)
                for frame in itertools.islice(frames, self._max_frames):
                    if not self._frames.put(frame) or self._stop.is_set():
                        return

    def _detect(self) -> None:
        with contextlib.closing(self._verdicts):
            for captured in self._frames:
                frame = captured
                try:
                    frame = captured if self._hooks is None else self._hooks.take(captured)
                    result = judge_frame(self._detector, frame)
                except BaseException as failure:  # noqa: BLE001 - run() raises it in the caller's thread
                    self._fail(failure)
                    self._frames.abort()
                    result = error_result(
                        frame,
                        "detector_failed",
                        f"the detector failed: {failure or type(failure).__name__}",
                        model_sha256=getattr(self._detector, "model_sha256", ""),
                    )
                with self._lock:
                    if result.verdict is Verdict.ERROR:
                        self._failed += 1
                    else:
                        self._inspected += 1
                self._verdicts.put((frame, result))

    def _deliver(self) -> None:
        with contextlib.closing(self._verdicts), contextlib.ExitStack() as opened:
            live: list[Sink] = []
            for sink in self._sinks:
                opened.enter_context(self._failing())  # for a sink that fails while it closes; the others must still close
                with self._failing():
                    opened.enter_context(sink)
                    live.append(sink)
            self._may_capture.set()
            for frame, judged in self._verdicts:
                result = self._hooked(frame, judged)
                for sink in self._sinks:
                    self._emit(sink, live, frame, result)

    def _hooked(self, frame: Frame, result: AnomalyResult) -> AnomalyResult:
        if self._hooks is None:
            return result
        try:
            return self._hooks.deliver(frame, result)
        except BaseException as failure:  # noqa: BLE001 - run() raises it in the caller's thread
            self._fail(failure)
            reason = f"the verdict could not be delivered: {failure or type(failure).__name__}"
            return dataclasses.replace(result, verdict=Verdict.ERROR, reason_code="delivery_failed", reason=reason)

    def _emit(self, sink: Sink, live: list[Sink], frame: Frame, result: AnomalyResult) -> None:
        if sink in live:
            try:
                sink.emit(frame, result)
                return
            except BaseException as failure:  # noqa: BLE001 - run() raises it in the caller's thread
                self._fail(failure)
                live.remove(sink)
        self._undelivered.append(UndeliveredVerdict(sink, frame, result))


def _join(threads: Iterable[threading.Thread]) -> None:
    for thread in threads:
        while thread.is_alive():
            thread.join(JOIN_INTERVAL_S)


def error_result(frame: Frame, reason_code: str, reason: str, *, model_sha256: str = "") -> AnomalyResult:
    """Return the ERROR of a frame that has no result: a part on the line must not go without one."""
    return AnomalyResult(
        verdict=Verdict.ERROR,
        reason_code=reason_code,
        reason=reason,
        score=math.nan,
        threshold=math.nan,
        reject_threshold=math.nan,
        product=frame.product,
        anomaly_map=None,
        roi_xyxy=None,
        regions=(),
        timings=StageTimings(),
        model_sha256=model_sha256,
    )
