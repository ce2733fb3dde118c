"""Triggers by the clock: an output that tells the line nothing and asks each of its cameras for an inspection at a fixed interval."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType

from snl_runtime.errors import TriggerRefusedError
from snl_runtime.station.line_state import LineCommands, LineState

logger = logging.getLogger(__name__)


class TimerTrigger:
    """Triggers cameras by the clock; a :class:`LineOutput` that only listens to itself.

    Triggers keep to the grid of the first one, so the interval does not drift by what a trigger takes. One that is refused, because the camera is
    busy or in a fault, is counted and not made up for: a part that nobody asked about has no record.

    Args:
        interval_ms: Time from trigger to trigger by the name of the camera.
        clock_s: Monotonic time.
    """

    def __init__(self, interval_ms: Mapping[str, float], *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = {camera: value / 1e3 for camera, value in interval_ms.items()}
        self._clock_s = clock_s
        self._commands: dict[str, LineCommands] = {}
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._refused: dict[str, int] = dict.fromkeys(interval_ms, 0)

    @property
    def refused(self) -> dict[str, int]:
        """Triggers that were refused, by camera."""
        with self._lock:
            return dict(self._refused)

    def bind(self, commands: dict[str, LineCommands]) -> None:
        """Take the commands of every camera; those without an interval are left alone."""
        self._commands = commands

    def __enter__(self) -> "TimerTrigger":
        for camera, interval_s in self._interval_s.items():
            thread = threading.Thread(target=self._run, args=(camera, interval_s), name=f"snl-timer-{camera}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def publish(self, state: LineState) -> None:
        """Tell nobody."""

    def _run(self, camera: str, interval_s: float) -> None:
        next_s = self._clock_s() + interval_s
        while not self._stop.wait(max(0.0, next_s - self._clock_s())):
            self._trigger(camera)
            behind = max(0.0, self._clock_s() - next_s)
            next_s += interval_s * (1 + behind // interval_s)  # a machine that slept makes up for nothing

    def _trigger(self, camera: str) -> None:
        try:
            self._commands[camera].trigger()
        except TriggerRefusedError as refusal:
            with self._lock:
                self._refused[camera] += 1
                is_first = self._refused[camera] == 1
            if is_first:
                logger.warning("a trigger by the clock was refused, further ones are only counted: %s", refusal)
