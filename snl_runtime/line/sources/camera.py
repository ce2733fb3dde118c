"""A camera of this computer, or one behind an address, as a frame source."""

import dataclasses
import logging
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any, Literal

import numpy.typing as npt

from snl_runtime.errors import ConfigError, FrameError, SourceOpenError, SourceStalledError
from snl_runtime.images.opencv import load_opencv
from snl_runtime.line.handoff import OverflowPolicy
from snl_runtime.line.sources.backoff import Backoff
from snl_runtime.line.sources.base import FrameStamper, SourceCounters, quiet_opencv
from snl_runtime.line.sources.frozen import RepeatCounter
from snl_runtime.line.sources.network_stream import NetworkStream, has_pyav
from snl_runtime.line.sources.pixel_formats import decode, find_fourcc
from snl_runtime.text import redact_credentials
from snl_runtime.types import Frame

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraConfig:
    """A camera that OpenCV opens: V4L2 or the system's camera service for a number or a device, FFmpeg for an address."""

    camera: int | str
    """Number of a local camera, a device (``/dev/v4l/by-id/...``), or an address (rtsp, http, ...). Its credentials appear in no record or log."""
    pixel_format: str | None = None
    """V4L2 code of the raw format that a local camera shall send, such as ``GREY``, ``Y16`` or ``RGGB``; None for the driver's own conversion to BGR,
    with 8 bits."""
    decoder: Literal["auto", "pyav", "opencv"] = "auto"
    """What decodes an address, both with FFmpeg; ``auto`` is ``pyav`` where the package av is installed. ``pyav`` passes on a size that changes
    mid-stream, and makes a damaged frame a fault; OpenCV scales the one away and shows the other like a whole frame. Colors can differ by a gray
    level: calibrate with the decoder that the line uses."""
    open_timeout_s: float = 5.0
    """Longest time for opening an address."""
    read_timeout_s: float = 2.0
    """Longest time for one frame from an address."""
    stall_timeout_s: float = 30.0
    """Longest time without a frame, reconnects included, until the source gives up."""
    frozen_after: int = 25
    """Byte-equal frames in a row after which the camera counts as frozen; 0 switches the check off."""

    def __post_init__(self) -> None:
        for key in ("open_timeout_s", "read_timeout_s", "stall_timeout_s"):
            if not 0 < getattr(self, key) < float("inf"):
                raise ConfigError(f"camera.{key} must be a positive number of seconds, got {getattr(self, key)}")
        if self.frozen_after < 0:
            raise ConfigError(f"camera.frozen_after must be 0 (off) or a number of frames, got {self.frozen_after}")
        if isinstance(self.camera, int) and self.camera < 0:
            raise ConfigError(f"camera.camera must be a number from 0, a device or an address, got {self.camera}")
        if self.decoder == "pyav" and self.is_local:
            raise ConfigError("camera.decoder pyav is for addresses, not for local cameras; set opencv")
        if self.pixel_format is None:
            return
        find_fourcc(self.pixel_format, key="camera.pixel_format")
        if not self.is_local:
            raise ConfigError("camera.pixel_format is for local cameras; an address sends compressed images, leave it out")

    @property
    def is_local(self) -> bool:
        """Whether the camera hangs on this computer."""
        return isinstance(self.camera, int) or self.camera.startswith("/dev/")

    @property
    def name(self) -> str:
        """What records and messages call it, without credentials."""
        return f"camera {self.camera}" if isinstance(self.camera, int) else redact_credentials(self.camera)


