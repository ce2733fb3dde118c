"""A camera that is opened again after it failed, and whose state of health is known to others."""

import contextlib
import random
import threading
from collections.abc import Callable, Generator, Iterator

from snl_runtime.line.sources.base import FrameSource
from snl_runtime.types import Frame

PAUSE_FIRST_S = 0.5
PAUSE_LONGEST_S = 10.0


class ReopeningSource:
    """Yields the frames of a source, and opens it again with growing pauses after it failed; its owner is told of both.

    A source of known length (a folder, a video) is not opened again: it would begin anew. Its failure at the first opening is raised; so is nothing
    else.

    Args:
        source: The camera; entered, read and left on the thread that iterates.
        on_health: Told why no frames come, and None once they can come (again); any reason means that the camera cannot be trusted now.
        pause_s: First pause before it is opened again.
    """

    def __init__(self, source: FrameSource, on_health: Callable[[str | None], None], *, pause_s: float = PAUSE_FIRST_S) -> None:
        self._source = source
        self._on_health = on_health
        self._first_pause_s = pause_s

    @property
    def is_finite(self) -> bool:
        """Whether the opened source knows how many frames it has, so that they wait until they are asked for."""
        return self._source.counters.frames_announced is not None

    def frames(
        self, stop: threading.Event, *, session: Callable[[], threading.Event], may_pull: Callable[[], bool] = lambda: True
    ) -> Generator[Frame, None, None]:
        """Yield frames until ``stop`` is set or the source ends.

        Args:
            stop: Ends everything.
            session: Returns the event that ends one opening of the source; if it is set while ``stop`` is not, the source is opened again at once.
            may_pull: Called before each frame; may wait; False ends the session.

        Raises:
            SnlError: What the first opening raised.
        """
        pause_s = self._first_pause_s
        was_open = False
        while not stop.is_set():
            ended = session()
            try:
                with self._source as source:
                    was_open = True
                    self._on_health(None)
                    for frame in _pulled(source, ended, may_pull):
                        pause_s = self._first_pause_s
                        yield frame
                if ended.is_set() or stop.is_set():
                    continue
                return
            except Exception as failure:
                if not was_open:
                    raise
                self._on_health(str(failure) or type(failure).__name__)
                if self.is_finite:
                    return
            stop.wait(pause_s * random.uniform(0.5, 1.0))  # jitter: stations must not all come back at the same moment
            pause_s = min(PAUSE_LONGEST_S, 2 * pause_s)


def _pulled(source: FrameSource, ended: threading.Event, may_pull: Callable[[], bool]) -> Iterator[Frame]:
    frames = source.frames(ended)
    with contextlib.ExitStack() as opened:
        if isinstance(frames, Generator):  # end it on this thread, not where the garbage collector happens to run
            opened.callback(frames.close)
        while may_pull() and not ended.is_set():
            frame = next(frames, None)
            if frame is None:
                return
            yield frame
