"""A station file with a record store runs its cameras as a station: every frame a durable record, and the line told by its outputs."""

import contextlib
import json
import shlex
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import cv2
import pytest
import yaml

from snl_runtime.cli.run import main
from snl_runtime.detector.detector import SnlDetector
from snl_runtime.errors import SinkError
from snl_runtime.line.record_store import RecordStore, RecordStoreConfig
from snl_runtime.station.outputs import modbus_map

WAIT_S = 30.0


@pytest.fixture
def station(model, tmp_path, monkeypatch):
    """A working folder with a model, and a folder of three good parts and a bad one for each of two cameras."""
    monkeypatch.chdir(tmp_path)
    model.ModelFolder(tmp_path).write()
    for side in ("left", "right"):
        (tmp_path / side).mkdir()
        for seed in range(3):
            cv2.imwrite(f"{side}/a{seed}.png", model.good_frame(seed))
        cv2.imwrite(f"{side}/b.png", model.bad_frame(0))
    return tmp_path


def camera(side, **changes):
    return {"source": {"images": {"path": side}}, "trigger": {"deadline_ms": 20_000.0}, **changes}


PLAIN = {"source": {"images": {"path": "left"}}}


def write(**changes):
    plain = {
        "model": {"file": "line.onnx"},
        "cameras": {"left": camera("left"), "right": camera("right")},
        "records": {"store": {"path": "records.sqlite"}, "jsonl": {"file": "out.jsonl"}},
        **changes,
    }
    Path("station.yaml").write_text(yaml.safe_dump(plain))


def run(line):
    return main(shlex.split(line))


def rows():
    with RecordStore(RecordStoreConfig(path="records.sqlite")) as store:
        return store.read_after(0, 1000)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_every_frame_of_every_camera_is_a_record(station, capsys):
    write()
    assert run("--config station.yaml --json") == 0
    stored = rows()
    for side in ("left", "right"):
        records = [row.record for row in stored if row.camera == side]
        assert [one["verdict"] for one in records] == ["PASS"] * 3 + ["REJECT"]
        assert [one["trigger_id"] for one in records] == [1, 2, 3, 4]
        assert {Path(one["source_id"]).parent.name for one in records} == {side}
    summary = json.loads(capsys.readouterr().out)
    assert summary["cameras"]["left"]["verdicts"]["REJECT"] == 1
    assert summary["cameras"]["right"]["captured"] == 4
    assert len(Path("out.jsonl").read_text().splitlines()) == 8


def test_fail_on_reject_goes_by_every_camera(station, capsys):
    write()
    assert run("--config station.yaml --fail-on-reject") == 4
    for side in ("left", "right"):
        (station / side / "b.png").unlink()
    assert run("--config station.yaml --fail-on-reject") == 0


def test_one_camera_may_see_a_crop_of_its_frames(station, model, capsys):
    wide = cv2.copyMakeBorder(model.bad_frame(0), 8, 8, 8, 8, cv2.BORDER_REPLICATE)
    for path in Path("left").iterdir():
        path.unlink()
    cv2.imwrite("left/wide.png", wide)
    write(cameras={"left": camera("left", crop_xyxy=[8, 8, 40, 40]), "right": camera("right")})
    assert run("--config station.yaml") == 0
    regions = {row.camera: row.record["regions"] for row in rows() if row.record["verdict"] == "REJECT"}
    assert [[edge + 8 for edge in region["box_xyxy"]] for region in regions["right"]] == [region["box_xyxy"] for region in regions["left"]]


def test_timer_triggers_one_frame_at_a_time(station, capsys):
    trigger = {"mode": "timer", "interval_ms": 200, "deadline_ms": 20_000, "frame_timeout_ms": 5_000}
    write(cameras={"left": camera("left", trigger=trigger)})
    assert run("--config station.yaml") == 0
    stored = rows()
    assert [row.record["verdict"] for row in stored][:4] == ["PASS"] * 3 + ["REJECT"]
    assert [row.record["trigger_id"] for row in stored] == list(range(1, len(stored) + 1))


def test_check_of_a_station_tells_no_output_and_leaves_no_trace(station, capsys):
    write(outputs={"plugins": [], "webhook": {"url": "http://127.0.0.1:9/x"}})
    before = sorted(str(path) for path in station.rglob("*"))
    assert run("--config station.yaml --check") == 0
    assert sorted(str(path) for path in station.rglob("*")) == before
    out = capsys.readouterr().out
    assert "  row in records.sqlite: the same" in out
    assert "  webhook at http://127.0.0.1:9/x: PASS below_threshold, accept true; not told during a check" in out


def test_check_of_a_watched_folder_moves_nothing(station, capsys):
    write(cameras={"left": {"source": {"watch": {"folder": "left", "settle_s": 0.01, "poll_interval_s": 0.01}}}})
    before = sorted(str(path) for path in station.rglob("*"))
    assert run("--config station.yaml --check") == 0
    assert sorted(str(path) for path in station.rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"records": {}}, "cameras: several cameras (left, right) need the record store"),
        ({"records": {}, "cameras": {"left": camera("left")}}, "cameras.left.trigger.deadline_ms needs the record store"),
        (
            {"records": {}, "cameras": {"left": {"source": {"images": {"path": "left"}}}}, "outputs": {"metrics": {}}},
            "outputs.metrics needs the record",
        ),
        ({"cameras": {"left": camera("left", trigger={"mode": "command"})}}, "cameras.left.trigger.mode command needs somebody who commands"),
        ({"records": {}, "cameras": {"left": PLAIN}, "drift": {}}, "drift needs the record store"),
        ({"records": {"store": {"path": "gone/records.sqlite"}}}, "gone/records.sqlite: there is no folder"),
        ({"outputs": {"mqtt": {"host": ""}}}, "mqtt.host must name the broker"),
    ],
)
def test_station_that_could_not_keep_its_word_is_refused_in_one_line(station, capsys, changes, message):
    write(**changes)
    assert run("--config station.yaml") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err
    assert not Path("records.sqlite").exists()


