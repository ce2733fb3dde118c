"""A real broker gets every result at least once and in order, also when it is killed; it keeps the states, and tells when this process dies."""

import contextlib
import dataclasses
import json
import subprocess
import sys
import threading

import pytest

from snl_runtime.errors import ConfigError, SinkError
from snl_runtime.station.outbox import Outbox, OutboxConfig
from snl_runtime.station.outputs.mqtt import MqttConfig, MqttConsumer
from snl_runtime.station.outputs.mqtt_state import MqttOutput
from snl_runtime.types import Verdict

pytestmark = pytest.mark.station
pytest.importorskip("paho.mqtt.client", reason="needs pip install 'snl-edge[mqtt]'")

TOPIC = "snl/lyon/press4"
FAST = OutboxConfig(first_retry_s=0.05, longest_retry_s=0.2)


@pytest.fixture
def broker(mqtt, tmp_path, free_port):
    with mqtt.Broker(tmp_path, free_port) as broker:
        yield broker


@pytest.fixture
def config(broker):
    return MqttConfig(host="127.0.0.1", port=broker.port, topic=TOPIC, timeout_s=5.0)


@contextlib.contextmanager
def delivering(config, store):
    with Outbox(MqttConsumer(config), store, on_fault=lambda _: None, config=FAST) as outbox:
        yield outbox


def results(messages):
    return [message for topic, message, _ in messages if topic == f"{TOPIC}/one/result"]


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_result_is_the_record_with_row_and_camera(mqtt, broker, config, store, fill, version):
    fill(1, 1)
    with mqtt.Subscriber(broker.port, f"{TOPIC}/#") as plant, delivering(dataclasses.replace(config, version=version), store):
        (message,) = results(plant.wait(results))
    assert message == {"row": 1, "camera": "one", "trigger_id": 1, "verdict": "REVIEW", "score": 1 / 7}


def test_broker_killed_in_the_middle_of_a_thousand_results_loses_none(mqtt, broker, config, store, fill):
    """At least once, the same content at every repeat, first arrivals in order."""
    with mqtt.Subscriber(broker.port, f"{TOPIC}/one/result") as plant:
        broker.save_sessions()
        fill(1, 300)
        with delivering(config, store) as outbox:
            plant.wait(lambda messages: len(messages) >= 200)
            feeder = threading.Thread(target=fill, args=(301, 1000))
            feeder.start()
            broker.kill()
            feeder.join(20)
            broker.start()
            outbox.notify()
            messages = results(plant.wait(lambda messages: any(message["row"] == 1000 for message in results(messages)), 60))
            assert outbox.counts.failures >= 1
    by_row = {}
    for message in messages:
        assert by_row.setdefault(message["row"], message) == message, "a repeat has the same content"
    assert list(by_row) == list(range(1, 1001))
    assert store.backlog("mqtt") == 0


def test_status_is_retained_while_online_and_after_a_proper_end(mqtt, broker, config, store, fill):
    fill(1, 1)
    with mqtt.Subscriber(broker.port, f"{TOPIC}/+/result", client_id="first") as plant, delivering(config, store):
        plant.wait(results)
        with mqtt.Subscriber(broker.port, f"{TOPIC}/status", client_id="late") as late:
            assert late.wait(len) == [(f"{TOPIC}/status", {"online": True}, True)]
    with mqtt.Subscriber(broker.port, f"{TOPIC}/status", client_id="later") as later:
        assert later.wait(len) == [(f"{TOPIC}/status", {"online": False}, True)]


def test_state_is_retained(mqtt, broker, config, states):
    with MqttOutput(config, ["one", "two"]) as output:
        output.publish(states.answer(5))
        with mqtt.Subscriber(broker.port, f"{TOPIC}/one/state", client_id="first") as first:
            first.wait(lambda messages: messages and messages[-1][1]["accepted_trigger_id"] == 5)
        with mqtt.Subscriber(broker.port, f"{TOPIC}/+/state", client_id="late") as late:
            seen = {topic: message for topic, message, retained in late.wait(lambda messages: len(messages) == 2) if retained}
    assert seen[f"{TOPIC}/one/state"]["verdict"] == "PASS"
    assert (seen[f"{TOPIC}/two/state"]["online"], seen[f"{TOPIC}/two/state"]["accept"]) == (True, False)


