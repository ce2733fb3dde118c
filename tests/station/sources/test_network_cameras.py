"""A network camera that stalls, disconnects, restarts or changes its size is found again or reported; the servers are real processes."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from snl_runtime.errors import ConfigError, SourceOpenError, SourceStalledError
from snl_runtime.line.sources import CameraSource
from snl_runtime.line.sources.camera import CameraConfig

pytestmark = pytest.mark.station

HERE = Path(__file__).parent
SECRET = "p4ss-word"
SYSTEM_PYTHON = "/usr/bin/python3"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Process:
    """A server that is started, killed and started again on one port."""

    def __init__(self, *command):
        self.command = [str(one) for one in command]
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout.readline().strip(), "the server did not start"

    def tell(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def kill(self):
        self.process.kill()
        self.process.communicate(timeout=10)


@pytest.fixture
def mjpeg():
    port = free_port()
    server = Process(sys.executable, HERE / "mjpeg_server.py", port)
    server.url = f"http://127.0.0.1:{port}/video.mjpg"
    yield server
    server.kill()


@pytest.fixture
def rtsp():
    imported = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    if not Path(SYSTEM_PYTHON).exists() or subprocess.run([SYSTEM_PYTHON, "-c", imported], capture_output=True, check=False).returncode:
        pytest.skip("needs an RTSP server: apt-get install python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good")
    port = free_port()
    server = Process(SYSTEM_PYTHON, HERE / "rtsp_server.py", port, 160, 120)
    server.url = f"rtsp://admin:{SECRET}@127.0.0.1:{port}/line"
    server.shown = f"rtsp://***@127.0.0.1:{port}/line"
    yield server
    server.process.send_signal(signal.SIGCONT)
    server.kill()


@pytest.fixture(params=["opencv", "pyav"])
def decoder(request):
    if request.param == "pyav":
        pytest.importorskip("av", reason="needs PyAV: the extra stream")
    return request.param


def limits(url, decoder, **values):
    return CameraConfig(**({"camera": url, "decoder": decoder, "open_timeout_s": 2.0, "read_timeout_s": 0.7, "stall_timeout_s": 20.0} | values))


def numbers_go_on(frames):
    return [frame.index for frame in frames] == list(range(len(frames)))


def test_camera_that_stalls_mid_stream_is_opened_again(mjpeg, decoder, read):
    reader = read(CameraSource(limits(mjpeg.url, decoder)))
    reader.next()
    mjpeg.tell("stall")
    while reader.source.counters.reconnects == 0:
        assert not reader.ended.wait(0.02)
    reader.arrived.queue.clear()
    assert reader.next().fault is None
    assert numbers_go_on(reader.finish())


def test_camera_that_disconnects_and_restarts_on_its_port_is_found_again(mjpeg, decoder, read):
    reader = read(CameraSource(limits(mjpeg.url, decoder)))
    reader.next()
    mjpeg.kill()
    while reader.source.counters.reconnects < 2:
        assert not reader.ended.wait(0.02)
    reader.arrived.queue.clear()
    mjpeg.start()
    assert reader.next().fault is None
    assert numbers_go_on(reader.finish())


def test_camera_that_never_comes_back_is_given_up_in_time(mjpeg, decoder, read):
    reader = read(CameraSource(limits(mjpeg.url, decoder, stall_timeout_s=1.5)))
    reader.next()
    mjpeg.kill()
    assert reader.ended.wait(10)
    with pytest.raises(SourceStalledError, match="for 1.5 s"):
        reader.finish()


def test_other_size_mid_stream_is_passed_on_as_it_is(mjpeg, read):
    """The detector calibrated for the first size makes an ERROR of it; a source that scaled it back would hide the change."""
    pytest.importorskip("av", reason="needs PyAV: the extra stream")
    reader = read(CameraSource(limits(mjpeg.url, "pyav")))
    assert reader.next().image.shape == (48, 64, 3)
    mjpeg.tell("size 80 32")
    frame = reader.until(lambda one: one.image.shape != (48, 64, 3))
    assert frame.image.shape == (32, 80, 3)
    assert reader.source.counters.reconnects == 0


def test_decoder_that_hides_nothing_is_the_default_where_it_is_installed(mjpeg, read):
    pytest.importorskip("av", reason="needs PyAV: pip install av")
    reader = read(CameraSource(CameraConfig(camera=mjpeg.url)))
    assert reader.next().image.shape == (48, 64, 3)
    mjpeg.tell("size 80 32")
    assert reader.until(lambda one: one.image.shape != (48, 64, 3)).image.shape == (32, 80, 3)


def test_default_without_pyav_says_in_one_line_what_opencv_hides(mjpeg, read, monkeypatch, caplog):
    monkeypatch.setattr("snl_runtime.line.sources.camera.has_pyav", lambda: False)
    reader = read(CameraSource(CameraConfig(camera=mjpeg.url)))
    assert reader.next().fault is None
    assert [one.getMessage() for one in caplog.records if "OpenCV hides" in one.getMessage()] != []


def test_opencv_scales_another_size_away_which_is_why_there_is_pyav(mjpeg, read):
    """If this fails, OpenCV has changed: then the limit in docs/guides/cameras.md can go."""
    reader = read(CameraSource(limits(mjpeg.url, "opencv")))
    reader.next()
    mjpeg.tell("size 80 32")
    mjpeg.tell("still")  # after the change: frames that repeat have the new size
    while not (first := reader.next()).image.size or not (reader.next().image == first.image).all():
        pass
    assert reader.next().image.shape == (48, 64, 3)


def test_slow_camera_is_no_fault(mjpeg, decoder, read):
    mjpeg.tell("every 0.4")
    reader = read(CameraSource(limits(mjpeg.url, decoder, read_timeout_s=3.0)))
    for _ in range(4):
        assert reader.next().fault is None
    assert reader.source.counters.reconnects == 0


def test_frozen_camera_is_a_fault(mjpeg, decoder, read):
    reader = read(CameraSource(limits(mjpeg.url, decoder, frozen_after=4)))
    reader.next()
    mjpeg.tell("still")
    frame = reader.until(lambda one: one.fault)
    assert frame.image is None
    assert frame.fault.startswith("frozen camera:")


def test_rtsp_camera_delivers_frames_and_its_password_is_in_none_of_them(rtsp, decoder, read):
    reader = read(CameraSource(limits(rtsp.url, decoder)))
    frames = [reader.next() for _ in range(10)]
    assert {(frame.source_id, frame.color, frame.image.shape, frame.fault) for frame in frames} == {(rtsp.shown, "bgr", (120, 160, 3), None)}


def test_rtsp_camera_that_hangs_is_given_up_in_time_without_its_password(rtsp, decoder, read):
    reader = read(CameraSource(limits(rtsp.url, decoder, stall_timeout_s=2.0, open_timeout_s=1.0)))
    reader.next()
    rtsp.process.send_signal(signal.SIGSTOP)  # the connection stays, nothing answers
    assert reader.ended.wait(15)
    with pytest.raises(SourceStalledError) as stalled:
        reader.finish()
    assert SECRET not in str(stalled.value)
    assert rtsp.shown in str(stalled.value)


def test_rtsp_camera_that_hangs_and_recovers_is_found_again(rtsp, decoder, read):
    reader = read(CameraSource(limits(rtsp.url, decoder)))
    reader.next()
    rtsp.process.send_signal(signal.SIGSTOP)
    while reader.source.counters.reconnects == 0:
        assert not reader.ended.wait(0.02)
    rtsp.process.send_signal(signal.SIGCONT)
    reader.arrived.queue.clear()
    assert reader.next().fault is None


def test_rtsp_camera_that_restarts_on_its_port_is_found_again(rtsp, decoder, read):
    reader = read(CameraSource(limits(rtsp.url, decoder)))
    reader.next()
    rtsp.kill()
    while reader.source.counters.reconnects == 0:
        assert not reader.ended.wait(0.02)
    reader.arrived.queue.clear()
    rtsp.start()
    assert reader.next().fault is None
    assert numbers_go_on(reader.finish())


def test_wrong_password_is_an_error_that_shows_no_password_on_any_channel(rtsp, decoder):
    program = (
        "import sys; from snl_runtime.line.sources.camera import CameraConfig, CameraSource\n"
        "CameraSource(CameraConfig(camera=sys.argv[1], decoder=sys.argv[2], open_timeout_s=3)).__enter__()"
    )
    command = [sys.executable, "-c", program, rtsp.url.replace(SECRET, "wr0ng-word"), decoder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"SourceOpenError: cannot open {rtsp.shown}" in done.stderr
    assert "wr0ng-word" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"camera": -1}, r"camera\.camera must be a number from 0"),
        ({"camera": 0, "read_timeout_s": 0}, r"camera\.read_timeout_s must be a positive number of seconds, got 0"),
        ({"camera": 0, "frozen_after": -1}, r"camera\.frozen_after must be 0 \(off\) or a number of frames, got -1"),
        ({"camera": 0, "pixel_format": "RG8"}, r"camera\.pixel_format 'RG8' cannot be decoded"),
        ({"camera": 0, "decoder": "pyav"}, r"camera\.decoder pyav is for addresses"),
        ({"camera": "rtsp://x/y", "pixel_format": "GREY"}, r"camera\.pixel_format is for local cameras"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        CameraConfig(**values)


def test_device_that_is_not_there_names_what_to_check():
    with pytest.raises(SourceOpenError, match=r"cannot open /dev/v4l/by-id/usb-none; check that .*that it can send Y16"):
        CameraSource(CameraConfig(camera="/dev/v4l/by-id/usb-none", pixel_format="Y16")).__enter__()
