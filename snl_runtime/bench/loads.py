"""Calls of one kind on one opened model, and how long they take: one frame, several at once, several cameras that share the model."""

import concurrent.futures
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from snl_runtime.errors import DataError
from snl_runtime.types import AnomalyResult, Image

if TYPE_CHECKING:
    from snl_runtime.detector.detector import SnlDetector

STAGES = ("preprocess", "infer", "decide", "total")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Subject:
    """An opened model and what it is timed on.

    Attributes:
        name: For messages, e.g. the name of its file.
        detector: Opened; the caller closes it.
        frames: At least one RGB image; calls go round them.
        product: Product of the frames; None for the detector's own.
    """

    name: str
    detector: "SnlDetector"
    frames: Sequence[Image]
    product: str | None = None

    def frame(self, number: int) -> Image:
        """Return a frame by a number that may be beyond the last one."""
        return self.frames[number % len(self.frames)]

    def detect(self, number: int) -> AnomalyResult:
        """Return the verdict on a frame.

        Raises:
            DataError: If the frame was not scored: such a verdict comes early, and its time means nothing.
        """
        return self.scored(self.detector.detect(self.frame(number), color="rgb", product=self.product))

    def scored(self, result: AnomalyResult) -> AnomalyResult:
        """Return a result that has a score; raises as :meth:`detect` does."""
        if not math.isfinite(result.score):
            raise DataError(f"{self.name} cannot score a frame, so its times mean nothing: {result.reason}")
        return result


class Load:
    """Calls of one kind, each with the same number of frames.

    Attributes:
        subject: The model.
        frames_per_call: Frames that one call judges.
        call_ms: Time of every call that was kept, from its start to its last verdict.
    """

    def __init__(self, subject: Subject, frames_per_call: int) -> None:
        self.subject, self.frames_per_call = subject, frames_per_call
        self.call_ms: list[float] = []

    @property
    def frames_per_s(self) -> float:
        """Frames judged in a second, with nothing between two calls; needs a call that was kept."""
        return 1e3 * self.frames_per_call * len(self.call_ms) / sum(self.call_ms)

    def run(self, index: int, *, keep: bool = True) -> None:
        """Make one call.

        Args:
            index: Number of the call; it decides which frames are judged.
            keep: Whether its time counts.

        Raises:
            DataError: If a frame was not scored.
        """
        numbers = range(index * self.frames_per_call, (index + 1) * self.frames_per_call)
        started_s = time.perf_counter()
        parts_ms = self._call(numbers)
        call_ms = (time.perf_counter() - started_s) * 1e3
        if keep:
            self.call_ms.append(call_ms)
            self._keep(parts_ms)

    def _call(self, numbers: range) -> Sequence[float]:
        """Judge the frames of these numbers; return times within the call, in milliseconds."""
        raise NotImplementedError

    def _keep(self, parts_ms: Sequence[float]) -> None:
        """Keep what :meth:`_call` returned."""


class SingleFrames(Load):
    """One frame at a time; ``call_ms`` holds whole verdicts.

    Attributes:
        stage_ms: Times of the stages that the verdict itself states: preprocess, infer, decide.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject, 1)
        self.stage_ms: dict[str, list[float]] = {stage: [] for stage in STAGES[:-1]}

    def _call(self, numbers: range) -> Sequence[float]:
        timings = self.subject.detect(numbers[0]).timings
        return timings.preprocess_ms, timings.infer_ms, timings.decide_ms

    def _keep(self, parts_ms: Sequence[float]) -> None:
        for stage, value in zip(self.stage_ms, parts_ms, strict=True):
            self.stage_ms[stage].append(value)


class Batches(Load):
    """Several frames in one call of ``SnlDetector.detect_batch``.

    Attributes:
        backend_calls: Calls of the backend for one of ours: 1 where the model takes as many images at once.
    """

    def __init__(self, subject: Subject, frames_per_call: int) -> None:
        super().__init__(subject, frames_per_call)
        self.backend_calls = math.ceil(frames_per_call / subject.detector.batch_size)

    def _call(self, numbers: range) -> Sequence[float]:
        images = [self.subject.frame(number) for number in numbers]
        for result in self.subject.detector.detect_batch(images, color="rgb", products=self.subject.product):
            self.subject.scored(result)
        return ()


class Cameras(Load):
    """Cameras that are triggered together and share one detector, each on a thread of its own, as in a station.

    Attributes:
        verdict_ms: Time of every verdict that was kept, from the common trigger, the wait for the other cameras included.
    """

    def __init__(self, subject: Subject, cameras: int) -> None:
        super().__init__(subject, cameras)
        self.verdict_ms: list[float] = []
        self._threads = concurrent.futures.ThreadPoolExecutor(cameras, thread_name_prefix="snl-bench-camera")

    def __enter__(self) -> "Cameras":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """End the threads, after the verdicts under way."""
        self._threads.shutdown(cancel_futures=True)

    def _call(self, numbers: range) -> Sequence[float]:
        triggered_s = time.perf_counter()

        def judge(number: int) -> float:
            self.subject.detect(number)
            return (time.perf_counter() - triggered_s) * 1e3

        return [verdict.result() for verdict in [self._threads.submit(judge, number) for number in numbers]]

    def _keep(self, parts_ms: Sequence[float]) -> None:
        self.verdict_ms += parts_ms
