"""A real ``snl-run --config`` in a process of its own, and a real Modbus client in the place of its PLC; every wait is bounded."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import yaml

from snl_runtime.model.frame_range import FrameSizes
from snl_runtime.station.outputs import modbus_map as layout

WAIT_S = 60.0
"""Most seconds that one event may take on a loaded machine with two cores."""
PATIENT_TRIGGER = {"deadline_ms": 20_000.0, "frame_timeout_ms": 10_000.0, "record_margin_ms": 400.0}
"""So long that a healthy line keeps them on a loaded machine whose disk hesitates."""
SHORT_DEADLINE = {"deadline_ms": 2_000.0, "frame_timeout_ms": 800.0}
"""For tests that let them pass; there even a healthy line may be late now and then."""
SHORT_FRAME_TIMEOUT = {"frame_timeout_ms": 800.0}
REPOSITORY = Path(__file__).parents[2]
VERDICTS = {number: None if verdict is None else verdict.value for verdict, number in layout.VERDICT_NUMBERS.items()}
REASONS = {number: code for code, number in layout.REASON_NUMBERS.items()}


def load_file(path, name):
    """Import a Python file that is no package's, as tests and benchmarks share some."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def model_fixtures():
    """The tiny calibrated model of the runtime's tests."""
    return load_file(REPOSITORY / "tests" / "runtime" / "detector_fixtures.py", "snl_station_process_model")


def write_model(folder):
    """Write the model so that good frames pass after JPEG, and frames of another size are refused; return its path.

    JPEG at quality 100 moves the highest score of a good part from 8.9 to 9.4; bad parts begin at 33.
    """
    fixtures = model_fixtures()
    sizes = FrameSizes(seen_hw=[(fixtures.SIZE, fixtures.SIZE)], any_size=False)
    change = {"pass_threshold": 15.0, "reject_threshold": 20.0, "frame_sizes": sizes, "frame_range": fixtures.ANY_FRAME}
    return fixtures.ModelFolder(folder).write(decisions=[change])


def free_port():
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(look, what, *, timeout_s=WAIT_S, pause_s=0.01):
    """Return the first true value of ``look``; what another process does comes without an event."""
    end_s, pause = time.monotonic() + timeout_s, threading.Event()
    while not (found := look()):
        assert time.monotonic() < end_s, f"not within {timeout_s:g} s: {what}"
        pause.wait(pause_s)
    return found


class StationProcess:
    """``snl-run --config station.yaml`` in a folder; started, signaled, killed and started again.

    Args:
        folder: Working folder; the station file is written into it.
        config: The station file's content.
        environment: Added to this process's own.
    """

    def __init__(self, folder, config, *, environment=None):
        self.folder, self.config = Path(folder), config
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        self.process = None
        self.log = self.folder / "station.log"

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.kill()

    def start(self):
        (self.folder / "station.yaml").write_text(yaml.safe_dump(self.config))
        command = [sys.executable, "-m", "snl_runtime.cli.run", "--config", "station.yaml"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=subprocess.DEVNULL, stderr=log)

    def kill(self):
        """kill -9, also of a process that was stopped."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        if self.process is not None:
            self.process.wait(WAIT_S)

    def end(self, number=signal.SIGTERM):
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(WAIT_S)

    @property
    def text(self):
        """What it wrote to stderr, all starts together."""
        return self.log.read_text(errors="replace")

    def last_row(self, name="records.sqlite"):
        """Number of the newest record, which counts those that a limit has deleted."""
        with contextlib.closing(sqlite3.connect(f"file:{self.folder / name}?mode=ro", uri=True, timeout=WAIT_S)) as database:
            return database.execute("SELECT ifnull(max(id), 0) FROM records").fetchone()[0]

    def rows(self, name="records.sqlite"):
        """The record as any tool reads it: dictionaries with ``row``, ``camera``, ``answered`` and the record's own keys."""
        with contextlib.closing(sqlite3.connect(f"file:{self.folder / name}?mode=ro", uri=True, timeout=WAIT_S)) as database:
            found = database.execute("SELECT id, camera, answered, record FROM records ORDER BY id").fetchall()
        return [{"row": row, "camera": camera, "answered": bool(answered), **json.loads(record)} for row, camera, answered, record in found]


