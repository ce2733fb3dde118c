"""A file of records that is appended to, rotated at a size, and whole whenever the process dies."""

import contextlib
import errno
import logging
import os
import re
import stat
import time
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

from snl_runtime.errors import ConfigError, SinkError
from snl_runtime.files import exclusive_lock
from snl_runtime.line.records import record_line
from snl_runtime.types import AnomalyResult, Frame

SYNC_INTERVAL_S = 1.0
"""Most seconds of records that a power cut can take; a killed process takes none."""
ROTATION_RETRY_S = 60.0
"""How long a file that could not be rotated grows before the next try."""

_TAIL_BYTES = 1 << 20
_FIRST_BYTES = b'{"record":'
"""What a file of records begins with."""
_NOT_SYNCABLE = frozenset({errno.EINVAL, errno.EROFS, errno.ENOTSUP})
"""What fsync says of a pipe or a device, where there is nothing to force to a disk."""

logger = logging.getLogger(__name__)


class JsonlSink:
    """Appends one JSON record per line to a file.

    Each record reaches the operating system in one write before the next verdict is taken, so a killed process leaves every record whose ``emit``
    returned; it is forced to the disk once a second and at the end. The one being written may be left as half a line, without its newline: Linux
    ends a write between two pages when the process is killed. The file has no header: a second run appends, and removes half a line first. If a
    record does not fit on the disk, what was written of it is taken back.

    A full file is renamed in one step between two records, so no record is ever in two files or in none. ``verdicts.jsonl`` becomes
    ``verdicts-20261128T065326.123456Z-0001.jsonl``; these names sort by age, also after the clock was set back, and none is used twice. A file that
    cannot be renamed grows on, with one warning. One process writes at a time: it holds ``.verdicts.jsonl.lock`` beside the file through every
    rotation.

    Args:
        path: The file; its folder must exist.
        max_bytes: Size at which the file is rotated, None for never; a longer record gets a file of its own.

    Raises:
        ConfigError: If ``max_bytes`` is not positive.
    """

    def __init__(self, path: str | os.PathLike[str], *, max_bytes: int | None = None) -> None:
        if max_bytes is not None and max_bytes <= 0:
            raise ConfigError(f"max_bytes must be positive, got {max_bytes}")
        self.path = Path(path)
        self._file = Path(os.path.realpath(path))  # a link is kept, and the file that it names is rotated where it lies
        self._max_bytes = max_bytes
        self._handle: int | None = None
        self._lock = contextlib.ExitStack()
        self._size_bytes = 0
        self._synced_s = 0.0
        self._rotate_from_s = 0.0
        self._last_age = ("", 0)

    def __enter__(self) -> "JsonlSink":
        try:
            with contextlib.ExitStack() as opened:
                if self._is_file():
                    opened.enter_context(exclusive_lock(self._file, what="writer of records", blocking=False))
                elif self._max_bytes is not None:
                    raise SinkError(f"{self.path} is a device or a pipe, which cannot be rotated; leave the size limit out or name a file")
                self._open()
                opened.callback(self._close)
                self._remove_half_line()
                self._lock = opened.pop_all()
        except OSError as error:
            raise self._cannot_write(error) from error
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        with self._lock:
            if self._handle is None:
                return
            try:
                _sync(self._handle)
            except OSError as error:
                raise self._cannot_write(error) from error

    def emit(self, frame: Frame, result: AnomalyResult) -> None:
        """Append one record.

        Raises:
            SinkError: If it could not be written, or the file was deleted meanwhile.
        """
        data = (record_line(frame, result) + "\n").encode("ascii")
        try:
            if self._is_full(len(data)):
                self._rotate()
            if self._handle is None:
                raise SinkError(f"{self.path} is not open; enter the sink before it is used")
            _write_whole(self._handle, data)
            status = os.fstat(self._handle)
            if time.monotonic() - self._synced_s >= SYNC_INTERVAL_S:
                _sync(self._handle)
                self._synced_s = time.monotonic()
        except OSError as error:
            raise self._cannot_write(error) from error
        if status.st_nlink == 0 and stat.S_ISREG(status.st_mode):
            raise SinkError(f"{self.path} was deleted while records were written to it; move a file away only when the line stands, or rotate it")
        self._size_bytes = status.st_size

    def _is_file(self) -> bool:
        return not self._file.exists() or self._file.is_file()

    def _is_full(self, next_bytes: int) -> bool:
        if self._max_bytes is None or not 0 < self._size_bytes > self._max_bytes - next_bytes:
            return False
        return time.monotonic() >= self._rotate_from_s

    def _rotate(self) -> None:
        if self._handle is None:
            return
        _sync(self._handle)
        self._close()  # Windows renames no open file
        try:
            self._file.rename(self._rotated_path())
        except OSError as error:
            self._rotate_from_s = time.monotonic() + ROTATION_RETRY_S
            logger.warning("%s cannot be rotated and grows on: %s", self.path, error.strerror or error)
        self._open()

    def _rotated_path(self) -> Path:
        """Return a name later than all that are or were there, whatever the clock says; the number tells names of one time apart."""
        pattern = re.compile(re.escape(self._file.stem) + r"-(\d{8}T\d{6}\.\d{6}Z)-(\d{4,})" + re.escape(self._file.suffix))
        matches = (pattern.fullmatch(entry.name) for entry in self._file.parent.iterdir())
        last_stamp, last_number = max([self._last_age, *((match[1], int(match[2])) for match in matches if match)])
        now = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S.%fZ}"
        self._last_age = stamp, number = (now, 1) if now > last_stamp else (last_stamp, last_number + 1)
        return self._file.with_name(f"{self._file.stem}-{stamp}-{number:04d}{self._file.suffix}")

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        self._handle = os.open(self._file, flags, 0o666)
        self._size_bytes = os.fstat(self._handle).st_size
        self._synced_s = time.monotonic()

    def _close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def _remove_half_line(self) -> None:
        handle, size_bytes = self._handle, self._size_bytes
        if handle is None or size_bytes == 0:
            return
        with contextlib.suppress(OSError):  # a device or a pipe has no beginning to go back to
            os.lseek(handle, 0, os.SEEK_SET)
            head = os.read(handle, len(_FIRST_BYTES))
            if head != _FIRST_BYTES and not (len(head) == size_bytes and _FIRST_BYTES.startswith(head)):  # the latter: a first record cut early
                raise SinkError(f"{self.path} exists and does not hold inspection records; name another file, records are only appended")
            tail_start = max(0, size_bytes - _TAIL_BYTES)
            os.lseek(handle, tail_start, os.SEEK_SET)
            whole_bytes = tail_start + os.read(handle, _TAIL_BYTES).rfind(b"\n") + 1
            if whole_bytes < size_bytes:
                os.ftruncate(handle, whole_bytes)
                self._size_bytes = whole_bytes

    def _cannot_write(self, error: OSError) -> SinkError:
        return SinkError(f"cannot write records to {self.path}: {error.strerror or error}; check the folder, its permissions and the free space")


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
