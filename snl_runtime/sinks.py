"""Where verdicts go: a file of records, standard output, folders of pictures."""

import contextlib
import errno
import json
import math
import os
import re
import sys
import time
from collections.abc import Collection
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO, TypeVar

import numpy as np

from snl_runtime.errors import SinkError
from snl_runtime.files import atomic_write_bytes
from snl_runtime.opencv import load_opencv
from snl_runtime.overlay import render_overlay
from snl_runtime.preprocess import FrameError, to_rgb
from snl_runtime.types import AnomalyResult, Frame, Image, OutputRequest, Verdict

RECORD_SCHEMA = 1
SYNC_INTERVAL_S = 1.0
"""Most seconds of records that a power cut can take; a killed process takes none."""

_TAIL_BYTES = 1 << 20
_FIRST_BYTES = b'{"record":'
"""What a file of records begins with."""
_NOT_SYNCABLE = frozenset({errno.EINVAL, errno.EROFS, errno.ENOTSUP})
"""What fsync says of a pipe or a device, where there is nothing to force to a disk."""


class Sink(AbstractContextManager["Sink"], Protocol):
    """Takes verdicts somewhere: a file, a PLC, a screen. Entered, used and left on one thread."""

    def emit(self, frame: Frame, result: AnomalyResult) -> None:
        """Deliver one verdict; may block, which holds the detector back.

        Raises:
            SinkError: If the verdict could not be delivered; the sink then gets no further one.
        """
        ...


def record_line(frame: Frame, result: AnomalyResult) -> str:
    """Return the record of one verdict as one line of strict JSON, without the line end.

    Numbers that are not finite become null. ``latency_ms`` runs from the capture of the frame to this call.
    """
    timings = result.timings
    record = {
        "record": RECORD_SCHEMA,
        "frame_index": frame.index,
        "source_id": _text(frame.source_id),
        "device_frame_id": frame.device_frame_id,
        "captured_at": _iso_time(frame.captured_at),
        "product": None if result.product is None else _text(result.product),
        "score": _number(result.score),
        "threshold": _number(result.threshold),
        "reject_threshold": _number(result.reject_threshold),
        "verdict": result.verdict.value,
        "reason_code": result.reason_code,
        "reason": _text(result.reason),
        "regions": [
            {"box_xyxy": [int(edge) for edge in region.box_xyxy], "score": _number(region.score), "area_px": int(region.area_px)}
            for region in result.regions
        ],
        "stage_ms": {
            "preprocess": _number(timings.preprocess_ms, 3),
            "infer": _number(timings.infer_ms, 3),
            "decide": _number(timings.decide_ms, 3),
            "total": _number(timings.total_ms, 3),
        },
        "latency_ms": _number((time.monotonic_ns() - frame.captured_ns) / 1e6, 3),
        "model_sha256": result.model_sha256,
    }
    return json.dumps(record, allow_nan=False, ensure_ascii=False)


class JsonlSink:
    """Appends one JSON record per line to a file.

    Each record reaches the operating system in one write before the next verdict is taken, so a killed process leaves every record whose ``emit``
    returned; it is forced to the disk once a second and at the end. The one being written may be left as half a line, without its newline: Linux
    ends a write between two pages when the process is killed. The file has no header: a second run appends, and removes half a line first. If a
    record does not fit on the disk, what was written of it is taken back.

    Args:
        path: The file; its folder must exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._handle: int | None = None
        self._synced_s = 0.0

    def __enter__(self) -> "JsonlSink":
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise self._cannot_write(error) from error
        try:
            self._lock(handle)
            self._remove_half_line(handle)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        self._synced_s = time.monotonic()
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        handle, self._handle = self._handle, None
        if handle is None:
            return
        try:
            _sync(handle)
        except OSError as error:
            raise self._cannot_write(error) from error
        finally:
            os.close(handle)

    def emit(self, frame: Frame, result: AnomalyResult) -> None:
        """Append one record."""
        if self._handle is None:
            raise SinkError(f"{self.path} is not open; enter the sink before it is used")
        try:
            _write_whole(self._handle, (record_line(frame, result) + "\n").encode("utf-8"))
            if time.monotonic() - self._synced_s >= SYNC_INTERVAL_S:
                _sync(self._handle)
                self._synced_s = time.monotonic()
        except OSError as error:
            raise self._cannot_write(error) from error

    def _lock(self, handle: int) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SinkError(f"{self.path} is being written by another process; give each station its own file") from error
        except OSError:
            return  # a device or a network drive without locks

    def _remove_half_line(self, handle: int) -> None:
        with contextlib.suppress(OSError):
            size_bytes = os.lseek(handle, 0, os.SEEK_END)
            if size_bytes == 0:
                return
            os.lseek(handle, 0, os.SEEK_SET)
            head = os.read(handle, len(_FIRST_BYTES))
            if head != _FIRST_BYTES and not (len(head) == size_bytes and _FIRST_BYTES.startswith(head)):  # the latter: a first record cut early
                raise SinkError(f"{self.path} exists and does not hold inspection records; name another file, records are only appended")
            tail_start = max(0, size_bytes - _TAIL_BYTES)
            os.lseek(handle, tail_start, os.SEEK_SET)
            whole_bytes = tail_start + os.read(handle, _TAIL_BYTES).rfind(b"\n") + 1
            if whole_bytes < size_bytes:
                os.ftruncate(handle, whole_bytes)

    def _cannot_write(self, error: OSError) -> SinkError:
        return SinkError(f"cannot write records to {self.path}: {error.strerror or error}; check the folder, its permissions and the free space")


class StreamSink:
    """Writes one JSON record per line to a text stream, flushed after each; standard output if none is given."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stdout

    def __enter__(self) -> "StreamSink":
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        """Leave the stream open: it belongs to the process."""

    def emit(self, frame: Frame, result: AnomalyResult) -> None:
        """Write one record."""
        try:
            self._stream.write(record_line(frame, result) + "\n")
            self._stream.flush()
        except (OSError, ValueError) as error:
            raise SinkError(f"cannot write records to standard output: {error}; use --jsonl FILE") from error


