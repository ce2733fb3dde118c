"""A camera that stalls, freezes or goes away becomes an error or a fault frame, its password goes nowhere, and it is found again."""

import base64
import http.server
import json
import subprocess
import sys
import threading

import cv2
import numpy as np
import pytest

from snl_runtime.errors import ConfigError, SourceOpenError, SourceStalledError
from snl_runtime.line.handoff import OverflowPolicy
from snl_runtime.line.sources import CameraSource, parse_camera
from snl_runtime.line.sources.frozen import RepeatCounter
from snl_runtime.text import redact_credentials

SECRET = "p4ss-word"


def jpeg(seed):
    image = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", image)[1].tobytes()


class MjpegServer:
    """Serves Motion JPEG on 127.0.0.1 as network cameras do; ``script`` decides what each connection sends."""

    def __init__(self):
        self.script = []  # one list of images per connection; None in it stalls until close(), the end of the list hangs up
        self.connections = 0
        self.needs_password = False
        self.credentials = []
        self.closing = threading.Event()
        self.stalling = threading.Event()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def log_message(self, *_):
                pass

            def do_GET(self):
                header = self.headers.get("Authorization", "")
                if server.needs_password and not header:
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                    self.end_headers()
                    return
                server.credentials.append(base64.b64decode(header.removeprefix("Basic ")).decode())
                number, server.connections = server.connections, server.connections + 1
                saved_images = server.script[min(number, len(server.script) - 1)]
                if saved_images is None:
                    self.send_error(503)
                    return
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                try:
                    for picture in saved_images:
                        if picture is None:
                            server.stalling.set()
                            server.closing.wait(20)
                            return
                        self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(picture) + picture + b"\r\n")
                except OSError:
                    return  # the reader went away

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()

    def url(self, credentials=""):
        return f"http://{credentials}127.0.0.1:{self.http.server_address[1]}/video.mjpg"

    def close(self):
        self.closing.set()
        self.http.shutdown()
        self.thread.join(10)
        self.http.server_close()


@pytest.fixture
def server():
    running = MjpegServer()
    yield running
    running.close()


def take(source, count, stop=None):
    stop = stop or threading.Event()
    frames = []
    for frame in source.frames(stop):
        frames.append(frame)
        if len(frames) == count:
            stop.set()
    return frames


def test_camera_that_does_not_exist_names_what_to_check():
    with pytest.raises(SourceOpenError, match=r"cannot open camera 99; check that it is plugged in \(on Linux: /dev/video99\)"):
        CameraSource(99).__enter__()


def test_address_where_nobody_listens_is_an_error_without_the_password():
    with pytest.raises(SourceOpenError) as refused:
        CameraSource(f"http://admin:{SECRET}@127.0.0.1:9/video.mjpg", open_timeout_s=1).__enter__()
    assert SECRET not in str(refused.value)
    assert "http://***@127.0.0.1:9/video.mjpg" in str(refused.value)


def test_frames_of_a_network_camera_arrive_as_bgr_with_a_redacted_name(server):
    server.script = [[jpeg(seed) for seed in range(50)] + [None]]
    server.needs_password = True
    with CameraSource(server.url(f"admin:{SECRET}@"), product="bottle") as source:
        frames = take(source, 10)
    assert server.credentials == [f"admin:{SECRET}"], "the camera itself still gets the password"
    assert [frame.index for frame in frames] == list(range(10))
    assert {frame.source_id for frame in frames} == {server.url("***@")}
    assert {(frame.color, frame.product, frame.image.shape) for frame in frames} == {("bgr", "bottle", (48, 64, 3))}
    assert source.policy is OverflowPolicy.LATEST


def test_connection_that_is_lost_is_opened_again(server):
    server.script = [[jpeg(seed) for seed in range(40)], None, [jpeg(seed) for seed in range(100, 140)] + [None]]
    with CameraSource(server.url(), open_timeout_s=2, read_timeout_s=1) as source:
        first = next(iter(source.frames(threading.Event())))
        frames = []
        stop = threading.Event()
        for frame in source.frames(stop):
            frames.append(frame)
            if server.connections >= 3:
                stop.set()
    assert first.index == 0
    assert source.counters.reconnects >= 2
    assert [frame.index for frame in frames] == list(range(1, len(frames) + 1)), "numbers go on after a reconnect"


@pytest.mark.station
def test_stalled_camera_is_an_error_within_its_limits_and_names_no_password(server):
    server.script = [[jpeg(seed) for seed in range(40)] + [None], [None]]
    with CameraSource(server.url(f"admin:{SECRET}@"), open_timeout_s=1, read_timeout_s=0.5, stall_timeout_s=2) as source:
        frames = []
        with pytest.raises(SourceStalledError) as stalled:
            frames.extend(source.frames(threading.Event()))
    assert SECRET not in str(stalled.value)
    assert "for 2 s" in str(stalled.value)
    assert source.counters.reconnects >= 1


