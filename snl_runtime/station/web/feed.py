"""What the screen remembers of the results: the latest, the last scores, the last parts that did not pass."""

import dataclasses
import itertools
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from snl_runtime.station.line_state import LineState
from snl_runtime.types import AnomalyResult, Frame, Verdict

SCORES_KEPT = 300
"""Scores of each camera in the chart."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Shot:
    """One final result with its frame.

    Attributes:
        number: Counts all results of the station from 1, in the order in which they came here.
        camera: Name of the camera.
        frame: As inspected.
        result: As recorded.
    """

    number: int
    camera: str
    frame: Frame
    result: AnomalyResult

    @property
    def image_bytes(self) -> int:
        """Memory that the arrays hold."""
        result = self.result
        arrays = (self.frame.image, result.anomaly_map, result.frame_map, result.mask, result.overlay)
        return sum(int(getattr(array, "nbytes", 0)) for array in arrays if array is not None)

    def without_image(self) -> "Shot":
        """Return the same without arrays."""
        frame = dataclasses.replace(self.frame, image=None, fault="its image is no longer in memory")
        return dataclasses.replace(self, frame=frame, result=_lean(self.result))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorePoint:
    """One point of the chart; scores and thresholds are NaN without one.

    Attributes:
        number: As of its :class:`Shot`.
        trigger_id: The trigger it answers.
        captured_at: Seconds since the epoch, UTC.
        verdict: The verdict.
        score: Anomaly score.
        threshold: Highest score that passes.
        reject_threshold: Highest score that is reviewed.
    """

    number: int
    trigger_id: int
    captured_at: float
    verdict: Verdict
    score: float
    threshold: float
    reject_threshold: float


class _CameraMemory:
    def __init__(self, max_rejects: int) -> None:
        self.latest: Shot | None = None
        self.points: deque[ScorePoint] = deque(maxlen=SCORES_KEPT)
        self.rejects: deque[Shot] = deque(maxlen=max_rejects)


class ResultFeed:
    """Takes each final result from the station's observers and keeps the last ones; any thread, never draws or waits.

    Args:
        cameras: Names of the cameras.
        max_rejects: Parts of each camera that did not pass.
        max_reject_bytes: Most memory for their images together; the oldest lose theirs first.
    """

    def __init__(self, cameras: Sequence[str], *, max_rejects: int, max_reject_bytes: int) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._max_reject_bytes = max_reject_bytes
        self._cameras = {camera: _CameraMemory(max_rejects) for camera in cameras}

    def __call__(self, frame: Frame, result: AnomalyResult, state: LineState) -> None:
        """Take one result."""
        with self._lock:
            memory = self._cameras[state.camera]
            shot = Shot(number=next(self._numbers), camera=state.camera, frame=frame, result=_shown_part(result))
            memory.latest = shot
            memory.points.append(_point(shot))
            if result.verdict is not Verdict.PASS:
                memory.rejects.append(shot)
                self._keep_within_memory()

    def latest(self, camera: str) -> Shot | None:
        """Return the newest result of a camera, None before the first or for a camera that is not there."""
        memory = self._cameras.get(camera)
        return None if memory is None else memory.latest

    def points_after(self, number: int) -> dict[str, list[ScorePoint]]:
        """Return the points of each camera that came after a number, oldest first."""
        with self._lock:
            return {camera: [point for point in memory.points if point.number > number] for camera, memory in self._cameras.items()}

    @property
    def rejects(self) -> list[Shot]:
        """The last parts that did not pass, newest first."""
        with self._lock:
            return list(self._newest_first())

    def reject(self, number: int) -> Shot | None:
        """Return one of them by its number, None if it is no longer kept."""
        return next((shot for shot in self.rejects if shot.number == number), None)

    def _newest_first(self) -> Iterator[Shot]:
        shots = [shot for memory in self._cameras.values() for shot in memory.rejects]
        return iter(sorted(shots, key=lambda shot: shot.number, reverse=True))

    def _keep_within_memory(self) -> None:
        held = 0
        for shot in self._newest_first():
            held += shot.image_bytes
            if held > self._max_reject_bytes and shot.image_bytes:
                held -= shot.image_bytes
                rejects = self._cameras[shot.camera].rejects
                rejects[rejects.index(shot)] = shot.without_image()


def _shown_part(result: AnomalyResult) -> AnomalyResult:
    """Drop what no picture is drawn from; the map at the network's size is enough."""
    return dataclasses.replace(result, frame_map=None, mask=None, overlay=None)


def _lean(result: AnomalyResult) -> AnomalyResult:
    return dataclasses.replace(result, anomaly_map=None, frame_map=None, mask=None, overlay=None)


def _point(shot: Shot) -> ScorePoint:
    result = shot.result
    return ScorePoint(
        number=shot.number,
        trigger_id=shot.frame.trigger_id or 0,
        captured_at=shot.frame.captured_at,
        verdict=result.verdict,
        score=result.score,
        threshold=result.threshold,
        reject_threshold=result.reject_threshold,
    )
