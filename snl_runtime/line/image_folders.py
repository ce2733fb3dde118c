"""Folders of images for people to look at. An image that cannot be saved is counted, and the line goes on."""

import collections
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np

from snl_runtime.errors import ConfigError, FrameError, SinkError
from snl_runtime.files import atomic_path
from snl_runtime.images.opencv import load_opencv
from snl_runtime.images.overlay import render_overlay
from snl_runtime.images.preprocess import to_rgb
from snl_runtime.line.archived_frames import NAME, encode_frame
from snl_runtime.types import AnomalyResult, Frame, Image, OutputRequest, Verdict

DEFAULT_MAX_BYTES = 10 << 30
"""Most bytes that an image folder may hold."""
LEAST_FREE_BYTES = 1 << 30
"""What images leave free on the disk, or 5 % of it if that is less: the records may need it."""
RECOUNT_INTERVAL_S = 60.0
"""How often a full folder is measured again; somebody may have made room."""

MOST_DELETED_AT_ONCE = 4
"""Most old images deleted with one verdict."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFolderCounts:
    """What became of the images of one folder.

    Attributes:
        saved: Images in the folder.
        lost: Images that could not be saved; their records are whole.
        why_lost: Why the first of them was lost, None if none was.
        deleted: Images deleted because of their age.
    """

    saved: int = 0
    lost: int = 0
    why_lost: str | None = None
    deleted: int = 0


_Folder = TypeVar("_Folder", bound="ImageFolder")


class ImageFolder:
    """A folder that images are added to, as ``20261128T065326.123Z_<source>_000012_REJECT.png``: the UTC time of capture comes first.

    Nothing in it is ever overwritten, and nothing deleted unless ``max_age_days`` says so. A folder that cannot be written when it is entered is an
    error. After that an image that does not fit (the folder holds ``max_bytes``, images of earlier runs included, or the disk is nearly full) or
    cannot be written is counted as lost, with one warning.

    Args:
        folder: Made if it is not there.
        max_bytes: Most bytes that the folder may hold.
        least_free_bytes: What stays free on its disk; None for ``LEAST_FREE_BYTES`` or 5 % of the disk.
        max_age_days: Days after their capture when images are deleted, the oldest first and a few with each verdict: those of this run, those of
            earlier runs that lay there when the folder was entered, and no file with another kind of name. None keeps all.

    Raises:
        ConfigError: If ``max_age_days`` is not positive.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        least_free_bytes: int | None = None,
        max_age_days: float | None = None,
    ) -> None:
        if max_age_days is not None and not 0 < max_age_days < float("inf"):
            raise ConfigError(f"max_age_days must be positive, got {max_age_days}; leave it out to keep all images")
        self.folder = Path(folder)
        self._max_bytes = max_bytes
        self._least_free_bytes = least_free_bytes
        self._max_age_days = max_age_days
        self._names: collections.deque[str] = collections.deque()  # oldest first, kept only where images are deleted by age
        self._held_bytes = 0
        self._counted_s = 0.0
        self._counts = ImageFolderCounts()

    @property
    def counts(self) -> ImageFolderCounts:
        """What was saved and lost so far."""
        return self._counts

    def __enter__(self: _Folder) -> _Folder:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SinkError(f"cannot make the folder {self.folder}: {error.strerror or error}; check the path and its permissions") from error
        try:
            with tempfile.TemporaryFile(dir=self.folder):
                self._count()
                if self._max_age_days is not None:
                    self._names = collections.deque(sorted(path.name for path in self.folder.iterdir() if NAME.fullmatch(path.name)))
        except OSError as error:
            raise SinkError(f"cannot write images to {self.folder}: {error.strerror or error}; check its permissions and the free space") from error
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        """Nothing is held between two images."""

    def emit(self, frame: Frame, result: AnomalyResult) -> None:
        """Save one image if this folder wants it of such a verdict; raises nothing."""
        self._delete_old()
        try:
            made = self._make(frame, result)
            if made is None:
                return
            data, suffix = made
            self._need_room(len(data))
            self._write(data, _name(frame, result), suffix)
        except Exception as error:  # noqa: BLE001 - no image is worth stopping the line
            self._lose(error)
            return
        self._held_bytes += len(data)
        self._counts = replace(self._counts, saved=self._counts.saved + 1)

    def _make(self, frame: Frame, result: AnomalyResult) -> tuple[bytes, str] | None:
        """Return the bytes and the suffix of the image, None if there is none to save."""
        raise NotImplementedError

    def _need_room(self, needed_bytes: int) -> None:
        if self._held_bytes + needed_bytes > self._max_bytes and time.monotonic() - self._counted_s >= RECOUNT_INTERVAL_S:
            self._count()
        if self._held_bytes + needed_bytes > self._max_bytes:
            raise SinkError(f"it holds {self._held_bytes / 2**20:.0f} MiB of at most {self._max_bytes / 2**20:.0f}; move images away")
        disk = shutil.disk_usage(self.folder)
        least_free_bytes = self._least_free_bytes if self._least_free_bytes is not None else min(LEAST_FREE_BYTES, disk.total // 20)
        if disk.free - needed_bytes < least_free_bytes:
            raise SinkError(f"its disk has {disk.free / 2**20:.0f} MiB free and {least_free_bytes / 2**20:.0f} stay free for records")

    def _count(self) -> None:
        with os.scandir(self.folder) as entries:
            self._held_bytes = sum(entry.stat(follow_symlinks=False).st_size for entry in entries if entry.is_file(follow_symlinks=False))
        self._counted_s = time.monotonic()

    def _delete_old(self) -> None:
        """Delete a few images that are too old, so that no verdict waits long."""
        if self._max_age_days is None:
            return
        oldest_kept = _stamp(max(0.0, time.time() - self._max_age_days * 86_400))
        for _ in range(MOST_DELETED_AT_ONCE):
            if not self._names or self._names[0] >= oldest_kept:
                return
            path = self.folder / self._names.popleft()
            try:
                size_bytes = path.stat().st_size
                path.unlink()
            except FileNotFoundError:
                continue  # somebody moved it away
            except OSError as error:
                logger.warning("%s is too old and cannot be deleted, it stays: %s", path, error.strerror or error)
                continue
            self._held_bytes -= size_bytes
            self._counts = replace(self._counts, deleted=self._counts.deleted + 1)

    def _write(self, data: bytes, name: str, suffix: str) -> None:
        path, repeat = self.folder / f"{name}{suffix}", 2
        while not _claim(path):
            path, repeat = self.folder / f"{name}_{repeat}{suffix}", repeat + 1
        try:
            with atomic_path(path) as temporary:
                temporary.write_bytes(data)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        if self._max_age_days is not None:
            self._names.append(path.name)

    def _lose(self, error: Exception) -> None:
        why = str(error) or type(error).__name__
        if not self._counts.lost:
            is_expected = isinstance(error, (SinkError, OSError))
            logger.warning("images are lost, %s: %s; records go on", self.folder, why, exc_info=None if is_expected else error)
        self._counts = replace(self._counts, lost=self._counts.lost + 1, why_lost=self._counts.why_lost or why)


class RejectSaver(ImageFolder):
    """Saves the untouched frame of every verdict other than PASS.

    A frame without an image has nothing to save; its record says why. A frame that PNG cannot hold is saved as ``.npy``. A PNG also holds the record,
    so that ``snl-replay`` can judge the very frame again (:mod:`snl_runtime.line.archived_frames`).

    Args:
        folder: Where the images go.
        camera: Name of the camera that they come from.
        max_bytes: See :class:`ImageFolder`.
        least_free_bytes: See :class:`ImageFolder`.
        max_age_days: See :class:`ImageFolder`.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        camera: str = "",
        max_bytes: int = DEFAULT_MAX_BYTES,
        least_free_bytes: int | None = None,
        max_age_days: float | None = None,
    ) -> None:
        super().__init__(folder, max_bytes=max_bytes, least_free_bytes=least_free_bytes, max_age_days=max_age_days)
        self._camera = camera

    def _make(self, frame: Frame, result: AnomalyResult) -> tuple[bytes, str] | None:
        if result.verdict is Verdict.PASS or not isinstance(frame.image, np.ndarray):
            return None
        return encode_frame(frame, result, camera=self._camera)


class OverlaySaver(ImageFolder):
    """Saves frames with verdict, heat map and regions drawn over them as JPEG.

    The heat map of a result that carries an overlay was blended on a GPU; only outlines and banner are drawn here then.

    Args:
        folder: Where the images go.
        verdicts: Verdicts that are saved.
        max_bytes: See :class:`ImageFolder`.
        least_free_bytes: See :class:`ImageFolder`.
        max_age_days: See :class:`ImageFolder`.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        verdicts: Collection[Verdict] = tuple(Verdict),
        max_bytes: int = DEFAULT_MAX_BYTES,
        least_free_bytes: int | None = None,
        max_age_days: float | None = None,
    ) -> None:
        super().__init__(folder, max_bytes=max_bytes, least_free_bytes=least_free_bytes, max_age_days=max_age_days)
        self._verdicts = frozenset(verdicts)

    @property
    def outputs(self) -> OutputRequest:
        """What a detector on a GPU should add to results: overlays of the frames that are saved, and nothing that would cost its host time."""
        return OutputRequest(overlay=True, verdicts=self._verdicts - {Verdict.ERROR}, device_only=True)

    def _make(self, frame: Frame, result: AnomalyResult) -> tuple[bytes, str] | None:
        if result.verdict not in self._verdicts:
            return None
        image_rgb = _whole_overlay(frame, result)
        if image_rgb is None:
            try:
                image_rgb = to_rgb(frame.image, frame.color, result.bit_depth)
            except FrameError:
                return None  # nothing to draw on; the record says what is wrong with the frame
        cv2 = load_opencv()
        _, encoded = cv2.imencode(".jpg", render_overlay(image_rgb, result)[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
        return encoded.tobytes(), ".jpg"


def _name(frame: Frame, result: AnomalyResult) -> str:
    stamp = _stamp(frame.captured_at)
    # ASCII whatever the locale; the record holds the source in full.
    origin = re.sub(r"[^A-Za-z0-9]+", "_", Path(frame.source_id).stem).strip("_")[-40:]
    return "_".join(part for part in (stamp, origin, f"{frame.index:06d}", result.verdict.value) if part)


def _stamp(seconds: float) -> str:
    captured_at = datetime.fromtimestamp(seconds, timezone.utc)
    return f"{captured_at:%Y%m%dT%H%M%S}.{captured_at.microsecond // 1000:03d}Z"


def _claim(path: Path) -> bool:
    """Make an empty file unless there is one; two runs that share a folder never take the same name."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:
        return False
    return True


def _whole_overlay(frame: Frame, result: AnomalyResult) -> Image | None:
    """Return the result's overlay if it covers the whole frame, whose own pixels are then not needed."""
    if result.overlay is None or frame.image is None or result.overlay.shape[:2] != frame.image.shape[:2]:
        return None
    return result.overlay
