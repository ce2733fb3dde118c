"""A station that is killed again and again in the middle of 1,000 results leaves none out: it goes on after the last acknowledged row."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.station
pytest.importorskip("paho.mqtt.client", reason="needs pip install 'snl-edge[mqtt]'")
pytest.importorskip("snl_runtime.line.record_store", reason="needs the record store")

COUNT = 1000
KILLS = 5
WAIT_S = 60.0
PROGRAM = """
import sys, threading, time
import numpy as np
from snl_runtime.line.record_store import RecordStore, RecordStoreConfig
from snl_runtime.station.outbox import Outbox
from snl_runtime.station.outputs.mqtt import MqttConfig, MqttConsumer
from snl_runtime.types import AnomalyResult, Frame, StageTimings, Verdict

path, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
timings = StageTimings(preprocess_ms=1.0, infer_ms=2.0, decide_ms=0.5, total_ms=3.5)
with RecordStore(RecordStoreConfig(path=path)) as store:
    with Outbox(MqttConsumer(MqttConfig(host="127.0.0.1", port=port)), store, on_fault=print) as outbox:
        rows = store.read_after(0, count + 1)
        for number in range(len(rows) + 1, count + 1):
            frame = Frame(image=None, color="gray", index=number, captured_ns=time.monotonic_ns(), captured_at=time.time(), source_id="fake",
                          trigger_id=number)
            result = AnomalyResult(verdict=list(Verdict)[number % 4], reason_code="below_threshold", reason=f"score {number}", score=float(number),
                                   threshold=1.0, reject_threshold=1.25, product="bottle", anomaly_map=None, roi_xyxy=None, regions=(),
                                   timings=timings, model_sha256="ab" * 32)
            store.mark_answered(store.add(frame, result, camera="one"))
            outbox.notify()
        while store.backlog("mqtt"):
            threading.Event().wait(0.01)
"""


def test_station_killed_in_the_middle_of_a_thousand_results_delivers_them_all(mqtt, tmp_path, free_port):
    """At least once, the same content at every repeat, first arrivals in order."""
    (tmp_path / "broker").mkdir()
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "records.sqlite"), str(free_port), str(COUNT)]
    with mqtt.Broker(tmp_path / "broker", free_port), mqtt.Subscriber(free_port, "snl/site/station/one/result") as plant:
        for kill in range(1, KILLS + 1):
            station = subprocess.Popen(command)
            try:
                plant.wait(lambda messages, least=kill * COUNT // (KILLS + 2): len(messages) >= least, WAIT_S)
                assert station.poll() is None, "the station ended before it was killed"
            finally:
                station.kill()
                station.wait(WAIT_S)
        subprocess.run(command, check=True, timeout=WAIT_S)
        messages = [message for _, message, _ in plant.wait(lambda messages: messages[-1][1]["row"] == COUNT, WAIT_S)]
    by_row = {}
    for message in messages:
        assert by_row.setdefault(message["row"], message) == message, "a repeat has the same content"
    assert list(by_row) == list(range(1, COUNT + 1))
    assert [message["score"] for message in by_row.values()] == [float(number) for number in range(1, COUNT + 1)]
