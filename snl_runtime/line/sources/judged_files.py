"""What a watched folder does with a file once it was handed over, so that no restart hands it over again."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol

from snl_runtime.errors import SinkError, SourceError, SourceOpenError
from snl_runtime.files import atomic_write_text
from snl_runtime.images.listing import display_name
from snl_runtime.line.sources.arrivals import Arrivals, Identity
from snl_runtime.text import to_json


class JudgedFiles(Protocol):
    """Where it is kept which files were handed over."""

    def __enter__(self) -> "JudgedFiles":
        """Get ready, and tell the arrivals what earlier runs have handed over."""
        ...

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None: ...

    def claim(self, name: str, identity: Identity) -> bool:
        """Settle that this process hands over the file; False if another one took it first.

        Raises:
            SourceError: If that cannot be settled: the file would be handed over again after a restart.
        """
        ...


class MovedFiles:
    """Moves each file to another folder of the same file system, which one process alone can do."""

    def __init__(self, folder: Path, done: Path, arrivals: Arrivals) -> None:
        self._folder = folder
        self._done = done
        self._arrivals = arrivals

    def __enter__(self) -> "MovedFiles":
        try:
            self._done.mkdir(exist_ok=True)
            probe = self._folder / f".{os.getpid()}.probe"
            probe.write_bytes(b"")
            probe.replace(self._done / probe.name)
            (self._done / probe.name).unlink()
        except OSError as error:
            what = "lies on another file system" if error.errno == errno.EXDEV else str(error.strerror or error)
            raise SourceOpenError(
                f"cannot move judged files to {display_name(self._done)}: {what}; name a folder beside or in the watched one, or set done: remember"
            ) from error
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        """Nothing is held."""

    def claim(self, name: str, identity: Identity) -> bool:  # noqa: ARG002 - part of the protocol
        """Move the file; see :class:`JudgedFiles`."""
        try:
            (self._folder / name).rename(self._free_name(name))
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not (self._folder / name).exists():
                return False
            raise SourceError(
                f"cannot move {display_name(self._folder / name)} to {display_name(self._done)}: {error.strerror or error}; it was not judged"
            ) from error
        finally:
            self._arrivals.forget(name)
        return True

    def _free_name(self, name: str) -> Path:
        target = self._done / name
        number = 2
        while target.exists():
            target = self._done / f"{Path(name).stem}-{number}{Path(name).suffix}"
            number += 1
        return target


class RememberedFiles:
    """Leaves each file where it is and appends its name, size and time to a file of JSON lines."""

    def __init__(self, folder: Path, state: Path, arrivals: Arrivals) -> None:
        self._folder = folder
        self._state = state
        self._arrivals = arrivals
        self._file: IO[str] | None = None

    def __enter__(self) -> "RememberedFiles":
        kept = {name: identity for name, identity in self._read().items() if (self._folder / name).exists()}
        try:
            atomic_write_text(self._state, "".join(_line(name, identity) for name, identity in kept.items()))  # without those that are gone
        except SinkError as error:
            raise SourceOpenError(str(error)) from error
        for name, identity in kept.items():
            self._arrivals.finish(name, identity)
        self._file = self._state.open("a", encoding="ascii")
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def claim(self, name: str, identity: Identity) -> bool:
        """Write the file's line and flush it to the disk; see :class:`JudgedFiles`."""
        try:
            assert self._file is not None
            self._file.write(_line(name, identity))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise SourceError(f"cannot write {self._state}: {error.strerror or error}; {display_name(name)} was not judged") from error
        self._arrivals.finish(name, identity)
        return True

    def _read(self) -> dict[str, Identity]:
        if not self._state.exists():
            return {}
        found = {}
        for number, line in enumerate(self._state.read_bytes().split(b"\n")[:-1], 1):  # what follows the last line end was not settled
            try:
                name, *values = json.loads(line)
                found[os.fsdecode(bytes.fromhex(name))] = Identity(*map(int, values))
            except (ValueError, TypeError) as error:
                raise SourceOpenError(
                    f"line {number} of {self._state} is damaged; remove the file, then every file in the folder counts as new"
                ) from error
        return found


class KeptFiles:
    """Remembers within this process only."""

    def __init__(self, arrivals: Arrivals) -> None:
        self._finish: Callable[[str, Identity], None] = arrivals.finish

    def __enter__(self) -> "KeptFiles":
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        """Nothing is held."""

    def claim(self, name: str, identity: Identity) -> bool:
        """Remember the file; see :class:`JudgedFiles`."""
        self._finish(name, identity)
        return True


def _line(name: str, identity: Identity) -> str:
    return to_json([os.fsencode(name).hex(), *identity]) + "\n"  # in hex, because a name need not be text
