"""The one listing of image files that every command uses: what is offered is taken, rejected with the reason, or left out with the reason."""

import collections
import glob
import os
import stat
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from snl_runtime.errors import DataError
from snl_runtime.images.formats import HEAD_BYTES, READABLE_FORMATS, claims_to_be_image, find_format
from snl_runtime.text import printable

_JUNK = frozenset(
    "@eadir @recycle @recently-snapshot @sharebin @tmp #recycle #snapshot ~snapshot $recycle.bin recycler recycled lost+found __macosx thumbs.db "
    "ehthumbs.db ehthumbs_vista.db desktop.ini".split()
) | {"system volume information", "network trash folder", "temporary items", "icon\r"}
"""Files and folders that storage and desktops put between people's own, in lower case."""
_OWN_OUTPUT = "lies in a folder that this run writes to"


@dataclass(frozen=True, slots=True, order=True)
class LeftOut:
    """A file, link or folder that was not taken; ``reason`` is the end of a sentence about it."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{display_name(self.path)} {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What was found; every file is in exactly one of the three, each of them sorted by path.

    Attributes:
        root: What was listed: a folder, a file, or a pattern.
        taken: Files that begin like an image that can be read; whether they can shows when they are.
        rejected: What is or claims to be an image and cannot be taken, and folders that cannot be looked into.
        left_out: What was not offered: other files, junk of storage and desktops, own outputs, second ways to one folder.
    """

    root: Path
    taken: tuple[Path, ...]
    rejected: tuple[LeftOut, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    def below(self, folder: Path) -> list[Path]:
        """Return the taken files in a folder and all folders below it; ``folder`` begins with ``root``."""
        first = bisect_left(self.taken, folder)
        return list(takewhile(lambda path: path.is_relative_to(folder), self.taken[first:]))

    def inside(self, folder: Path) -> list[Path]:
        """Return the taken files that lie directly in a folder."""
        return [path for path in self.below(folder) if path.parent == folder]

    def require_all(self) -> "Listing":
        """Return the listing if no image was rejected.

        Raises:
            DataError: Naming the first that was.
        """
        if self.rejected:
            more = f"; {len(self.rejected) - 1} more cannot be taken" if len(self.rejected) > 1 else ""
            raise DataError(f"{self.rejected[0]}{more}")
        return self

    def summary(self) -> str:
        """Return the counts as one line."""
        counts = f"{len(self.taken)} images taken, {len(self.rejected)} cannot be taken, {len(self.left_out)} files left out"
        return f"{display_name(self.root)}: {counts}"


def list_images(root: str | os.PathLike[str], *, exclude: Sequence[Path] = ()) -> Listing:
    """Return the images in a folder and all folders below it, told by content and not by name.

    Links are followed; each folder is visited once, by its own path if that lies below ``root``. At most 132 bytes of each file are read.

    Args:
        root: A folder.
        exclude: Folders that the caller writes images to; what lies in them is left out.

    Raises:
        DataError: If ``root`` is no folder that can be listed, or one of ``exclude``.
    """
    folder = Path(root)
    if not _is_folder(folder):
        raise DataError(f"{display_name(folder)} is not a folder; name a folder that holds images")
    walk = _Walk(exclude)
    if walk.writes_to(folder):
        raise DataError(f"{display_name(folder)} holds the images and {_OWN_OUTPUT}; name another folder for the output")
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise DataError(f"cannot list {display_name(folder)}: {error.strerror or error}") from error
    walk.visit(folder)
    return walk.result(folder)


def list_pattern(pattern: str | os.PathLike[str], *, exclude: Sequence[Path] = ()) -> Listing:
    """Return the images that a folder, a file or a pattern names.

    Args:
        pattern: Where there is nothing of that name, ``*``, ``?``, ``[...]`` and ``**`` (any number of folders) are wildcards; a folder that matches
            is listed with all folders below it.
        exclude: As for :func:`list_images`.

    Raises:
        DataError: If nothing has that name or matches, or a single file is not an image.
    """
    path = Path(pattern)
    if _is_folder(path):
        return list_images(path, exclude=exclude)
    walk = _Walk(exclude)
    if os.path.lexists(path):
        walk.take(path)
        listing = walk.result(path)
        if listing.left_out:
            raise DataError(f"{listing.left_out[0]}; name a folder, an image, or a pattern in quotes such as 'parts/*.png'")
        return listing
    if not glob.has_magic(os.fspath(pattern)):
        raise DataError(f"{display_name(path)} does not exist; name a folder, an image, or a pattern in quotes such as 'parts/*.png'")
    matches = [Path(match) for match in sorted(glob.glob(os.fspath(pattern), recursive=True))]  # noqa: PTH207 - an absolute pattern too
    if not matches:
        raise DataError(f"no file matches {display_name(path)}; the pattern counts from the current folder {display_name(Path.cwd())}")
    fixed = len(list(takewhile(lambda part: not glob.has_magic(part), path.parts)))
    for match in matches:
        if any(is_junk(part) for part in match.parts[fixed:]):
            walk.leave_out(match, "is hidden or junk, or lies in such a folder")
        elif _is_folder(match):
            walk.visit(match)
        else:
            walk.take(match)
    return walk.result(path)


def display_name(path: str | os.PathLike[str]) -> str:
    r"""Return a file's name as text that UTF-8 can hold; bytes that are not UTF-8 become ``\xNN``."""
    return printable(os.fspath(path))


def is_junk(name: str) -> bool:
    """Return whether a file or folder is hidden or was put there by storage or a desktop, not by a person."""
    return name.startswith(".") or name.lower() in _JUNK or name.lower().startswith("thumbs.db:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Why a file is not taken.

    Attributes:
        is_image: Whether it is or claims to be an image, so that it counts as rejected; otherwise it is left out.
        reason: The end of a sentence about it.
    """

    is_image: bool
    reason: str


def refuse_content(path: Path, head: bytes) -> Refused | None:
    """Return why a file that begins with ``head`` is not taken as an image, None if it is.

    Args:
        path: Its name; the ending says what it claims to be.
        head: Its first ``HEAD_BYTES`` bytes, or all of a shorter file.
    """
    found = find_format(head)
    if found in READABLE_FORMATS:
        return None
    if found is not None:
        return Refused(is_image=True, reason=f"is a {found} image, which cannot be read; save it as PNG or TIFF of 8 or 16 bits")
    if claims_to_be_image(path):
        what = "is of no image format that can be read" if head else "is empty (0 bytes)"
        return Refused(is_image=True, reason=f"{what}; copy it again or remove it")
    return Refused(is_image=False, reason="is not an image")


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - False where Path.is_dir raises for lack of permission


class _Walk:
    """Goes through folders and sorts what it finds."""

    def __init__(self, exclude: Sequence[Path]) -> None:
        self._outputs = frozenset(os.path.realpath(folder) for folder in exclude)
        self._visited: dict[object, Path] = {}
        self._links: collections.deque[Path] = collections.deque()
        self._aside: list[LeftOut] = []
        self._seen: set[Path] = set()
        self._taken: list[Path] = []
        self._rejected: list[LeftOut] = []
        self._left_out: list[LeftOut] = []

    def result(self, root: Path) -> Listing:
        return Listing(
            root=root,
            taken=tuple(sorted(self._taken)),
            rejected=tuple(sorted(self._rejected)),
            left_out=tuple(sorted(self._left_out)),
        )

    def writes_to(self, folder: Path) -> bool:
        """Return whether a folder is one of those to exclude."""
        return bool(self._outputs) and os.path.realpath(folder) in self._outputs

    def visit(self, folder: Path) -> None:
        """Take what lies below a folder, first by its own folders, then by links to others."""
        if folder in self._visited.values():
            return
        self._visit_tree(folder)
        while self._links:
            self._visit_tree(self._links.popleft())
        while self._aside:  # last, because a link that is not hidden may lead into what is
            aside = self._aside.pop()
            self.leave_out(aside.path, aside.reason)

    def take(self, path: Path, *, is_link: bool = True) -> None:
        """Sort in a file; ``is_link`` says that it may lie elsewhere than its folder."""
        if path in self._seen:
            return
        self._seen.add(path)
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                self._left_out.append(LeftOut(path, "is no file but a pipe, a socket or a device"))
                return
            if is_link and self.writes_to(Path(os.path.realpath(path)).parent):
                self._left_out.append(LeftOut(path, _OWN_OUTPUT))
                return
            with path.open("rb", buffering=0) as file:
                head = file.read(HEAD_BYTES)
        except OSError as error:
            self._sort_unreadable(path, error)
            return
        self._sort_by_content(path, head)

    def leave_out(self, path: Path, reason: str) -> None:
        """Leave out a file, or a folder with all that lies in it."""
        found = []
        for where, folders, files in os.walk(path):
            if self._identity(Path(where)) in self._visited:
                folders.clear()
                continue
            found += [Path(where, name) for name in files]
            found += [Path(where, name) for name in folders if Path(where, name).is_symlink()]
        new = [one for one in found or [path] if one not in self._seen]
        self._seen.update(new)
        self._left_out += [LeftOut(one, reason) for one in new]

    def _sort_by_content(self, path: Path, head: bytes) -> None:
        refused = refuse_content(path, head)
        if refused is None:
            self._taken.append(path)
        else:
            (self._rejected if refused.is_image else self._left_out).append(LeftOut(path, refused.reason))

    def _sort_unreadable(self, path: Path, error: OSError) -> None:
        if path.is_symlink() and not os.path.exists(path):  # noqa: PTH110 - False for a loop of links, where Path.exists may raise
            sort = self._rejected if claims_to_be_image(path) else self._left_out
            sort.append(LeftOut(path, "is a link to nothing"))
        else:
            self._rejected.append(LeftOut(path, f"cannot be read: {error.strerror or error}"))

    def _identity(self, folder: Path) -> object:
        status = folder.stat()
        return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)  # some file systems number nothing

    def _visit_tree(self, top: Path) -> None:
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            if self.writes_to(folder):
                (self._left_out if folder.is_symlink() else self._aside).append(LeftOut(folder, _OWN_OUTPUT))
                continue
            try:
                first = self._visited.setdefault(self._identity(folder), folder)
                with os.scandir(folder) as scan:
                    entries = sorted(scan, key=lambda entry: entry.name)
            except OSError as error:
                self._rejected.append(LeftOut(folder, f"is a folder that cannot be listed: {error.strerror or error}"))
                continue
            if first is not folder:
                self._left_out.append(LeftOut(folder, f"is the same folder as {display_name(first)}"))
            else:
                waiting += reversed([folder / entry.name for entry in entries if self._sort_entry(folder, entry)])

    def _sort_entry(self, folder: Path, entry: "os.DirEntry[str]") -> bool:
        """Sort in what lies in a folder; return True for a folder to go into."""
        path = folder / entry.name
        is_link = entry.is_symlink()
        try:
            is_folder = entry.is_dir()
        except OSError:  # a loop of links
            is_folder = False
        if is_junk(entry.name):
            if is_folder and not is_link:
                self._aside.append(LeftOut(path, f"lies in {display_name(entry.name)}, which is hidden or junk"))
            else:
                self._left_out.append(LeftOut(path, "is hidden or junk"))
            return False
        if not is_folder:
            self.take(path, is_link=is_link)
        elif is_link:
            self._links.append(path)
        return is_folder and not is_link
