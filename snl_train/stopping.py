"""Signals that ask a training to stop: what it has learned is saved first."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
"""Ctrl-C; a service manager or a batch system; a closed terminal; a closed console of Windows."""
_SAME_PRESS_S = 1.0
"""A terminal and a program that wraps this one may both deliver one Ctrl-C."""


class StoppedBySignalError(KeyboardInterrupt):
    """A signal came before there was anything to save; no ``except Exception`` takes it for a failure."""


class StopRequest:
    """Whether a signal asked to stop.

    Until :meth:`should_stop` was called there is nothing to save, and a signal raises :class:`StoppedBySignalError` at once. Afterwards it is
    answered by the next call. Further signals change nothing, so that they cannot interrupt the save; only another Ctrl-C, a second or more after
    the first signal, raises KeyboardInterrupt: a person who presses it again does not want to wait.

    Args:
        program: Name before the message.
        is_silent: Print none, because another process of the same training does.
    """

    def __init__(self, program: str, *, is_silent: bool = False) -> None:
        self._program = program
        self._is_silent = is_silent
        self._process = os.getpid()
        self._has_something_to_save = False
        self._is_given_up = False
        self._asked_s = 0.0
        self._number = 0

    @property
    def number(self) -> int:
        """Number of the signal that asked; 0 if none did. Set where another process of the training was asked."""
        return self._number

    @number.setter
    def number(self, number: int) -> None:
        self._number = number

    @property
    def exit_status(self) -> int:
        """128 plus the signal's number, as shells say it."""
        return 128 + self._number

    @property
    def signal_name(self) -> str:
        """The signal that asked, e.g. ``SIGTERM``."""
        return signal.Signals(self._number).name

    def should_stop(self) -> bool:
        """Return whether to save and stop now."""
        self._has_something_to_save = True
        return self._number != 0

    def on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Handle one signal; called by the interpreter between two instructions of the main thread."""
        if os.getpid() != self._process:  # a forked child has nothing to save
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if not self._number:
            self._number, self._asked_s = number, time.monotonic()
            if not self._has_something_to_save:
                raise StoppedBySignalError
            self._say("stopping after this step; press Ctrl-C again to stop without saving")
        elif number == signal.SIGINT and self._may_give_up():
            self._is_given_up = True
            raise KeyboardInterrupt

    def _may_give_up(self) -> bool:
        return self._has_something_to_save and not self._is_given_up and time.monotonic() - self._asked_s >= _SAME_PRESS_S

    def _say(self, message: str) -> None:
        if self._is_silent:
            return
        # Not print(): the signal may have come in the middle of one, and a closed terminal takes nothing.
        with contextlib.suppress(OSError):
            os.write(2, f"{self._program}: {message}\n".encode())


@contextlib.contextmanager
def stop_on_signals(program: str, *, is_silent: bool = False) -> Iterator[StopRequest]:
    """Yield what the signals of this process ask while the block runs; in a thread of a host program the signals are not ours.

    A signal that is ignored stays so, as SIGHUP below nohup; SIGINT does not, because shells start every background job with it ignored.
    """
    request = StopRequest(program, is_silent=is_silent)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    with contextlib.ExitStack() as restored:
        for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
            if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                restored.callback(signal.signal, number, signal.signal(number, request.on_signal))
        yield request