class CameraProcess:
    """The Motion JPEG camera, which can be told, stopped, killed and started again on its port."""

    def __init__(self):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/line.mjpg"
        self.process = None
        self.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def start(self):
        command = [sys.executable, str(Path(__file__).with_name("mjpeg_camera.py")), str(self.port)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "listens\n"

    def tell(self, line):
        print(line, file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "done\n"

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def kill(self):
        """As a cable that is pulled; also while it is stopped."""
        self.process.kill()
        self.process.wait(WAIT_S)
        self.process.stdin.close()
        self.process.stdout.close()


@dataclasses.dataclass(frozen=True)
class LineView:
    """One camera's block of registers, read in one request."""

    trigger_id: int
    ready: bool
    busy: bool
    result_valid: bool
    fault: bool
    accept: bool
    verdict: str
    reason: str
    counter: int
    accepted_trigger_id: int


class Plc:
    """Triggers, resets and reads one camera over Modbus TCP as the guide tells a PLC to.

    Args:
        station: Its process.
        port: Where it serves Modbus.
        number: Number of the camera.
    """

    def __init__(self, station, port, number=0):
        self.station, self._port, self._base = station, port, layout.STRIDE * number
        self._client, self._counter, self._resets = None, 0, 0

    def connect(self):
        """Connect and say where the counters stand."""
        from pymodbus.client import ModbusTcpClient

        def connected():
            assert self.station.process.poll() is None, self.station.text
            client = ModbusTcpClient("127.0.0.1", port=self._port, timeout=WAIT_S)
            if client.connect():
                self._client = client
                return True
            client.close()
            return False

        until(connected, "the Modbus server to listen")
        self._counter, self._resets = 10, 10
        self._write(layout.TRIGGER_COUNTER, self._counter)
        self._write(layout.RESET_COUNTER, self._resets)
        return self

    def close(self):
        """Let the connection go."""
        if self._client is not None:
            self._client.close()

    def look(self):
        """What the line sees now."""
        answer = self._client.read_input_registers(self._base, count=layout.BLOCK_REGISTERS)
        if answer.isError():
            raise OSError(str(answer))
        block = answer.registers
        bits = block[layout.STATUS_BITS]
        ready, busy, valid, fault, accept = (bool(bits >> place & 1) for place in range(layout.BITS))
        view = LineView(
            trigger_id=block[layout.TRIGGER_ID] << 16 | block[layout.TRIGGER_ID + 1],
            ready=ready,
            busy=busy,
            result_valid=valid,
            fault=fault,
            accept=accept,
            verdict=VERDICTS[block[layout.VERDICT]],
            reason=REASONS.get(block[layout.REASON], str(block[layout.REASON])),
            counter=block[layout.COUNTER_ECHO],
            accepted_trigger_id=block[layout.ACCEPTED_TRIGGER_ID] << 16 | block[layout.ACCEPTED_TRIGGER_ID + 1],
        )
        assert not view.accept or (view.verdict == "PASS" and view.result_valid and not view.fault and view.accepted_trigger_id == view.trigger_id)
        return view

    def wait(self, holds, what, timeout_s=WAIT_S):
        """The first view for which a statement holds."""

        def look():
            assert self.station.process.poll() is None, self.station.text
            view = self.look()
            return view if holds(view) else None

        return until(look, what, timeout_s=timeout_s)

    def trigger(self):
        """Begin one inspection; return whether it was taken."""
        self._counter += 1
        return not self._write(layout.TRIGGER_COUNTER, self._counter).isError()

    def answer(self):
        """The answer to the last trigger."""
        return self.wait(lambda view: view.counter == self._counter and view.result_valid, "the answer")

    def inspect(self):
        """Trigger once the station is ready, and return the answer."""
        self.wait(lambda view: view.ready, "ready")
        assert self.trigger(), self.station.text
        return self.answer()

    def reset(self):
        """Ask for a reset until the fault has ended."""

        def gone():
            self._resets += 1
            self._write(layout.RESET_COUNTER, self._resets)
            return not self.look().fault

        until(gone, "the fault to end", pause_s=0.1)

    def inspect_until_pass(self):
        """Reset and inspect until a part passes, as an operator does, and return the answer: on a loaded machine the first may come too late."""

        def passed():
            self.reset()
            if self.look().ready and (answer := self.inspect()).verdict == "PASS":
                return answer
            return None

        return until(passed, "a part to pass")

    def _write(self, register, value):
        return self._client.write_register(self._base + register, value)
