"""A folder of pictures as a frame source."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from snl_runtime.errors import DataError, SourceOpenError
from snl_runtime.handoff import OverflowPolicy
from snl_runtime.images import list_images, read_frame
from snl_runtime.sources.base import FrameStamper, SourceCounters
from snl_runtime.types import Frame


class ImageFolderSource:
    """Every picture in a folder and the folders below it, sorted by path.

    A file that cannot be read whole is yielded as a frame without a picture, so that it gets an ERROR record. ``source_id`` is the file's path.

    Args:
        folder: Where the pictures are.
        product: Product of all of them; None if unknown.
    """

    def __init__(self, folder: str | os.PathLike[str], *, product: str | None = None) -> None:
        self._folder = Path(folder)
        self._paths: list[Path] = []
        self._stamper = FrameStamper(str(folder), product=product, color="rgb")

    @property
    def policy(self) -> OverflowPolicy:
        """EVERY: the detector sets the pace."""
        return OverflowPolicy.EVERY

    @property
    def counters(self) -> SourceCounters:
        """Number of files, and how many of them could not be read."""
        return SourceCounters(frames_announced=len(self._paths), frames_faulty=self._stamper.faults)

    def __enter__(self) -> "ImageFolderSource":
        try:
            self._paths = list_images(self._folder, recursive=True)
        except DataError as error:
            raise SourceOpenError(str(error)) from error
        if not self._paths:
            raise SourceOpenError(f"{self._folder} holds no images; name a folder with .png, .jpg, .bmp, .tif, .webp or .ppm files in it or below it")
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        """Nothing is held between two files."""

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield one RGB frame per file."""
        for path in self._paths:
            if stop.is_set():
                return
            try:
                image_rgb = read_frame(path)
            except DataError as error:
                yield self._stamper.stamp(None, fault=str(error), source_id=str(path))
                continue
            yield self._stamper.stamp(image_rgb, source_id=str(path))
