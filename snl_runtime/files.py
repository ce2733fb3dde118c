"""Files that are either the old ones or the new ones, never half of each."""

import contextlib
import errno
import hashlib
import logging
import os
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from snl_runtime.errors import SinkError
from snl_runtime.text import printable

logger = logging.getLogger(__name__)

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_PROBE_BYTES = 4096
"""A block of a file system: a full disk still takes empty files."""
_NO_LOCKS_HERE = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP})
"""What a file system says that has no locks, as some network drives."""


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path in the same folder that replaces ``path`` when the block ends without an error.

    The temporary file keeps the suffix, because writers choose the format by it, and its name starts with a dot, so that no listing of images picks
    it up. It is flushed to the disk before the replacement; on any error it is removed and ``path`` keeps its old content.

    Raises:
        SinkError: If the file cannot be written (no folder, no permission, full disk); the message names ``path``.
    """
    target = Path(path)
    temporary = _temporary_path(target)
    try:
        yield temporary
        _flush_to_disk(temporary)
        temporary.replace(target)
        _flush_folder(target.parent)
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` so that a reader sees the old file or the whole new one, also after a power cut.

    Raises:
        SinkError: If the file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_new_file(path: str | os.PathLike[str], data: bytes, *, mode: int) -> None:
    """Write a file that must not exist, with these permissions from its first moment on (less what the umask takes), and flush it to the disk.

    Raises:
        OSError: If it exists (``FileExistsError``) or cannot be written; half a file is removed.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
    try:
        with open(handle, "wb") as file:  # noqa: PTH123 - an open handle has no path
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        Path(path).unlink()
        raise


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 with the guarantees of ``atomic_write_bytes``; line ends are kept, names that are not UTF-8 shown with escapes."""
    atomic_write_bytes(path, printable(text).encode("utf-8"))


def check_writable(path: str | os.PathLike[str], *, append: bool = False) -> None:
    """Refuse a file that could not be written, before the work whose result goes into it; leave nothing behind.

    Creates and removes a file in the folder, because permissions alone do not tell: the disk may be full, read-only or mounted elsewhere.

    Args:
        path: The file that will be written.
        append: It will be opened where it lies, as a log is, and not replaced: then a device or a pipe will do.

    Raises:
        SinkError: If its folder does not exist or takes no file, or ``path`` is a folder, no regular file or write-protected.
    """
    target = Path(path)
    try:
        _refuse_unwritable(target, append=append)
    except OSError as error:
        raise _cannot_write(target, error) from error


@contextlib.contextmanager
def exclusive_lock(path: str | os.PathLike[str], *, what: str, blocking: bool) -> Iterator[None]:
    """Hold ``path`` against every other process and thread that asks for the same lock.

    The lock is held on ``.NAME.lock`` beside ``path``, which goes with it. The system releases it when the holder ends, however it ends; a file that
    a killed holder left locks nobody out. On a file system without locks the block runs without one, and a warning says so.

    Args:
        path: What is protected; it need not exist, its folder must.
        what: Who holds it, for the message, e.g. ``training``.
        blocking: Whether to wait for the holder; otherwise it is an error.

    Raises:
        SinkError: If the lock file cannot be made, or another process holds the lock and ``blocking`` is false.
    """
    target = Path(path)
    lock_file = target.with_name(f".{target.name}.lock")
    handle = -1
    try:
        while handle < 0:
            handle = _open_locked(lock_file, target, blocking=blocking)
    except BlockingIOError as error:
        raise SinkError(f"{target} is in use by another {what}; wait until that ends or choose another path") from error
    except OSError as error:
        raise _cannot_write(target, error) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows keeps a file that is open
            lock_file.unlink()
        os.close(handle)  # releases the lock


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of a file's bytes as 64 hexadecimal digits.

    Raises:
        OSError: If the file cannot be read; the caller knows which role the file has and words the message.
    """
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_bytes(data: bytes) -> str:
    """Return the sha256 of ``data`` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def _refuse_unwritable(target: Path, *, append: bool) -> None:
    folder = target.absolute().parent
    if target.is_dir():
        raise SinkError(f"cannot write {target}: it is a folder; name a file, e.g. {target / 'x'}")
    if not folder.is_dir():
        raise SinkError(f"cannot write {target}: there is no folder {folder}; make it first")
    if target.exists():
        if not os.access(target, os.W_OK):
            raise SinkError(f"cannot write {target}: it is write-protected; name another file or change its permissions")
        if append:
            return
        if not target.is_file():
            raise SinkError(f"cannot write {target}: it is a device or a pipe, which a file would replace; name another file")
    probe = _temporary_path(target)
    try:
        probe.write_bytes(bytes(_PROBE_BYTES))
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def _temporary_path(target: Path) -> Path:
    return target.with_name(f".{target.stem}.{secrets.token_hex(6)}{target.suffix}")


def _cannot_write(target: Path, error: OSError) -> SinkError:
    return SinkError(f"cannot write {target}: {error.strerror or error}; check the folder, its permissions and the free space")


def _open_lock_file(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY)  # another user of the folder made it; that is enough to lock it


def _open_locked(lock_file: Path, target: Path, *, blocking: bool) -> int:
    """Return a handle that holds the lock, or -1 if the file was removed by its last holder while this waited for it."""
    handle = _open_lock_file(lock_file)
    try:
        _lock(handle, target, blocking=blocking)
        if os.path.samestat(os.fstat(handle), lock_file.stat()):
            return handle
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return -1


def _lock(handle: int, target: Path, *, blocking: bool) -> None:
    """Lock an open file.

    Raises:
        BlockingIOError: If another holds it and nobody wants to wait.
    """
    try:
        if sys.platform == "win32":
            _lock_on_windows(handle, blocking=blocking)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
        logger.warning("%s cannot be locked (%s): change it from one place at a time", target, error.strerror or error)


if sys.platform == "win32":

    def _lock_on_windows(handle: int, *, blocking: bool) -> None:
        import msvcrt

        while True:
            try:
                return msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            except PermissionError as error:
                if not blocking:
                    raise BlockingIOError from error
                time.sleep(0.01)  # the system's own waiting gives up after 10 s


def _flush_to_disk(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    # Windows cannot open a folder; there the rename itself is journalled.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
