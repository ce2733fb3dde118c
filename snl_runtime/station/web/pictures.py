"""JPEG pictures of results, drawn on one thread, only when somebody looks, and at a bounded rate."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from snl_runtime.errors import FrameError
from snl_runtime.images.opencv import load_opencv
from snl_runtime.images.overlay import blend_heat, hatch_ignored
from snl_runtime.images.preprocess import to_rgb
from snl_runtime.station.web.feed import Shot
from snl_runtime.types import Image

JPEG_QUALITY = 85
THUMBNAIL_WIDTH_PX = 240
PICTURES_KEPT = 96
_OUTLINE_RGB = (255, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One JPEG file.

    Attributes:
        jpeg: Its bytes.
        shot: What it shows.
    """

    jpeg: bytes
    shot: Shot


def draw_picture(shot: Shot, *, width_px: int, overlay: bool) -> bytes:
    """Return a JPEG of a frame, reduced to at most ``width_px`` before anything else, because full resolution would take the line's processor time.

    Args:
        shot: Frame and result.
        width_px: Widest that the picture may be.
        overlay: Whether the heat map is blended over it and regions are outlined.

    Raises:
        FrameError: If the frame has no image, or none that can be drawn.
    """
    if shot.frame.image is None:
        raise FrameError(shot.frame.fault or "the frame has no image")
    cv2 = load_opencv()
    small, scale = _reduced(shot.frame.image, width_px)
    image = np.ascontiguousarray(to_rgb(small, shot.frame.color, shot.result.bit_depth))
    if overlay:
        image = _with_overlay(image, shot, scale)
    _, encoded = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return bytes(encoded.tobytes())


class PictureMaker:
    """Draws pictures one after the other on a thread of its own and keeps the last ones; all methods on one event loop.

    Args:
        latest: The newest result of a camera, None if there is none.
        width_px: Widest picture.
        per_second: Most live pictures per second and camera; in between everybody gets the last one.
        clock_s: Monotonic seconds.
    """

    def __init__(
        self, latest: Callable[[str], Shot | None], *, width_px: int, per_second: float, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._latest = latest
        self._width_px = width_px
        self._interval_s = 1 / per_second
        self._clock_s = clock_s
        self._drawn: OrderedDict[tuple[int, bool, int], asyncio.Future[bytes]] = OrderedDict()
        self._chosen: dict[str, tuple[float, Shot]] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="snl-web-pictures")

    async def live(self, camera: str, *, overlay: bool) -> Picture | None:
        """Return the newest picture of a camera that the rate allows; None before the first result.

        Raises:
            FrameError: If that result has no image: an older one is not shown in its place.
        """
        shot = self._shot_now(camera)
        return None if shot is None else await self.of(shot, overlay=overlay)

    async def of(self, shot: Shot, *, overlay: bool, thumbnail: bool = False) -> Picture:
        """Return the picture of one result.

        Raises:
            FrameError: If it has no image.
        """
        width_px = min(THUMBNAIL_WIDTH_PX, self._width_px) if thumbnail else self._width_px
        key = (shot.number, overlay, width_px)
        if key not in self._drawn:
            drawing = asyncio.get_running_loop().run_in_executor(self._thread, lambda: draw_picture(shot, width_px=width_px, overlay=overlay))
            drawing.add_done_callback(_retrieve)
            self._drawn[key] = drawing
            while len(self._drawn) > PICTURES_KEPT:
                self._drawn.popitem(last=False)
        self._drawn.move_to_end(key)
        # A client that goes away must not cancel the drawing that others wait for.
        return Picture(jpeg=await asyncio.shield(self._drawn[key]), shot=shot)

    def close(self) -> None:
        """End the thread after the picture under way."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _shot_now(self, camera: str) -> Shot | None:
        newest = self._latest(camera)
        if newest is None:
            return None
        now_s = self._clock_s()
        chosen_s, chosen = self._chosen.get(camera, (-self._interval_s, newest))
        costs_nothing = newest.frame.image is None or chosen.frame.image is None  # a result without image is never held back
        if chosen is not newest and not costs_nothing and now_s - chosen_s < self._interval_s:
            return chosen
        if chosen is not newest or camera not in self._chosen:
            self._chosen[camera] = (now_s, newest)
        return newest


def _retrieve(drawing: "asyncio.Future[bytes]") -> None:
    # Else asyncio logs a failure that nobody waited for, because every client had gone.
    if not drawing.cancelled():
        drawing.exception()


def _reduced(image: Any, width_px: int) -> tuple[Any, float]:
    if not isinstance(image, np.ndarray) or image.ndim not in (2, 3) or 0 in image.shape:
        raise FrameError("the frame lies where it cannot be drawn from")
    width = int(image.shape[1])
    if width <= width_px:
        return image, 1.0
    cv2 = load_opencv()
    size = (width_px, max(1, round(image.shape[0] * width_px / width)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), width_px / width


def _with_overlay(image: Image, shot: Shot, scale: float) -> Image:
    cv2 = load_opencv()
    image = image.copy()  # the frame itself is read-only and may be shown without
    height, width = image.shape[:2]
    result = shot.result
    if result.roi_xyxy is not None and result.anomaly_map is not None:
        left, top, right, bottom = _scaled(result.roi_xyxy, scale, (height, width))
        image[top:bottom, left:right] = blend_heat(image[top:bottom, left:right], result.anomaly_map, result.threshold)
        if result.ignored is not None:
            image[top:bottom, left:right] = hatch_ignored(image[top:bottom, left:right], result.ignored)
    thickness = max(1, round(min(height, width) / 240))
    for region in result.regions:
        left, top, right, bottom = _scaled(region.box_xyxy, scale, (height, width))
        cv2.rectangle(image, (left, top), (right - 1, bottom - 1), _OUTLINE_RGB, thickness)
    return image


def _scaled(box_xyxy: tuple[int, int, int, int], scale: float, size_hw: tuple[int, int]) -> tuple[int, int, int, int]:
    height, width = size_hw
    left, top = min(width - 1, int(box_xyxy[0] * scale)), min(height - 1, int(box_xyxy[1] * scale))
    right, bottom = min(width, round(box_xyxy[2] * scale)), min(height, round(box_xyxy[3] * scale))
    return left, top, max(left + 1, right), max(top + 1, bottom)
