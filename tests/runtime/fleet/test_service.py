"""The service answers every image with a record: a verdict in time, or an ERROR that says why."""

import concurrent.futures
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import cv2
import pytest

from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import ConfigError
from snl_runtime.fleet.service import ServiceConfig
from snl_runtime.images.files import read_frame
from snl_runtime.station.config import ModelConfig

MODEL = ModelConfig(file="line.onnx")
LONGEST_S = 240
DEADLINE_MS = 2000
LARGE = 2400
"""Side of a frame that keeps a replica busy long enough for others to wait."""


def test_other_machines_are_served_with_a_token_only(tmp_path):
    with pytest.raises(ConfigError, match=r"host 0\.0\.0\.0 can be reached by other machines: name a token"):
        ServiceConfig(model=MODEL, host="0.0.0.0")
    assert ServiceConfig(model=MODEL, host="0.0.0.0", token_file="token").host == "0.0.0.0"
    assert ServiceConfig(model=MODEL).host == "127.0.0.1"


@pytest.mark.parametrize(("name", "value"), [("port", 0), ("deadline_ms", 0.0), ("max_waiting", -1), ("replicas", 0), ("max_mib", 0.0)])
def test_setting_out_of_range_is_refused_by_its_name(name, value):
    with pytest.raises(ConfigError, match=name):
        ServiceConfig(model=MODEL, **{name: value})


class Service:
    def __init__(self, process, address, token):
        self.process = process
        self.address = address
        self.token = token

    def post(self, data, query="product=bottle", **headers):
        """Return status and record."""
        request = urllib.request.Request(f"{self.address}/inspect?{query}", data, {"Authorization": f"Bearer {self.token}", **headers})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def get(self, path):
        try:
            with urllib.request.urlopen(self.address + path, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@pytest.fixture(scope="module")
def service(tmp_path_factory, fixtures):
    pytest.importorskip("ray.serve")
    folder = tmp_path_factory.mktemp("service")
    engine = fixtures.ModelFolder(folder).write()
    token = folder / "token"
    token.write_text("secret-of-the-test\n")
    token.chmod(0o600)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--port", port, "--token-file", token, "--max-waiting", 1, "--deadline-ms", DEADLINE_MS, "--max-mib", 20]
    command = [sys.executable, "-m", "snl_runtime.cli.serve", "--engine", engine, *options]
    log = folder / "log"
    with log.open("w") as stream, subprocess.Popen([*map(str, command)], stderr=stream, stdout=stream) as process:
        wait_for(lambda: "ready after" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield Service(process, f"http://127.0.0.1:{port}", "secret-of-the-test")
        process.terminate()
        assert process.wait(LONGEST_S) == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    assert "SIGTERM received" not in log.read_text()


def wait_for(condition):
    deadline, pause = time.monotonic() + LONGEST_S, threading.Event()
    while not (found := condition()):
        assert time.monotonic() < deadline
        pause.wait(0.1)
    return found


@pytest.fixture
def large(model):
    return cv2.imencode(".png", model.good_frame(0, LARGE))[1].tobytes()


@pytest.mark.station
def test_verdicts_and_scores_are_those_of_a_detector(service, parts, engine):
    with SnlDetector(engine, threads=1) as detector:
        for file in sorted(parts.glob("[ab]_*.png")):
            status, record = service.post(file.read_bytes(), f"product=bottle&part_id={file.stem}", **{"X-Request-ID": f"id-{file.stem}"})
            result = detector.detect(read_frame(file), color="rgb", product="bottle")
            assert (status, record["verdict"], record["score"]) == (200, result.verdict.value, float(result.score))
            assert (record["part_id"], record["request_id"]) == (file.stem, f"id-{file.stem}")


@pytest.mark.station
def test_image_that_cannot_be_read_is_an_error_record_that_says_why(service, parts):
    status, record = service.post((parts / "c_cut.png").read_bytes(), "product=bottle&source=camera-7")
    assert (status, record["verdict"], record["reason_code"], record["source_id"]) == (422, "ERROR", "frame_fault", "camera-7")
    assert "truncated" in record["reason"]
    status, record = service.post(b"\x89PNG" + bytes(21 << 20))
    assert (status, record["verdict"]) == (413, "ERROR")


@pytest.mark.station
def test_request_without_the_token_is_an_error(service, parts):
    stranger = Service(service.process, service.address, "guess")
    status, record = stranger.post((parts / "a_good0.png").read_bytes())
    assert (status, record["verdict"], record["reason_code"]) == (401, "ERROR", "unauthorized")


@pytest.mark.station
def test_overload_is_answered_with_errors_and_no_verdict_comes_late(service, large):
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: service.post(large), range(24)))
    reasons = {200: None, 503: "overloaded", 504: "deadline_missed"}
    assert {status for status, _ in answers} <= set(reasons)
    assert 503 in {status for status, _ in answers}  # one is judged and one waits: the others are refused at once
    for status, record in answers:
        if status == 200:
            assert record["latency_ms"] <= DEADLINE_MS
        else:
            assert (record["verdict"], record["reason_code"], record["score"]) == ("ERROR", reasons[status], None)


