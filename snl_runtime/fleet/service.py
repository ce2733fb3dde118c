"""One service for many lines: an image comes in over HTTP, its record goes out, and a verdict that comes too late is an ERROR.

Two kinds of processes of Ray Serve: one front that admits, times and answers requests, and replicas with one opened model each. The deadline is kept
by the front alone, with one monotonic clock, so machines whose clocks differ cannot turn a late verdict into a timely one.
"""

import asyncio
import contextlib
import hmac
import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from snl_runtime.errors import BackendError, ConfigError, DataError
from snl_runtime.fleet.cluster import LOOPBACK, ray_cluster
from snl_runtime.fleet.inspection import needs_gpu
from snl_runtime.fleet.inspector import open_model
from snl_runtime.fleet.packages import load_package
from snl_runtime.images.files import decode_frame
from snl_runtime.line.pipeline import error_result, judge_frame
from snl_runtime.line.records import iso_time, record_of
from snl_runtime.station.config import ModelConfig
from snl_runtime.station.outputs.addresses import check_port, check_positive, is_loopback, read_secret
from snl_runtime.text import printable, to_json
from snl_runtime.types import DetectorState, Frame

INSPECT, HEALTH, METRICS = "/inspect", "/healthz", "/metrics"
OK, UNAUTHORIZED, UNKNOWN, TOO_LARGE, UNREADABLE, OVERLOADED, MISSED = 200, 401, 404, 413, 422, 503, 504
"""HTTP statuses; the body of every answer to an inspection is a record, of an ERROR unless the status is 200."""
SERVICE_REASON_CODES = {
    "overloaded": "as many images as may be are under way in the service; HTTP status 503",
    "unauthorized": "the request to the service carried no valid token; HTTP status 401",
}
"""Reason codes of ERRORs that the service gives by itself, besides ``deadline_missed``, ``frame_fault`` and ``backend_error``."""
APPLICATION = "snl"
_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """What serves, where, and what it promises."""

    model: ModelConfig
    """The model; without ``threads`` each replica on a CPU takes one."""
    host: str = LOOPBACK
    """Address to listen on; other machines reach it only with a token."""
    port: int = 8000
    """TCP port."""
    replicas: int = 1
    """Processes with one opened model each."""
    max_waiting: int = 8
    """Images that may wait while all replicas are busy; more are refused at once."""
    deadline_ms: float = 1000.0
    """Longest time from a request's arrival to its answer, in milliseconds; later is ERROR."""
    max_mib: float = 64.0
    """Largest image file, in MiB."""
    token_file: str | None = None
    """File with the token that clients send, readable by its owner only; none admits all, which the loopback address allows."""
    address: str | None = None
    """Existing Ray cluster; none starts one on this machine."""

    def __post_init__(self) -> None:
        check_port("port", self.port)
        for name in ("replicas", "deadline_ms", "max_mib"):
            check_positive(name, getattr(self, name))
        if self.max_waiting < 0:
            raise ConfigError(f"max_waiting must be 0 or more, got {self.max_waiting}")
        if self.token_file is None and not is_loopback(self.host):
            raise ConfigError(f"host {self.host} can be reached by other machines: name a token with --token-file FILE, or listen on {LOOPBACK}")


class Judge:
    """A replica: one opened model, one image at a time.

    Args:
        model: What to open.
    """

    def __init__(self, model: ModelConfig) -> None:
        self._detector = open_model(model)

    async def inspect(self, data: bytes, about: dict[str, Any]) -> dict[str, Any]:
        """Return the record of one encoded image; ``about`` holds the fields of a :class:`Frame` that the front knows."""
        return await asyncio.to_thread(self._inspect, data, about)

    async def state(self) -> str:
        """Return the state of the model."""
        return self._detector.state.value

    def _inspect(self, data: bytes, about: dict[str, Any]) -> dict[str, Any]:
        image, fault = None, None
        try:
            image = decode_frame(data, about["source_id"])
        except DataError as error:
            fault = str(error)
        frame = Frame(image=image, fault=fault, color="rgb", captured_ns=time.monotonic_ns(), **about)
        return record_of(frame, judge_frame(self._detector, frame))


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontSettings:
    """What the front is told; the token comes from its file."""

    token: str | None
    deadline_s: float
    most: int
    max_bytes: int
    model_sha256: str


