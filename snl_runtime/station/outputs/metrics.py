"""Prometheus metrics of a station: verdicts, answer times, faults, frames and backlogs, on a port of their own."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from snl_runtime.errors import ConfigError, SinkError
from snl_runtime.line.pipeline import PipelineCounts
from snl_runtime.station.line_state import LineCommands, LineState, StationState
from snl_runtime.station.outbox import OutboxCounts
from snl_runtime.station.outputs.addresses import check_port, is_loopback
from snl_runtime.station.outputs.packages import import_for
from snl_runtime.station.outputs.signals import accepted_trigger_id
from snl_runtime.text import printable

BUCKETS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)
"""Upper ends of the histogram of answer times, in seconds."""
MAX_PRODUCTS = 200
"""Products with a series of their own; further ones count as ``other``, because each series takes memory here and in Prometheus for good."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsConfig:
    """Where Prometheus scrapes."""

    host: str = "127.0.0.1"
    """Address to listen on; from other machines everybody can read the metrics, and nobody can change anything."""
    port: int = 9464
    """TCP port."""

    def __post_init__(self) -> None:
        if not self.host:
            raise ConfigError("metrics.host must name an address to listen on, got ''")
        check_port("metrics.port", self.port)


class MetricsOutput:
    """Counts what is published and serves it as ``/metrics``; a registry of its own, nothing global.

    An answer is counted once per trigger id. Its time runs from the publishing of the busy state to that of the answer; a free-running camera, which
    has no busy state, has none here.

    Args:
        config: Where it listens.
        cameras: Names of the cameras.

    Raises:
        ConfigError: If the package prometheus-client is missing.
    """

    def __init__(self, config: MetricsConfig, cameras: Sequence[str]) -> None:
        self._library = import_for("metrics", "prometheus_client", extra="web")
        self._families = import_for("metrics", "prometheus_client.core", extra="web")
        self._config = config
        self._cameras = {camera: _CameraMemory(LineState(camera=camera)) for camera in cameras}
        self._products: set[str] = set()
        self._guard = threading.Lock()
        self._registry = self._library.CollectorRegistry(auto_describe=True)
        self._frames: dict[str, Callable[[], PipelineCounts]] = {}
        self._outboxes: list[Callable[[], OutboxCounts]] = []
        self._make_metrics()
        self._server: Any = None
        self._thread: threading.Thread | None = None

    def bind(self, commands: dict[str, LineCommands]) -> None:
        """Take no commands: metrics are read only."""

    def watch_frames(self, camera: str, counts: Callable[[], PipelineCounts]) -> None:
        """Show the counters of a camera's pipeline, asked at every scrape."""
        self._frames[camera] = counts

    def watch_outbox(self, counts: Callable[[], OutboxCounts]) -> None:
        """Show the counters of an outbox, asked at every scrape."""
        self._outboxes.append(counts)

    def __enter__(self) -> "MetricsOutput":
        if not is_loopback(self._config.host):
            logger.info("metrics can be read by every machine that reaches %s:%d", self._config.host, self._config.port)
        try:
            self._server, self._thread = self._library.start_http_server(self._config.port, self._config.host, registry=self._registry)
        except OSError as error:
            raise SinkError(f"cannot serve metrics on {self._config.host}:{self._config.port}: {error.strerror or error}") from error
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        """Close the port."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def publish(self, state: LineState) -> None:
        """Count ``state``.

        Raises:
            SinkError: If there is no such camera.
        """
        memory = self._cameras.get(state.camera)
        if memory is None:
            raise SinkError(f"the metrics have no camera '{state.camera}'; they have {', '.join(self._cameras)}")
        now_s = time.monotonic()
        with self._guard:
            before, memory.state = memory.state, state
            if state.busy and (not before.busy or before.trigger_id != state.trigger_id):
                memory.busy_since = (state.trigger_id, now_s)
            if state.fault and not before.fault:
                self._faults.labels(state.camera).inc()
            is_answer = state.result_valid and state.trigger_id != memory.answered
            if not is_answer or state.verdict is None:
                return
            memory.answered = state.trigger_id
            product = self._product(state.product)
        self._verdicts.labels(state.camera, product, state.verdict.value).inc()
        trigger_id, since_s = memory.busy_since
        if trigger_id == state.trigger_id:
            self._answer_times.labels(state.camera).observe(now_s - since_s)

    def _make_metrics(self) -> None:
        def counter(name: str, text: str, labels: Sequence[str]) -> Any:
            return self._library.Counter(name, text, labels, registry=self._registry)

        self._verdicts = counter("snl_verdicts", "Answers to triggers, by verdict.", ["camera", "product", "verdict"])
        self._faults = counter("snl_faults", "Faults that began.", ["camera"])
        self._answer_times = self._library.Histogram(
            "snl_answer_seconds", "Time from a trigger to its answer.", ["camera"], buckets=BUCKETS_S, registry=self._registry
        )
        for camera in self._cameras:
            self._faults.labels(camera)
            self._answer_times.labels(camera)
        self._registry.register(_AtScrape(self._collect))

    def _product(self, product: str | None) -> str:
        name = printable(product or "")
        if name not in self._products and len(self._products) >= MAX_PRODUCTS:
            return "other"
        self._products.add(name)
        return name

    def _collect(self) -> Iterator[Any]:
        yield from self._states()
        yield from self._frame_counts()
        yield from self._deliveries()

    def _states(self) -> Iterator[Any]:
        gauge = self._families.GaugeMetricFamily
        state = gauge("snl_state", "1 for the state that a camera is in, after OPC 40100-1.", labels=["camera", "state"])
        fault = gauge("snl_fault", "1 while a camera is in a fault.", labels=["camera"])
        accept = gauge("snl_accept", "1 while the current part is accepted.", labels=["camera"])
        trigger = gauge("snl_trigger_id", "Current trigger id.", labels=["camera"])
        for camera, memory in self._cameras.items():
            shown = memory.state
            for one in StationState:
                state.add_metric([camera, one.value], float(one is shown.state))
            fault.add_metric([camera], float(shown.fault))
            accept.add_metric([camera], float(accepted_trigger_id(shown) != 0))
            trigger.add_metric([camera], float(shown.trigger_id))
        yield from (state, fault, accept, trigger)

    def _frame_counts(self) -> Iterator[Any]:
        looks = {camera: counts() for camera, counts in self._frames.items()}
        for name in ("captured", "inspected", "dropped", "failed"):
            family = self._families.CounterMetricFamily(f"snl_frames_{name}", f"Frames {name}.", labels=["camera"])
            for camera, counts in looks.items():
                family.add_metric([camera], getattr(counts, name))
            yield family
        waiting = self._families.GaugeMetricFamily("snl_frames_waiting", "Frames on their way to a verdict.", labels=["camera"])
        for camera, counts in looks.items():
            waiting.add_metric([camera], counts.waiting)
        yield waiting

    def _deliveries(self) -> Iterator[Any]:
        looks = [counts() for counts in self._outboxes]
        core = self._families
        delivered = core.CounterMetricFamily("snl_deliveries", "Records that a consumer acknowledged.", labels=["consumer"])
        failures = core.CounterMetricFamily("snl_delivery_failures", "Calls of a consumer that failed.", labels=["consumer"])
        backlog = core.GaugeMetricFamily("snl_backlog_rows", "Records that wait for a consumer.", labels=["consumer"])
        connected = core.GaugeMetricFamily("snl_consumer_connected", "1 while a consumer takes records.", labels=["consumer"])
        for counts in looks:
            delivered.add_metric([counts.consumer], counts.delivered)
            failures.add_metric([counts.consumer], counts.failures)
            backlog.add_metric([counts.consumer], counts.backlog)
            connected.add_metric([counts.consumer], float(counts.connected))
        yield from (delivered, failures, backlog, connected)


@dataclass(slots=True)
class _CameraMemory:
    """What the metrics remember of one camera: its state, the last answer counted, and which trigger is busy since when (monotonic seconds)."""

    state: LineState
    answered: int = 0
    busy_since: tuple[int, float] = (0, 0.0)


class _AtScrape:
    """A collector in the form that prometheus-client asks for."""

    def __init__(self, collect: Callable[[], Iterator[Any]]) -> None:
        self._collect = collect

    def describe(self) -> list[Any]:
        """Nothing in advance, so that registering does not ask the station."""
        return []

    def collect(self) -> Iterator[Any]:
        """Return the families of one scrape."""
        return self._collect()
