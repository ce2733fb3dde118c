"""Frames of a NumPy file: ``snl-run --camera numpy:///data/frames.npy``."""

import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from snl_runtime import Frame, FrameStamper, OverflowPolicy, SourceCounters, SourceOpenError


class NumpySource:
    """Every frame of an array of shape (N, H, W, 3), uint8, RGB, in a file of ``numpy.save``.

    A frame that is all zeros stands for a buffer that the camera never filled: it is yielded without an image, so that it gets an ERROR record.

    Args:
        path: The file; opened when the source is entered.
        product: Product of all frames; None if unknown.
    """

    def __init__(self, path: Path, *, product: str | None) -> None:
        self._path = path
        self._frames: npt.NDArray[Any] | None = None
        self._stamper = FrameStamper(str(path), product=product, color="rgb")

    @property
    def policy(self) -> OverflowPolicy:
        """EVERY: a file waits. A free-running camera returns LATEST: the newest frame counts and older ones are dropped."""
        return OverflowPolicy.EVERY

    @property
    def counters(self) -> SourceCounters:
        """How many frames there are, and how many came without an image."""
        announced = None if self._frames is None else len(self._frames)
        return SourceCounters(frames_announced=announced, frames_faulty=self._stamper.faults)

    def __enter__(self) -> "NumpySource":
        try:
            self._frames = np.load(self._path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise SourceOpenError(f"cannot read {self._path}: {error}; write it with numpy.save") from error
        if self._frames.ndim != 4 or self._frames.shape[3] != 3:
            raise SourceOpenError(f"{self._path} must hold (N, H, W, 3), got {self._frames.shape}; stack frames of equal size")
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        """Release the file; a camera is closed here."""
        self._frames = None

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield the frames in order; a source that waits does so with a time limit and looks at ``stop`` after each."""
        assert self._frames is not None, "enter the source first"
        for image in self._frames:
            if stop.is_set():
                return
            if image.any():
                yield self._stamper.stamp(np.array(image))  # a copy: a frame must not change once it is handed over
            else:
                yield self._stamper.stamp(None, fault="the frame is all zeros: its buffer was never filled")


def open_source(address: str, *, product: str | None) -> NumpySource:
    """Return the source for an address such as ``numpy:///data/frames.npy``; what ``snl-run --camera`` calls."""
    return NumpySource(Path(address.partition("://")[2]), product=product)
