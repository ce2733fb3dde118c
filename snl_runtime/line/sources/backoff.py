"""Growing pauses between attempts to open a device again."""

import random

BACKOFF_FIRST_S = 0.5
BACKOFF_LONGEST_S = 10.0


class Backoff:
    """Pauses that double from ``first_s`` to ``longest_s``, each shortened by a random share: stations must not all come back at one moment."""

    def __init__(self, *, first_s: float = BACKOFF_FIRST_S, longest_s: float = BACKOFF_LONGEST_S) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._pause_s = first_s

    @property
    def is_first(self) -> bool:
        """Whether no pause was taken since the last success."""
        return self._pause_s == self._first_s

    def next_s(self) -> float:
        """Return the next pause in seconds, between half of it and the whole."""
        pause_s = self._pause_s
        self._pause_s = min(self._longest_s, 2 * pause_s)
        return pause_s * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Begin again with the first pause, after a success."""
        self._pause_s = self._first_s