@pytest.mark.station
def test_image_that_arrives_too_slowly_misses_its_deadline(service, parts):
    data = (parts / "a_good0.png").read_bytes()
    host, port = service.address.removeprefix("http://").split(":")
    head = f"POST /inspect?product=bottle HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {service.token}\r\nContent-Length: {len(data)}\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(head.encode() + data[:100])
        answer = b""
        while b"request_id" not in answer:  # it comes while the rest of the image does not
            received = client.recv(1 << 16)
            assert received
            answer += received
    assert b" 504 " in answer.splitlines()[0]
    assert b'"reason_code": "deadline_missed"' in answer


@pytest.mark.station
def test_health_and_metrics_say_how_it_goes(service, parts):
    assert service.post((parts / "a_good0.png").read_bytes())[0] == 200
    status, text = service.get("/healthz")
    assert (status, json.loads(text)["state"]) == (200, "ready")
    _, metrics = service.get("/metrics")
    assert re.search(r'snl_service_requests_total\{reason_code="below_threshold",status="200",verdict="PASS"\} \d', metrics)
    assert "snl_service_in_flight 0.0" in metrics
    page = (Path(__file__).parents[3] / "docs" / "guides" / "fleet.md").read_text(encoding="utf-8")
    names = {name for name in re.findall(r"^# TYPE (\S+)", metrics, re.MULTILINE) if not name.endswith("_created")}
    assert {name for name in names if f"`{name}`" not in page} == set()
    assert service.get("/elsewhere")[0] == 404


@pytest.mark.station
def test_client_example_gives_the_verdict_and_errors_for_everything_else(service, parts):
    path = Path(__file__).parents[3] / "examples" / "service" / "client.py"
    spec = importlib.util.spec_from_file_location("service_client", path)
    client = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(client)
    assert client.verdict_of(service.address, parts / "a_good0.png", "bottle", service.token) == "PASS"
    assert client.verdict_of(service.address, parts / "b_bad0.png", "bottle", service.token) == "REJECT"
    assert client.verdict_of(service.address, parts / "a_good0.png", "bottle", "guess") == "ERROR"
    assert client.verdict_of("http://127.0.0.1:9", parts / "a_good0.png", "bottle") == "ERROR"
    assert client.verdict_of(service.address, parts / "none.png", "bottle") == "ERROR"


@pytest.mark.station
@pytest.mark.skipif(shutil.which("mcs") is None or shutil.which("mono") is None, reason="needs mono-mcs and libmono-system-net-http4.0-cil")
def test_client_in_c_sharp_compiles_and_gives_the_verdict(service, parts, tmp_path):
    source, program = Path(__file__).parents[3] / "examples" / "service" / "Client.cs", tmp_path / "Client.exe"
    subprocess.run(["mcs", "-r:System.Net.Http.dll", f"-out:{program}", source], check=True)

    def verdict(file, token):
        done = subprocess.run(
            ["mono", program, service.address, parts / file, "bottle", token], capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout.strip()

    assert verdict("a_good0.png", service.token) == "PASS"
    assert verdict("b_bad0.png", service.token) == "REJECT"
    assert verdict("a_good0.png", "guess") == "ERROR"
    assert verdict("none.png", service.token) == "ERROR"


@pytest.mark.station
def test_killed_replica_gives_errors_until_the_next_one_judges_the_same(service, parts):
    data = (parts / "a_good0.png").read_bytes()
    expected = service.post(data)[1]["score"]
    os.kill(replica_of(service.process.pid), signal.SIGKILL)

    def judged_again():
        status, record = service.post(data)
        assert record["verdict"] == ("PASS" if status == 200 else "ERROR")
        return record if status == 200 else None

    assert wait_for(judged_again)["score"] == expected


def replica_of(pid):
    parents, names = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = dict(line.split(":\t", 1) for line in (entry / "status").read_text().splitlines() if ":\t" in line)
            names[int(entry.name)] = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        parents[int(entry.name)] = int(fields["PPid"])
    family = {pid}
    while new := {child for child, parent in parents.items() if parent in family} - family:
        family |= new
    (found,) = [child for child in family if b"ServeReplica:snl:Judge" in names.get(child, b"")]
    return found
