"""What every frame source provides, and how its frames are stamped."""

import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt

from snl_runtime.line.handoff import OverflowPolicy
from snl_runtime.types import ColorOrder, Frame


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCounters:
    """What a source knows about frames that it could not hand over whole.

    Attributes:
        frames_announced: Frames the source says it has; None if it has no end or does not know.
        frames_faulty: Frames handed over without an image (unreadable, damaged, frozen); each of them gets an ERROR record.
        frames_missing: Announced frames that never came: the rest of a video, gaps in a device's own numbers, software triggers without an image.
        frames_skipped: Frames that the driver replaced by newer ones because the reader was slower, as LATEST wants it.
        reconnects: How often opening the connection again was tried.
    """

    frames_announced: int | None = None
    frames_faulty: int = 0
    frames_missing: int = 0
    frames_skipped: int = 0
    reconnects: int = 0


class FrameSource(AbstractContextManager["FrameSource"], Protocol):
    """A camera, a video file, a folder of images.

    Entering opens the device and leaving closes it, both on the thread that calls :meth:`frames`, because most camera handles belong to one thread.
    """

    @property
    def policy(self) -> OverflowPolicy:
        """What happens to a frame when the detector is still busy: LATEST for free-running cameras, EVERY for files and triggered cameras."""
        ...

    @property
    def counters(self) -> SourceCounters:
        """What happened so far; may be read from any thread."""
        ...

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield frames until the source ends or ``stop`` is set.

        Every wait inside has a time limit, so that ``stop`` is noticed while nothing arrives. A frame that was announced but did not arrive whole is
        yielded with ``image=None`` and a ``fault``, never skipped and never replaced by another image.

        Raises:
            SourceStalledError: If no frame arrived within the source's own time limit.
            SourceEndedError: After the last frame, if there should have been more.
        """
        ...


@runtime_checkable
class TriggerableSource(Protocol):
    """A source whose camera takes one frame when it is told to."""

    def trigger(self) -> int:
        """Make the camera take one frame; any thread, after :meth:`FrameSource.frames` has begun.

        Returns:
            The ``time.monotonic_ns()`` from which on a frame is the answer: one whose ``captured_ns`` is smaller answers an earlier trigger.

        Raises:
            SourceError: If the camera cannot take the trigger; no frame will come for it.
        """
        ...


class FrameStamper:
    """Numbers and dates the frames of one source.

    Args:
        source_id: Name of the source without credentials.
        product: Product of all its frames; None if unknown.
        color: Meaning of the last axis of its images.
    """

    def __init__(self, source_id: str, *, product: str | None, color: ColorOrder) -> None:
        self._source_id = source_id
        self._product = product
        self._color = color
        self._index = 0
        self.faults = 0

    def rename(self, source_id: str, *, color: ColorOrder) -> None:
        """Use another name and color from the next frame on: some cameras tell theirs only when they are opened."""
        self._source_id = source_id
        self._color = color

    def stamp(
        self, image: npt.NDArray[Any] | None, *, fault: str | None = None, source_id: str | None = None, device_frame_id: int | None = None
    ) -> Frame:
        """Return the next frame, captured now; ``fault`` says why ``image`` is None."""
        index = self._index
        self._index += 1
        if fault is not None:
            self.faults += 1
        return Frame(
            image=None if fault is not None else image,
            color=self._color,
            index=index,
            captured_ns=time.monotonic_ns(),
            captured_at=time.time(),
            source_id=source_id if source_id is not None else self._source_id,
            device_frame_id=device_frame_id,
            product=self._product,
            fault=fault,
        )


@contextlib.contextmanager
def quiet_opencv(cv2: ModuleType) -> Iterator[None]:
    """Keep OpenCV's own lines off stderr while something is opened; the error says it in one. FFmpeg's own lines cannot be held back."""
    logging_module = getattr(cv2.utils, "logging", None)
    if logging_module is None:
        yield
        return
    level = logging_module.setLogLevel(logging_module.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging_module.setLogLevel(level)
