"""A station: cameras that share one detector, one store and one deadline thread, and what tells the line."""

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType

from snl_runtime.errors import ConfigError
from snl_runtime.line.pipeline import Detector
from snl_runtime.line.sinks import Sink
from snl_runtime.line.sources.base import FrameSource
from snl_runtime.station.background import DeadlineThread, RecordingThread
from snl_runtime.station.delivery import ResultStore, StationEvents
from snl_runtime.station.line_state import LineCommands, LineOutput
from snl_runtime.station.observers import Observers
from snl_runtime.station.snapshot import StationSnapshot
from snl_runtime.station.unit import Unit, UnitConfig

RECORDS_TIMEOUT_S = 10.0
"""How long a stop waits for the store to take the last ERROR records."""
WAIT_S = 0.5
"""Longest uninterrupted wait; a wait without limit cannot be interrupted on Windows."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StationCamera:
    """One camera of a station.

    Attributes:
        name: Its name in records and outputs, unique.
        source: Where its frames come from; the station opens and closes it.
        config: Its triggers and deadlines.
    """

    name: str
    source: FrameSource
    config: UnitConfig = field(default_factory=UnitConfig)


class Station:
    """Runs cameras until :meth:`stop`, or until their folders and videos end. Starts once.

    Everything is opened before the first trigger is taken: observers, outputs, cameras; and closed in reverse after the last answer.

    Args:
        cameras: At least one.
        detector: Opened; the caller closes it after the station. Called by one thread per camera.
        store: Opened; the caller closes it after the station.
        outputs: What tells the line; the station binds, opens and closes them.
        sinks: What gets each final result beside the store; opened and closed by the station.
        events: Called with each final result.
        clock_ns: Monotonic time.

    Raises:
        ConfigError: If there is no camera, or two have one name.

    Example:
        >>> with SnlDetector("line.onnx") as detector, RecordStore(config) as store:  # doctest: +SKIP
        ...     with Station([StationCamera(name="top", source=CameraSource(0))], detector, store) as station:
        ...         station.wait()
    """

    def __init__(
        self,
        cameras: Sequence[StationCamera],
        detector: Detector,
        store: ResultStore,
        *,
        outputs: Sequence[LineOutput] = (),
        sinks: Sequence[Sink] = (),
        events: Sequence[StationEvents] = (),
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        names = [camera.name for camera in cameras]
        if not names or len(set(names)) < len(names) or not all(names):
            raise ConfigError(f"a station needs at least one camera, each with a name of its own, got {names}")
        self._outputs = tuple(outputs)
        self._observers = Observers(sinks, events)
        self._records = RecordingThread()
        self._units: dict[str, Unit] = {}
        self._deadlines = DeadlineThread(lambda: tuple(self._units.values()), clock_ns=clock_ns)
        for camera in cameras:
            self._units[camera.name] = Unit(
                camera.name,
                camera.source,
                camera.config,
                detector=detector,
                store=store,
                outputs=self._outputs,
                events=self._observers,
                run_later=self._records.run_later,
                wake=self._deadlines.wake,
                clock_ns=clock_ns,
            )
        self._resources = contextlib.ExitStack()
        self._has_started = False
        self._started_at = 0.0
        self._started_s = 0.0

    @property
    def commands(self) -> dict[str, LineCommands]:
        """What the line may ask of each camera, by its name."""
        return dict(self._units)

    def subscribe(self, events: StationEvents) -> None:
        """Call ``events`` with each final result from now on."""
        self._observers.subscribe(events)

    def start(self) -> None:
        """Open everything and take triggers; what was opened is closed again if anything fails.

        Raises:
            SnlError: If an output, a sink or a camera cannot be opened.
            RuntimeError: If called a second time.
        """
        if self._has_started:
            raise RuntimeError("a Station starts once; make a new one")
        self._has_started = True
        self._started_at, self._started_s = time.time(), time.monotonic()
        with contextlib.ExitStack() as opened:
            opened.callback(self._observers.close)
            self._observers.open()
            for output in self._outputs:
                output.bind(self.commands)
                opened.enter_context(output)
            opened.callback(self._stop_background)
            self._deadlines.start()
            self._records.start()
            for unit in self._units.values():
                opened.callback(unit.stop)
                unit.open()
            for unit in self._units.values():
                unit.begin()
            self._resources = opened.pop_all()

    def stop(self) -> None:
        """Take no further trigger, answer those under way and close everything; a second call does nothing.

        Threads that are stuck in a camera, a detector or a store are left behind after a time, with a line in the log.
        """
        for unit in self._units.values():
            unit.stop_taking()
        self._resources.close()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until every camera has ended; return whether they have. Without a time, until :meth:`stop` where one has no end."""
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        for unit in self._units.values():
            while not unit.wait(WAIT_S if end_s is None else max(0.0, min(WAIT_S, end_s - time.monotonic()))):
                if end_s is not None and time.monotonic() >= end_s:
                    return False
        return True

    def fault(self, reason: str, *, persists: Callable[[], bool] | None = None) -> None:
        """Fault every camera, e.g. because a broker has been down for too long; ``persists`` says at a reset whether it still is."""
        for unit in self._units.values():
            unit.fault(reason, persists=persists)

    def snapshot(self) -> StationSnapshot:
        """Return counters, states, latencies and last verdicts."""
        return StationSnapshot(
            started_at=self._started_at,
            elapsed_s=time.monotonic() - self._started_s if self._has_started else 0.0,
            cameras=MappingProxyType({name: unit.snapshot() for name, unit in self._units.items()}),
            observations_lost=self._observers.lost,
            observers_failed=self._observers.failed,
        )

    def _stop_background(self) -> None:
        if not self._records.stop(RECORDS_TIMEOUT_S):
            logger.error("the store did not take the last records within %g s", RECORDS_TIMEOUT_S)
        self._deadlines.stop()

    def __enter__(self) -> "Station":
        self.start()
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()
