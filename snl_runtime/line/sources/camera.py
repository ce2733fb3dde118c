"""A camera of this computer, or one behind an address, as a frame source."""

import logging
import random
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from snl_runtime.errors import ConfigError, SourceOpenError, SourceStalledError
from snl_runtime.images.opencv import load_opencv
from snl_runtime.line.handoff import OverflowPolicy
from snl_runtime.line.sources.base import FrameStamper, SourceCounters, quiet_opencv
from snl_runtime.text import redact_credentials
from snl_runtime.types import Frame

BACKOFF_FIRST_S = 0.5
BACKOFF_LONGEST_S = 10.0
STRIDE_OF_QUICK_LOOK = 61
"""Rows between two compared ones: frames that differ nearly always differ there, and comparing everything costs a pass over the memory."""

logger = logging.getLogger(__name__)


class CameraSource:
    """A free-running camera: V4L2 or the system's camera service for a number, FFmpeg for an address (rtsp, http, ...).

    FFmpeg queues frames and cannot be told not to, so only a reader that never waits keeps them fresh: the pipeline reads on its capture thread and
    drops what the detector is too slow for. After a failed read an FFmpeg handle stays dead, so it is closed and opened again with growing pauses.

    Args:
        camera: Number of a local camera, or an address. Credentials in it appear in no record, log or error.
        product: Product of all its frames; None if unknown.
        open_timeout_s: Longest time for opening an address.
        read_timeout_s: Longest time for one frame from an address.
        stall_timeout_s: Longest time without a frame, reconnects included, until the source gives up.
        frozen_after: Byte-equal frames in a row after which the camera counts as frozen; 0 switches the check off.

    Raises:
        ConfigError: If a number is out of range.
    """

    def __init__(
        self,
        camera: int | str,
        *,
        product: str | None = None,
        open_timeout_s: float = 5.0,
        read_timeout_s: float = 2.0,
        stall_timeout_s: float = 30.0,
        frozen_after: int = 25,
    ) -> None:
        if min(open_timeout_s, read_timeout_s, stall_timeout_s) <= 0 or frozen_after < 0:
            raise ConfigError("camera timeouts must be positive and frozen_after must not be negative")
        self._camera = camera
        self._name = f"camera {camera}" if isinstance(camera, int) else redact_credentials(camera)
        self._open_timeout_s = open_timeout_s
        self._read_timeout_s = read_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._stamper = FrameStamper(self._name, product=product, color="bgr")
        self._repeats = RepeatCounter(frozen_after)
        self._capture: Any = None
        self._reconnects = 0

    @property
    def policy(self) -> OverflowPolicy:
        """LATEST: a verdict on an old frame is worth less than one on the newest."""
        return OverflowPolicy.LATEST

    @property
    def counters(self) -> SourceCounters:
        """Frozen frames and reconnects."""
        return SourceCounters(frames_faulty=self._stamper.faults, reconnects=self._reconnects)

    def __enter__(self) -> "CameraSource":
        if self._open():
            return self
        if isinstance(self._camera, int):
            raise SourceOpenError(
                f"cannot open camera {self._camera}; check that it is plugged in (on Linux: /dev/video{self._camera}), that you may use it "
                "and that no other program does"
            )
        raise SourceOpenError(
            f"cannot open {self._name} (waited at most {self._open_timeout_s:g} s); check the address, the credentials and the network"
        )

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        self._close()

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield BGR frames until ``stop`` is set.

        Raises:
            SourceStalledError: If no frame arrived for ``stall_timeout_s``; at once if a local camera fails.
        """
        pause_s = BACKOFF_FIRST_S
        last_frame_s = time.monotonic()
        while not stop.is_set():
            is_read, image = self._capture.read() if self._capture is not None else (False, None)
            if is_read and image is not None:
                yield self._stamp(image)
                pause_s = BACKOFF_FIRST_S
                last_frame_s = time.monotonic()
            elif not stop.is_set():
                self._wait_and_reopen(stop, pause_s, last_frame_s + self._stall_timeout_s)
                pause_s = min(BACKOFF_LONGEST_S, 2 * pause_s)

    def _stamp(self, image: npt.NDArray[Any]) -> Frame:
        if not self._repeats.is_frozen(image):
            return self._stamper.stamp(image)
        return self._stamper.stamp(
            None, fault=f"frozen camera: {self._name} sent {self._repeats.count} byte-equal frames in a row; restart it or check its cable"
        )

    def _open(self) -> bool:
        cv2 = load_opencv()
        with quiet_opencv(cv2):
            if isinstance(self._camera, int):
                self._capture = cv2.VideoCapture(self._camera)
            else:
                # Without a named backend the timeouts are ignored (opencv#23207).
                timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, int(self._open_timeout_s * 1e3)]
                timeouts += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, int(self._read_timeout_s * 1e3)]
                self._capture = cv2.VideoCapture(self._camera, cv2.CAP_FFMPEG, timeouts)
        if self._capture.isOpened():
            return True
        self._close()
        return False

    def _close(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def _wait_and_reopen(self, stop: threading.Event, pause_s: float, give_up_s: float) -> None:
        self._close()
        if isinstance(self._camera, int):
            raise SourceStalledError(f"{self._name} stopped delivering frames; check its cable and power, then start again")
        left_s = give_up_s - time.monotonic()
        if left_s <= 0:
            raise SourceStalledError(f"no frame from {self._name} for {self._stall_timeout_s:g} s; check the camera, its power and the network")
        if pause_s == BACKOFF_FIRST_S:
            logger.warning("%s stopped delivering frames; connecting again", self._name)
        if stop.wait(min(left_s, pause_s * random.uniform(0.5, 1.0))):  # jitter: stations must not all come back at the same moment
            return
        self._reconnects += 1
        self._open()


class RepeatCounter:
    """Notices a camera that sends the same image again and again; sensor noise makes real images differ.

    Args:
        frozen_after: Byte-equal images in a row that count as frozen; 0 for never.
    """

    def __init__(self, frozen_after: int) -> None:
        self._frozen_after = frozen_after
        self._previous: npt.NDArray[Any] | None = None
        self.count = 0

    def is_frozen(self, image: npt.NDArray[Any]) -> bool:
        """Return whether this image is at least the ``frozen_after``-th equal one in a row. Keeps a reference to it until the next call."""
        if self._frozen_after == 0:
            return False
        self.count = self.count + 1 if self._previous is not None and _are_equal(self._previous, image) else 1
        self._previous = image
        return self.count >= self._frozen_after


def parse_camera(text: str) -> int | str:
    """Return the camera that a person named: ``0`` and ``/dev/video0`` become numbers, addresses stay.

    Raises:
        ConfigError: If it is neither.
    """
    number = text.removeprefix("/dev/video")
    if number.isascii() and number.isdigit():
        return int(number)
    if "://" in text:
        return text
    raise ConfigError(f"a camera is a number or an address such as rtsp://host/stream, got '{text}'")


def _are_equal(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> bool:
    if first.shape != second.shape or not np.array_equal(first[::STRIDE_OF_QUICK_LOOK], second[::STRIDE_OF_QUICK_LOOK]):
        return False
    return np.array_equal(first, second)
