"""The contract of every output that shows an accept: a real client sees it only with the current trigger id and the verdict PASS, at every moment."""

import asyncio
import contextlib
import struct
import threading

import pytest

from snl_runtime.types import Verdict

pytestmark = pytest.mark.station
WAIT_S = 60.0
PARTS = 1000


class ModbusClient:
    """Reads the whole block of one camera in one request, again and again."""

    def __init__(self, port, folder, mqtt):
        pytest.importorskip("pymodbus.client")
        from snl_runtime.station.outputs.modbus import ModbusConfig, ModbusOutput

        self.port = port
        self.output = ModbusOutput(ModbusConfig(port=port), ["one"])

    def watch(self, look, stop):
        from pymodbus.client import ModbusTcpClient

        names = {0: "", 1: "PASS", 2: "REVIEW", 3: "REJECT", 4: "ERROR"}
        with ModbusTcpClient("127.0.0.1", port=self.port, timeout=10) as client:
            while not stop.is_set():
                words = client.read_input_registers(0, count=16).registers
                (trigger_id,) = struct.unpack(">I", struct.pack(">2H", *words[0:2]))
                (accepted,) = struct.unpack(">I", struct.pack(">2H", *words[10:12]))
                look(accept=bool(words[2] >> 4 & 1), accepted=accepted, trigger_id=trigger_id, verdict=names[words[4]])


class OpcUaClient:
    """Reads the variables of one camera in one request, again and again."""

    def __init__(self, port, folder, mqtt):
        pytest.importorskip("asyncua")
        from snl_runtime.station.outputs.opcua import OpcUaConfig, OpcUaOutput

        self.endpoint = f"opc.tcp://127.0.0.1:{port}/snl"
        self.output = OpcUaOutput(OpcUaConfig(endpoint=self.endpoint), ["one"])

    def watch(self, look, stop):
        asyncio.run(self._watch(look, stop))

    async def _watch(self, look, stop):
        from asyncua import Client

        async with Client(self.endpoint, timeout=20) as client:
            index = await client.get_namespace_index("urn:snl-edge:line")
            nodes = [client.get_node(f"ns={index};s=one.{name}") for name in ("Accept", "AcceptedTriggerId", "TriggerId", "Verdict")]
            while not stop.is_set():
                accept, accepted, trigger_id, verdict = await client.read_values(nodes)
                look(accept=accept, accepted=accepted, trigger_id=trigger_id, verdict=verdict)


class MqttClient:
    """Takes every message on the retained state topic of one camera."""

    def __init__(self, port, folder, mqtt):
        pytest.importorskip("paho.mqtt.client")
        from snl_runtime.station.outputs.mqtt import MqttConfig
        from snl_runtime.station.outputs.mqtt_state import MqttOutput

        self.mqtt, self.port = mqtt, port
        self.broker = mqtt.Broker(folder, port)
        self.output = MqttOutput(MqttConfig(host="127.0.0.1", port=port), ["one"])

    def watch(self, look, stop):
        seen = 0
        with self.mqtt.Subscriber(self.port, "snl/site/station/one/state") as plant:
            while not stop.is_set():
                messages = plant.wait(lambda messages, seen=seen: len(messages) > seen or stop.is_set())
                for _, state, _ in messages[seen:]:
                    look(
                        accept=state["accept"], accepted=state["accepted_trigger_id"], trigger_id=state["trigger_id"], verdict=state["verdict"] or ""
                    )
                seen = len(messages)
                with plant.changed:
                    plant.changed.wait(0.05)


@pytest.fixture(params=[ModbusClient, OpcUaClient, MqttClient], ids=["modbus", "opcua", "mqtt"])
def client(request, free_port, tmp_path, mqtt):
    client = request.param(free_port, tmp_path, mqtt)
    with contextlib.ExitStack() as opened:
        if hasattr(client, "broker"):
            opened.enter_context(client.broker)
        opened.enter_context(client.output)
        yield client


def test_accept_is_seen_only_with_the_current_trigger_id_and_pass(client, states):
    wrong, ids, looked, stop = [], [], threading.Condition(), threading.Event()
    published = [0]

    def look(*, accept, accepted, trigger_id, verdict):
        is_right = (accepted == trigger_id > 0 and verdict == "PASS" and states.verdict_of(trigger_id) is Verdict.PASS) if accept else accepted == 0
        with looked:
            if not is_right or trigger_id > published[0]:
                wrong.append((accept, accepted, trigger_id, verdict))
            ids.append(trigger_id)
            looked.notify_all()

    watcher = threading.Thread(target=client.watch, args=(look, stop), daemon=True)
    watcher.start()
    with looked:
        assert looked.wait_for(lambda: ids, WAIT_S)
    for trigger_id in range(1, PARTS + 1):
        published[0] = trigger_id
        client.output.publish(states.busy(trigger_id))
        client.output.publish(states.answer(trigger_id, states.verdict_of(trigger_id)))
        if trigger_id % 5 == 0:  # wait for the client now and then, so that it looks at many parts
            with looked:
                count = len(ids)
                assert looked.wait_for(lambda count=count: len(ids) > count, WAIT_S)
    with looked:
        assert looked.wait_for(lambda: ids[-1] == PARTS, WAIT_S)
    stop.set()
    watcher.join(WAIT_S)
    assert wrong == []
    assert ids == sorted(ids), "no state is seen again after a later one"
    assert len(set(ids)) >= PARTS / 10
