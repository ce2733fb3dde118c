"""What holds for every frame source: numbers from 0, read-only images or a fault, stop in bounded time, release at the end, counters that add up."""

import contextlib
import importlib.util
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from snl_runtime.line.handoff import OverflowPolicy
from snl_runtime.line.sources import (
    CameraConfig,
    CameraSource,
    GenicamConfig,
    GenicamSource,
    ImageFolderSource,
    VideoSource,
    WatchedFolderConfig,
    WatchedFolderSource,
)

STOP_S = 5.0
"""Longest time until a source has noticed stop and is left; its longest single wait in these tests is 2 s."""


class Case:
    """A kind of source: how one is made anew, and how frames are made to come."""

    policy = OverflowPolicy.EVERY
    count = 4
    ends_by_itself = False
    has_fault = False

    def __init__(self, tmp_path, monkeypatch, cleanup):
        self.path, self.monkeypatch, self.cleanup = tmp_path, monkeypatch, cleanup
        self.prepare()

    def prepare(self): ...

    def ask(self, source, number):
        """Make frame ``number`` come, where it does not come by itself."""

    def picture(self, path, seed):
        assert cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8))


class Images(Case):
    ends_by_itself = has_fault = True

    def prepare(self):
        for number in range(4):
            self.picture(self.path / f"{number}.png", number)
        (self.path / "2.png").write_bytes((self.path / "2.png").read_bytes()[:100])

    def make(self):
        return ImageFolderSource(self.path)


class Video(Case):
    ends_by_itself = True

    def prepare(self):
        writer = cv2.VideoWriter(str(self.path / "line.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (32, 24))
        for number in range(4):
            writer.write(np.full((24, 32, 3), 40 * number, np.uint8))
        writer.release()

    def make(self):
        return VideoSource(self.path / "line.avi")


class Watched(Case):
    has_fault = True

    def prepare(self):
        self.runs = 0

    def make(self):
        self.runs += 1
        return WatchedFolderSource(WatchedFolderConfig(folder=str(self.path), settle_s=0.05, give_up_s=0.3, poll_interval_s=0.02))

    def ask(self, source, number):
        if number == 2:
            (self.path / f"{self.runs}-2.png").touch()
        else:
            self.picture(self.path / f"{self.runs}-{number}.png", number)


class Network(Case):
    policy = OverflowPolicy.LATEST
    decoder = "opencv"

    def prepare(self):
        command = [sys.executable, str(Path(__file__).parent / "mjpeg_server.py"), "0"]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.cleanup(lambda: (server.kill(), server.communicate(timeout=10)))
        self.port = int(server.stdout.readline())

    def make(self):
        return CameraSource(CameraConfig(camera=f"http://127.0.0.1:{self.port}/x.mjpg", decoder=self.decoder))


class NetworkByPyav(Network):
    decoder = "pyav"

    def prepare(self):
        pytest.importorskip("av", reason="needs PyAV: the extra stream")
        super().prepare()


class FreeGenicam(Case):
    policy = OverflowPolicy.LATEST
    trigger = "free"
    features = {"Width": 64, "Height": 48, "AcquisitionFrameRateEnable": True, "AcquisitionFrameRate": 100.0}

    def prepare(self):
        if importlib.util.find_spec("pypylon") is None:
            pytest.skip("needs pypylon: pip install 'snl-edge[genicam]'")
        self.monkeypatch.setenv("PYLON_CAMEMU", "1")

    def make(self):
        return GenicamSource(GenicamConfig(trigger=self.trigger, features=self.features))


class TriggeredGenicam(FreeGenicam):
    policy = OverflowPolicy.EVERY
    trigger = "software"

    def ask(self, source, number):
        source.trigger()


STATION = [Network, NetworkByPyav, FreeGenicam, TriggeredGenicam]
CASES = [Images, Video, Watched, *(pytest.param(one, marks=pytest.mark.station) for one in STATION)]


@pytest.fixture(params=CASES)
def case(request, tmp_path, monkeypatch):
    with contextlib.ExitStack() as cleanup:
        yield request.param(tmp_path, monkeypatch, cleanup.callback)


def collect(case, reader):
    """The first frames of a source, each asked for after the one before."""
    frames = []
    for number in range(case.count):
        case.ask(reader.source, number)
        frames.append(reader.next())
    return frames


def test_frames_are_numbered_from_0_and_dated_in_order(case, read):
    reader = read(case.make())
    frames = collect(case, reader)
    assert [frame.index for frame in frames] == list(range(case.count))
    assert [frame.captured_ns for frame in frames] == sorted(frame.captured_ns for frame in frames)
    assert all(frame.source_id for frame in frames)
    assert reader.source.policy is case.policy


def test_each_frame_has_a_read_only_image_or_a_fault_and_counters_add_up(case, read):
    reader = read(case.make())
    collect(case, reader)
    frames = reader.finish(STOP_S)
    faults = [frame for frame in frames if frame.fault is not None]
    assert bool(faults) == case.has_fault
    assert all((frame.image is None) == (frame.fault is not None) for frame in frames)
    for frame in frames:
        if frame.image is not None:
            assert frame.image.dtype in (np.uint8, np.uint16)
            with pytest.raises(ValueError, match="read-only"):
                frame.image[0, 0] = 0
    counters = reader.source.counters
    assert counters.frames_faulty == len(faults)
    assert counters.frames_missing == counters.reconnects == 0
    assert counters.frames_announced in (None, len(frames))


def test_stop_before_the_first_frame_ends_at_once(case):
    stop = threading.Event()
    stop.set()
    with case.make() as source:
        assert list(source.frames(stop)) == []


def test_stop_is_noticed_in_bounded_time_without_an_error(case, read):
    reader = read(case.make())
    collect(case, reader)
    assert reader.ended.wait(STOP_S) if case.ends_by_itself else not reader.ended.is_set()
    reader.finish(STOP_S)


def test_leaving_releases_what_was_opened_so_that_it_can_be_opened_again(case, read):
    threads = threading.active_count()
    for _ in range(2):
        reader = read(case.make())
        collect(case, reader)
        reader.finish(STOP_S)
        reader.thread.join(STOP_S)
    assert threading.active_count() == threads
