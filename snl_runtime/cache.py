"""The folder of what can be made again: engines, their timings, compiled kernels. No fault in it ends anything; it costs the time to make them."""

import contextlib
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from snl_runtime.errors import SinkError
from snl_runtime.files import atomic_path, sha256_bytes, write_new_file

logger = logging.getLogger(__name__)

_DIGEST_BYTES = 64
_warned: set[tuple[Path, str]] = set()
"""What was said in this process already."""


def default_cache_folder() -> Path | None:
    """Return ``$SNL_EDGE_CACHE``, else the user's cache folder for this SDK; None for a user without a home."""
    named = os.environ.get("SNL_EDGE_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "snl-edge" / "engines"
    except RuntimeError:  # a service whose user has no entry
        return None


@dataclass(frozen=True, slots=True)
class Cache:
    """Entries in a folder, each whole or not there, for the user's eyes only: a GPU runs what lies here.

    Attributes:
        folder: Where; None keeps nothing.
    """

    folder: Path | None

    @classmethod
    def at(cls, folder: Path | None) -> "Cache":
        """Return the cache in ``folder``, in the default one for None."""
        return cls(default_cache_folder() if folder is None else folder)

    def read(self, name: str) -> bytes | None:
        """Return an entry, None if it is not there, cannot be read or is damaged; reading makes it the last to be evicted."""
        if self.folder is None:
            return None
        path = self.folder / name
        try:
            stored = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            _warn_once(self.folder, "read", error.strerror or str(error))
            return None
        digest, content = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
        if content and sha256_bytes(content).encode("ascii") == digest:
            with contextlib.suppress(OSError):  # a folder that is only read
                os.utime(path)
            return content
        logger.warning("%s in the cache is damaged; it is made anew", path)
        return None

    def write(self, name: str, content: bytes) -> None:
        """Keep an entry if that is possible."""
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with atomic_path(self.folder / name) as temporary:
                write_new_file(temporary, sha256_bytes(content).encode("ascii") + content, mode=0o600)
        except (OSError, SinkError) as error:
            _warn_once(self.folder, "written", str(error))

    def evict(self, suffix: str, limit_bytes: int) -> None:
        """Drop the entries with this suffix that were not used for longest, until they fit the limit; the newest one stays."""
        if self.folder is None:
            return
        used: list[tuple[float, int, Path]] = []
        for path in self.folder.glob(f"*{suffix}"):
            with contextlib.suppress(OSError):  # another process dropped it
                status = path.stat()
                used.append((status.st_mtime, status.st_size, path))
        total_bytes = sum(size for _, size, _ in used)
        for _, size, path in sorted(used)[:-1]:
            if total_bytes <= limit_bytes:
                break
            total_bytes -= size
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _warn_once(folder: Path, how: str, why: str) -> None:
    if (folder, how) in _warned:
        return
    _warned.add((folder, how))
    remedy = "engines and kernels are made anew at each start; name another folder with SNL_EDGE_CACHE"
    logger.warning("the cache %s cannot be %s (%s): %s", folder, how, why, remedy)
