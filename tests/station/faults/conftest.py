"""What the injected faults share: a camera process, a station process triggered over Modbus, and a plug-in backend that misbehaves when told."""

import contextlib
from pathlib import Path

import pytest

from station_process import PATIENT_TRIGGER, CameraProcess, Plc, StationProcess, free_port, write_model

HERE = Path(__file__).parent


@pytest.fixture
def camera():
    with CameraProcess() as opened:
        yield opened


@pytest.fixture
def line(tmp_path):
    """Start a station of one camera that Modbus triggers; returns its process and the PLC, connected. ``changes`` go over the station file."""
    pytest.importorskip("pymodbus", reason="needs pip install 'snl-edge[modbus]'")
    with contextlib.ExitStack() as opened:

        def start(source, *, environment=None, trigger=None, connect=True, **changes):
            port = free_port()
            write_model(tmp_path)
            config = {
                "model": {"file": "line.onnx", "threads": 1, **changes.pop("model", {})},
                "cameras": {
                    "top": {
                        "source": source,
                        "product": "bottle",
                        "trigger": {"mode": "command", **PATIENT_TRIGGER, **(trigger or {})},
                    }
                },
                "records": {"store": {"path": "records.sqlite"}, **changes.pop("records", {})},
                "outputs": {"modbus": {"port": port}, **changes.pop("outputs", {})},
                **changes,
            }
            station = opened.enter_context(StationProcess(tmp_path, config, environment=environment))
            plc = Plc(station, port)
            opened.callback(plc.close)
            return station, plc.connect() if connect else plc

        yield start


@pytest.fixture
def network(camera):
    """The section ``source`` of the camera process, with short limits."""
    return {"camera": {"address": camera.url, "open_timeout_s": 2.0, "read_timeout_s": 1.0, "stall_timeout_s": 2.0}}


@pytest.fixture
def plugin(tmp_path):
    """Install a backend ``faulty`` for a process that gets the returned environment; ``plugin.mode`` is what it does with the next call."""

    class Plugin:
        folder = tmp_path / "plugins"
        file = tmp_path / "mode.txt"

        def __init__(self):
            information = self.folder / "snl_faulty-1.0.dist-info"
            information.mkdir(parents=True)
            (information / "METADATA").write_text("Metadata-Version: 2.1\nName: snl-faulty\nVersion: 1.0\n")
            (information / "entry_points.txt").write_text("[snl_edge.backends]\nfaulty = snl_faulty:open_faulty\n")
            (self.folder / "snl_faulty.py").write_text((HERE / "faulty_backend.py").read_text())
            self.mode("well")

        @property
        def environment(self):
            return {"PYTHONPATH": f"{self.folder}:{HERE.parents[2]}", "SNL_FAULTY_MODE": str(self.file)}

        def mode(self, word):
            new = self.file.with_suffix(".new")
            new.write_text(word)
            new.replace(self.file)

    return Plugin()