class Front:
    """Admits, times and answers requests.

    Args:
        judge: Handle of the replicas.
        settings: Limits.
    """

    def __init__(self, judge: Any, settings: FrontSettings) -> None:
        self._judge = judge
        self._settings = settings
        self._in_flight = 0
        self._index = 0
        self._metrics = _Metrics()

    async def __call__(self, request: Any) -> Any:
        """Return the answer to one request of Starlette."""
        path, method = request.url.path, request.method
        if path == METRICS and method == "GET":
            return _response(self._metrics.text(self._in_flight), OK, "text/plain; version=0.0.4")
        if path == HEALTH and method == "GET":
            return await self._health()
        if path != INSPECT or method != "POST":
            return _response(to_json({"error": f"no {method} {path}; POST {INSPECT}, GET {HEALTH}, GET {METRICS}"}), UNKNOWN)
        inspection = _Inspection(request, self._index, self._settings.model_sha256)
        self._index += 1
        status, record = await self._answer(request, inspection)
        self._metrics.count(record, status, inspection.elapsed_s)
        return _response(to_json(record), status)

    async def _answer(self, request: Any, inspection: "_Inspection") -> tuple[int, dict[str, Any]]:
        settings = self._settings
        if not _is_admitted(request, settings.token):
            return UNAUTHORIZED, inspection.error("unauthorized", "the request carries no valid token; send Authorization: Bearer TOKEN")
        if self._in_flight >= settings.most:
            await self._discard(request)
            return OVERLOADED, inspection.error(
                "overloaded", f"{self._in_flight} images are under way, as many as may be; send fewer or add replicas"
            )
        self._in_flight += 1
        try:
            status, record = await asyncio.wait_for(self._judged(request, inspection), settings.deadline_s - inspection.elapsed_s)
        except (asyncio.TimeoutError, TimeoutError):
            return MISSED, self._missed(inspection)
        except Exception as failure:  # noqa: BLE001 - whatever Ray raises for a replica that died: the part must get its ERROR
            logging.getLogger(__name__).error("a request failed: %s", failure)
            return OVERLOADED, inspection.error("backend_error", f"the image was not judged: {type(failure).__name__}; send it again")
        finally:
            self._in_flight -= 1
        if inspection.elapsed_s > settings.deadline_s:  # judged in time, and late by the time it came here
            return MISSED, self._missed(inspection)
        return status, record

    async def _discard(self, request: Any) -> None:
        """Read the image of a refused request: a client that is still sending would see a reset connection in place of the answer."""

        async def read() -> None:
            received = 0
            async for chunk in request.stream():
                received += len(chunk)
                if received > self._settings.max_bytes:
                    return

        with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
            await asyncio.wait_for(read(), self._settings.deadline_s)

    async def _judged(self, request: Any, inspection: "_Inspection") -> tuple[int, dict[str, Any]]:
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > self._settings.max_bytes:
                limit = f"the image has more than {self._settings.max_bytes} bytes"
                return TOO_LARGE, inspection.error("frame_fault", f"{limit}; send a smaller one or raise --max-mib")
        response = self._judge.inspect.remote(bytes(data), inspection.about)
        try:
            record = inspection.timed(await response)
        except asyncio.CancelledError:
            response.cancel()  # one that still waits is never judged
            raise
        return UNREADABLE if record["reason_code"] == "frame_fault" else OK, record

    def _missed(self, inspection: "_Inspection") -> dict[str, Any]:
        return inspection.error("deadline_missed", f"there was no verdict within {self._settings.deadline_s * 1e3:g} ms; a later one was discarded")

    async def _health(self) -> Any:
        async def ask() -> Any:
            return await self._judge.state.remote()

        try:
            state = await asyncio.wait_for(ask(), self._settings.deadline_s)
        except Exception as failure:  # noqa: BLE001 - also a replica that died
            state = f"no answer within {self._settings.deadline_s * 1e3:g} ms ({type(failure).__name__})"
        is_ready = state == DetectorState.READY.value
        return _response(to_json({"state": state, "model_sha256": self._settings.model_sha256}), OK if is_ready else OVERLOADED)