def test_last_will_takes_the_accept_away_when_the_process_is_killed(mqtt, broker, config, tmp_path):
    program = f"""
import sys, threading
from snl_runtime.station.line_state import LineState, StationState
from snl_runtime.station.outputs.mqtt import MqttConfig, MqttConsumer
from snl_runtime.station.outputs.mqtt_state import MqttOutput
from snl_runtime.types import Verdict
config = MqttConfig(host="127.0.0.1", port={config.port}, topic={TOPIC!r})
consumer = MqttConsumer(config)
consumer.connect()
with MqttOutput(config, ["one"]) as output:
    output.publish(LineState(camera="one", state=StationState.READY, result_valid=True, accept=True, trigger_id=9, verdict=Verdict.PASS))
    sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    try:
        with mqtt.Subscriber(broker.port, f"{TOPIC}/#") as plant:
            plant.wait(lambda messages: last_of(messages, "one/state", "accepted_trigger_id") == 9 and last_of(messages, "status", "online"))
            process.kill()
            process.wait(20)
            plant.wait(lambda messages: last_of(messages, "one/state", "online") is False and last_of(messages, "status", "online") is False)
            state = [message for topic, message, _ in plant.messages if topic.endswith("one/state")][-1]
    finally:
        process.kill()
        process.communicate(timeout=20)
    assert (state["accept"], state["accepted_trigger_id"], state["state"]) == (False, 0, "Offline")


def last_of(messages, topic, key):
    return next((message[key] for name, message, _ in reversed(messages) if name == f"{TOPIC}/{topic}"), None)


def test_broker_that_comes_back_gets_the_newest_state_and_no_old_accept(mqtt, broker, config, states, eventually):
    with MqttOutput(config, ["one"]) as output:
        output.publish(states.answer(5))
        with mqtt.Subscriber(broker.port, f"{TOPIC}/one/state", client_id="before") as before:
            before.wait(lambda messages: messages and messages[-1][1]["accepted_trigger_id"] == 5)
        broker.kill()
        for trigger_id in range(6, 50):
            output.publish(states.answer(trigger_id))  # returns at once, broker or not
        output.publish(states.busy(50))
        eventually(lambda: output.failures, what="the outage to be noticed")
        broker.start()
        with mqtt.Subscriber(broker.port, f"{TOPIC}/one/state", client_id="after") as after:
            messages = after.wait(lambda messages: messages and messages[-1][1]["trigger_id"] == 50)
    assert [message["accepted_trigger_id"] for _, message, _ in messages if message["trigger_id"] not in (0, 50)] == []


def test_broker_that_is_down_at_the_start_holds_nothing_back(mqtt, tmp_path, free_port, states, store, fill):
    config = MqttConfig(host="127.0.0.1", port=free_port, topic=TOPIC)
    fill(1, 20)
    with MqttOutput(config, ["one"]) as output, delivering(config, store) as outbox:
        output.publish(states.answer(3, Verdict.REJECT))
        broker = mqtt.Broker(tmp_path, free_port)
        with broker, mqtt.Subscriber(free_port, f"{TOPIC}/#") as plant:
            plant.wait(lambda messages: last_of(messages, "one/state", "trigger_id") == 3 and store.backlog("mqtt") == 0)
        assert outbox.counts.delivered == 20


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_wrong_password_is_one_clear_line(mqtt, tmp_path, free_port, version):
    (tmp_path / "accounts").write_text("", encoding="utf-8")
    (tmp_path / "accounts").chmod(0o600)
    secret = tmp_path / "secret"
    secret.write_text("wrong\n", encoding="utf-8")
    secret.chmod(0o600)
    extra = f"allow_anonymous false\npassword_file {tmp_path}/accounts\n"
    config = MqttConfig(host="127.0.0.1", port=free_port, username="station", password_file=str(secret), version=version)
    with (
        mqtt.Broker(tmp_path, free_port, extra=extra),
        pytest.raises(SinkError, match=f"MQTT broker 127.0.0.1:{free_port} refuses: Not authorized|Bad user"),
    ):
        MqttConsumer(config).connect()


def test_topic_that_the_broker_forbids_is_an_error_and_not_an_acknowledgement(mqtt, tmp_path, free_port, store, fill):
    (tmp_path / "rules").write_text(f"topic write {TOPIC}/status\n", encoding="utf-8")
    (tmp_path / "rules").chmod(0o600)
    fill(1, 1)
    consumer = MqttConsumer(MqttConfig(host="127.0.0.1", port=free_port, topic=TOPIC))
    with mqtt.Broker(tmp_path, free_port, extra=f"allow_anonymous true\nacl_file {tmp_path}/rules\n"), contextlib.closing(consumer):
        consumer.connect()
        with pytest.raises(SinkError, match="Not authorized"):
            consumer.send(store.read_after(0, 10))


@pytest.fixture
def commanded(mqtt, broker, config, commands):
    output = MqttOutput(dataclasses.replace(config, commands=True), ["one"])
    output.bind({"one": commands})
    with output, mqtt.Subscriber(broker.port, f"{TOPIC}/#") as plant:
        plant.wait(lambda messages: last_of(messages, "one/state", "online"))
        yield plant


def answers(messages):
    return [message for topic, message, _ in messages if topic == f"{TOPIC}/one/command/answer"]


def test_commands_trigger_and_reset_and_are_answered(commanded, commands):
    commanded.publish(f"{TOPIC}/one/command", json.dumps({"command": "trigger", "id": "a", "product": "can", "part_id": "P-1"}))
    commanded.publish(f"{TOPIC}/one/command", json.dumps({"command": "reset", "id": "b"}))
    assert answers(commanded.wait(lambda messages: len(answers(messages)) == 2)) == [
        {"id": "a", "command": "trigger", "trigger_id": 1},
        {"id": "b", "command": "reset"},
    ]
    assert (commands.triggers, commands.resets) == ([("can", "P-1")], 1)


@pytest.mark.parametrize(
    "payload", ["{", "[]", '{"command": "stop"}', '{"command": "trigger", "product": 5}', '{"command": "trigger", "x": "y"}', "9" * 5000]
)
def test_command_that_makes_no_sense_is_answered_by_an_error(commanded, commands, payload):
    commanded.publish(f"{TOPIC}/one/command", payload)
    assert "error" in answers(commanded.wait(answers))[0]
    assert commands.triggers == []


def test_refused_trigger_is_answered_by_its_reason(commanded, commands):
    commands.refuses = True
    commanded.publish(f"{TOPIC}/one/command", '{"command": "trigger"}')
    assert "not ready" in answers(commanded.wait(answers))[0]["error"]


def test_retained_command_is_refused(mqtt, broker, config, commands):
    with mqtt.Subscriber(broker.port, f"{TOPIC}/#") as plant:
        plant.publish(f"{TOPIC}/one/command", '{"command": "trigger"}', retain=True)
        output = MqttOutput(dataclasses.replace(config, commands=True), ["one"])
        output.bind({"one": commands})
        with output:
            assert "retained" in answers(plant.wait(answers))[0]["error"]
    assert commands.triggers == []


def test_commands_are_not_taken_unless_the_settings_say_so(mqtt, broker, config, commands, states):
    output = MqttOutput(config, ["one"])
    output.bind({"one": commands})
    with output, mqtt.Subscriber(broker.port, f"{TOPIC}/#") as plant:
        plant.wait(lambda messages: last_of(messages, "one/state", "online"))
        plant.publish(f"{TOPIC}/one/command", '{"command": "trigger"}')
        output.publish(states.ready(7))  # whatever the command did would have come first
        plant.wait(lambda messages: last_of(messages, "one/state", "trigger_id") == 7)
    assert commands.triggers == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"host": ""}, "mqtt.host"),
        ({"topic": "snl/+/a"}, r"mqtt.topic must be levels"),
        ({"topic": "/snl"}, r"mqtt.topic must be levels"),
        ({"password_file": "x"}, "mqtt.password_file needs mqtt.username"),
        ({"ca_file": "x"}, "mqtt.ca_file needs mqtt.tls"),
        ({"keepalive_s": 0}, "mqtt.keepalive_s"),
        ({"timeout_s": float("nan")}, "mqtt.timeout_s must be positive"),
    ],
)
def test_unusable_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        MqttConfig(**({"host": "broker"} | changes))
