"""A station tried with one frame of each camera: everything is opened, nothing is written, and every output says what it would get."""

import dataclasses
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from snl_runtime.errors import SourceStalledError
from snl_runtime.line.records import record_line
from snl_runtime.station.build import build_source, drawn_verdicts
from snl_runtime.station.config import StationCameraConfig, StationConfig
from snl_runtime.station.crop import CroppedDetector
from snl_runtime.text import redact_credentials
from snl_runtime.types import AnomalyResult, Frame, Verdict

if TYPE_CHECKING:
    from snl_runtime.detector.detector import SnlDetector

FIRST_FRAME_TIMEOUT_S = 30.0
"""Longest wait for the one frame of a camera."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraReport:
    """What became of one camera's frame.

    Attributes:
        lines: For a person.
        error: Why the frame was not inspected; None if its verdict is PASS, REVIEW or REJECT.
    """

    lines: tuple[str, ...]
    error: str | None


def describe_model(detector: "SnlDetector", config: StationConfig) -> list[str]:
    """Return what was opened, one line each."""
    products = ", ".join(detector.products) or "none, so every verdict is ERROR"
    return [f"model: {config.model.file} with {detector.backend_name} on {detector.device}", f"calibrated products: {products}", *detector.notes]


def check_camera(name: str, config: StationConfig, detector: "SnlDetector", *, timeout_s: float = FIRST_FRAME_TIMEOUT_S) -> CameraReport:
    """Open one camera, inspect its first frame and close it.

    Args:
        name: Of the camera.
        config: The station.
        detector: Opened.
        timeout_s: Longest wait for the frame.

    Raises:
        SnlError: If the source cannot be opened or gives no frame in time.
    """
    camera = _without_traces(config.cameras[name])
    frame = _first_frame(name, camera, config, timeout_s)
    result = _judged(frame, camera, detector)
    lines = [f"camera {name}: {_seen(frame)}", f"  verdict: {_told(result)}"]
    lines += [f"  {line}" for line in _what_each_output_gets(frame, result, config)]
    error = f"{result.reason_code}, {result.reason}" if result.verdict is Verdict.ERROR else None
    return CameraReport(lines=tuple(lines), error=error)


def _without_traces(camera: StationCameraConfig) -> StationCameraConfig:
    """Return the camera with a watched folder whose files stay where they lie."""
    watch = camera.source.watch
    if watch is None:
        return camera
    kept = dataclasses.replace(watch, done="keep", done_folder=None)
    return dataclasses.replace(camera, source=dataclasses.replace(camera.source, watch=kept))


def _first_frame(name: str, camera: StationCameraConfig, config: StationConfig, timeout_s: float) -> Frame:
    stop = threading.Event()
    timer = threading.Timer(timeout_s, stop.set)
    timer.daemon = True
    timer.start()
    try:
        with build_source(camera, records=config.records) as source:
            frames = source.frames(stop)
            frame = next(frames, None)
            if hasattr(frames, "close"):
                frames.close()
    finally:
        timer.cancel()
    if frame is None:
        raise SourceStalledError(f"cameras.{name} gave no frame within {timeout_s:g} s; check the source")
    return frame


def _judged(frame: Frame, camera: StationCameraConfig, detector: "SnlDetector") -> AnomalyResult:
    if frame.fault is not None:  # as the pipeline does
        unusable = detector.detect(None, color=frame.color, product=frame.product)
        return dataclasses.replace(unusable, verdict=Verdict.ERROR, reason_code="frame_fault", reason=frame.fault)
    judge = detector if camera.crop_xyxy is None else CroppedDetector(detector, camera.crop_xyxy)
    product = frame.product or next(iter(camera.products), None)
    return judge.detect(frame.image, color=frame.color, product=product)


def _seen(frame: Frame) -> str:
    if frame.image is None:
        return f"{frame.source_id}: {frame.fault}"
    return f"{frame.source_id}, {frame.image.shape[1]} x {frame.image.shape[0]} pixels, {frame.color}, {frame.image.dtype}"


def _told(result: AnomalyResult) -> str:
    product = "" if result.product is None else f", product {result.product}"
    return f"{result.verdict.value} ({result.reason_code}: {result.reason}){product}, {result.timings.total_ms:.1f} ms"


def _what_each_output_gets(frame: Frame, result: AnomalyResult, config: StationConfig) -> Iterator[str]:
    """Yield one line for each output; an output that is added gets its line here."""
    records, verdict = config.records, result.verdict
    where = "standard output" if records.jsonl is None else records.jsonl.file
    yield f"records to {where}: {record_line(frame, result)}"
    if records.store is not None:
        yield f"row in {records.store.path}: the same"
    if records.rejects is not None:
        is_saved = verdict is not Verdict.PASS and frame.image is not None
        yield f"frame to {records.rejects.folder}: {'the frame as it is' if is_saved else f'nothing of {verdict.value}'}"
    if records.overlay is not None:
        is_saved = verdict in drawn_verdicts(records.overlay.frames) and frame.image is not None
        yield f"overlay to {records.overlay.folder}: {'the frame with heat map and verdict' if is_saved else f'nothing of {verdict.value}'}"
    for plug_in in config.outputs.plugins:
        yield f"plug-in {plug_in.partition(':')[0]}: {verdict.value}, not told during a check"
    accept = "true" if verdict is Verdict.PASS else "false"
    told = f"{verdict.value} {result.reason_code}, accept {accept}; not told during a check"
    for name, where in _addresses(config).items():
        yield f"{name} at {redact_credentials(where)}: {told}"


def _addresses(config: StationConfig) -> dict[str, str]:
    """Return where each output that is given tells somebody."""
    outputs, web = config.outputs, config.web
    addresses = {
        "screen": None if web is None else f"{web.host}:{web.port}",
        "OPC UA": None if outputs.opcua is None else outputs.opcua.endpoint,
        "Modbus TCP": None if outputs.modbus is None else f"{outputs.modbus.host}:{outputs.modbus.port}",
        "MQTT": None if outputs.mqtt is None else f"{outputs.mqtt.address}, {outputs.mqtt.topic}",
        "webhook": None if outputs.webhook is None else outputs.webhook.url,
        "metrics": None if outputs.metrics is None else f"{outputs.metrics.host}:{outputs.metrics.port}",
    }
    return {name: address for name, address in addresses.items() if address is not None}
