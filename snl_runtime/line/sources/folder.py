"""Image files as a frame source: a folder, a file or a pattern."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeAlias

from snl_runtime.errors import DataError, SourceOpenError
from snl_runtime.images.files import read_frame, read_pages
from snl_runtime.images.listing import LeftOut, Listing, list_pattern
from snl_runtime.line.handoff import OverflowPolicy
from snl_runtime.line.sources.base import FrameStamper, SourceCounters
from snl_runtime.types import Frame

Pages: TypeAlias = Literal["one", "all"]


class ImageFolderSource:
    """Every image that a folder, a file or a pattern names, sorted by path.

    What is or claims to be an image and cannot be read whole is yielded as a frame without an image, so that it gets an ERROR record.
    ``source_id`` is the file's path, with ``#page=2`` behind it for one of several images in a file.

    Args:
        folder: Where the images are, see :func:`snl_runtime.images.listing.list_pattern`.
        product: Product of all of them; None if unknown.
        pages: Whether a file of several images is a fault (``one``) or gives one frame for each (``all``).
        exclude: Folders that the caller writes images to.
        on_listed: Called with what was found before the first file is read, from the thread that enters.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        product: str | None = None,
        pages: Pages = "one",
        exclude: Sequence[Path] = (),
        on_listed: Callable[[Listing], None] = lambda _: None,
    ) -> None:
        self._folder = Path(folder)
        self._pages = pages
        self._exclude = exclude
        self._on_listed = on_listed
        self._offered: list[Path | LeftOut] = []
        self._announced = 0
        self._stamper = FrameStamper(str(folder), product=product, color="rgb")

    @property
    def policy(self) -> OverflowPolicy:
        """EVERY: the detector sets the pace."""
        return OverflowPolicy.EVERY

    @property
    def counters(self) -> SourceCounters:
        """Number of files, and of further images in those read so far; how many of them could not be read."""
        return SourceCounters(frames_announced=self._announced, frames_faulty=self._stamper.faults)

    def __enter__(self) -> "ImageFolderSource":
        try:
            listing = list_pattern(self._folder, exclude=self._exclude)
        except DataError as error:
            raise SourceOpenError(str(error)) from error
        self._on_listed(listing)
        self._offered = sorted([*listing.taken, *listing.rejected], key=lambda one: one.path if isinstance(one, LeftOut) else one)
        self._announced = len(self._offered)
        if not self._offered:
            raise SourceOpenError(f"{listing.summary()}; name a folder with images in it or below it, an image, or a pattern")
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        """Nothing is held between two files."""

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield one RGB frame per image, uint8 or uint16 as it is stored."""
        for one in self._offered:
            if stop.is_set():
                return
            if isinstance(one, LeftOut):
                yield self._stamper.stamp(None, fault=str(one), source_id=str(one.path))
                continue
            try:
                if self._pages == "all":
                    yield from self._all_pages(one, stop)
                else:
                    yield self._stamper.stamp(read_frame(one), source_id=str(one))
            except DataError as error:
                yield self._stamper.stamp(None, fault=str(error), source_id=str(one))

    def _all_pages(self, path: Path, stop: threading.Event) -> Iterator[Frame]:
        for page in read_pages(path):
            if page.number == 1:
                self._announced += page.count - 1
            if stop.is_set():
                return
            source_id = str(path) if page.count == 1 else f"{path}#page={page.number}"
            yield self._stamper.stamp(page.frame, fault=page.fault, source_id=source_id)
