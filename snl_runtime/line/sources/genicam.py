"""A GenICam camera (GigE Vision, USB3 Vision) as a frame source, through pylon."""

import logging
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from snl_runtime.errors import FrameError, SourceError, SourceOpenError, SourceStalledError
from snl_runtime.line.handoff import OverflowPolicy
from snl_runtime.line.sources.backoff import Backoff
from snl_runtime.line.sources.base import FrameStamper, SourceCounters
from snl_runtime.line.sources.frozen import RepeatCounter
from snl_runtime.line.sources.genicam_device import GenicamConfig, OpenedCamera, close_camera, genicam_error, load_pylon, open_camera
from snl_runtime.line.sources.pixel_formats import decode
from snl_runtime.types import Frame

__all__ = ["GenicamConfig", "GenicamSource"]

WAIT_MS = 100
"""How long one look for a frame takes at most; ``stop`` and a removed camera are noticed between two looks."""
MOST_GAP_FRAMES = 100
"""How many lost frames in a row get a fault frame each; a longer gap gets one for all."""
NO_BLOCK_ID = 2**64 - 1
HIGHEST_16_BIT_ID = 65535

logger = logging.getLogger(__name__)


class GenicamSource:
    """A camera that runs freely, or takes a frame for each software trigger or edge on a line.

    Nothing is substituted: a buffer that came damaged, a gap in the camera's own frame numbers (unless newer frames were wanted) and a software
    trigger without an image in time become fault frames. With a software trigger an image belongs to one trigger only: when the next one comes, or
    the time is up, acquisition is restarted, so that a late image can never be taken for the next part's.

    Args:
        config: Which camera, and how it is set up.
        product: Product of all its frames; None if unknown.
    """

    def __init__(self, config: GenicamConfig, *, product: str | None = None) -> None:
        self._config = config
        self._name = config.name
        self._product = product
        self._stamper = FrameStamper(self._name, product=product, color="gray")
        self._repeats = RepeatCounter(config.frozen_after)
        self._backoff = Backoff()
        self._lock = threading.RLock()  # held for everything but waiting for a frame
        self._opened: OpenedCamera | None = None
        self._serial: str | None = None
        self._epoch = 0  # how often acquisition was started
        self._last_id: int | None = None
        self._triggered_s: float | None = None  # when the software trigger came that still has no image
        self._started_s = 0.0
        self._missing = 0
        self._skipped = 0
        self._reconnects = 0

    @property
    def policy(self) -> OverflowPolicy:
        """LATEST for a free-running camera, EVERY for a triggered one, unless the configuration says otherwise."""
        return self._config.overflow

    @property
    def counters(self) -> SourceCounters:
        """Fault frames, frames that never came, frames that newer ones replaced in the driver, and reconnects."""
        return SourceCounters(
            frames_faulty=self._stamper.faults, frames_missing=self._missing, frames_skipped=self._skipped, reconnects=self._reconnects
        )

    def __enter__(self) -> "GenicamSource":
        self._open()
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        self._close()

    def trigger(self) -> int:
        """Make the camera take one frame, see :class:`~snl_runtime.line.sources.base.TriggerableSource`; any thread.

        Raises:
            SourceError: If the camera is not there, not ready within ``frame_timeout_s``, or not set up for software triggers.
        """
        if self._config.trigger != "software":
            raise SourceError(f"{self._name} takes no software trigger; set genicam.trigger to software, it is {self._config.trigger}")
        with self._lock:
            if self._opened is None or self._opened.camera.IsCameraDeviceRemoved():
                raise SourceError(f"{self._name} is not connected; check its power, its cable and the network")
            camera = self._opened.camera
            try:
                if self._triggered_s is not None:
                    self._missing += 1
                    self._restart(self._opened)
                wait_ms = int(self._config.frame_timeout_s * 1e3)
                if camera.CanWaitForFrameTriggerReady() and not camera.WaitForFrameTriggerReady(wait_ms, load_pylon().TimeoutHandling_Return):
                    self._restart(self._opened)
                    raise SourceError(f"{self._name} was not ready for a trigger within {self._config.frame_timeout_s:g} s")
                self._triggered_s = time.monotonic()
                answers_from_ns = time.monotonic_ns()
                camera.ExecuteSoftwareTrigger()
            except genicam_error() as error:
                self._triggered_s = None
                raise SourceError(f"{self._name} did not take a trigger: {error}") from error
        return answers_from_ns

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield frames in the camera's pixel format, decoded, until ``stop`` is set.

        Raises:
            SourceStalledError: If the camera was away, or a free-running one without a frame, for ``stall_timeout_s``.
        """
        alive_s = time.monotonic()
        while not stop.is_set():
            if self._is_closed():
                self._wait_and_reopen(stop, alive_s + self._config.stall_timeout_s)
                continue
            for frame in self._look():
                yield frame
                self._backoff.reset()
                alive_s = time.monotonic()
            if self._is_gone() or self._is_silent(alive_s):
                yield from self._lose()
            elif self._config.trigger != "free":  # without a trigger its silence says nothing
                self._backoff.reset()
                alive_s = time.monotonic()

    def _look(self) -> list[Frame]:
        """Wait a moment for a buffer and return what it gives: at most one image, after a fault frame for each frame lost before it."""
        with self._lock:
            opened, epoch = self._opened, self._epoch
        if opened is None:
            return []
        try:
            result = opened.camera.RetrieveResult(WAIT_MS, load_pylon().TimeoutHandling_Return)
        except genicam_error() as error:
            logger.debug("%s: %s", self._name, error)
            with self._lock:
                if epoch == self._epoch:  # else a trigger restarted acquisition at this moment
                    self._close()
            return []
        try:
            with self._lock:  # a frame is dated before the next trigger is, or not handed over
                if epoch != self._epoch:
                    return []
                return self._take(opened, result) if result.IsValid() else self._missed_trigger(opened)
        finally:
            result.Release()

    def _take(self, opened: OpenedCamera, result: Any) -> list[Frame]:
        block_id = result.GetBlockID()
        lost = self._count_lost(block_id, result.GetNumberOfSkippedImages(), opened)
        number = None if block_id == NO_BLOCK_ID else block_id
        was_triggered, self._triggered_s = self._triggered_s is not None, None
        if self._config.trigger != "software":
            return [*self._gap_frames(lost, block_id), self._stamp(opened, result, number)]
        if not was_triggered:
            return [self._stamper.stamp(None, fault=f"{self._name} sent an image without a trigger", device_frame_id=number)]
        if lost:
            fault = f"{self._name} lost {lost} frames before this one, which may answer another trigger"
            return [self._stamper.stamp(None, fault=fault, device_frame_id=number)]
        return [self._stamp(opened, result, number)]

    def _stamp(self, opened: OpenedCamera, result: Any, number: int | None) -> Frame:
        fault = None
        image = None
        if not result.GrabSucceeded():
            fault = f"{self._name} sent a damaged frame: {result.GetErrorDescription() or f'error {result.GetErrorCode()}'}"
        elif int(result.GetPixelType()) != opened.pixel_type:
            fault = f"{self._name} no longer sends {opened.declared.name}; open it again with the pixel format that it sends"
        else:
            try:
                buffer = result.GetArray()  # a copy: the driver's buffer goes back
                image = decode(buffer, opened.declared)
                fault = self._repeats.fault(buffer, self._name)
            except (FrameError, ValueError) as error:
                fault = f"{self._name}: {error}"
        return self._stamper.stamp(image, fault=fault, device_frame_id=number)

    def _count_lost(self, block_id: int, skipped: int, opened: OpenedCamera) -> int:
        """Return how many frames between the last one and this one never came, without those that newer ones replaced."""
        self._skipped += skipped
        last, self._last_id = self._last_id, block_id
        if last is None or NO_BLOCK_ID in (last, block_id):
            return 0
        gap = block_id - last - 1
        if gap < -1 and opened.counts_16_bits and last > HIGHEST_16_BIT_ID // 2:
            gap += HIGHEST_16_BIT_ID
        if gap < 0:
            logger.warning("%s counts its frames anew, from %d after %d; frames lost meanwhile are not known", self._name, block_id, last)
        lost = max(0, gap - skipped)
        self._missing += lost
        return lost

    def _gap_frames(self, lost: int, block_id: int) -> list[Frame]:
        """Return a fault frame for each lost frame of a camera of which every frame is a part."""
        if self.policy is OverflowPolicy.LATEST or lost == 0:
            return []
        if lost > MOST_GAP_FRAMES:
            return [self._stamper.stamp(None, fault=f"{self._name} lost {lost} frames before frame {block_id}")]
        ids = [one if one > 0 else one + HIGHEST_16_BIT_ID for one in range(block_id - lost, block_id)]
        return [self._stamper.stamp(None, fault=f"{self._name} lost frame {one}; it never came", device_frame_id=one) for one in ids]

    def _missed_trigger(self, opened: OpenedCamera) -> list[Frame]:
        if self._triggered_s is None or time.monotonic() - self._triggered_s < self._config.frame_timeout_s:
            return []
        self._missing += 1
        limit = f"{self._config.frame_timeout_s:g} s"
        frame = self._stamper.stamp(None, fault=f"no image from {self._name} within {limit} of the software trigger; check its exposure and cable")
        try:
            self._restart(opened)
        except genicam_error() as error:
            logger.debug("%s: %s", self._name, error)  # gone; the next look notices
        return [frame]

    def _open(self) -> None:
        opened = open_camera(self._config, self._serial)  # takes a second; a trigger meanwhile must not wait for it
        with self._lock:
            try:
                self._opened = opened
                self._serial = opened.serial
                self._name = self._config.name if self._config.user_name else f"genicam {opened.serial}"
                self._stamper.rename(self._name, color=opened.declared.color)
                self._start(opened)
            except genicam_error() as error:
                self._close()
                raise SourceOpenError(f"{self._name} does not start to deliver frames: {error}") from error

    def _start(self, opened: OpenedCamera) -> None:
        pylon = load_pylon()
        latest = self.policy is OverflowPolicy.LATEST
        opened.camera.StartGrabbing(pylon.GrabStrategy_LatestImageOnly if latest else pylon.GrabStrategy_OneByOne)
        self._epoch += 1
        self._last_id = None
        self._triggered_s = None
        self._started_s = time.monotonic()

    def _restart(self, opened: OpenedCamera) -> None:
        """Forget everything on its way; without it a late image could answer a later trigger."""
        opened.camera.StopGrabbing()
        self._start(opened)

    def _close(self) -> None:
        with self._lock:
            if self._opened is not None:
                close_camera(self._opened.camera)
                self._opened = None
            self._epoch += 1

    def _is_gone(self) -> bool:
        with self._lock:
            return self._opened is None or self._opened.camera.IsCameraDeviceRemoved() or not self._opened.camera.IsGrabbing()

    def _is_closed(self) -> bool:
        return self._opened is None

    def _is_silent(self, alive_s: float) -> bool:
        """Return whether a free-running camera gave no frame for too long, counted anew after it was opened."""
        return self._config.trigger == "free" and time.monotonic() - max(alive_s, self._started_s) > self._config.frame_timeout_s

    def _lose(self) -> list[Frame]:
        """Close the camera; where every frame is a part, say that some may have passed."""
        self._close()
        logger.warning("%s stopped delivering frames; connecting again", self._name)
        if self.policy is OverflowPolicy.LATEST:
            return []
        return [self._stamper.stamp(None, fault=f"lost the connection to {self._name}; parts may pass until it is back")]

    def _wait_and_reopen(self, stop: threading.Event, give_up_s: float) -> None:
        left_s = give_up_s - time.monotonic()
        if left_s <= 0:
            limit = f"{self._config.stall_timeout_s:g} s"
            raise SourceStalledError(f"no frame from {self._name} for {limit}; check the camera, its power, its cable and the network")
        if stop.wait(min(left_s, self._backoff.next_s())):
            return
        self._reconnects += 1
        try:
            self._open()
        except SourceOpenError as error:
            logger.debug("%s", error)
