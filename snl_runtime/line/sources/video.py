"""A video file as a frame source."""

import contextlib
import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy.typing as npt

from snl_runtime.errors import SourceEndedError, SourceOpenError
from snl_runtime.images.opencv import load_opencv
from snl_runtime.line.handoff import OverflowPolicy
from snl_runtime.line.sources.base import FrameStamper, SourceCounters, quiet_opencv
from snl_runtime.line.sources.container import count_missing_bytes
from snl_runtime.text import printable
from snl_runtime.types import Frame

MISSING_FRAMES_TOLERATED = 1
"""Containers without an index announce duration times rate, which rounds up to one frame too many."""
DAMAGED_FRAMES_IN_A_ROW = 100
"""How many frames that cannot be decoded are stepped over before the file counts as ended."""

logger = logging.getLogger(__name__)


class VideoSource:
    """Every frame of a video file, decoded by FFmpeg.

    A frame that cannot be decoded is yielded without an image if whole ones follow it. So is the last frame of a file that is shorter than its
    header says, because FFmpeg paints half of such a frame.

    Args:
        path: The file.
        product: Product of all its frames; None if unknown.
    """

    def __init__(self, path: str | os.PathLike[str], *, product: str | None = None) -> None:
        self._path = Path(path)
        self._stamper = FrameStamper(str(path), product=product, color="bgr")
        self._capture: Any = None
        self._announced: int | None = None
        self._missing = 0

    @property
    def policy(self) -> OverflowPolicy:
        """EVERY: the detector sets the pace."""
        return OverflowPolicy.EVERY

    @property
    def counters(self) -> SourceCounters:
        """Announced, damaged and missing frames."""
        return SourceCounters(frames_announced=self._announced, frames_faulty=self._stamper.faults, frames_missing=self._missing)

    def __enter__(self) -> "VideoSource":
        try:
            self._missing_bytes = count_missing_bytes(self._path)
        except OSError as error:
            raise SourceOpenError(f"cannot read {self._path}: {error.strerror or error}; check the path") from error
        cv2 = load_opencv()
        # An absolute path, because FFmpeg takes what stands before a colon for a protocol; a named backend, so that no other one guesses.
        with quiet_opencv(cv2), _utf8_path(self._path.resolve()) as path:
            self._capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            self._capture.release()
            raise SourceOpenError(f"{self._path} is not a video that FFmpeg can decode, or its end is missing; copy it again or convert it")
        announced = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self._announced = announced if announced > 0 else None
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        self._capture.release()

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield one BGR frame per frame of the file.

        Raises:
            SourceEndedError: After the last frame, if the file announced more or is shorter than its header says.
        """
        delivered = 0
        waiting: npt.NDArray[Any] | None = None  # one frame ahead: only at the end is it known which frame was the cut one
        for image in self._read(stop):
            if delivered > 0:
                yield self._stamp(waiting)
            waiting = image
            delivered += 1
        if stop.is_set():
            return
        if delivered > 0:
            yield self._stamp(None if self._missing_bytes else waiting)
        self._check_end(delivered)

    def _stamp(self, image: npt.NDArray[Any] | None) -> Frame:
        return self._stamper.stamp(image, fault=None if image is not None else f"a frame of {self._path} is damaged and cannot be decoded")

    def _read(self, stop: threading.Event) -> Iterator[npt.NDArray[Any] | None]:
        """Yield each image, None for each damaged one that a whole one follows."""
        failures = 0
        delivered = 0
        while not stop.is_set():
            is_read, image = self._capture.read()
            if is_read:
                yield from [None] * failures
                delivered += failures + 1
                failures = 0
                yield image
                continue
            failures += 1
            if failures >= DAMAGED_FRAMES_IN_A_ROW or (self._announced is None or delivered + failures > self._announced):
                return

    def _check_end(self, delivered: int) -> None:
        self._missing = max(0, (self._announced or 0) - delivered)
        if self._missing_bytes:
            raise SourceEndedError(
                f"{self._path} ended early: it is {self._missing_bytes} bytes shorter than its header says and gave {delivered} of "
                f"{self._announced or 'an unknown number of'} frames; copy it again"
            )
        if self._missing > MISSING_FRAMES_TOLERATED:
            raise SourceEndedError(
                f"{self._path} ended early: it gave {delivered} of {self._announced} announced frames; copy it again or re-encode it"
            )
        if self._missing:
            logger.warning("%s gave %d of %d announced frames", self._path, delivered, self._announced)


@contextlib.contextmanager
def _utf8_path(path: Path) -> Iterator[Path]:
    """Yield a name of the file that OpenCV takes; it takes none that is not UTF-8."""
    if printable(str(path)) == str(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        alias = Path(folder) / f"video{path.suffix}"
        alias.symlink_to(path)
        yield alias
