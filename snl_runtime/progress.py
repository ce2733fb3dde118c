"""Progress of long work: what the library reports to, and the bar that the commands pass to it.

The library takes a :class:`ProgressReporter` and is silent by default; only the commands draw.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, TextIO

BAR_WIDTH = 24
TERMINAL_INTERVAL_S = 0.1
LOG_INTERVAL_S = 5.0


class Steps(Protocol):
    """Counts the finished items of one piece of work; any thread may call it.

    Attributes:
        total: Number of items when all is done; None while nobody knows. May be set later.
    """

    total: int | None

    def advance(self, n: int = 1, **notes: object) -> None:
        """Count ``n`` more items; ``notes`` say how it goes, e.g. ``loss=0.12``."""


class ProgressReporter(Protocol):
    """Called once for each piece of long work. The work is over when the returned context is left, by an exception if it failed.

    The class :class:`Progress` is one, which draws a bar; :func:`no_progress` is another.
    """

    def __call__(self, total: int | None, *, unit: str, label: str, done: int = 0) -> contextlib.AbstractContextManager[Steps]:
        """Return the counter of a piece of work.

        Args:
            total: Number of items when all is done; None if nobody knows.
            unit: What is counted, plural.
            label: What is being done.
            done: Items that were finished earlier.
        """


class _Uncounted:
    def __init__(self, total: int | None) -> None:
        self.total = total

    def advance(self, n: int = 1, **notes: object) -> None:
        """Count nothing."""


def no_progress(total: int | None, *, unit: str, label: str, done: int = 0) -> contextlib.AbstractContextManager[Steps]:
    """Report nothing: the default of the library.

    Example:
        >>> with no_progress(2, unit="images", label="score") as steps:
        ...     steps.advance()
    """
    del unit, label, done
    return contextlib.nullcontext(_Uncounted(total))


class Progress:
    """Counts finished items and says how fast and how long still, on stderr.

    On a terminal one line is redrawn at most ten times a second. Elsewhere (a file, a pipe, CI) a plain line appears every few seconds and one at
    the end, so that logs stay readable. Any thread may call :meth:`advance`.

    Args:
        total: Number of items when all is done; None if nobody knows (a camera). May be set later, as the attribute of the same name.
        unit: What is counted, plural.
        label: What is being done, e.g. ``"epoch 3/20"``.
        done: Items finished before this run (a resumed training); they do not count for the rate.
        stream: Where to write; the process's stderr if None.
        clock: Monotonic seconds; tests pass their own.

    Example:
        >>> with Progress(2, unit="images", label="score", stream=sys.stdout, clock=lambda: 0.0) as progress:
        ...     for loss in (0.5, 0.25):
        ...         progress.advance(loss=loss)
        score: 2/2 images, 100 %, loss 0.25
    """

    def __init__(
        self,
        total: int | None,
        *,
        unit: str = "images",
        label: str = "",
        done: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total
        self._unit = unit
        self._label = label
        self._done = done
        self._done_before = done
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._is_terminal = self._stream is not None and self._stream.isatty()
        self._interval_s = TERMINAL_INTERVAL_S if self._is_terminal else LOG_INTERVAL_S
        self._started_s = clock()
        self._written_s = self._started_s
        self._written_width = 0
        self._notes: dict[str, object] = {}
        self._lock = threading.Lock()

    @property
    def done(self) -> int:
        """Items finished so far."""
        return self._done

    def advance(self, n: int = 1, **notes: object) -> None:
        """Count ``n`` more items; ``notes`` (e.g. ``loss=0.12``) are shown at the end of the line until replaced."""
        with self._lock:
            self._done += n
            self._notes.update(notes)
            now_s = self._clock()
            if now_s - self._written_s >= self._interval_s:
                self._written_s = now_s
                self._write(now_s, is_last=False)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        if exc_type is not None and self._done == self._done_before:
            return  # failed before anything was done: the error says it all
        with self._lock:
            self._write(self._clock(), is_last=True)

    def _write(self, now_s: float, *, is_last: bool) -> None:
        if self._stream is None:  # a windowed host program has no stderr
            return
        line = self._line(now_s)
        if self._is_terminal:
            padding = " " * max(0, self._written_width - len(line))
            self._written_width = len(line)
            line = f"\r{line}{padding}"
        try:
            self._stream.write(line if self._is_terminal and not is_last else line + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            self._stream = None  # stderr was closed under us: the work itself must go on

    def _line(self, now_s: float) -> str:
        elapsed_s = now_s - self._started_s
        rate = (self._done - self._done_before) / elapsed_s if elapsed_s > 0 else None
        parts = [f"{self._done}/{self.total} {self._unit}" if self.total is not None else f"{self._done} {self._unit}"]
        if self.total:
            parts.append(f"{100 * self._done // self.total} %")
        if rate is not None:
            parts.append(f"{rate:.3g} {self._unit}/s")
        if self.total is not None and rate and self._done < self.total:
            parts.append(f"{format_duration((self.total - self._done) / rate)} left")
        parts += [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in self._notes.items()]
        prefix = f"{self._label}: " if self._label else ""
        return prefix + self._bar() + ", ".join(parts)

    def _bar(self) -> str:
        if not self._is_terminal or not self.total:
            return ""
        filled = min(BAR_WIDTH, BAR_WIDTH * self._done // self.total)
        return "[" + "#" * filled + "." * (BAR_WIDTH - filled) + "] "


def format_duration(seconds: float) -> str:
    """Return a duration as ``m:ss`` or ``h:mm:ss``.

    Example:
        >>> format_duration(75.2), format_duration(3675)
        ('1:15', '1:01:15')
    """
    minutes, whole_seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{whole_seconds:02d}" if hours else f"{minutes}:{whole_seconds:02d}"
