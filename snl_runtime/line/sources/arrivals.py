"""Which files of a folder are new, and which of them are written to their end."""

import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from snl_runtime.images.listing import is_junk


class Identity(NamedTuple):
    """What changes when a file is written to, or replaced by another one of the same name."""

    inode: int
    size_bytes: int
    modified_ns: int


@dataclass(slots=True, kw_only=True)
class _Waiting:
    identity: Identity
    since_s: float


class Arrivals:
    """Remembers what lies in a folder, by name; what is gone is forgotten, so memory goes with the files that are there.

    Args:
        folder: What to look at, without the folders in it.
        settle_s: How long a file must not change before it is offered.
        ignored_suffixes: Ends of names, lower case, that a writer uses until a file is whole.
    """

    def __init__(self, folder: Path, *, settle_s: float, ignored_suffixes: tuple[str, ...]) -> None:
        self._folder = folder
        self._settle_s = settle_s
        self._ignored = ignored_suffixes
        self._waiting: dict[str, _Waiting] = {}
        self._finished: dict[str, Identity] = {}

    def finish(self, name: str, identity: Identity) -> None:
        """Do not offer this file again, unless it changes or is replaced."""
        self._waiting.pop(name, None)
        self._finished[name] = identity

    def forget(self, name: str) -> None:
        """Treat what comes under this name as new: the file was moved away."""
        self._waiting.pop(name, None)
        self._finished.pop(name, None)

    def is_waiting(self, name: str) -> bool:
        """Return whether a file was there at the last look and is not finished."""
        return name in self._waiting

    def unchanged_s(self, name: str) -> float:
        """Return for how long a file that is offered has not changed, as far as was seen."""
        return time.monotonic() - self._waiting[name].since_s

    def look(self) -> list[tuple[str, Identity]]:
        """Return the settled files that are not finished, by modification time, then by name.

        Raises:
            OSError: If the folder cannot be listed.
        """
        now_s = time.monotonic()
        present = dict(self._scan())
        for known in (self._waiting, self._finished):
            for name in [one for one in known if one not in present]:
                del known[name]
        settled = []
        for name, identity in present.items():
            if self._finished.get(name) == identity:
                continue
            waiting = self._waiting.get(name)
            if waiting is None or waiting.identity != identity:
                self._waiting[name] = waiting = _Waiting(identity=identity, since_s=now_s)
            if now_s - waiting.since_s >= self._settle_s:
                settled.append((name, identity))
        return sorted(settled, key=lambda one: (one[1].modified_ns, one[0]))

    def _scan(self) -> Iterator[tuple[str, Identity]]:
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if is_junk(entry.name) or entry.name.lower().endswith(self._ignored):
                    continue
                try:
                    status = entry.stat()
                except OSError:  # removed or renamed between the listing and this look, or a link to nothing
                    continue
                if stat.S_ISREG(status.st_mode):
                    yield entry.name, identity_of(status)


def identity_of(status: os.stat_result) -> Identity:
    """Return what :class:`Arrivals` compares of a file's status."""
    return Identity(status.st_ino, status.st_size, status.st_mtime_ns)
