"""Fakes and files that the tests of the line share."""

import dataclasses
import math
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from snl_runtime.line.handoff import OverflowPolicy
from snl_runtime.line.sources import SourceCounters
from snl_runtime.types import AnomalyRegion, AnomalyResult, Frame, StageTimings, Verdict

WAIT_S = 10.0


@pytest.fixture
def wait_s():
    """Most seconds that any wait in these tests may take."""
    return WAIT_S


def frame_of(index=0, **changes):
    values = {
        "image": np.full((4, 6, 3), index % 256, np.uint8),
        "color": "bgr",
        "index": index,
        "captured_ns": time.monotonic_ns(),
        "captured_at": 1_700_000_000.0 + index,
        "source_id": "fake",
    }
    return Frame(**(values | changes))


def result_of(verdict=Verdict.PASS, **changes):
    values = {
        "verdict": verdict,
        "reason_code": "below_threshold",
        "reason": "score 0.5 is at most the threshold 1",
        "score": 0.5,
        "threshold": 1.0,
        "reject_threshold": 1.25,
        "product": "bottle",
        "anomaly_map": np.full((2, 3), 0.5, np.float32),
        "roi_xyxy": (0, 0, 6, 4),
        "regions": (),
        "timings": StageTimings(preprocess_ms=1.0, infer_ms=2.0, decide_ms=0.5, total_ms=3.5),
        "model_sha256": "ab" * 32,
    }
    return AnomalyResult(**(values | changes))


class Part:
    """Something that is entered and left once, each on one thread."""

    def __init__(self):
        self.entered = 0
        self.left = 0
        self.threads = set()

    def __enter__(self):
        self.entered += 1
        self.threads.add(threading.get_ident())
        return self

    def __exit__(self, *_):
        self.left += 1
        self.threads.add(threading.get_ident())


class FakeSource(Part):
    """Yields numbered frames; may fail to open, before frame ``fail_at``, after the last one, or while closing."""

    def __init__(self, count, *, policy=OverflowPolicy.EVERY, fail_open=None, fail_at=None, fail_with=None, fail_close=None, faults=()):
        super().__init__()
        self.count, self.policy, self.faults = count, policy, faults
        self.fail_open, self.fail_at, self.fail_with, self.fail_close = fail_open, fail_at, fail_with, fail_close
        self.handed_over = 0
        self.before_frame = lambda index: None
        self.counters = SourceCounters(frames_announced=count)

    def __enter__(self):
        if self.fail_open:
            raise self.fail_open
        return super().__enter__()

    def __exit__(self, *details):
        super().__exit__(*details)
        if self.fail_close:
            raise self.fail_close

    def frames(self, stop):
        for index in range(self.count):
            if stop.is_set():
                return
            if self.fail_with and index == self.fail_at:
                raise self.fail_with
            self.before_frame(index)
            self.handed_over += 1
            yield frame_of(index, image=None, fault="broken buffer") if index in self.faults else frame_of(index)
        if self.fail_with and self.fail_at == self.count:
            raise self.fail_with


class FakeDetector:
    """PASS for every array, ERROR for anything else, as the real one does for None."""

    model_sha256 = "ab" * 32

    def __init__(self, *, fail_at=None, fail_with=None):
        self.fail_at, self.fail_with = fail_at, fail_with
        self.seen = 0
        self.threads = set()
        self.before_frame = lambda index: None

    def detect(self, image, *, color="bgr", product=None):
        self.threads.add(threading.get_ident())
        index, self.seen = self.seen, self.seen + 1
        self.before_frame(index)
        if self.fail_with and index == self.fail_at:
            raise self.fail_with
        if image is None:
            return result_of(Verdict.ERROR, reason_code="frame_unusable", score=math.nan, anomaly_map=None, roi_xyxy=None, product=product)
        return result_of(product=product)


class ListSink(Part):
    """Remembers what it was given; may fail to open, at delivery ``fail_at`` or while closing."""

    def __init__(self, *, fail_open=None, fail_at=None, fail_with=None, fail_close=None):
        super().__init__()
        self.fail_open, self.fail_at, self.fail_with, self.fail_close = fail_open, fail_at, fail_with, fail_close
        self.delivered = []
        self.before_emit = lambda index: None

    def __enter__(self):
        if self.fail_open:
            raise self.fail_open
        return super().__enter__()

    def __exit__(self, *details):
        super().__exit__(*details)
        if self.fail_close:
            raise self.fail_close

    def emit(self, frame, result):
        self.threads.add(threading.get_ident())
        self.before_emit(frame.index)
        if self.fail_with and len(self.delivered) == self.fail_at:
            raise self.fail_with
        self.delivered.append((frame, result))

    @property
    def indices(self):
        return [frame.index for frame, _ in self.delivered]


@dataclasses.dataclass(frozen=True)
class Fakes:
    """The classes above, for tests that import nothing from each other."""

    frame_of = staticmethod(frame_of)
    result_of = staticmethod(result_of)
    source = FakeSource
    detector = FakeDetector
    sink = ListSink
    region = AnomalyRegion


@pytest.fixture(scope="session")
def fakes():
    return Fakes()


@pytest.fixture
def make_image():
    """Write an image of noise and return its RGB pixels."""

    def write(path, seed=0, size_hw=(24, 32)):
        image_rgb = np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), image_rgb[:, :, ::-1])
        return image_rgb

    return write
