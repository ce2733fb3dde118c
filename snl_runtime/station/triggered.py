"""One frame per trigger: with the image that belongs to it, or with the fault that says why there is none."""

import contextlib
import dataclasses
import enum
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, runtime_checkable

from snl_runtime.errors import ConfigError
from snl_runtime.line.handoff import OverflowPolicy
from snl_runtime.line.sources.base import FrameSource, SourceCounters
from snl_runtime.station.camera_reader import CameraReader
from snl_runtime.station.reopening import ReopeningSource
from snl_runtime.types import Frame

POLL_S = 0.05
"""How often a wait looks at the pipeline's stop event, which cannot be waited for together with anything else."""
MOST_MISSING_FRAMES = 100
"""Frames that a gap in a device's counter may stand for; a larger jump is a counter that began anew or a fault of the camera."""


class TriggerMode(enum.Enum):
    """What a trigger is."""

    EACH_FRAME = "each_frame"
    """Every frame of the camera is a part: free-running and hardware-triggered cameras, files."""
    COMMAND = "command"
    """The line asks for one inspection at a time."""


@runtime_checkable
class SoftwareTrigger(Protocol):
    """What a source has beside :class:`FrameSource` if its camera takes an image on command."""

    def trigger(self) -> None:
        """Make the camera take one image; called on another thread than ``frames``, at most once per frame, returns at once.

        Raises:
            SourceError: If the camera refused.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerConfig:
    """How a camera's frames become inspections."""

    mode: TriggerMode = TriggerMode.EACH_FRAME
    """``each_frame``: every frame is a part. ``command``: the line triggers each inspection."""
    frame_timeout_ms: float = 500.0
    """Longest time from a command to its frame; then the trigger is an ERROR. Less than the deadline."""
    skip_frames: int = 0
    """Frames of a free-running camera to let pass after a command, because their exposure may have begun before it."""
    interval_ms: float | None = None
    """Time between two triggers that the station gives itself in ``command``; null for none."""
    count_gaps: bool = False
    """Whether a gap in the device's own frame counter gives one ERROR per missing frame; for hardware-triggered cameras in ``each_frame``."""

    def __post_init__(self) -> None:
        if not self.frame_timeout_ms > 0:
            raise ConfigError(f"trigger.frame_timeout_ms must be positive, got {self.frame_timeout_ms}; give the longest time for one image")
        if self.skip_frames < 0:
            raise ConfigError(f"trigger.skip_frames must be 0 or more, got {self.skip_frames}")
        if self.interval_ms is not None and not self.interval_ms > 0:
            raise ConfigError(f"trigger.interval_ms must be positive, got {self.interval_ms}; use null for no timer")
        if self.interval_ms is not None and self.mode is not TriggerMode.COMMAND:
            raise ConfigError(f"trigger.interval_ms needs trigger.mode command, got {self.mode.value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerRequest:
    """One command.

    Attributes:
        trigger_id: The station's number of it.
        requested_ns: ``time.monotonic_ns()`` when it came.
        product: Product that it named; None for the source's.
        part_id: What the line calls the part; None if it named none.
    """

    trigger_id: int
    requested_ns: int
    product: str | None = None
    part_id: str | None = None


class TriggeredSource:
    """Yields exactly one frame for each trigger; a source of frames like any other to the pipeline.

    In ``command`` the camera is read on a thread of its own. A command makes the camera take an image if its source is a :class:`SoftwareTrigger`;
    otherwise the next frame captured after the command counts, or the next one at all of a folder or video. Frames that nobody asked for are counted
    and not inspected. If a software-triggered camera misses a frame or miscounts, it is opened again before the next command, so that a frame that
    comes late cannot be taken for the next part.

    A camera that fails is opened again while the triggers get their faults; ``on_health`` tells the owner.

    Args:
        source: The camera.
        config: See :class:`TriggerConfig`.
        admit: Numbers a frame that is a trigger by itself (``each_frame``); None refuses it: it is then not yielded.
        on_health: See :class:`ReopeningSource`.
        reopen_pause_s: First pause before a failed camera is opened again.
    """

    def __init__(
        self,
        source: FrameSource,
        config: TriggerConfig,
        *,
        admit: Callable[[Frame], Frame | None] = lambda frame: frame,
        on_health: Callable[[str | None], None] = lambda _: None,
        reopen_pause_s: float = 0.5,
    ) -> None:
        self._source = source
        self._config = config
        self._admit = admit
        self._on_health = on_health
        self._reopen_pause_s = reopen_pause_s
        self._requests: deque[TriggerRequest] = deque()
        self._changed = threading.Condition()
        self._index = 0
        self._missing = 0
        self._reader: CameraReader | None = None

    @property
    def policy(self) -> OverflowPolicy:
        """EVERY on command: each trigger is owed an answer; the camera's own otherwise."""
        return OverflowPolicy.EVERY if self._config.mode is TriggerMode.COMMAND else self._source.policy

    @property
    def counters(self) -> SourceCounters:
        """The camera's own, with the frames that its counter shows to be missing."""
        counters = self._source.counters
        return dataclasses.replace(counters, frames_missing=counters.frames_missing + self._missing)

    @property
    def frames_unasked(self) -> int:
        """Frames that came without a command, or after its time; none of them was inspected."""
        return 0 if self._reader is None else self._reader.frames_unasked

    def request(self, request: TriggerRequest) -> None:
        """Ask for one frame; any thread, never waits."""
        with self._changed:
            self._requests.append(request)
            self._changed.notify_all()

    def __enter__(self) -> "TriggeredSource":
        if self._config.mode is TriggerMode.COMMAND:
            software_trigger = self._source.trigger if isinstance(self._source, SoftwareTrigger) else None
            self._reader = CameraReader(
                self._source, self._on_health, trigger=software_trigger, skip_frames=self._config.skip_frames, pause_s=self._reopen_pause_s
            )
            self._reader.open()
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        if self._reader is not None:
            self._reader.close()

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield one frame per trigger until the source ends or ``stop`` is set."""
        if self._reader is None:
            return self._each_frame(stop)
        return self._commanded(self._reader, stop)

    def _each_frame(self, stop: threading.Event) -> Iterator[Frame]:
        camera = ReopeningSource(self._source, self._on_health, pause_s=self._reopen_pause_s)
        last_id: int | None = None
        with contextlib.closing(camera.frames(stop, session=lambda: stop)) as frames:
            for frame in frames:
                for each in (*self._gap(last_id, frame), frame):
                    admitted = self._admit(dataclasses.replace(each, index=self._next_index()))
                    if admitted is not None:
                        yield admitted
                last_id = frame.device_frame_id

    def _gap(self, last_id: int | None, frame: Frame) -> Iterator[Frame]:
        """Yield a fault for each frame that the device counted and that never arrived."""
        if not self._config.count_gaps or last_id is None or frame.device_frame_id is None:
            return
        missing = range(last_id + 1, frame.device_frame_id)[:MOST_MISSING_FRAMES]
        for device_frame_id in missing:
            self._missing += 1
            fault = f"frame {device_frame_id} of {frame.source_id} never arrived: its counter went from {last_id} to {frame.device_frame_id}"
            yield dataclasses.replace(frame, image=None, fault=fault, device_frame_id=device_frame_id)

    def _commanded(self, reader: CameraReader, stop: threading.Event) -> Iterator[Frame]:
        while not stop.is_set():
            request = self._next_request(reader, stop)
            if request is None:
                return
            deadline_ns = request.requested_ns + round(self._config.frame_timeout_ms * 1e6)
            captured = reader.capture(request.requested_ns, deadline_ns)
            frame = captured if isinstance(captured, Frame) else self._fault_frame(captured)
            yield dataclasses.replace(
                frame,
                index=self._next_index(),
                trigger_id=request.trigger_id,
                part_id=request.part_id,
                product=request.product if request.product is not None else frame.product,
            )

    def _next_request(self, reader: CameraReader, stop: threading.Event) -> TriggerRequest | None:
        with self._changed:
            while not self._requests:
                if stop.is_set() or reader.has_ended:
                    return None
                self._changed.wait(POLL_S)
            return self._requests.popleft()

    def _next_index(self) -> int:
        self._index += 1
        return self._index - 1

    def _fault_frame(self, fault: str) -> Frame:
        return Frame(
            image=None, color="bgr", index=0, captured_ns=time.monotonic_ns(), captured_at=time.time(), source_id=self._source_id(), fault=fault
        )

    def _source_id(self) -> str:
        return "" if self._reader is None else self._reader.source_id
