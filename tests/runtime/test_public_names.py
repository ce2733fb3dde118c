"""The public names of snl_runtime are all there, and importing the package loads none of them."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import snl_runtime
from snl_runtime import errors

EXAMPLES = Path(__file__).parents[2] / "examples"

NAMES = {
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
    "REASON_CODES",
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
}


def test_inventory_of_the_public_api():
    assert set(snl_runtime.__all__) == NAMES == set(dir(snl_runtime))


@pytest.mark.parametrize("name", sorted(NAMES))
def test_public_name_can_be_imported(name):
    value = getattr(snl_runtime, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__module__.startswith("snl_runtime.")


def test_every_error_is_public():
    defined = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, errors.SnlError)}
    assert defined == {name for name in NAMES if name.endswith("Error")}


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: path.name)
def test_examples_import_public_names_only(path):
    imports = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = [node.module or "" if isinstance(node, ast.ImportFrom) else alias.name for node in imports for alias in node.names]
    assert [module for module in modules if module.startswith("snl_runtime.")] == []


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'snl_runtime' has no attribute 'Detector'"):
        _ = snl_runtime.Detector


def test_import_loads_neither_numpy_nor_opencv():
    program = "import sys, snl_runtime; print(sorted({'numpy', 'cv2', 'yaml', 'onnxruntime', 'openvino', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
