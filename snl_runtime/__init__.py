"""What runs on the line: a model file, a frame, a fail-safe verdict. Needs numpy, OpenCV and yaml; imports the rest on first use.

Example:
    with SnlDetector("x.onnx") as detector:
        result = detector.detect(frame, color="bgr", product="bottle")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snl_runtime.backends import available_backends, open_backend
    from snl_runtime.backends.base import Backend
    from snl_runtime.detector.detector import SnlDetector
    from snl_runtime.errors import (
        BackendError,
        BackendTimeoutError,
        BackendUnavailableError,
        BuildCanceledError,
        CalibrationRefusedError,
        CheckpointError,
        ConfigError,
        DataError,
        DeliveryError,
        DetectorClosedError,
        EngineBuildError,
        EngineMismatchError,
        FrameError,
        GoldenSampleError,
        InferenceError,
        ManifestError,
        NormalizationError,
        ParityRefusedError,
        RankLostError,
        RefusedError,
        SignatureError,
        SinkError,
        SnlError,
        SourceEndedError,
        SourceError,
        SourceOpenError,
        SourceStalledError,
        TrainingDivergedError,
        TriggerRefusedError,
    )
    from snl_runtime.images.files import read_image, write_image
    from snl_runtime.images.overlay import render_overlay
    from snl_runtime.line.handoff import OverflowPolicy
    from snl_runtime.line.image_folders import ImageFolder, ImageFolderCounts, OverlaySaver, RejectSaver
    from snl_runtime.line.jsonl import JsonlSink
    from snl_runtime.line.pipeline import Pipeline, PipelineCounts, PipelineHooks, UndeliveredVerdict
    from snl_runtime.line.record_store import RecordStore, RecordStoreConfig
    from snl_runtime.line.records import StreamSink, record_line
    from snl_runtime.line.sinks import Sink
    from snl_runtime.line.sources.base import FrameSource, FrameStamper, SourceCounters
    from snl_runtime.line.sources.camera import CameraConfig, CameraSource, parse_camera
    from snl_runtime.line.sources.folder import ImageFolderSource
    from snl_runtime.line.sources.genicam import GenicamSource
    from snl_runtime.line.sources.genicam_device import GenicamConfig
    from snl_runtime.line.sources.video import VideoSource
    from snl_runtime.line.sources.watched_folder import WatchedFolderConfig, WatchedFolderSource
    from snl_runtime.line.summary import RunTally, summary_lines
    from snl_runtime.model.bundle import ModelBundle, open_bundle
    from snl_runtime.model.manifest import Decision, Manifest, read_manifest, update_manifest
    from snl_runtime.model.signing import make_key_pair, sign_manifest, verify_manifest
    from snl_runtime.scorer import Scorer
    from snl_runtime.station.assembly import build_station
    from snl_runtime.station.camera_drift import CameraDrift
    from snl_runtime.station.config import StationConfig
    from snl_runtime.station.drift import DriftConfig
    from snl_runtime.station.line_state import LineCommands, LineOutput, LineState, StationState
    from snl_runtime.station.outbox import Consumer, Outbox, OutboxConfig
    from snl_runtime.station.outputs.metrics import MetricsConfig, MetricsOutput
    from snl_runtime.station.outputs.modbus import ModbusConfig, ModbusOutput
    from snl_runtime.station.outputs.mqtt import MqttConfig, MqttConsumer
    from snl_runtime.station.outputs.mqtt_state import MqttOutput
    from snl_runtime.station.outputs.opcua import OpcUaConfig, OpcUaOutput
    from snl_runtime.station.outputs.webhook import WebhookConfig, WebhookConsumer
    from snl_runtime.station.self_test import SelfTestConfig, SelfTestSchedule
    from snl_runtime.station.station import Station, StationCamera
    from snl_runtime.station.triggered import TriggerConfig, TriggerMode
    from snl_runtime.station.unit_config import UnitConfig
    from snl_runtime.station.web.config import WebConfig
    from snl_runtime.station.web.server import WebServer
    from snl_runtime.types import AnomalyRegion, AnomalyResult, ColorOrder, DetectorState, Frame, OutputRequest, SelfTestResult, StageTimings, Verdict
    from snl_runtime.verdict.ruling import REASON_CODES

__all__ = [
    "REASON_CODES",
    "AnomalyRegion",
    "AnomalyResult",
    "Backend",
    "BackendError",
    "BackendTimeoutError",
    "BackendUnavailableError",
    "BuildCanceledError",
    "CalibrationRefusedError",
    "CameraConfig",
    "CameraDrift",
    "CameraSource",
    "CheckpointError",
    "ColorOrder",
    "ConfigError",
    "Consumer",
    "DataError",
    "Decision",
    "DeliveryError",
    "DetectorClosedError",
    "DetectorState",
    "DriftConfig",
    "EngineBuildError",
    "EngineMismatchError",
    "Frame",
    "FrameError",
    "FrameSource",
    "FrameStamper",
    "GenicamConfig",
    "GenicamSource",
    "GoldenSampleError",
    "ImageFolder",
    "ImageFolderCounts",
    "ImageFolderSource",
    "InferenceError",
    "JsonlSink",
    "LineCommands",
    "LineOutput",
    "LineState",
    "Manifest",
    "ManifestError",
    "MetricsConfig",
    "MetricsOutput",
    "ModbusConfig",
    "ModbusOutput",
    "ModelBundle",
    "MqttConfig",
    "MqttConsumer",
    "MqttOutput",
    "NormalizationError",
    "OpcUaConfig",
    "OpcUaOutput",
    "Outbox",
    "OutboxConfig",
    "OutputRequest",
    "OverflowPolicy",
    "OverlaySaver",
    "ParityRefusedError",
    "Pipeline",
    "PipelineCounts",
    "PipelineHooks",
    "RankLostError",
    "RecordStore",
    "RecordStoreConfig",
    "RefusedError",
    "RejectSaver",
    "RunTally",
    "Scorer",
    "SelfTestConfig",
    "SelfTestResult",
    "SelfTestSchedule",
    "SignatureError",
    "Sink",
    "SinkError",
    "SnlDetector",
    "SnlError",
    "SourceCounters",
    "SourceEndedError",
    "SourceError",
    "SourceOpenError",
    "SourceStalledError",
    "StageTimings",
    "Station",
    "StationCamera",
    "StationConfig",
    "StationState",
    "StreamSink",
    "TrainingDivergedError",
    "TriggerConfig",
    "TriggerMode",
    "TriggerRefusedError",
    "UndeliveredVerdict",
    "UnitConfig",
    "Verdict",
    "VideoSource",
    "WatchedFolderConfig",
    "WatchedFolderSource",
    "WebConfig",
    "WebServer",
    "WebhookConfig",
    "WebhookConsumer",
    "available_backends",
    "build_station",
    "make_key_pair",
    "open_backend",
    "open_bundle",
    "parse_camera",
    "read_image",
    "read_manifest",
    "record_line",
    "render_overlay",
    "sign_manifest",
    "summary_lines",
    "update_manifest",
    "verify_manifest",
    "write_image",
]

_NAMES = {
    "backends": (
        "available_backends",
        "open_backend",
    ),
    "backends.base": ("Backend",),
    "detector.detector": ("SnlDetector",),
    "errors": (
        "BackendError",
        "BackendTimeoutError",
        "BackendUnavailableError",
        "BuildCanceledError",
        "CalibrationRefusedError",
        "CheckpointError",
        "ConfigError",
        "DataError",
        "DeliveryError",
        "DetectorClosedError",
        "EngineBuildError",
        "EngineMismatchError",
        "FrameError",
        "GoldenSampleError",
        "InferenceError",
        "ManifestError",
        "NormalizationError",
        "ParityRefusedError",
        "RankLostError",
        "RefusedError",
        "SignatureError",
        "SinkError",
        "SnlError",
        "SourceEndedError",
        "SourceError",
        "SourceOpenError",
        "SourceStalledError",
        "TrainingDivergedError",
        "TriggerRefusedError",
    ),
    "images.files": (
        "read_image",
        "write_image",
    ),
    "images.overlay": ("render_overlay",),
    "line.handoff": ("OverflowPolicy",),
    "line.image_folders": (
        "ImageFolder",
        "ImageFolderCounts",
        "OverlaySaver",
        "RejectSaver",
    ),
    "line.jsonl": ("JsonlSink",),
    "line.pipeline": (
        "Pipeline",
        "PipelineCounts",
        "PipelineHooks",
        "UndeliveredVerdict",
    ),
    "line.record_store": (
        "RecordStore",
        "RecordStoreConfig",
    ),
    "line.records": (
        "StreamSink",
        "record_line",
    ),
    "line.sinks": ("Sink",),
    "line.sources.base": (
        "FrameSource",
        "FrameStamper",
        "SourceCounters",
    ),
    "line.sources.camera": (
        "CameraConfig",
        "CameraSource",
        "parse_camera",
    ),
    "line.sources.folder": ("ImageFolderSource",),
    "line.sources.genicam": ("GenicamSource",),
    "line.sources.genicam_device": ("GenicamConfig",),
    "line.sources.video": ("VideoSource",),
    "line.sources.watched_folder": (
        "WatchedFolderConfig",
        "WatchedFolderSource",
    ),
    "line.summary": (
        "RunTally",
        "summary_lines",
    ),
    "model.bundle": (
        "ModelBundle",
        "open_bundle",
    ),
    "model.manifest": (
        "Decision",
        "Manifest",
        "read_manifest",
        "update_manifest",
    ),
    "model.signing": (
        "make_key_pair",
        "sign_manifest",
        "verify_manifest",
    ),
    "scorer": ("Scorer",),
    "station.assembly": ("build_station",),
    "station.camera_drift": ("CameraDrift",),
    "station.config": ("StationConfig",),
    "station.drift": ("DriftConfig",),
    "station.line_state": (
        "LineCommands",
        "LineOutput",
        "LineState",
        "StationState",
    ),
    "station.outbox": (
        "Consumer",
        "Outbox",
        "OutboxConfig",
    ),
    "station.outputs.metrics": (
        "MetricsConfig",
        "MetricsOutput",
    ),
    "station.outputs.modbus": (
        "ModbusConfig",
        "ModbusOutput",
    ),
    "station.outputs.mqtt": (
        "MqttConfig",
        "MqttConsumer",
    ),
    "station.outputs.mqtt_state": ("MqttOutput",),
    "station.outputs.opcua": (
        "OpcUaConfig",
        "OpcUaOutput",
    ),
    "station.outputs.webhook": (
        "WebhookConfig",
        "WebhookConsumer",
    ),
    "station.self_test": (
        "SelfTestConfig",
        "SelfTestSchedule",
    ),
    "station.station": (
        "Station",
        "StationCamera",
    ),
    "station.triggered": (
        "TriggerConfig",
        "TriggerMode",
    ),
    "station.unit_config": ("UnitConfig",),
    "station.web.config": ("WebConfig",),
    "station.web.server": ("WebServer",),
    "types": (
        "AnomalyRegion",
        "AnomalyResult",
        "ColorOrder",
        "DetectorState",
        "Frame",
        "OutputRequest",
        "SelfTestResult",
        "StageTimings",
        "Verdict",
    ),
    "verdict.ruling": ("REASON_CODES",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that ``import snl_runtime`` and every ``-h`` stay fast."""
    if name not in _MODULES:
        raise AttributeError(f"module 'snl_runtime' has no attribute '{name}'")
    return getattr(importlib.import_module(f"snl_runtime.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