def test_station_watches_for_drift_and_tests_itself_between_parts(station, monkeypatch):
    """A pause of a second between two parts leaves room for the self-test, which scores the golden samples of the manifest again."""
    write(
        cameras={"left": camera("left", trigger={"mode": "timer", "interval_ms": 1500.0, "deadline_ms": 1400.0})},
        drift={"folder": "evidence"},
        self_test={"every_s": 1.0, "quiet_s": 0.0},
    )
    results, self_test = [], SnlDetector.self_test
    monkeypatch.setattr(SnlDetector, "self_test", lambda detector: results.append(self_test(detector)) or results[-1])
    assert run("--config station.yaml") == 0
    assert results
    assert all(result.passed for result in results)
    evidence = json.loads(Path("evidence/left.drift.json").read_text())
    assert list(evidence["products"]) == ["bottle"]
    assert {row.record["reason_code"] for row in rows()} <= {"below_threshold", "above_reject_threshold", "no_frame", "missing_frame", "frame_fault"}


@pytest.mark.station
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_screen_is_served_while_the_station_runs_and_a_signal_ends_it_with_its_figures(station, number, status):
    port = free_port()
    write(cameras={"left": camera("left", trigger={"mode": "timer", "interval_ms": 2000.0, "deadline_ms": 1900.0})})
    command = [sys.executable, "-m", "snl_runtime.cli.run", "--config", "station.yaml", "--serve", f"127.0.0.1:{port}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            state = json.loads(until(lambda: fetch(f"http://127.0.0.1:{port}/api/state"), process))
            assert any("the screen is at" in line for line in process.stderr)  # the cameras run
        finally:
            process.send_signal(number)
            _, told = process.communicate(timeout=WAIT_S)
    assert "left" in json.dumps(state)
    assert process.returncode == status
    assert "camera left: trigger to answer ms: " in told


def fetch(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read()
    except OSError:
        return None


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), RuntimeError("a bug")], ids=repr)
def test_what_ended_a_station_stays_what_it_says_where_its_figures_cannot_be_told(station, monkeypatch, raised):
    def fail(error):
        raise error

    write()
    monkeypatch.setattr("snl_runtime.cli.run_station._run_until_ended", lambda *_: fail(raised))
    for name in ("_report", "_report_left"):
        monkeypatch.setattr(f"snl_runtime.cli.run_station.{name}", lambda *_: fail(SinkError("the reader is gone")))
    if isinstance(raised, KeyboardInterrupt):
        assert run("--config station.yaml") == 130
    else:
        with pytest.raises(RuntimeError, match="a bug"):  # printed with its traceback, status 1
            run("--config station.yaml")


def test_max_frames_is_refused_for_a_station(station, capsys):
    write()
    assert run("--config station.yaml --max-frames 2") == 2
    assert "--max-frames is for one camera without a record store" in capsys.readouterr().err


def until(look, process):
    """Return the first true value; the station is another process, so there is no event to wait for."""
    pause = threading.Event()
    for _ in range(600):
        assert process.poll() is None, process.stderr.read()
        if found := look():
            return found
        pause.wait(0.05)
    raise AssertionError("nothing came")


@pytest.mark.station
def test_line_triggers_by_modbus_prometheus_counts_and_a_signal_ends_it(station):
    """A real client triggers a real process: accept is on after PASS only, the metrics are there meanwhile, and SIGTERM leaves whole records."""
    from pymodbus.client import ModbusTcpClient

    cv2.imwrite("left/z_spare.png", cv2.imread("left/a0.png"))
    modbus, metrics = free_port(), free_port()
    trigger = {"mode": "command", "deadline_ms": 20_000, "frame_timeout_ms": 5_000}
    write(cameras={"left": camera("left", trigger=trigger)}, outputs={"modbus": {"port": modbus}, "metrics": {"port": metrics}})
    command = [sys.executable, "-m", "snl_runtime.cli.run", "--config", "station.yaml"]
    accepts = []
    with contextlib.ExitStack() as opened:
        process = opened.enter_context(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
        opened.callback(process.kill)
        client = ModbusTcpClient("127.0.0.1", port=modbus, timeout=5)
        until(client.connect, process)

        def bits():
            return client.read_discrete_inputs(0, count=modbus_map.BITS).bits

        client.write_register(modbus_map.TRIGGER_COUNTER, 10)  # the first write only says where the counter stands
        for counter in (11, 12, 13, 14):
            until(lambda: bits()[modbus_map.READY], process)
            client.write_register(modbus_map.TRIGGER_COUNTER, counter)

            def answered(counter=counter):
                echo = client.read_input_registers(modbus_map.COUNTER_ECHO, count=1).registers[0]
                return echo == counter and bits()[modbus_map.RESULT_VALID]

            until(answered, process)
            accepts.append(bits()[modbus_map.ACCEPT])
        scraped = urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=5).read().decode()
        client.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0, process.stderr.read()
    assert accepts == [True, True, True, False]
    assert [row.record["verdict"] for row in rows()] == ["PASS"] * 3 + ["REJECT"]
    assert 'camera="left"' in scraped