@pytest.mark.station
def test_stop_is_noticed_while_a_camera_stalls(server):
    server.script = [[jpeg(seed) for seed in range(40)] + [None]]
    stop, ended = threading.Event(), threading.Event()

    def read():
        with CameraSource(server.url(), read_timeout_s=1) as source:
            for _ in source.frames(stop):
                pass
        ended.set()

    threading.Thread(target=read, daemon=True).start()
    assert server.stalling.wait(10)
    stop.set()
    assert ended.wait(10)


def test_frozen_camera_becomes_fault_frames_and_recovers(server):
    still = jpeg(0)
    server.script = [[still] * 12 + [jpeg(seed) for seed in range(1, 9)] + [None]]
    with CameraSource(server.url(), frozen_after=5) as source:
        frames = take(source, 15)
    faults = [frame.index for frame in frames if frame.fault]
    changed = next(frame.index for frame in frames if frame.index > faults[-1])
    assert faults == list(range(4, changed)), "from the fifth equal frame until the image changes"
    assert all(frame.image is None and frame.fault.startswith("frozen camera:") for frame in frames if frame.fault)
    assert source.counters.frames_faulty == len(faults)


def test_frozen_check_counts_equal_frames_in_a_row():
    random = np.random.default_rng(0)
    first, second = random.integers(0, 256, (2, 130, 8, 3), dtype=np.uint8)
    almost = first.copy()
    almost[77, 3, 1] += 1  # a row that the quick look skips
    counter = RepeatCounter(3)
    answers = [counter.is_frozen(image) for image in (first, first.copy(), first.copy(), first.copy(), almost, almost.copy(), second, second)]
    assert answers == [False, False, True, True, False, False, False, False]


def test_frozen_check_can_be_switched_off():
    counter = RepeatCounter(0)
    assert not any(counter.is_frozen(np.zeros((4, 4, 3), np.uint8)) for _ in range(100))


@pytest.mark.parametrize(
    ("address", "redacted"),
    [
        ("rtsp://10.0.0.7/stream", "rtsp://10.0.0.7/stream"),
        ("rtsp://admin:secret@10.0.0.7:554/stream", "rtsp://***@10.0.0.7:554/stream"),
        ("rtsp://admin@10.0.0.7/stream", "rtsp://***@10.0.0.7/stream"),
        ("rtsp://admin:se@cr/et@10.0.0.7/stream", "rtsp://***@10.0.0.7/stream"),
        ("rtsp://admin:sec?ret@10.0.0.7/stream", "rtsp://***@10.0.0.7/stream"),
        ("http://10.0.0.7/video?user=admin&pwd=secret&fps=5", "http://10.0.0.7/video?user=***&pwd=***&fps=5"),
        ("http://10.0.0.7/video?access_token=secret", "http://10.0.0.7/video?access_token=***"),
    ],
)
def test_credentials_are_redacted(address, redacted):
    assert redact_credentials(address) == redacted


@pytest.mark.parametrize(
    ("text", "camera"),
    [("0", 0), ("12", 12), ("/dev/video3", 3), ("rtsp://host/x", "rtsp://host/x"), ("/dev/v4l/by-id/usb-cam", "/dev/v4l/by-id/usb-cam")],
)
def test_camera_is_a_number_or_an_address(text, camera):
    assert parse_camera(text) == camera


@pytest.mark.parametrize("text", ["", "front", "-1", "1.5", "video.avi", "²"])
def test_anything_else_is_no_camera(text):
    with pytest.raises(ConfigError, match="a camera is a number or an address"):
        parse_camera(text)


@pytest.mark.parametrize("wrong", [{"open_timeout_s": 0}, {"read_timeout_s": -1}, {"stall_timeout_s": 0}, {"frozen_after": -1}])
def test_impossible_limits_are_refused(wrong):
    with pytest.raises(ConfigError):
        CameraSource(0, **wrong)


def test_snl_run_on_a_network_camera_prints_the_password_nowhere(server, engine):
    server.script = [[jpeg(seed) for seed in range(200)]]
    server.needs_password = True
    command = [sys.executable, "-m", "snl_runtime.cli.run", "--engine", str(engine), "--camera", server.url(f"admin:{SECRET}@"), "--max-frames", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert records
    assert {record["source_id"] for record in records} == {server.url("***@")}
    assert SECRET not in done.stdout + done.stderr


def test_snl_run_says_without_the_password_that_a_camera_refuses_it(server, engine):
    server.script = [None]
    command = [sys.executable, "-m", "snl_runtime.cli.run", "--engine", str(engine), "--camera", server.url(f"admin:{SECRET}@")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith(f"snl-run: error: cannot open {server.url('***@')}")
    assert SECRET not in done.stderr