class CameraSource:
    """A free-running camera of this computer or behind an address.

    FFmpeg queues frames and cannot be told not to, so only a reader that never waits keeps them fresh: the pipeline reads on its capture thread and
    drops what the detector is too slow for. After a failed read an FFmpeg handle stays dead, so it is closed and opened again with growing pauses.
    A local camera is opened again if it was named by its device: behind a number there may be another camera when it comes back.

    Args:
        camera: What to open, or the number, device or address alone.
        product: Product of all its frames; None if unknown.
        open_timeout_s: Replaces the configuration's, as do the others.
        read_timeout_s: See :class:`CameraConfig`.
        stall_timeout_s: See :class:`CameraConfig`.
        frozen_after: See :class:`CameraConfig`.

    Raises:
        ConfigError: If a number is out of range.
    """

    def __init__(
        self,
        camera: CameraConfig | int | str,
        *,
        product: str | None = None,
        open_timeout_s: float | None = None,
        read_timeout_s: float | None = None,
        stall_timeout_s: float | None = None,
        frozen_after: int | None = None,
    ) -> None:
        limits: dict[str, Any] = {
            "open_timeout_s": open_timeout_s,
            "read_timeout_s": read_timeout_s,
            "stall_timeout_s": stall_timeout_s,
            "frozen_after": frozen_after,
        }
        config = camera if isinstance(camera, CameraConfig) else CameraConfig(camera=camera)
        self._config = dataclasses.replace(config, **{key: value for key, value in limits.items() if value is not None})
        self._name = self._config.name
        self._declared = None if config.pixel_format is None else find_fourcc(config.pixel_format)
        self._stamper = FrameStamper(self._name, product=product, color="bgr" if self._declared is None else self._declared.color)
        self._repeats = RepeatCounter(self._config.frozen_after)
        self._backoff = Backoff()
        self._capture: Any = None
        self._uses_pyav = not self._config.is_local and (self._config.decoder == "pyav" or (self._config.decoder == "auto" and has_pyav()))
        self._reconnects = 0

    @property
    def policy(self) -> OverflowPolicy:
        """LATEST: a verdict on an old frame is worth less than one on the newest."""
        return OverflowPolicy.LATEST

    @property
    def counters(self) -> SourceCounters:
        """Fault frames and reconnects."""
        return SourceCounters(frames_faulty=self._stamper.faults, reconnects=self._reconnects)

    def __enter__(self) -> "CameraSource":
        if self._config.decoder == "auto" and not self._uses_pyav and not self._config.is_local:
            logger.warning("%s: OpenCV hides a size that changes mid-stream, and damage; pip install 'av', or set decoder: opencv", self._name)
        if self._open():
            return self
        camera = self._config.camera
        if not self._config.is_local:
            waited = f"waited at most {self._config.open_timeout_s:g} s"
            raise SourceOpenError(f"cannot open {self._name} ({waited}); check the address, the credentials and the network")
        device = f"on Linux: /dev/video{camera}" if isinstance(camera, int) else "the device is there"
        sends = "" if self._config.pixel_format is None else f", that it can send {self._config.pixel_format} (v4l2-ctl --list-formats)"
        raise SourceOpenError(
            f"cannot open {self._name}; check that it is plugged in ({device}){sends}, that you may use it and that no other program does"
        )

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        self._close()

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield BGR frames, or those of ``pixel_format``, until ``stop`` is set.

        Raises:
            SourceStalledError: If no frame arrived for ``stall_timeout_s``; at once if a camera named by its number fails.
        """
        last_frame_s = time.monotonic()
        while not stop.is_set():
            is_read, image = self._capture.read() if self._capture is not None else (False, None)
            if is_read and image is not None:
                yield self._stamp(image)
                self._backoff.reset()
                last_frame_s = time.monotonic()
            elif not stop.is_set():
                self._wait_and_reopen(stop, last_frame_s + self._config.stall_timeout_s)

    def _stamp(self, image: npt.NDArray[Any]) -> Frame:
        fault = self._repeats.fault(image, self._name)
        if isinstance(self._capture, NetworkStream) and self._capture.is_damaged:
            fault = f"{self._name} sent a damaged frame"
        if self._declared is None or fault is not None:
            return self._stamper.stamp(image, fault=fault)
        try:
            return self._stamper.stamp(decode(image, self._declared))
        except FrameError as error:
            return self._stamper.stamp(None, fault=f"{self._name}: {error}")

    def _open(self) -> bool:
        camera = self._config.camera
        if self._uses_pyav and isinstance(camera, str):
            timeouts_s = {"open_timeout_s": self._config.open_timeout_s, "read_timeout_s": self._config.read_timeout_s}
            self._capture = NetworkStream(camera, **timeouts_s)
            return bool(self._capture.isOpened())
        cv2 = load_opencv()
        with quiet_opencv(cv2):
            if self._config.is_local:
                self._capture = cv2.VideoCapture(camera, cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY)
            else:
                # Without a named backend the timeouts are ignored (opencv#23207).
                timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, int(self._config.open_timeout_s * 1e3)]
                timeouts += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, int(self._config.read_timeout_s * 1e3)]
                self._capture = cv2.VideoCapture(camera, cv2.CAP_FFMPEG, timeouts)
            if self._capture.isOpened() and self._sends_declared(cv2):
                return True
        self._close()
        return False

    def _sends_declared(self, cv2: ModuleType) -> bool:
        """Ask for the raw format and return whether the driver says that it sends it; it may choose another one without an error."""
        if self._config.pixel_format is None:
            return True
        wanted = cv2.VideoWriter.fourcc(*self._config.pixel_format.ljust(4))
        self._capture.set(cv2.CAP_PROP_FOURCC, wanted)
        self._capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)
        return int(self._capture.get(cv2.CAP_PROP_FOURCC)) == wanted and not self._capture.get(cv2.CAP_PROP_CONVERT_RGB)

    def _close(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def _wait_and_reopen(self, stop: threading.Event, give_up_s: float) -> None:
        self._close()
        if isinstance(self._config.camera, int):
            raise SourceStalledError(f"{self._name} stopped delivering frames; check its cable and power, then start again")
        left_s = give_up_s - time.monotonic()
        if left_s <= 0:
            limit = f"{self._config.stall_timeout_s:g} s"
            raise SourceStalledError(f"no frame from {self._name} for {limit}; check the camera, its power and the network")
        if self._backoff.is_first:
            logger.warning("%s stopped delivering frames; connecting again", self._name)
        if stop.wait(min(left_s, self._backoff.next_s())):
            return
        self._reconnects += 1
        self._open()


def parse_camera(text: str) -> int | str:
    """Return the camera that a person named: ``0`` and ``/dev/video0`` become numbers, other devices and addresses stay.

    Raises:
        ConfigError: If it is neither.
    """
    number = text.removeprefix("/dev/video")
    if number.isascii() and number.isdigit():
        return int(number)
    if "://" in text or text.startswith("/dev/"):
        return text
    raise ConfigError(f"a camera is a number or an address such as rtsp://host/stream, or a device in /dev, got '{text}'")
