"""A folder that another program writes images into, as a frame source."""

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy.typing as npt

from snl_runtime.errors import ConfigError, DataError, SourceOpenError, SourceStalledError
from snl_runtime.images.files import read_frame
from snl_runtime.images.listing import display_name, list_pattern
from snl_runtime.line.handoff import OverflowPolicy
from snl_runtime.line.sources.arrivals import Arrivals, Identity, identity_of
from snl_runtime.line.sources.base import FrameStamper, SourceCounters
from snl_runtime.line.sources.judged_files import JudgedFiles, KeptFiles, MovedFiles, RememberedFiles
from snl_runtime.types import Frame

SHARE_OF_LOOKING = 0.1
"""Most of the time that goes into looking: a folder of 100,000 files is looked at less often."""
STATE_FILE = ".snl-judged.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedFolderConfig:
    """A folder whose image files are inspected as they come, each once."""

    folder: str
    """The folder; folders in it are not looked into."""
    complete: Literal["settled", "renamed"] = "settled"
    """When a file may be read: once it has not changed for ``settle_s``, or at once because its writer renames it into place when it is whole."""
    settle_s: float = 1.0
    """How long a file must not change, in seconds."""
    give_up_s: float = 30.0
    """How long a file that cannot be read to its end may stay unchanged before it is an ERROR, in seconds."""
    poll_interval_s: float = 0.2
    """Pause between two looks, in seconds."""
    done: Literal["move", "remember", "keep"] = "move"
    """What settles that a file was handed over: it is ``move``d to ``done_folder``; its name, size and time are written to a file
    (``remember``); or nothing outlives the process (``keep``): what still lies there at the next start is inspected again."""
    done_folder: str | None = None
    """Where judged files go; the folder ``done`` in the watched one if None. On the same file system."""
    ignored_suffixes: tuple[str, ...] = (".tmp", ".temp", ".part", ".partial", ".filepart", ".crdownload")
    """Ends of names that a writer uses until a file is whole."""

    def __post_init__(self) -> None:
        for key in ("settle_s", "give_up_s", "poll_interval_s"):
            if not 0 < getattr(self, key) < math.inf:
                raise ConfigError(f"watched_folder.{key} must be a positive number of seconds, got {getattr(self, key)}")
        if self.give_up_s < self.settle_s:
            raise ConfigError(f"watched_folder.give_up_s must be at least settle_s ({self.settle_s:g}), got {self.give_up_s:g}")
        if self.done_folder is not None and self.done != "move":
            raise ConfigError(f"watched_folder.done_folder needs watched_folder.done move, got {self.done}")


class WatchedFolderSource:
    """The images that arrive in a folder, each once, when it is written to its end.

    A file is offered when it does not change any more and decodes to its end; one that stays unreadable becomes a frame without an image. The order
    is that in which files were seen to be whole, within one look by modification time, then by name. What is no image is left alone.

    It is settled that a file was handed over right before it is: a process that is killed never judges a file twice, and the few files that it had
    in hand then have no record.

    Args:
        config: Which folder, and how.
        product: Product of all its frames; None if unknown.
    """

    def __init__(self, config: WatchedFolderConfig, *, product: str | None = None) -> None:
        self._config = config
        self._folder = Path(config.folder)
        settle_s = config.settle_s if config.complete == "settled" else 0.0
        self._arrivals = Arrivals(self._folder, settle_s=settle_s, ignored_suffixes=tuple(one.lower() for one in config.ignored_suffixes))
        self._judged = self._judged_files()
        self._unreadable: dict[str, tuple[Identity, str]] = {}
        self._stamper = FrameStamper(display_name(self._folder), product=product, color="rgb")
        self._resources = contextlib.ExitStack()

    @property
    def policy(self) -> OverflowPolicy:
        """EVERY: each file is a part."""
        return OverflowPolicy.EVERY

    @property
    def counters(self) -> SourceCounters:
        """Files that could not be read."""
        return SourceCounters(frames_faulty=self._stamper.faults)

    def __enter__(self) -> "WatchedFolderSource":
        try:
            os.scandir(self._folder).close()
        except OSError as error:
            name = display_name(self._folder)
            raise SourceOpenError(f"cannot watch {name}: {error.strerror or error}; make the folder first, and name it as the writer does") from error
        self._resources.enter_context(self._judged)
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        self._resources.close()

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield one RGB frame per file, uint8 or uint16 as it is stored, until ``stop`` is set.

        Raises:
            SourceStalledError: If the folder can no longer be listed.
            SourceError: If a file cannot be moved or remembered; it is not judged.
        """
        while not stop.is_set():
            began_s = time.monotonic()
            try:
                settled = self._arrivals.look()
            except OSError as error:
                raise SourceStalledError(f"cannot list {display_name(self._folder)} any more: {error.strerror or error}; start again") from error
            looked_s = time.monotonic() - began_s
            self._unreadable = {name: known for name, known in self._unreadable.items() if self._arrivals.is_waiting(name)}
            for name, identity in settled:
                if stop.is_set():
                    return
                yield from self._try(name, identity)
            stop.wait(max(self._config.poll_interval_s, looked_s / SHARE_OF_LOOKING))

    def _try(self, name: str, identity: Identity) -> list[Frame]:
        """Return the file's frame, nothing while it has to be waited for."""
        if not self._was_unreadable(name, identity):
            return self._read(name, identity)
        if self._arrivals.unchanged_s(name) < self._config.give_up_s:
            return []
        _, why = self._unreadable[name]
        return self._hand_over(name, identity, None, f"{why} (not whole after {self._config.give_up_s:g} s without a change)")

    def _was_unreadable(self, name: str, identity: Identity) -> bool:
        return name in self._unreadable and self._unreadable[name][0] == identity

    def _read(self, name: str, identity: Identity) -> list[Frame]:
        path = self._folder / name
        try:
            rejected = list_pattern(path).rejected
        except DataError:  # it begins like no image, or it is gone
            if path.exists():
                self._arrivals.finish(name, identity)
            return []
        try:
            if rejected:
                raise DataError(str(rejected[0]))
            image = read_frame(path)
        except DataError as error:
            self._unreadable[name] = (identity, str(error))
            return []
        return self._hand_over(name, identity, image, None)

    def _hand_over(self, name: str, identity: Identity, image: npt.NDArray[Any] | None, fault: str | None) -> list[Frame]:
        path = self._folder / name
        self._unreadable.pop(name, None)
        try:
            if identity_of(path.stat()) != identity:  # its writer went on while it was read
                return []
        except OSError:
            return []
        return [self._stamper.stamp(image, fault=fault, source_id=str(path))] if self._judged.claim(name, identity) else []

    def _judged_files(self) -> JudgedFiles:
        if self._config.done == "remember":
            return RememberedFiles(self._folder, self._folder / STATE_FILE, self._arrivals)
        if self._config.done == "keep":
            return KeptFiles(self._arrivals)
        done = self._folder / "done" if self._config.done_folder is None else Path(self._config.done_folder)
        return MovedFiles(self._folder, done, self._arrivals)
