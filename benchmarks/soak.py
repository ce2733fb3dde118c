"""Let a real station run with all its outputs on, and fail if its process grows.

    python -m benchmarks.soak
    python -m benchmarks.soak --minutes 480

Starts ``snl-run --config`` with two network cameras that send good and bad parts, triggered by a clock, a record store with a limit of rows, records
with rotation, images of rejects, OPC UA, Modbus, MQTT (with a real mosquitto, if it is installed), a webhook and metrics; a client reads Modbus and
the metrics meanwhile. Every few seconds it notes resident memory, threads and open files of the process from /proc. The second quarter of the run is
compared with the last one: more than the bounds below is growth, and the exit status is 1.
"""

import argparse
import contextlib
import http.server
import importlib
import shutil
import statistics
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MOST_GROWTH_KIB = 8 << 10
MOST_GROWTH_SHARE = 0.05
MOST_NEW_THREADS = 4
MOST_NEW_FILES = 4
SAMPLES = 80
CAMERAS = ("left", "right")
INTERVAL_MS = 100.0
EXIT_GREW = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at the process.

    Attributes:
        at_s: Seconds since the start of the run.
        memory_kib: Resident memory (VmRSS).
        threads: Its threads.
        files: Its open files and sockets.
        rows: Records so far.
    """

    at_s: float
    memory_kib: int
    threads: int
    files: int
    rows: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the table and return the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", metavar="N", type=float, default=2.0, help="how long (default: 2)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as opened:
        samples = _run(Path(temporary), options.minutes * 60, opened)
    return _judge(samples)


def grown(samples: Sequence[Sample]) -> list[str]:
    """Return what grew beyond its bound between the second and the last quarter, one sentence each."""
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    found = []
    for name, bound in (("memory_kib", None), ("threads", MOST_NEW_THREADS), ("files", MOST_NEW_FILES)):
        before, after = (statistics.median(getattr(sample, name) for sample in part) for part in (early, late))
        most = max(MOST_GROWTH_KIB, MOST_GROWTH_SHARE * before) if bound is None else bound
        if after - before > most:
            found.append(f"{name} grew from {before:g} to {after:g}, more than {most:g}")
    if late[-1].rows <= early[0].rows:
        found.append("no records were added: the station stood still")
    return found


def _judge(samples: Sequence[Sample]) -> int:
    print("| minute | memory MiB | threads | open files | records |\n|---:|---:|---:|---:|---:|")
    for sample in samples[:: max(1, len(samples) // 16)]:
        print(f"| {sample.at_s / 60:.1f} | {sample.memory_kib / 1024:.1f} | {sample.threads} | {sample.files} | {sample.rows} |")
    found = grown(samples)
    print("; ".join(found) if found else "memory, threads and open files stayed within their bounds")
    return EXIT_GREW if found else 0


def _run(folder: Path, seconds: float, opened: contextlib.ExitStack) -> list[Sample]:
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    support: Any = importlib.import_module("station_process")
    support.write_model(folder)
    cameras = [opened.enter_context(support.CameraProcess()) for _ in CAMERAS]
    ports = {name: support.free_port() for name in ("modbus", "opcua", "mqtt", "metrics")}
    has_broker = _broker(support, folder, ports["mqtt"], opened)
    webhook = opened.enter_context(_receiver())
    config = _config([camera.url for camera in cameras], ports, webhook=webhook, has_broker=has_broker)
    station = opened.enter_context(support.StationProcess(folder, config))
    plc = support.Plc(station, ports["modbus"]).connect()
    opened.callback(plc.close)
    support.until(lambda: _metrics(ports["metrics"]), "the metrics to be served")
    samples, began_s, pause = list[Sample](), time.monotonic(), threading.Event()
    while (at_s := time.monotonic() - began_s) < seconds:
        view = plc.look()
        if view.fault:  # a loaded machine may miss a deadline; an operator resets
            plc.reset()
        if not _metrics(ports["metrics"]):
            raise RuntimeError(f"the metrics are no longer served: {station.text[-2000:]}")
        cameras[len(samples) % len(cameras)].tell("bad" if len(samples) % 4 < 2 else "good")
        samples.append(_look(station, at_s))
        pause.wait(seconds / SAMPLES)
    status = station.end()
    if status != 0:
        raise RuntimeError(f"the station ended with status {status}: {station.text[-2000:]}")
    return samples


def _metrics(port: int) -> bytes:
    """Return what Prometheus would read; nothing where nobody listens."""
    try:
        return bytes(urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60).read())
    except urllib.error.URLError:
        return b""


def _look(station: Any, at_s: float) -> Sample:
    if station.process.poll() is not None:
        raise RuntimeError(f"the station ended: {station.text[-2000:]}")
    process = Path(f"/proc/{station.process.pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    files = len(list((process / "fd").iterdir()))
    return Sample(at_s=at_s, memory_kib=int(status["VmRSS"].split()[0]), threads=int(status["Threads"]), files=files, rows=station.last_row())


def _config(addresses: Sequence[str], ports: dict[str, int], *, webhook: str, has_broker: bool) -> dict[str, Any]:
    trigger = {"mode": "timer", "interval_ms": INTERVAL_MS, "deadline_ms": 5_000.0, "frame_timeout_ms": 2_000.0}
    outputs: dict[str, Any] = {
        "modbus": {"port": ports["modbus"]},
        "opcua": {"endpoint": f"opc.tcp://127.0.0.1:{ports['opcua']}/snl"},
        "metrics": {"port": ports["metrics"]},
        "webhook": {"url": webhook},
    }
    if has_broker:
        outputs["mqtt"] = {"host": "127.0.0.1", "port": ports["mqtt"]}
    return {
        "model": {"file": "line.onnx", "threads": 1},
        "cameras": {
            name: {"source": {"camera": {"address": address}}, "product": "bottle", "trigger": trigger} for name, address in zip(CAMERAS, addresses)
        },
        "records": {
            "store": {"path": "records.sqlite", "max_rows": 500},
            "jsonl": {"file": "verdicts.jsonl", "max_mib": 1},
            "rejects": {"folder": "rejects", "max_mib": 1},
        },
        "outputs": outputs,
    }


def _broker(support: Any, folder: Path, port: int, opened: contextlib.ExitStack) -> bool:
    if shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin") is None:
        print("without MQTT: mosquitto is not installed", file=sys.stderr)
        return False
    module = support.load_file(ROOT / "tests" / "station" / "outputs" / "broker.py", "snl_soak_broker")
    (folder / "broker").mkdir()
    opened.enter_context(module.Broker(folder / "broker", port))
    return True


@contextlib.contextmanager
def _receiver() -> Iterator[str]:
    """A web server that takes every record; yields its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(204)
            self.end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/verdicts"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
