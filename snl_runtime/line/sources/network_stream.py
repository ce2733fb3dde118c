"""A video stream from an address, decoded by PyAV, which tells what OpenCV hides: another size mid-stream, and frames with damage.

OpenCV 5.0 scales frames of another size to the first one's, and shows a damaged frame like a whole one.
"""

import contextlib
import importlib.util
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy.typing as npt

from snl_runtime.errors import BackendUnavailableError


def has_pyav() -> bool:
    """Return whether the package av is installed."""
    return importlib.util.find_spec("av") is not None


def load_pyav() -> ModuleType:
    """Return the module ``av``.

    Raises:
        BackendUnavailableError: If it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise BackendUnavailableError(
            f"camera.decoder pyav needs the package av ({error}): pip install 'snl-edge[stream]', or set decoder: opencv"
        ) from error
    module: ModuleType = av
    return module


class NetworkStream:
    """An open stream with the methods that a source uses of OpenCV's ``VideoCapture``; every call has a time limit.

    Args:
        address: Where the stream is; credentials included.
        open_timeout_s: Longest time for opening it.
        read_timeout_s: Longest time for one frame.
    """

    def __init__(self, address: str, *, open_timeout_s: float, read_timeout_s: float) -> None:
        self.is_damaged = False
        self._error: type[Exception] = load_pyav().error.FFmpegError
        self._container: Any = None
        self._decoded: Iterator[Any] = iter(())
        options = {"rtsp_transport": "tcp"} if address.lower().startswith("rtsp") else {}
        with contextlib.suppress(self._error):
            self._container = load_pyav().open(address, timeout=(open_timeout_s, read_timeout_s), options=options)
            self._decoded = self._container.decode(video=0)

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        """Return whether the stream could be opened."""
        return self._container is not None

    def read(self) -> tuple[bool, npt.NDArray[Any] | None]:
        """Return the next frame as (H, W, 3) uint8 BGR in its own size; False and None if none came. ``is_damaged`` tells whether it is whole."""
        try:
            frame = next(self._decoded)
            self.is_damaged = bool(frame.is_corrupt)
            return True, frame.to_ndarray(format="bgr24")
        except (self._error, StopIteration, IndexError):  # IndexError: a stream without video
            return False, None

    def release(self) -> None:
        """Close the stream; a second call does nothing."""
        if self._container is not None:
            self._decoded = iter(())
            self._container.close()
            self._container = None
