"""Cameras, a detector, a store and an output that a test drives step by step; every wait is bounded."""

import contextlib
import dataclasses
import importlib.util
import math
import queue
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from snl_runtime.errors import SourceStalledError
from snl_runtime.line.handoff import OverflowPolicy
from snl_runtime.line.sources.base import SourceCounters
from snl_runtime.station.station import Station, StationCamera
from snl_runtime.station.triggered import TriggerConfig, TriggerMode
from snl_runtime.station.unit_config import UnitConfig
from snl_runtime.types import AnomalyResult, Frame, StageTimings, Verdict

WAIT_S = 20.0
GOOD, DOUBTFUL, BAD = 10, 20, 30
"""Gray levels that the fake detector passes, reviews and rejects."""
VERDICTS = {GOOD: Verdict.PASS, DOUBTFUL: Verdict.REVIEW, BAD: Verdict.REJECT}


def frame_of(gray=GOOD, *, index=0, **changes):
    image = None if gray is None else np.full((4, 6, 3), gray, np.uint8)
    values = {"image": image, "color": "bgr", "index": index, "captured_ns": time.monotonic_ns(), "captured_at": 1.7e9, "source_id": "fake"}
    return Frame(**(values | changes))


def result_of(verdict, **changes):
    values = {
        "verdict": verdict,
        "reason_code": verdict.value.lower(),
        "reason": "fake",
        "score": math.nan if verdict is Verdict.ERROR else 0.5,
        "threshold": 1.0,
        "reject_threshold": 1.25,
        "product": None,
        "anomaly_map": None,
        "roi_xyxy": None,
        "regions": (),
        "timings": StageTimings(),
        "model_sha256": "ab" * 32,
    }
    return AnomalyResult(**(values | changes))


class FakeCamera:
    """Gives the frames that the test sends, stamped when they are sent; may die and be opened again."""

    def __init__(self, *, policy=OverflowPolicy.LATEST, counters=None):
        self.policy = policy
        self.counters = counters or SourceCounters()
        self.queue = queue.SimpleQueue()
        self.fail_open = None
        self.opened = Counting()
        self.closed = Counting()

    def __enter__(self):
        if self.fail_open:
            raise self.fail_open
        self.queue = queue.SimpleQueue()  # what a closed camera still held is gone
        self.opened.add()
        return self

    def __exit__(self, *_):
        self.closed.add()

    def send(self, gray=GOOD, **changes):
        self.queue.put(frame_of(gray, **changes))

    def die(self, error=None):
        self.queue.put(error or SourceStalledError("unplugged"))

    def end(self):
        self.queue.put(None)

    def frames(self, stop):
        while not stop.is_set():
            with contextlib.suppress(queue.Empty):
                frame = self.queue.get(timeout=0.02)
                if frame is None:
                    return
                if isinstance(frame, Exception):
                    raise frame
                yield frame


class SoftwareCamera(FakeCamera):
    """Takes an image for each trigger, with a counter of its own, unless the test puts something else there."""

    def __init__(self):
        super().__init__(policy=OverflowPolicy.EVERY)
        self.triggers = 0
        self.device_frame_id = 0
        self.on_trigger = lambda: self.take()
        self.answers_from = lambda: None

    def trigger(self):
        self.triggers += 1
        answers_from_ns = self.answers_from()
        self.on_trigger()
        return answers_from_ns

    def take(self, gray=GOOD, *, skip=0):
        self.device_frame_id += 1 + skip
        self.send(gray, device_frame_id=self.device_frame_id)


class Counting:
    """A counter that can be waited for."""

    def __init__(self):
        self.count, self.changed = 0, threading.Condition()

    def add(self):
        with self.changed:
            self.count += 1
            self.changed.notify_all()

    def wait_for(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: self.count >= count, WAIT_S), f"{self.count} instead of {count}"


class FakeDetector:
    """Judges by gray level; ``before`` may hold a call back or raise."""

    model_sha256 = "ab" * 32

    def __init__(self):
        self.calls = Counting()
        self.before = lambda image: None

    def detect(self, image, *, color="bgr", product=None):
        self.calls.add()
        self.before(image)
        if image is None:
            return result_of(Verdict.ERROR, reason_code="frame_unusable", product=product)
        return result_of(VERDICTS[int(image[0, 0, 0])], product=product)


@dataclasses.dataclass
class Row:
    camera: str
    trigger_id: int
    frame: Frame
    result: AnomalyResult
    answered: bool = False

    @property
    def outcome(self):
        return (self.trigger_id, self.result.verdict.value, self.result.reason_code)


