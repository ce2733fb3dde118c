"""A camera on a thread of its own: at most one frame is asked for at a time, all others are counted and forgotten."""

import dataclasses
import logging
import threading
import time
from collections.abc import Callable

from snl_runtime.errors import SourceError
from snl_runtime.line.sources.base import FrameSource
from snl_runtime.station.reopening import ReopeningSource
from snl_runtime.station.stream_pace import StreamPace
from snl_runtime.types import Frame

WAIT_S = 0.5
"""Longest uninterrupted wait; a wait without limit cannot be interrupted on Windows."""
CLOSE_TIMEOUT_S = 10.0
"""How long close() waits for a camera whose driver does not return."""

logger = logging.getLogger(__name__)


class CameraReader:
    """Reads a camera continuously and hands over the frame that was asked for.

    A free-running camera that was not read for a while is opened again: what waits on the way shows earlier parts, and nothing tells it from new
    frames.

    Args:
        source: The camera; opened, read and closed on the thread.
        on_health: Told why no frames come, and None once they can come (again); after this object knows.
        trigger: Makes it take an image, see ``SoftwareTrigger``; None for a free-running camera or a file.
        skip_frames: Frames of a free-running camera to let pass after a command.
        pause_s: First pause before a failed camera is opened again.
    """

    def __init__(
        self,
        source: FrameSource,
        on_health: Callable[[str | None], None],
        *,
        trigger: Callable[[], int | None] | None,
        skip_frames: int,
        pause_s: float,
    ) -> None:
        self._camera = ReopeningSource(source, self._health_changed, pause_s=pause_s)
        self._on_health = on_health
        self._trigger = trigger
        self._skip_frames = 0 if trigger is not None else skip_frames
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._session = threading.Event()
        self._is_open = False
        self._was_open = False
        self._failure: Exception | None = None
        self._down_reason = ""
        self._wanted_since_ns: int | None = None
        self._to_skip = 0
        self._arrived: Frame | None = None
        self._newest: Frame | None = None
        self._held: list[Frame] | None = None  # while a trigger is on its way
        self._last_id: int | None = None
        self._is_miscounted = False
        self._pace = StreamPace()
        self._has_answer_time = False  # the source tells frames of earlier triggers itself
        self._thread = threading.Thread(target=self._read, name="snl-camera", daemon=True)
        self.source_id = ""
        self.frames_unasked = 0
        self.has_ended = False

    def open(self) -> None:
        """Start the thread and wait until the camera is open.

        Raises:
            SnlError: If it could not be opened.
        """
        self._thread.start()
        with self._changed:
            while not (self._was_open or self.has_ended):  # it may have failed again meanwhile
                self._changed.wait(WAIT_S)
        if not self._was_open and self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """End the thread; one that is stuck in the driver is left behind with one line in the log."""
        with self._changed:
            self._stop.set()
            self._session.set()
            self._changed.notify_all()
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            logger.warning("the camera %s did not return from its driver; its thread is left behind", self.source_id)

    def capture(self, requested_ns: int, deadline_ns: int) -> Frame | str:
        """Return the frame that answers a command given at ``requested_ns``, or why there is none by ``deadline_ns`` (monotonic times)."""
        with self._changed:
            self._wait_until(lambda: self._is_open or self.has_ended or bool(self._down_reason), deadline_ns)  # it may just be opened again
            if not self._is_open:
                return self._why_down()
            self._want(requested_ns)
        refusal = self._fire()
        with self._changed:
            if refusal is None:
                self._wait_until(lambda: self._arrived is not None or not self._is_open, deadline_ns)
            frame = self._arrived
            self._arrived = self._wanted_since_ns = self._held = None
            fault = None if frame is not None else refusal or (self._missed(requested_ns) if self._is_open else self._why_down())
            if self._is_open and self._trigger is not None and not self._has_answer_time and (frame is None or self._is_miscounted):
                self._restart()  # a frame that comes late must not be taken for the next part
            return frame if frame is not None else str(fault)

    def _want(self, requested_ns: int) -> None:
        self._arrived = None
        self._to_skip = 0 if self._camera.is_finite else self._skip_frames
        # A triggered image cannot be older than its trigger, which is still to come.
        self._wanted_since_ns = time.monotonic_ns() if self._trigger is not None else requested_ns
        self._held = None if self._trigger is None else []
        newest, self._newest = self._newest, None
        if newest is not None and newest.captured_ns >= self._wanted_since_ns and self._to_skip == 0:
            self._arrived = newest  # it came between the command and this call
            self.frames_unasked -= 1
        self._changed.notify_all()

    def _fire(self) -> str | None:
        if self._trigger is None:
            return None
        try:
            answers_from_ns = self._trigger()
        except SourceError as error:
            return f"the camera took no image: {error}"
        except Exception as error:
            logger.exception("the software trigger of %s failed", self.source_id)
            return f"the camera took no image: {type(error).__name__}: {error}"
        self._fired(answers_from_ns)
        return None

    def _fired(self, answers_from_ns: int | None) -> None:
        """Judge the frames that came while the trigger was on its way, now that it is known which of them can be its answer."""
        with self._changed:
            if answers_from_ns is not None:
                self._has_answer_time = True
                self._wanted_since_ns = answers_from_ns
            held, self._held = self._held, None
            for frame in held or ():
                self._take(frame)

    def _missed(self, requested_ns: int) -> str:
        return f"no frame came within {(time.monotonic_ns() - requested_ns) / 1e6:.0f} ms of the trigger; check the camera, its light and its cable"

    def _why_down(self) -> str:
        return self._down_reason or ("the source has ended" if self.has_ended else "the camera is being opened again")

    def _wait_until(self, holds: Callable[[], bool], deadline_ns: int) -> bool:
        """Wait with the lock held; return whether it holds by the deadline."""
        while not holds():
            left_s = (deadline_ns - time.monotonic_ns()) / 1e9
            if left_s <= 0 or self._stop.is_set():
                return False
            self._changed.wait(min(left_s, WAIT_S))
        return True

    def _restart(self) -> None:
        self._is_open = False
        self._down_reason = ""
        self._session.set()
        self._changed.notify_all()

    def _read(self) -> None:
        try:
            for frame in self._camera.frames(self._stop, session=self._begin, may_pull=self._may_pull):
                self._take(frame)
        except Exception as failure:  # noqa: BLE001  # open() raises it in the caller's thread
            self._failure = failure
        with self._changed:
            self._is_open = False
            self.has_ended = True
            self._changed.notify_all()

    def _begin(self) -> threading.Event:
        with self._changed:
            self._session = threading.Event()
            self._newest = self._last_id = None
            self._pace.restart()
            if self._stop.is_set():
                self._session.set()
            return self._session

    def _health_changed(self, reason: str | None) -> None:
        with self._changed:
            self._is_open = reason is None
            self._was_open = self._was_open or self._is_open
            self._down_reason = reason or ""
            self._changed.notify_all()
        self._on_health(reason)

    def _may_pull(self) -> bool:
        """Wait, with a folder or a video, until somebody asks; a camera is read all the time, because its queue would grow old."""
        if not self._camera.is_finite:
            return not self._session.is_set()
        with self._changed:
            while not self._session.is_set() and (self._wanted_since_ns is None or self._arrived is not None):
                self._changed.wait(WAIT_S)
        return not self._session.is_set()

    def _take(self, frame: Frame) -> None:
        with self._changed:
            self.source_id = frame.source_id
            if self._trigger is None and not self._camera.is_finite and self._pace.is_pause(frame.captured_ns):
                logger.warning("%s was not read for a while; it is opened again, because frames of earlier parts may wait on the way", self.source_id)
                self.frames_unasked += 1
                self._restart()
                return
            if self._held is not None:
                self._held.append(frame)
                return
            expected_id = None if self._last_id is None else self._last_id + 1
            self._last_id = frame.device_frame_id
            if self._wanted_since_ns is None or self._arrived is not None or frame.captured_ns < self._wanted_since_ns or self._session.is_set():
                self.frames_unasked += 1
                self._newest = frame if self._trigger is None else None
                return
            if self._to_skip > 0:
                self._to_skip -= 1
                self.frames_unasked += 1
                return
            counts = self._trigger is not None and not self._has_answer_time and expected_id is not None and frame.device_frame_id is not None
            self._is_miscounted = counts and frame.device_frame_id != expected_id
            if self._is_miscounted:
                fault = f"the camera sent its frame {frame.device_frame_id} where {expected_id} belongs to the trigger; it is opened again"
                frame = dataclasses.replace(frame, image=None, fault=fault)
            self._arrived = frame
            self._changed.notify_all()