_Folder = TypeVar("_Folder", bound="_FolderSink")


class _FolderSink:
    """A folder that pictures are added to; nothing in it is ever overwritten."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def __enter__(self: _Folder) -> _Folder:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SinkError(f"cannot make the folder {self.folder}: {error.strerror or error}; check the path and its permissions") from error
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        """Nothing is held between two pictures."""

    def _free_path(self, frame: Frame, result: AnomalyResult, suffix: str) -> Path:
        origin = re.sub(r"[^A-Za-z0-9]+", "_", Path(frame.source_id).stem).strip("_")[-40:]
        name = f"{frame.index:06d}_{result.verdict.value}" + (f"_{origin}" if origin else "")
        path = self.folder / f"{name}{suffix}"
        repeat = 2
        while path.exists():
            path = self.folder / f"{name}_{repeat}{suffix}"
            repeat += 1
        return path


class RejectSaver(_FolderSink):
    """Saves the untouched frame of every verdict other than PASS, as ``000012_REJECT_<source>.png``.

    A frame without a picture has nothing to save; its record says why. A frame that PNG cannot hold is saved as ``.npy``.
    """

    def emit(self, frame: Frame, result: AnomalyResult) -> None:
        """Save one frame unless it passed."""
        if result.verdict is Verdict.PASS or not isinstance(frame.image, np.ndarray):
            return
        encoded = _encode_png(frame)
        if encoded is not None:
            atomic_write_bytes(self._free_path(frame, result, ".png"), encoded)
            return
        path = self._free_path(frame, result, ".npy")
        try:
            np.save(path, frame.image, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise SinkError(f"cannot write {path}: {error}") from error


class OverlaySaver(_FolderSink):
    """Saves frames with verdict, heat map and regions drawn over them, as ``000012_REJECT_<source>.jpg``, for people to look at.

    The heat map of a result that carries an overlay was blended on a GPU; only outlines and banner are drawn here then.

    Args:
        folder: Where the pictures go.
        verdicts: Verdicts that are saved.
    """

    def __init__(self, folder: str | os.PathLike[str], *, verdicts: Collection[Verdict] = tuple(Verdict)) -> None:
        super().__init__(folder)
        self._verdicts = frozenset(verdicts)

    @property
    def outputs(self) -> OutputRequest:
        """What a detector on a GPU should add to results: overlays of the frames that are saved, and nothing that would cost its host time."""
        return OutputRequest(overlay=True, verdicts=self._verdicts - {Verdict.ERROR}, device_only=True)

    def emit(self, frame: Frame, result: AnomalyResult) -> None:
        """Save one overlay unless the verdict is not wanted or the frame has no picture."""
        if result.verdict not in self._verdicts:
            return
        image_rgb = _whole_overlay(frame, result)
        if image_rgb is None:
            try:
                image_rgb = to_rgb(frame.image, frame.color, result.bit_depth)
            except FrameError:
                return  # nothing to draw on; the record says what is wrong with the frame
        cv2 = load_opencv()
        _, encoded = cv2.imencode(".jpg", render_overlay(image_rgb, result)[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
        atomic_write_bytes(self._free_path(frame, result, ".jpg"), encoded.tobytes())


def _whole_overlay(frame: Frame, result: AnomalyResult) -> Image | None:
    """Return the result's overlay if it covers the whole frame, whose own pixels are then not needed."""
    if result.overlay is None or frame.image is None or result.overlay.shape[:2] != frame.image.shape[:2]:
        return None
    return result.overlay


def _encode_png(frame: Frame) -> bytes | None:
    cv2 = load_opencv()
    image: Any = frame.image
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.dtype not in (np.uint8, np.uint16) or image.ndim not in (2, 3) or image.size == 0 or channels not in (1, 3, 4):
        return None
    if frame.color == "rgb" and channels == 3:
        image = image[:, :, ::-1]
    if frame.color == "rgba" and channels == 4:
        image = image[:, :, [2, 1, 0, 3]]
    _, encoded = cv2.imencode(".png", np.ascontiguousarray(image))
    return bytes(encoded.tobytes())


def _write_whole(handle: int, data: bytes) -> None:
    """Write all of ``data`` or none of it."""
    written = 0
    try:
        while written < len(data):
            written += os.write(handle, data[written:])
    except OSError:
        with contextlib.suppress(OSError):  # a pipe or a device cannot be shortened
            os.ftruncate(handle, os.fstat(handle).st_size - written)
        raise


def _sync(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NOT_SYNCABLE:
            raise


def _text(text: str) -> str:
    """Return text that UTF-8 can hold; a file name of another encoding is shown with escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _number(value: float, digits: int | None = None) -> float | None:
    value = float(value)
    if not math.isfinite(value):
        return None
    return value if digits is None else round(value, digits)


def _iso_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