class MemoryStore:
    """The interface of RecordStore; ``before`` may hold a row back or raise."""

    def __init__(self):
        self.rows = []
        self.changed = threading.Condition()
        self.before = lambda frame, result: None
        self.log = []

    def add(self, frame, result, *, camera):
        self.before(frame, result)
        with self.changed:
            self.rows.append(Row(camera, frame.trigger_id, frame, result))
            self.log.append(("add", camera, frame.trigger_id, result.verdict))
            self.changed.notify_all()
            return len(self.rows)

    def amend(self, row, result):
        with self.changed:
            self.rows[row - 1].result = result
            self.changed.notify_all()

    def mark_answered(self, row):
        with self.changed:
            self.rows[row - 1].answered = True
            self.changed.notify_all()

    def wait_answered(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: sum(row.answered for row in self.rows) >= count, WAIT_S), self.outcomes
        return self.outcomes

    @property
    def outcomes(self):
        return [row.outcome for row in self.rows]


class FakeOutput:
    """Remembers every state; ``before`` may raise. Also writes into the store's log, to see what came first."""

    def __init__(self, store=None):
        self.states = []
        self.changed = threading.Condition()
        self.before = lambda state: None
        self.commands = {}
        self.entered = self.left = 0
        self.store = store

    def bind(self, commands):
        self.commands = commands

    def __enter__(self):
        self.entered += 1
        return self

    def __exit__(self, *_):
        self.left += 1

    def publish(self, state):
        self.before(state)
        with self.changed:
            self.states.append(state)
            if self.store is not None and state.result_valid:
                self.store.log.append(("publish", state.camera, state.trigger_id, state.verdict))
            self.changed.notify_all()

    def wait_for(self, holds):
        """Return the first state so far, or to come, for which it holds."""
        with self.changed:
            assert self.changed.wait_for(lambda: any(map(holds, self.states)), WAIT_S), self.states[-3:]
            return next(state for state in self.states if holds(state))

    def answer_to(self, trigger_id, camera="top"):
        return self.wait_for(lambda state: state.camera == camera and state.trigger_id == trigger_id and state.result_valid)

    def of(self, camera):
        return [state for state in self.states if state.camera == camera]


def command_config(**changes):
    """On command, with a deadline that only a test about deadlines reaches."""
    trigger = changes.pop("trigger", {})
    values = {"deadline_ms": 30_000.0, "trigger": TriggerConfig(mode=TriggerMode.COMMAND, **{"frame_timeout_ms": 10_000.0, **trigger})}
    return UnitConfig(**(values | changes))


def wait_until(holds):
    """Look again and again, for things that announce nothing."""
    ticker, attempts = threading.Event(), 0
    while not holds():
        attempts += 1
        assert attempts < 4_000
        ticker.wait(0.005)


class Bench:
    """A station with one camera or several, and its surroundings."""

    def __init__(self):
        self.detector, self.store = FakeDetector(), MemoryStore()
        self.output = FakeOutput(self.store)
        self.station = None
        self.resources = contextlib.ExitStack()

    def start(self, source, config=None, **options):
        return self.start_cameras({"top": (source, config or command_config())}, **options)

    def start_cameras(self, cameras, **options):
        cameras = [StationCamera(name=name, source=source, config=config) for name, (source, config) in cameras.items()]
        outputs = options.pop("outputs", [self.output])
        self.station = Station(cameras, options.pop("detector", self.detector), self.store, outputs=outputs, **options)
        self.resources.callback(self.station.stop)
        self.station.start()
        return self.station

    @property
    def top(self):
        return self.station.commands["top"]


@dataclasses.dataclass(frozen=True)
class Fakes:
    frame_of = staticmethod(frame_of)
    result_of = staticmethod(result_of)
    command_config = staticmethod(command_config)
    wait_until = staticmethod(wait_until)
    camera = FakeCamera
    software_camera = SoftwareCamera
    store = MemoryStore
    output = FakeOutput
    detector = FakeDetector
    GOOD, DOUBTFUL, BAD, WAIT_S = GOOD, DOUBTFUL, BAD, WAIT_S


@pytest.fixture(scope="session")
def fakes():
    return Fakes()


@pytest.fixture
def bench():
    bench = Bench()
    with bench.resources:
        yield bench


@pytest.fixture(scope="session")
def model():
    """The tiny calibrated model of the runtime tests, and how to draw good and bad frames for it."""
    path = Path(__file__).parents[1] / "runtime" / "detector_fixtures.py"
    spec = importlib.util.spec_from_file_location("snl_tests_station_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