class _Inspection:
    """One request: its frame without the image, and the clock of its deadline."""

    def __init__(self, request: Any, index: int, model_sha256: str) -> None:
        self._arrived_s = time.monotonic()
        self._arrived_ns = time.monotonic_ns()
        self._model_sha256 = model_sha256
        query = request.query_params
        self.request_id = printable(request.headers.get("x-request-id") or str(uuid.uuid4()))
        client = request.client.host if request.client is not None else "unknown"
        self.about: dict[str, Any] = {
            "index": index,
            "captured_at": time.time(),
            "source_id": query.get("source") or client,
            "product": query.get("product"),
            "part_id": query.get("part_id"),
        }

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._arrived_s

    def timed(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return the record of a replica with the time that the request took as the front saw it."""
        return {
            **record,
            "captured_at": iso_time(self.about["captured_at"]),
            "latency_ms": round(self.elapsed_s * 1e3, 3),
            "request_id": self.request_id,
        }

    def error(self, reason_code: str, reason: str) -> dict[str, Any]:
        """Return the record of an ERROR that no replica gave."""
        frame = Frame(image=None, fault=reason, color="rgb", captured_ns=self._arrived_ns, **self.about)
        return {**record_of(frame, error_result(frame, reason_code, reason, model_sha256=self._model_sha256)), "request_id": self.request_id}


class _Metrics:
    """Counts by verdict, reason and status; prometheus-client comes with Ray Serve."""

    def __init__(self) -> None:
        client = load_package("prometheus_client")
        self._client = client
        self._registry = client.CollectorRegistry()
        labels = ["verdict", "reason_code", "status"]
        self._requests = client.Counter("snl_service_requests", "Answered inspections.", labels, registry=self._registry)
        self._seconds = client.Histogram("snl_service_seconds", "From arrival to answer.", buckets=_BUCKETS_S, registry=self._registry)
        self._in_flight = client.Gauge("snl_service_in_flight", "Images waiting or being judged.", registry=self._registry)

    def count(self, record: dict[str, Any], status: int, elapsed_s: float) -> None:
        self._requests.labels(record["verdict"], record["reason_code"], str(status)).inc()
        self._seconds.observe(elapsed_s)

    def text(self, in_flight: int) -> str:
        self._in_flight.set(in_flight)
        return str(self._client.generate_latest(self._registry).decode())


def run_service(config: ServiceConfig, *, on_ready: Callable[[str], None], stopped: threading.Event) -> None:
    """Serve until ``stopped`` is set.

    Args:
        config: What, where and how.
        on_ready: Called with the address once images are judged.
        stopped: Ends the service; requests under way are answered first.

    Raises:
        SnlError: If the model cannot be opened, the port is taken, or the cluster fails.
    """
    token = None if config.token_file is None else read_secret(config.token_file, key="token_file")
    _check_free(config.host, config.port)
    with open_model(config.model) as detector:  # what is wrong with it is said in one line, before a cluster is started
        sha256 = detector.model_sha256
    settings = FrontSettings(
        token=token,
        deadline_s=config.deadline_ms / 1e3,
        most=config.replicas + config.max_waiting,
        max_bytes=int(config.max_mib * 2**20),
        model_sha256=sha256,
    )
    with ray_cluster(config.address, cpus=config.replicas) as ray:
        serve = load_package("ray.serve")
        try:
            _deploy(serve, config, settings)
        except (RuntimeError, ray.exceptions.RayError) as error:
            raise BackendError(f"Ray Serve did not start: {' '.join(str(error).split())[:300]}") from error
        try:
            on_ready(f"http://{config.host}:{config.port}")
            while not stopped.wait(0.5):  # a wait without limit cannot be interrupted on Windows
                pass
        finally:
            serve.delete(APPLICATION) if config.address is not None else serve.shutdown()


def _deploy(serve: Any, config: ServiceConfig, settings: FrontSettings) -> None:
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    for name in ("ray.serve", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    serve.start(proxy_location="HeadOnly", http_options={"host": config.host, "port": config.port}, logging_config=quiet)
    share = {"num_cpus": 0, "num_gpus": 1} if needs_gpu(config.model) else {"num_cpus": 1}
    judge = serve.deployment(Judge, name="Judge").options(num_replicas=config.replicas, max_ongoing_requests=1, ray_actor_options=share)
    front = serve.deployment(Front, name="Front").options(num_replicas=1, max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
    serve.run(front.bind(judge.bind(config.model), settings), name=APPLICATION, route_prefix="/", logging_config=quiet)


def _check_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror or error}; name another with --port") from error


def _is_admitted(request: Any, token: str | None) -> bool:
    if token is None:
        return True
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())


def _response(text: str, status: int, media_type: str = "application/json") -> Any:
    return load_package("starlette.responses").Response(text + ("" if text.endswith("\n") else "\n"), status_code=status, media_type=media_type)
