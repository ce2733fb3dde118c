"""What a station is: model, cameras with their triggers, records, outputs. One file and the flags of ``snl-run`` build the same values.

A section of a component is the configuration class of that component, one optional field here; None leaves the component out. A key named ``file``,
``folder`` or ``path``, or ending in ``_file`` or
``_folder``, is a path, which the station file gives relative to itself.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from snl_runtime.errors import ConfigError
from snl_runtime.line.record_store import RecordStoreConfig
from snl_runtime.station.drift import DriftConfig
from snl_runtime.station.outbox import OutboxConfig
from snl_runtime.station.outputs.metrics import MetricsConfig
from snl_runtime.station.outputs.modbus import ModbusConfig
from snl_runtime.station.outputs.mqtt import MqttConfig
from snl_runtime.station.outputs.opcua import OpcUaConfig
from snl_runtime.station.outputs.webhook import WebhookConfig
from snl_runtime.station.self_test import SelfTestConfig
from snl_runtime.station.sources import SourceConfig
from snl_runtime.station.web.config import WebConfig

_CAMERA_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
"""What a node of OPC UA, a level of an MQTT topic, a label of a metric and a dotted key all take."""
DEFAULT_DEADLINE_MS = 1000.0
"""Where a station answers and no deadline is given."""
NEEDS_NO_STORE = frozenset({"plugins", "outbox"})
"""Keys of ``outputs`` that promise nothing about records: sinks of one's own, and how deliveries are repeated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The model and what runs it."""

    file: str
    """Exported model or engine, ``x.onnx`` or ``x.trt``; its manifest and golden samples lie beside it."""
    backend: str | None = None
    """``onnxruntime``, ``openvino``, ``tensorrt`` or a plug-in; none is the one that the model was calibrated on, if it is installed."""
    device: str | None = None
    """Device as the backend names it, e.g. ``cpu`` or ``cuda``; none is the backend's own default."""
    threads: int | None = None
    """Most CPU threads of the backend; none is the backend's own default."""
    timeout_ms: float = 10_000.0
    """Longest time for one frame in the backend, in milliseconds."""
    public_key_file: str | None = None
    """Ed25519 public key (PEM) that must have signed the manifest; none accepts unsigned models."""
    rebuild: bool = False
    """Build ``x.trt`` again from ``x.onnx`` if it was built for another device."""
    cuda_graphs: bool = True
    """Let ONNX Runtime and TensorRT record their work on a GPU as CUDA graphs; where a graph does not answer as a plain run, there is none."""

    def __post_init__(self) -> None:
        _check("model", "file", self.file, self.file != "", "the name of a file")
        _check("model", "threads", self.threads, self.threads is None or self.threads >= 1, "at least 1")
        _check("model", "timeout_ms", self.timeout_ms, self.timeout_ms > 0, "positive")

    def read_public_key(self) -> bytes | None:
        """Return the key of ``public_key_file``; None if none is named.

        Raises:
            ConfigError: If it cannot be read.
        """
        if self.public_key_file is None:
            return None
        try:
            return Path(self.public_key_file).read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot read the public key {self.public_key_file}: {error.strerror or error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraTriggerConfig:
    """What begins an inspection, and until when it must be answered."""

    mode: Literal["each_frame", "command", "timer"] = "each_frame"
    """``each_frame``: every captured frame is a part. ``command``: an output that listens to the line begins it. ``timer``: so does a clock."""
    interval_ms: float | None = None
    """Time from trigger to trigger in milliseconds; with ``timer`` only."""
    deadline_ms: float | None = None
    """Longest time from the trigger to its answer; later is ERROR. None is 1000 where there is a record store, and no limit otherwise."""
    frame_timeout_ms: float = 500.0
    """Longest time from a trigger to its frame; later is ERROR. With ``command`` and ``timer`` only, and shorter than the deadline."""
    record_margin_ms: float = 50.0
    """How long before the deadline a trigger without a verdict becomes ERROR, so that its record is durable before the line is told."""
    missed_before_fault: int = 1
    """Deadlines missed one after the other that are a fault."""
    heartbeat_timeout_ms: float | None = None
    """Longest silence of the line before it is a fault; null if the line sends no heartbeat."""
    skip_frames: int = 0
    """Frames of a free-running camera to let pass after a trigger, because their exposure may have begun before it."""
    count_gaps: bool = False
    """With ``each_frame``: a gap in the camera's own frame counter gives one ERROR per missing frame. For hardware-triggered cameras."""

    def __post_init__(self) -> None:
        _check("trigger", "missed_before_fault", self.missed_before_fault, self.missed_before_fault >= 1, "at least 1")
        _check("trigger", "skip_frames", self.skip_frames, self.skip_frames >= 0, "0 or more")
        for name in ("interval_ms", "deadline_ms", "frame_timeout_ms", "record_margin_ms", "heartbeat_timeout_ms"):
            value = getattr(self, name)
            _check("trigger", name, value, value is None or value > 0, "positive")
        self._check_mode()

    def _check_mode(self) -> None:
        if self.mode == "timer" and self.interval_ms is None:
            raise ConfigError("trigger.interval_ms is missing: mode timer needs the time from trigger to trigger")
        if self.mode != "timer" and self.interval_ms is not None:
            raise ConfigError(f"trigger.interval_ms belongs to mode timer, got it with mode {self.mode}; leave it out")
        deadline_ms = DEFAULT_DEADLINE_MS if self.deadline_ms is None else self.deadline_ms
        if self.record_margin_ms >= deadline_ms:
            raise ConfigError(f"trigger.record_margin_ms must be less than trigger.deadline_ms ({deadline_ms:g}), got {self.record_margin_ms:g}")
        if self.mode == "each_frame":
            return
        left_ms = deadline_ms - self.record_margin_ms
        if self.frame_timeout_ms >= left_ms:
            raise ConfigError(
                f"trigger.frame_timeout_ms must be less than deadline_ms without record_margin_ms ({left_ms:g}), got {self.frame_timeout_ms:g}; "
                "the frame must still be inspected"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraQueueConfig:
    """What happens to frames that come faster than they are inspected."""

    policy: Literal["latest", "every", "drop_oldest"] | None = None
    """``latest`` keeps the newest frame only, ``drop_oldest`` the newest ``capacity``, ``every`` makes the source wait; none is the source's own."""
    capacity: int | None = None
    """Most frames that wait; none is 1 with ``latest`` and 4 otherwise."""

    def __post_init__(self) -> None:
        _check("queue", "capacity", self.capacity, self.capacity is None or self.capacity >= 1, "at least 1")
        if self.policy == "latest" and self.capacity not in (None, 1):
            raise ConfigError(f"queue.capacity must be 1 with policy latest, got {self.capacity}; policy drop_oldest keeps several")


@dataclass(frozen=True, slots=True, kw_only=True)
class StationCameraConfig:
    """One camera: where its frames come from, what they show, when they are taken."""

    source: SourceConfig = field(default_factory=SourceConfig)
    """Where frames come from: exactly one section."""
    product: str | None = None
    """Product in front of this camera; none applies the strictest rule of all calibrated products."""
    products: tuple[str, ...] = ()
    """Products that a trigger may name; with ``command`` only, and instead of ``product``. Empty: a trigger names none."""
    crop_xyxy: tuple[int, int, int, int] | None = None
    """Part of the camera's frame that the model was calibrated on: left, top, right, bottom in pixels, right and bottom exclusive."""
    trigger: CameraTriggerConfig = field(default_factory=CameraTriggerConfig)
    """What begins an inspection."""
    queue: CameraQueueConfig = field(default_factory=CameraQueueConfig)
    """What happens to frames that come too fast."""

    def __post_init__(self) -> None:
        if self.crop_xyxy is not None:
            left, top, right, bottom = self.crop_xyxy
            if not (0 <= left < right and 0 <= top < bottom):
                raise ConfigError(f"crop_xyxy must be left, top, right, bottom with 0 <= left < right and 0 <= top < bottom, got {self.crop_xyxy}")
        if self.products and self.product is not None:
            raise ConfigError("product names the one product of this camera, products those that a trigger may name; give one of the two")
        if self.products and self.trigger.mode != "command":
            raise ConfigError(f"products are named by a trigger, which needs trigger.mode command, got {self.trigger.mode}; name one product instead")
        if len(set(self.products)) < len(self.products):
            raise ConfigError(f"products must differ, got {', '.join(self.products)}")
        if self.trigger.mode != "each_frame" and self.queue.policy not in (None, "every"):
            raise ConfigError(
                f"queue.policy {self.queue.policy} drops frames, and with trigger.mode {self.trigger.mode} every trigger has its answer; leave it out"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonlConfig:
    """A file of records, one JSON line per frame."""

    file: str
    """The file; it is appended to, and its folder must exist."""
    max_mib: int | None = None
    """Begin a new file at this size; the full one becomes ``file-<UTC time>-<number>``. None keeps one file."""

    def __post_init__(self) -> None:
        _check("records.jsonl", "max_mib", self.max_mib, self.max_mib is None or self.max_mib >= 1, "at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectsConfig:
    """A folder of untouched frames of every verdict other than PASS."""

    folder: str
    """Made if it is not there."""
    max_mib: int = 10 << 10
    """MiB that the folder may hold; frames that do not fit are counted, not saved."""
    max_age_days: float | None = None
    """Days after their capture when images are deleted; none keeps them."""

    def __post_init__(self) -> None:
        _check("records.rejects", "max_mib", self.max_mib, self.max_mib >= 1, "at least 1")
        _check("records.rejects", "max_age_days", self.max_age_days, self.max_age_days is None or self.max_age_days > 0, "positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlayConfig:
    """A folder of frames with heat map and verdict."""

    folder: str
    """Made if it is not there."""
    frames: Literal["all", "not-passed"] = "all"
    """Which frames are saved."""
    max_mib: int = 10 << 10
    """MiB that the folder may hold; frames that do not fit are counted, not saved."""
    max_age_days: float | None = None
    """Days after their capture when images are deleted; none keeps them."""

    def __post_init__(self) -> None:
        _check("records.overlay", "max_mib", self.max_mib, self.max_mib >= 1, "at least 1")
        _check("records.overlay", "max_age_days", self.max_age_days, self.max_age_days is None or self.max_age_days > 0, "positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordsConfig:
    """What is kept of every verdict."""

    store: RecordStoreConfig | None = None
    """The station's record, an SQLite file; whatever tells the line or a server needs it."""
    jsonl: JsonlConfig | None = None
    """Records as JSON lines; none writes them to standard output."""
    rejects: RejectsConfig | None = None
    """Frames that did not pass."""
    overlay: OverlayConfig | None = None
    """Frames with heat map and verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputsConfig:
    """Where verdicts go."""

    plugins: tuple[str, ...] = ()
    """Sinks of one's own, each as ``name:argument``."""
    opcua: OpcUaConfig | None = None
    """An OPC UA server for the line."""
    modbus: ModbusConfig | None = None
    """A Modbus TCP server for the line."""
    mqtt: MqttConfig | None = None
    """Results and states for an MQTT broker."""
    webhook: WebhookConfig | None = None
    """Results for a web server."""
    metrics: MetricsConfig | None = None
    """Figures for Prometheus."""
    outbox: OutboxConfig = field(default_factory=OutboxConfig)
    """How results are repeated to a broker or web server that does not take them, and from when on that is a fault."""

    @property
    def takes_commands(self) -> bool:
        """Whether the line can trigger through one of them."""
        return self.opcua is not None or self.modbus is not None or (self.mqtt is not None and self.mqtt.commands)


@dataclass(frozen=True, slots=True, kw_only=True)
class StationConfig:
    """Everything that a run needs to know; nothing in it is secret: passwords lie in files that it names."""

    model: ModelConfig
    """The model; all cameras share it."""
    cameras: dict[str, StationCameraConfig] = field(default_factory=dict)
    """The cameras by name: letters, digits, ``_`` and ``-``."""
    records: RecordsConfig = field(default_factory=RecordsConfig)
    """What is kept."""
    outputs: OutputsConfig = field(default_factory=OutputsConfig)
    """Where verdicts go."""
    web: WebConfig | None = None
    """A screen in the browser."""
    drift: DriftConfig | None = None
    """Watch scores, brightness, sharpness and rejects of each product against its calibration."""
    self_test: SelfTestConfig = field(default_factory=SelfTestConfig)
    """Score the golden samples again while the station runs."""

    @property
    def takes_commands(self) -> bool:
        """Whether the line or a person can trigger."""
        return self.outputs.takes_commands or (self.web is not None and self.web.token_file is not None)

    @property
    def watches(self) -> list[str]:
        """Sections that are given and look at a running station."""
        return [name for name in ("web", "drift") if getattr(self, name) is not None] + (["self_test"] if self.self_test.every_s else [])

    def __post_init__(self) -> None:
        if not self.cameras:
            raise ConfigError("cameras names no camera; a station needs one, e.g. cameras.top.source.video.file")
        for name in self.cameras:
            if not _CAMERA_NAME.fullmatch(name):
                raise ConfigError(f"cameras.{name}: a camera's name has 1 to 32 letters, digits, '_' or '-' and begins with a letter")
        check_store(self.cameras, self.outputs, self.watches, has_store=self.records.store is not None)
        for name, camera in self.cameras.items():
            if camera.trigger.mode == "command" and not self.takes_commands:
                raise ConfigError(
                    f"cameras.{name}.trigger.mode command needs somebody who commands: outputs.opcua, outputs.modbus, outputs.mqtt with "
                    "commands: true, or web with token_file"
                )


def check_store(cameras: Mapping[str, StationCameraConfig], outputs: object, watches: Sequence[str], *, has_store: bool) -> None:
    """Refuse answers to the line that rest on no durable record.

    Args:
        cameras: By name.
        outputs: The section ``outputs``.
        watches: Sections that look at a running station.
        has_store: Whether ``records.store`` is given.

    Raises:
        ConfigError: If there is no store, and several cameras, or a section ``trigger`` that says anything, or an output that tells the line.
    """
    if has_store:
        return
    remedy = "a verdict is told once it is durable: add records.store, or --store FILE"
    if len(cameras) > 1:
        raise ConfigError(f"cameras: several cameras ({', '.join(cameras)}) need the record store; {remedy}")
    for name, camera in cameras.items():
        for key in changed_keys(camera.trigger):
            raise ConfigError(f"cameras.{name}.trigger.{key} needs the record store; {remedy}")
    for name in line_outputs(outputs):
        raise ConfigError(f"outputs.{name} needs the record store; {remedy}")
    for name in watches:
        raise ConfigError(f"{name} needs the record store; {remedy}")


def changed_keys(trigger: CameraTriggerConfig) -> list[str]:
    """Return the keys that differ from a camera whose every frame is a part and whose verdicts have no deadline."""
    plain = CameraTriggerConfig()
    return [one.name for one in dataclasses.fields(trigger) if getattr(trigger, one.name) != getattr(plain, one.name)]


def line_outputs(outputs: object) -> list[str]:
    """Return the sections of ``outputs`` that are given and tell the line or a server."""
    names = [one.name for one in dataclasses.fields(outputs) if one.name not in NEEDS_NO_STORE]  # type: ignore[arg-type]
    return [name for name in names if getattr(outputs, name) is not None]


def _check(section: str, name: str, value: object, is_valid: bool, expected: str) -> None:
    if not is_valid:
        raise ConfigError(f"{section}.{name} must be {expected}, got {value!r}")
