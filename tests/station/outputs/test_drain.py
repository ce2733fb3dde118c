"""A station whose folder ends gives broker and web server a bounded time for what they do not have yet, and says what is left for the next start."""

import itertools
import signal

import cv2
import pytest
import yaml

from snl_runtime.cli.run import main
from snl_runtime.line.record_store import RecordStore, RecordStoreConfig
from station_process import StationProcess, free_port, until
from web_server import WebServer

pytestmark = pytest.mark.station
PARTS = 12


@pytest.fixture
def parts(model, tmp_path):
    """A folder with a model and a folder of good parts."""
    model.ModelFolder(tmp_path).write()
    (tmp_path / "parts").mkdir()
    for seed in range(PARTS):
        cv2.imwrite(str(tmp_path / "parts" / f"{seed}.png"), model.good_frame(seed))


@pytest.fixture
def run(parts, tmp_path, monkeypatch, capsys):
    """Run a station over the folder with these outputs, and return what it wrote to stderr."""
    monkeypatch.chdir(tmp_path)

    def start(**outputs):
        (tmp_path / "station.yaml").write_text(yaml.safe_dump(station_of(outputs)))
        assert main(["--config", "station.yaml"]) == 0
        return capsys.readouterr().err

    return start


def station_of(outputs):
    return {
        "model": {"file": "line.onnx"},
        "cameras": {"top": {"source": {"images": {"path": "parts"}}, "trigger": {"deadline_ms": 20_000.0}}},
        "records": {"store": {"path": "records.sqlite"}, "jsonl": {"file": "out.jsonl"}},
        "outputs": outputs,
    }


def backlog(consumer):
    with RecordStore(RecordStoreConfig(path="records.sqlite")) as store:
        return store.backlog(consumer)


def test_broker_and_web_server_have_every_record_when_a_folder_ends(run, mqtt, tmp_path):
    pytest.importorskip("paho.mqtt.client", reason="needs pip install 'snl-edge[mqtt]'")
    (tmp_path / "broker").mkdir()
    broker_port, web_port = free_port(), free_port()
    with (
        mqtt.Broker(tmp_path / "broker", broker_port),
        WebServer(web_port) as server,
        mqtt.Subscriber(broker_port, "snl/site/station/top/result") as plant,
    ):
        told = run(mqtt={"host": "127.0.0.1", "port": broker_port}, webhook={"url": f"http://127.0.0.1:{web_port}/"})
        assert server.rows() == list(range(1, PARTS + 1)), "before the run returned"
        messages = plant.wait(lambda messages: len(messages) >= PARTS)
    assert [payload["row"] for _, payload, _ in messages] == list(range(1, PARTS + 1))
    for consumer in ("mqtt", "webhook"):
        assert f"snl-run: {consumer}: records left for the next start: 0\n" in told
        assert backlog(consumer) == 0


def test_record_is_sent_when_the_line_has_its_answer_and_not_at_the_next_look_at_the_store(run, monkeypatch):
    monkeypatch.setattr("snl_runtime.station.outbox._IDLE_LOOK_S", 1000.0)
    port = free_port()
    with WebServer(port) as server:
        monkeypatch.setattr("snl_runtime.station.outbox.drain", lambda *_, **__: server.wait_for(PARTS))  # nobody wakes it at the end
        run(webhook={"url": f"http://127.0.0.1:{port}/"})
    assert server.rows() == list(range(1, PARTS + 1))


def test_web_server_that_fails_keeps_no_station_and_gets_the_rest_at_the_next_start(run):
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    with WebServer(port, plan=[200, 200, 200, *itertools.repeat(503, 1000)]) as server:
        told = run(webhook={"url": url})
    assert server.rows() == [1, 2, 3]
    assert f"snl-run: webhook: records left for the next start: {PARTS - 3}; web server {url} took no record: status 503\n" in told
    with WebServer(port) as server:
        assert "webhook: records left for the next start: 0\n" in run(webhook={"url": url})
    assert server.rows() == list(range(4, 2 * PARTS + 1))


def test_web_server_that_stalls_holds_a_station_no_longer_than_its_time(run):
    port = free_port()
    outputs = {"webhook": {"url": f"http://127.0.0.1:{port}/", "timeout_s": 1.0}, "outbox": {"max_drain_s": 0.2}}
    with WebServer(port, plan=["stall"] * 1000):
        told = run(**outputs)
    assert f"webhook: records left for the next start: {PARTS}" in told
    assert backlog("webhook") == PARTS


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signal_leaves_what_waits_to_the_next_start_at_once(parts, tmp_path, number, status):
    """The pause between two tries would last minutes, and so would the drain."""
    port = free_port()
    pause = {"max_drain_s": 1000.0, "first_retry_s": 1000.0, "longest_retry_s": 1000.0}
    outputs = {"webhook": {"url": f"http://127.0.0.1:{port}/"}, "outbox": pause}
    with WebServer(port, plan=[503] * 1000), StationProcess(tmp_path, station_of(outputs)) as station:
        until(lambda: "camera top: trigger to answer" in station.text, "the folder to end")
        assert station.end(number) == status
    assert f"webhook: records left for the next start: {PARTS}" in station.text
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == PARTS
