"""From the configuration of a station to the station: cameras, outputs, and an outbox for each remote consumer."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from snl_runtime.detector.detector import SnlDetector
from snl_runtime.images.listing import Listing
from snl_runtime.line.record_store import RecordStore
from snl_runtime.line.sinks import Sink
from snl_runtime.station.build import build_source, overflow_of
from snl_runtime.station.camera_drift import CameraDrift
from snl_runtime.station.config import DEFAULT_DEADLINE_MS, OutputsConfig, StationCameraConfig, StationConfig
from snl_runtime.station.crop import CroppedDetector
from snl_runtime.station.delivery import StationEvents
from snl_runtime.station.line_state import LineOutput
from snl_runtime.station.outbox import Consumer, Outbox
from snl_runtime.station.outputs.metrics import MetricsOutput
from snl_runtime.station.outputs.modbus import ModbusOutput
from snl_runtime.station.outputs.mqtt import MqttConsumer
from snl_runtime.station.outputs.mqtt_state import MqttOutput
from snl_runtime.station.outputs.opcua import OpcUaOutput
from snl_runtime.station.outputs.webhook import WebhookConsumer
from snl_runtime.station.station import Station, StationCamera
from snl_runtime.station.timer import TimerTrigger
from snl_runtime.station.triggered import TriggerConfig, TriggerMode
from snl_runtime.station.unit_config import UnitConfig
from snl_runtime.station.web.panels import WebPanels
from snl_runtime.station.web.server import WebServer


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class BuiltStation:
    """A station with its outboxes, none of them started.

    Attributes:
        station: Cameras and outputs.
        beside: Outboxes, drift and screen; entered in this order after the store and before the station, and left after it.
        outboxes: Those among them.
        screen: The screen among them; None without.
    """

    station: Station
    beside: tuple[AbstractContextManager[object], ...]
    outboxes: tuple[Outbox, ...]
    screen: WebServer | None


def build_station(
    config: StationConfig, detector: SnlDetector, store: RecordStore, *, sinks: Sequence[Sink], on_listed: Callable[[Listing], None] = lambda _: None
) -> BuiltStation:
    """Return the station that a configuration describes.

    Args:
        config: With ``records.store``.
        detector: Opened.
        store: Opened.
        sinks: What gets each final result beside the store.
        on_listed: Is told what a folder of images holds.

    Raises:
        ConfigError: If the package of an output is missing, or a secret cannot be read.
    """
    cameras = [
        StationCamera(
            name=name,
            source=build_source(camera, records=config.records, on_listed=on_listed),
            config=unit_config(camera),
            detector=None if camera.crop_xyxy is None else CroppedDetector(detector, camera.crop_xyxy),
        )
        for name, camera in config.cameras.items()
    ]
    outputs = build_outputs(config)
    station = Station(cameras, detector, store, outputs=outputs, sinks=sinks)
    limits = config.outputs.outbox
    outboxes = tuple(Outbox(consumer, store, on_fault=station.on_fault(consumer.name), config=limits) for consumer in build_consumers(config.outputs))
    if outboxes:
        station.subscribe(_notify(outboxes))
    for metrics in (output for output in outputs if isinstance(output, MetricsOutput)):
        _watch(metrics, station, config, outboxes)
    drift = _build_drift(config, detector, station)
    screen = None if config.web is None else WebServer(config.web, station, _panels(config, detector, drift, outboxes))
    beside: list[AbstractContextManager[object] | None] = [*outboxes, drift, screen]
    return BuiltStation(station=station, beside=tuple(one for one in beside if one is not None), outboxes=outboxes, screen=screen)


def _notify(outboxes: Sequence[Outbox]) -> StationEvents:
    def deliveries(*_: object) -> None:
        for outbox in outboxes:
            outbox.notify()

    return deliveries


def _build_drift(config: StationConfig, detector: SnlDetector, station: Station) -> CameraDrift | None:
    if config.drift is None:
        return None
    manifest = detector.manifest
    drift = CameraDrift(config.drift, {} if manifest is None else manifest.decisions_for(detector.model_sha256), tuple(config.cameras))
    drift.watch(station)
    return drift


def _panels(config: StationConfig, detector: SnlDetector, drift: CameraDrift | None, outboxes: Sequence[Outbox]) -> WebPanels:
    return WebPanels(
        title=Path(config.model.file).stem,
        drift=None if drift is None else drift.lines,
        outboxes=tuple((lambda outbox=outbox: outbox.counts) for outbox in outboxes),  # type: ignore[misc]
        notes=lambda: detector.notes,
    )


def unit_config(camera: StationCameraConfig) -> UnitConfig:
    """Return triggers and deadlines of one camera as its unit takes them."""
    trigger = camera.trigger
    policy, capacity = overflow_of(camera.queue)
    return UnitConfig(
        deadline_ms=DEFAULT_DEADLINE_MS if trigger.deadline_ms is None else trigger.deadline_ms,
        record_margin_ms=trigger.record_margin_ms,
        missed_before_fault=trigger.missed_before_fault,
        heartbeat_timeout_ms=trigger.heartbeat_timeout_ms,
        policy=policy,
        frame_capacity=capacity,
        products=camera.products,
        trigger=TriggerConfig(
            mode=TriggerMode.EACH_FRAME if trigger.mode == "each_frame" else TriggerMode.COMMAND,
            frame_timeout_ms=trigger.frame_timeout_ms,
            skip_frames=trigger.skip_frames,
            count_gaps=trigger.count_gaps,
        ),
    )


def build_outputs(config: StationConfig) -> list[LineOutput]:
    """Return what tells the line, not yet entered; an output that is added gets its line here.

    Raises:
        ConfigError: If the package of one is missing, or a secret cannot be read.
    """
    outputs, names = config.outputs, tuple(config.cameras)
    intervals = {name: camera.trigger.interval_ms for name, camera in config.cameras.items() if camera.trigger.interval_ms is not None}
    built: list[LineOutput | None] = [
        None if outputs.opcua is None else OpcUaOutput(outputs.opcua, names),
        None if outputs.modbus is None else ModbusOutput(outputs.modbus, names),
        None if outputs.mqtt is None else MqttOutput(outputs.mqtt, names),
        None if outputs.metrics is None else MetricsOutput(outputs.metrics, names),
        TimerTrigger(intervals) if intervals else None,
    ]
    return [output for output in built if output is not None]


def build_consumers(outputs: OutputsConfig) -> list[Consumer]:
    """Return who gets results from the store, not yet connected.

    Raises:
        ConfigError: If the package of one is missing, or a secret cannot be read.
    """
    built: list[Consumer | None] = [
        None if outputs.mqtt is None else MqttConsumer(outputs.mqtt),
        None if outputs.webhook is None else WebhookConsumer(outputs.webhook),
    ]
    return [consumer for consumer in built if consumer is not None]


def _watch(metrics: MetricsOutput, station: Station, config: StationConfig, outboxes: Sequence[Outbox]) -> None:
    for name in config.cameras:
        metrics.watch_frames(name, lambda name=name: station.snapshot().cameras[name].frames)  # type: ignore[misc]
    for outbox in outboxes:
        metrics.watch_outbox(lambda outbox=outbox: outbox.counts)  # type: ignore[misc]
