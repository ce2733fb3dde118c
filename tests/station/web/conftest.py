"""A real station whose camera, detector and store a test drives, its screen on a free port, and a real browser; every wait is bounded."""

import contextlib
import dataclasses
import math
import queue
import shutil
import threading
import time

import numpy as np
import pytest

from snl_runtime.errors import SinkError
from snl_runtime.line.handoff import OverflowPolicy
from snl_runtime.line.sources.base import SourceCounters
from snl_runtime.station.station import Station, StationCamera
from snl_runtime.station.triggered import TriggerConfig, TriggerMode
from snl_runtime.station.unit import UnitConfig
from snl_runtime.types import AnomalyRegion, AnomalyResult, Frame, StageTimings, Verdict

WAIT_S = 20.0
TOKEN = "a-token-for-tests-0123456789"
SIZE_HW = (360, 480)


def result_of(verdict, *, score=None, box_xyxy=None, reason=None, **changes):
    """A result with a map that glows inside a box of the frame."""
    score = {Verdict.PASS: 0.6, Verdict.REVIEW: 1.1, Verdict.REJECT: 2.0, Verdict.ERROR: math.nan}[verdict] if score is None else score
    values = {
        "verdict": verdict,
        "reason_code": verdict.value.lower(),
        "reason": reason or f"the score is {score:.4g}",
        "score": score,
        "threshold": 1.0,
        "reject_threshold": 1.25,
        "product": None,
        "anomaly_map": None,
        "roi_xyxy": None,
        "regions": (),
        "timings": StageTimings(),
        "model_sha256": "ab" * 32,
    }
    if box_xyxy is not None:
        left, top, right, bottom = (value // 10 for value in box_xyxy)
        anomaly_map = np.full((SIZE_HW[0] // 10, SIZE_HW[1] // 10), 0.2, np.float32)
        anomaly_map[top:bottom, left:right] = score
        regions = (AnomalyRegion(box_xyxy=box_xyxy, score=score, area_px=(right - left) * (bottom - top) * 100),)
        values |= {"anomaly_map": anomaly_map, "roi_xyxy": (0, 0, SIZE_HW[1], SIZE_HW[0]), "regions": regions}
    return AnomalyResult(**(values | changes))


class Camera:
    """Gives the frames that the test sends, each with the result that the detector is to give; on command, once it was asked for one."""

    policy = OverflowPolicy.EVERY
    counters = SourceCounters()

    def __init__(self, results):
        self.results = results
        self.queue = queue.SimpleQueue()
        self.asked = threading.Semaphore(0)

    def trigger(self):
        self.asked.release()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def send(self, verdict, *, image=None, product="washer", fault=None, captured_ns=None, **changes):
        image = np.full((*SIZE_HW, 3), 90, np.uint8) if image is None else image.copy()
        image[0, 0] = self.results.put(result_of(verdict, product=product, **changes))
        self.queue.put(
            Frame(
                image=None if fault else image,
                fault=fault,
                color="bgr",
                index=0,
                captured_ns=captured_ns or time.monotonic_ns(),
                captured_at=time.time(),
                source_id="fake",
                product=product,
            )
        )

    def end(self):
        self.queue.put(None)

    def frames(self, stop):
        while not stop.is_set():
            with contextlib.suppress(queue.Empty):
                frame = self.queue.get(timeout=0.02)
                if frame is None:
                    return
                yield frame


class Results:
    """The results to come, found again by the first pixel of the frame; a detector."""

    model_sha256 = "ab" * 32

    def __init__(self):
        self.results = {}

    def put(self, result):
        number = len(self.results) + 1
        key = (number & 255, number >> 8 & 255, number >> 16 & 255)
        self.results[key] = result
        return key

    def detect(self, image, *, color="bgr", product=None):
        if image is None:
            return result_of(Verdict.ERROR, reason_code="frame_fault", reason="the frame did not arrive")
        return dataclasses.replace(self.results[tuple(int(value) for value in image[0, 0])])


class Store:
    """Keeps nothing; may be told to fail."""

    def __init__(self):
        self.failure = None
        self.rows = 0

    def add(self, frame, result, *, camera):
        if self.failure:
            raise SinkError(self.failure)
        self.rows += 1
        return self.rows

    def amend(self, row, result):
        pass

    def mark_answered(self, row):
        pass


class Seen:
    """Counts the results that observers were told of: when it has them, the screen, which is told before, has them too."""

    def __init__(self):
        self.count, self.changed = 0, threading.Condition()

    def __call__(self, frame, result, state):
        with self.changed:
            self.count += 1
            self.changed.notify_all()

    def wait_for(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: self.count >= count, WAIT_S), f"{self.count} instead of {count}"


class Stage:
    """A station with its screen."""

    def __init__(self, resources, tmp_path):
        self.resources = resources
        self.tmp_path = tmp_path
        self.results, self.store, self.seen = Results(), Store(), Seen()
        self.cameras = {}
        self.mode = TriggerMode.EACH_FRAME
        self.station = self.screen = None

    def start(self, names=("top",), *, mode=TriggerMode.EACH_FRAME, panels=None, start_station=True, **web):
        self.mode = mode
        self.cameras = {name: Camera(self.results) for name in names}
        unit = UnitConfig(deadline_ms=60_000.0, trigger=TriggerConfig(mode=mode, frame_timeout_ms=30_000.0))
        listed = [StationCamera(name=name, source=camera, config=unit) for name, camera in self.cameras.items()]
        self.station = Station(listed, self.results, self.store)
        self.serve(panels, **web)
        self.station.subscribe(self.seen)
        self.resources.callback(self.station.stop)
        if start_station:
            self.station.start()
        return self

    def serve(self, panels=None, *, port=0, **web):
        from snl_runtime.station.web.config import WebConfig
        from snl_runtime.station.web.server import WebServer

        self.screen = self.resources.enter_context(WebServer(WebConfig(port=port, **web), self.station, panels))

    @property
    def url(self):
        return self.screen.url.rstrip("/")

    @property
    def top(self):
        return self.cameras["top"]

    def token_file(self, token=TOKEN, mode=0o600):
        path = self.tmp_path / "token"
        path.write_text(token + "\n")
        path.chmod(mode)
        return str(path)

    def show(self, verdict, camera="top", **changes):
        """Send one part and wait until the screen has its result."""
        count = self.seen.count
        if self.mode is TriggerMode.COMMAND:
            assert self.cameras[camera].asked.acquire(timeout=WAIT_S)
        self.cameras[camera].send(verdict, **changes)
        self.seen.wait_for(count + 1)


@pytest.fixture
def stage(tmp_path):
    with contextlib.ExitStack() as resources:
        yield Stage(resources, tmp_path)


@pytest.fixture
def token():
    return TOKEN


@pytest.fixture
def poll():
    """Wait until a condition holds, looking again and again: what a client of a server can do."""

    def poll(holds):
        pause, ends_s = threading.Event(), time.monotonic() + WAIT_S
        while not (value := holds()):
            assert time.monotonic() < ends_s, "it did not come true in time"
            pause.wait(0.02)
        return value

    return poll


@pytest.fixture(scope="module")  # Playwright keeps an event loop running in this thread, and other modules need their own
def browser():
    """The system's Chromium, driven by Playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, stage):
    """Open the screen as a user would; fails at the end if the page logged an error."""
    errors = []
    with contextlib.ExitStack() as opened:

        def open_page(*, width=1440, height=900, dark=False, path="/", **options):
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", **options)
            opened.callback(context.close)
            context.set_default_timeout(WAIT_S * 1000)
            page = context.new_page()
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("console", lambda message: errors.append(message.text) if "Content Security Policy" in message.text else None)
            page.goto(stage.url + path)
            return page

        yield open_page
    assert errors == []


@pytest.fixture
def client(stage):
    """A client of the stage's screen, once it runs."""
    httpx = pytest.importorskip("httpx", reason="needs the package httpx")
    with contextlib.ExitStack() as opened:

        def client(**options):
            return opened.enter_context(httpx.Client(base_url=stage.url, timeout=20.0, **options))

        yield client
