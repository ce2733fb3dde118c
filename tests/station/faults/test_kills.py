"""kill -9 in the middle of 1,000 verdicts: what any client was told is in the record as it was told, and nothing is told twice differently."""

import asyncio
import collections
import contextlib
import os
import random
import signal
import threading

import pytest

from station_process import REPOSITORY, Plc, StationProcess, free_port, load_file, model_fixtures, until, write_model

pytestmark = pytest.mark.station

KILLS = int(os.environ.get("SNL_KILLS", "6"))
"""Fifty were asked for: SNL_KILLS=50 runs them; by default fewer, for the time of everybody's checks."""
VERDICTS_A_RUN = 1_000
FIELDS = ("trigger_id", "verdict", "reason_code")


@pytest.fixture
def mqtt():
    pytest.importorskip("paho.mqtt.client", reason="needs pip install 'snl-edge[mqtt]'")
    return load_file(REPOSITORY / "tests" / "station" / "outputs" / "broker.py", "snl_kills_broker")


class OpcUaReader(threading.Thread):
    """A real client that reads the result of one camera in one request, again and again, until the server dies."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.port, self.told, self.failure, self.stopped = port, set(), None, threading.Event()

    def run(self):
        asyncio.run(self._read())

    async def _read(self):
        from asyncua import Client

        client = Client(f"opc.tcp://127.0.0.1:{self.port}/snl", timeout=30)
        try:
            await client.connect()
            index = await client.get_namespace_index("urn:snl-edge:line")
            nodes = [client.get_node(f"ns={index};s=top.{name}") for name in ("ResultValid", "TriggerId", "Verdict", "ReasonCode")]
            while not self.stopped.is_set():
                valid, *answer = await client.read_values(nodes)
                if valid:
                    self.told.add(tuple(answer))
        except Exception as failure:  # noqa: BLE001 - the server is killed under it; what it saw before counts
            self.failure = failure
        finally:
            with contextlib.suppress(Exception):  # noqa: S110
                await asyncio.wait_for(client.disconnect(), 5)


@contextlib.contextmanager
def station_ended(station):
    """Leave no process behind."""
    try:
        yield
    finally:
        station.kill()


def parts(folder):
    """A folder of images, good and bad, in the order in which they are inspected."""
    cv2 = pytest.importorskip("cv2")
    fixtures = model_fixtures()
    folder.mkdir()
    made = {make: [cv2.imencode(".png", make(seed))[1].tobytes() for seed in range(20)] for make in (fixtures.good_frame, fixtures.bad_frame)}
    for number in range(VERDICTS_A_RUN):
        make = fixtures.bad_frame if number % 3 == 1 else fixtures.good_frame
        (folder / f"{number:04d}.png").write_bytes(made[make][number % 20])


def run_until_killed(station, plc, opcua, after):
    """Start the station, kill it once the line saw so many verdicts, and return what Modbus and OPC UA clients were told."""
    station.start()
    plc.connect()
    reader = OpcUaReader(opcua)
    reader.start()
    told = set()

    def enough():
        view = plc.look()
        if view.result_valid:
            told.add((view.trigger_id, view.verdict, view.reason))
        return len(told) >= after and (reader.told or reader.failure)

    with contextlib.suppress(Exception):  # noqa: S110 - whatever the client raises when its server dies
        until(enough, "so many verdicts", pause_s=0)
    station.kill()
    plc.close()
    reader.stopped.set()
    reader.join(60)
    assert not reader.is_alive()
    assert len(told) >= after, station.text
    return told | reader.told, len(reader.told)


def test_what_was_told_is_recorded_and_never_told_otherwise(tmp_path, mqtt):
    pytest.importorskip("asyncua", reason="needs pip install 'snl-edge[opcua]'")
    pytest.importorskip("pymodbus", reason="needs pip install 'snl-edge[modbus]'")
    rng = random.Random(7)
    write_model(tmp_path)
    parts(tmp_path / "parts")
    modbus, opcua, broker_port = free_port(), free_port(), free_port()
    (tmp_path / "broker").mkdir()
    trigger = {"mode": "timer", "interval_ms": 10.0, "deadline_ms": 20_000.0, "frame_timeout_ms": 10_000.0}
    config = {
        "model": {"file": "line.onnx", "threads": 1},
        "cameras": {"top": {"source": {"images": {"path": "parts"}}, "product": "bottle", "trigger": trigger}},
        "records": {"store": {"path": "records.sqlite"}, "jsonl": {"file": "out.jsonl"}},
        "outputs": {
            "modbus": {"port": modbus},
            "opcua": {"endpoint": f"opc.tcp://127.0.0.1:{opcua}/snl"},
            "mqtt": {"host": "127.0.0.1", "port": broker_port},
            "outbox": {"first_retry_s": 0.1},
        },
    }
    station = StationProcess(tmp_path, config)
    by_opcua = 0
    with mqtt.Broker(tmp_path / "broker", broker_port), mqtt.Subscriber(broker_port, "snl/site/station/+/result") as plant, station_ended(station):
        first_row = 1
        for _ in range(KILLS):
            plc = Plc(station, modbus)
            told, count = run_until_killed(station, plc, opcua, rng.randint(1, 120))
            by_opcua += count
            assert count, "OPC UA read nothing"
            rows = [one for one in station.rows() if one["row"] >= first_row]
            assert [one["trigger_id"] for one in rows] == list(range(1, len(rows) + 1)), "one row per trigger, none missing"
            assert len(rows) < VERDICTS_A_RUN, "killed in the middle"
            recorded = {tuple(one[key] for key in FIELDS) for one in rows}
            assert told <= recorded, f"told and not recorded: {sorted(told - recorded)}"
            assert sum(not one["answered"] for one in rows) <= 1
            first_row += len(rows)
        for part in sorted((tmp_path / "parts").iterdir())[10:]:
            part.unlink()
        left = set(range(1, first_row))
        for _ in range(10):  # a station that ends leaves what was not acknowledged yet to the next start
            station.start()
            assert station.process.wait(300) == 0, station.text
            if left <= {payload["row"] for _, payload, _ in list(plant.messages)}:
                break
        plant.wait(lambda messages: left <= {payload["row"] for _, payload, _ in messages}, 60)
        rows = {one["row"]: one for one in station.rows()}
        messages = list(plant.messages)
    contents = collections.defaultdict(set)
    for _, payload, _ in messages:
        contents[payload["row"]].add(tuple(payload[key] for key in FIELDS) + (payload.get("announced", True),))
    assert all(len(different) == 1 for different in contents.values()), "never twice with different content"
    assert {row: next(iter(content)) for row, content in contents.items()} == {
        row: (*(one[key] for key in FIELDS), one["answered"]) for row, one in rows.items() if row in contents
    }
    unanswered = sum(not one["answered"] for one in rows.values())
    print(f"{KILLS} kills, {len(rows)} rows, {unanswered} not announced, {by_opcua} verdicts read by OPC UA, {len(messages)} MQTT messages")


def test_verdict_replaced_by_error_and_killed_before_it_was_changed_is_not_announced(line, network, mqtt, tmp_path):
    """The disk hangs (another program holds the file): the line is told ERROR record_late; the process dies with PASS in the row."""
    import sqlite3

    broker_folder, port = tmp_path / "broker", free_port()
    broker_folder.mkdir()
    with mqtt.Broker(broker_folder, port), mqtt.Subscriber(port, "snl/site/station/+/result") as plant:
        hook = tmp_path / "hook"
        hook.mkdir()
        (hook / "sitecustomize.py").write_text((REPOSITORY / "tests/station/faults/slow_commit.py").read_text())
        mode = tmp_path / "commit.txt"
        mode.write_text("well")
        environment = {"PYTHONPATH": f"{hook}:{REPOSITORY}", "SNL_COMMIT_MODE": str(mode)}
        trigger = {"deadline_ms": 5_000.0, "frame_timeout_ms": 4_000.0}
        station, plc = line(network, environment=environment, trigger=trigger, outputs={"mqtt": {"host": "127.0.0.1", "port": port}})
        assert plc.inspect().accept
        mode.write_text("hang after the commit")
        answer = plc.inspect()
        assert (answer.verdict, answer.reason, answer.accept) == ("ERROR", "record_late", False)
        until(lambda: len(station.rows()) == 2, "the row to be on the disk")
        station.process.send_signal(signal.SIGKILL)
        station.process.wait(30)
        (left,) = [one for one in station.rows() if one["trigger_id"] == answer.trigger_id]
        assert (left["verdict"], left["answered"]) == ("PASS", False)
        mode.write_text("well")
        station.start()
        plc.close()
        assert plc.connect().inspect().accept
        messages = plant.wait(lambda messages: len({payload["row"] for _, payload, _ in messages}) == 3)
    payloads = {payload["row"]: payload for _, payload, _ in messages}
    assert payloads[2]["announced"] is False, "no plain PASS"
    assert "announced" not in payloads[1]
    assert "announced" not in payloads[3]
    with contextlib.closing(sqlite3.connect(tmp_path / "records.sqlite")) as database:
        assert database.execute("SELECT answered FROM records ORDER BY id").fetchall()[:2] == [(1,), (0,)]
