"""What the tests of the outputs share: free ports, line states and a line that only notes what it is asked."""

import dataclasses
import importlib.util
import socket
import threading
import time
from pathlib import Path

import pytest

from snl_runtime.errors import TriggerRefusedError
from snl_runtime.station.line_state import LineState, StationState
from snl_runtime.types import Verdict

WAIT_S = 20.0


class NotedCommands:
    """Notes every command; refuses triggers while ``refuses``."""

    def __init__(self):
        self.triggers, self.resets, self.heartbeats = [], 0, 0
        self.refuses = False
        self.on_trigger = None
        self.changed = threading.Condition()

    def trigger(self, *, product=None, part_id=None):
        if self.refuses:
            raise TriggerRefusedError("camera one is not ready for a trigger: it is halted")
        with self.changed:
            self.triggers.append((product, part_id))
            self.changed.notify_all()
        if self.on_trigger is not None:
            self.on_trigger(len(self.triggers))
        return len(self.triggers)

    def reset(self):
        with self.changed:
            self.resets += 1
            self.changed.notify_all()

    def heartbeat(self):
        with self.changed:
            self.heartbeats += 1
            self.changed.notify_all()


def ready(trigger_id=0, camera="one", **changes):
    return LineState(**({"camera": camera, "state": StationState.READY, "ready": True, "trigger_id": trigger_id} | changes))


def busy(trigger_id, camera="one", **changes):
    return LineState(**({"camera": camera, "state": StationState.SINGLE_EXECUTION, "busy": True, "trigger_id": trigger_id} | changes))


def answer(trigger_id, verdict=Verdict.PASS, camera="one", **changes):
    values = {
        "camera": camera,
        "state": StationState.READY,
        "ready": True,
        "result_valid": True,
        "accept": verdict is Verdict.PASS,
        "trigger_id": trigger_id,
        "verdict": verdict,
        "reason_code": {Verdict.PASS: "below_threshold", Verdict.REVIEW: "above_pass_threshold", Verdict.REJECT: "above_reject_threshold"}.get(
            verdict, "timeout"
        ),
        "score": float(trigger_id),
        "product": "bottle",
    }
    return LineState(**(values | changes))


VERDICTS = (Verdict.PASS, Verdict.REVIEW, Verdict.PASS, Verdict.REJECT, Verdict.ERROR)


def verdict_of(trigger_id):
    """The verdict that every test gives to a trigger id: a foreign id shows."""
    return VERDICTS[trigger_id % len(VERDICTS)]


@pytest.fixture
def states():
    """Makers of line states: ready, busy, answer; and verdict_of."""

    class States:
        pass

    States.ready, States.busy, States.answer, States.verdict_of = (
        staticmethod(ready),
        staticmethod(busy),
        staticmethod(answer),
        staticmethod(verdict_of),
    )
    return States


@pytest.fixture
def commands():
    return NotedCommands()


@pytest.fixture
def wait_s():
    """Most seconds that any wait in these tests may take."""
    return WAIT_S


@pytest.fixture
def free_port():
    return unused_port()


def unused_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def eventually():
    """Wait until a statement about another process or thread holds, looking again every 2 ms."""

    def wait(holds, *, what, timeout_s=WAIT_S):
        until = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < until, f"not within {timeout_s} s: {what}"
            threading.Event().wait(0.002)

    return wait


def load(name):
    """A helper module of this folder: with import-mode importlib a test cannot import its neighbor."""
    spec = importlib.util.spec_from_file_location(f"snl_tests_outputs_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def mqtt():
    """Broker and Subscriber, both real."""
    return load("broker")


class MemoryStore:
    """What an outbox needs of the record store, over a list."""

    def __init__(self):
        self._guard = threading.Lock()
        self._rows, self._cursors = [], {}

    def add(self, record, camera="one"):
        with self._guard:
            self._rows.append(StoredRow(len(self._rows) + 1, camera, record))

    def read_after(self, row, limit):
        with self._guard:
            return self._rows[row : row + limit]

    def delivered(self, consumer):
        return self._cursors.get(consumer, 0)

    def mark_delivered(self, consumer, row):
        self._cursors[consumer] = row

    def backlog(self, consumer):
        with self._guard:
            return len(self._rows) - self.delivered(consumer)


@dataclasses.dataclass(frozen=True)
class StoredRow:
    row: int
    camera: str
    record: dict


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def fill(store):
    """Add records number first to last, each with a verdict that its number tells."""

    def add(first, last):
        for number in range(first, last + 1):
            store.add({"trigger_id": number, "verdict": verdict_of(number).value, "score": number / 7})

    return add
