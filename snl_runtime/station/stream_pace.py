"""Tells when a free-running camera was not read for so long that frames from before may still wait on their way."""

import statistics
from collections import deque

LEAST_PAUSE_S = 0.5
"""A shorter gap is no pause: a busy machine has such gaps all the time."""
PAUSE_INTERVALS = 4.0
"""A gap that is longer than this many usual intervals is a pause."""
_KNOWN_INTERVALS = 3
_KEPT_INTERVALS = 32
_STEADY_FRAMES = 30


class StreamPace:
    """Knows the usual interval of a stream and finds gaps that do not fit it.

    A process that stood still (suspended, swapped out, a machine that was paused) reads afterwards what the network and the driver kept meanwhile:
    frames that look new and show earlier parts. A camera that is slow by nature has long intervals, not pauses. One whose first frames come in a
    burst is not taken for pausing again and again: a gap that comes soon after another one must be clearly longer.
    """

    def __init__(self) -> None:
        self._intervals: deque[float] = deque(maxlen=_KEPT_INTERVALS)
        self._last_ns: int | None = None
        self._last_pause_s = 0.0
        self._steady = _STEADY_FRAMES

    def restart(self) -> None:
        """Forget the intervals: the camera was opened again."""
        self._intervals.clear()
        self._last_ns = None

    def is_pause(self, captured_ns: int) -> bool:
        """Note a frame and return whether a pause came before it.

        Args:
            captured_ns: When it was read, monotonic.
        """
        last_ns, self._last_ns = self._last_ns, captured_ns
        if last_ns is None:
            return False
        gap_s = (captured_ns - last_ns) / 1e9
        if len(self._intervals) >= _KNOWN_INTERVALS and gap_s > self._limit_s():
            self._last_pause_s, self._steady = gap_s, 0
            return True
        self._steady += 1
        self._intervals.append(gap_s)
        return False

    def _limit_s(self) -> float:
        limit_s = max(LEAST_PAUSE_S, PAUSE_INTERVALS * statistics.median(self._intervals))
        return limit_s if self._steady >= _STEADY_FRAMES else max(limit_s, 1.5 * self._last_pause_s)
