"""A real Modbus client reads each state whole, triggers by counting, and never sees an accept with another id."""

import struct
import threading

import pytest

from snl_runtime.errors import ConfigError, SinkError
from snl_runtime.station.outputs.modbus import ModbusConfig, ModbusOutput
from snl_runtime.types import Verdict

pytestmark = pytest.mark.station
pymodbus_client = pytest.importorskip("pymodbus.client", reason="needs pip install 'snl-edge[modbus]'")

ILLEGAL_FUNCTION, ILLEGAL_ADDRESS, ILLEGAL_VALUE, DEVICE_BUSY = 1, 2, 3, 6
CAMERAS = ("one", "two")


@pytest.fixture
def config(free_port):
    return ModbusConfig(port=free_port, products={"bottle": 7, "can": 8})


@pytest.fixture
def output(config, commands):
    with opened(config, commands) as output:
        yield output


def opened(config, commands):
    output = ModbusOutput(config, CAMERAS)
    output.bind({"one": commands})
    return output


@pytest.fixture
def client(output, config):
    with connected(config) as client:
        yield client


def connected(config):
    client = pymodbus_client.ModbusTcpClient("127.0.0.1", port=config.port, timeout=10)
    assert client.connect()
    return client


def block(client, base=0):
    """The 16 registers of a camera as the guide for PLC programmers names them, decoded here anew."""
    registers = client.read_input_registers(base, count=16).registers
    data = struct.pack(">16H", *registers)
    trigger_id, status, state, verdict, reason, score, product, echo, accepted, heartbeat, version, again = struct.unpack(">IHHHHfHHIHHI", data)
    bits = {name: bool(status >> place & 1) for place, name in enumerate(("ready", "busy", "result_valid", "fault", "accept"))}
    return bits | {
        "trigger_id": trigger_id,
        "state": state,
        "verdict": verdict,
        "reason": reason,
        "score": score,
        "product": product,
        "echo": echo,
        "accepted": accepted,
        "heartbeat": heartbeat,
        "version": version,
        "again": again,
    }


def test_block_shows_a_result(output, client, states):
    output.publish(states.answer(70_000, score=1.5))
    seen = block(client)
    del seen["heartbeat"]
    assert seen == {
        "trigger_id": 70_000,
        "again": 70_000,
        "accepted": 70_000,
        "ready": True,
        "busy": False,
        "result_valid": True,
        "fault": False,
        "accept": True,
        "state": 1,
        "verdict": 1,
        "reason": 1,
        "score": 1.5,
        "product": 7,
        "echo": 0,
        "version": 1,
    }


@pytest.mark.parametrize(("verdict", "number"), [(Verdict.REVIEW, 2), (Verdict.REJECT, 3), (Verdict.ERROR, 4)])
def test_only_a_pass_is_accepted(output, client, states, verdict, number):
    output.publish(states.answer(3, verdict))
    seen = block(client)
    assert (seen["verdict"], seen["accept"], seen["accepted"]) == (number, False, 0)


@pytest.mark.parametrize("changes", [{"verdict": Verdict.REJECT}, {"result_valid": False}, {"fault": True}, {"verdict": None}])
def test_accept_that_is_no_valid_pass_is_not_shown(output, client, states, changes):
    output.publish(states.answer(3, **({"accept": True} | changes)))
    assert block(client)["accepted"] == 0
    assert client.read_discrete_inputs(0, count=5).bits[4] is False


def test_start_shows_no_accept_and_no_result(client):
    seen = block(client)
    assert not any(seen[name] for name in ("ready", "busy", "result_valid", "fault", "accept", "accepted", "trigger_id", "verdict"))


def test_second_camera_begins_at_100_in_every_table(output, client, states):
    output.publish(states.answer(9, camera="two"))
    assert block(client, 100)["accepted"] == 9
    assert client.read_discrete_inputs(100, count=5).bits[:5] == [True, False, True, False, True]
    assert block(client)["trigger_id"] == 0
    assert client.read_discrete_inputs(0, count=5).bits[:5] == [False] * 5


@pytest.mark.parametrize(("score", "shown"), [(None, "nan"), (1e300, "inf"), (0.1, struct.unpack(">f", struct.pack(">f", 0.1))[0])])
def test_score_is_a_32_bit_float(output, client, states, score, shown):
    output.publish(states.answer(3, score=score))
    assert str(block(client)["score"]) == str(shown)


def test_reading_while_results_change_never_shows_an_accept_with_another_id(output, config, states, eventually):
    """Four clients read as fast as they can while 3,000 parts are answered."""
    stop, looks, wrong = threading.Event(), [], []

    def hammer():
        with connected(config) as client:
            while not stop.is_set():
                seen = block(client)
                looks.append(seen["trigger_id"])
                passed = seen["trigger_id"] > 0 and states.verdict_of(seen["trigger_id"]) is Verdict.PASS
                is_whole = seen["trigger_id"] == seen["again"] and seen["accept"] == (seen["accepted"] > 0)
                if not is_whole or (seen["accept"] and (seen["accepted"] != seen["trigger_id"] or not passed or seen["score"] != seen["trigger_id"])):
                    wrong.append(seen)

    readers = [threading.Thread(target=hammer) for _ in range(4)]
    for reader in readers:
        reader.start()
    for trigger_id in range(1, 3001):
        output.publish(states.busy(trigger_id))
        output.publish(states.answer(trigger_id, states.verdict_of(trigger_id)))
        if trigger_id % 10 == 0:  # let a reader in, so that it looks at many different ids
            before = len(looks)
            eventually(lambda: len(looks) > before, what="another look")  # noqa: B023
    stop.set()
    for reader in readers:
        reader.join(20)
    assert wrong == []
    assert len(set(looks)) > 200


def test_counter_triggers_once_per_change(client, commands):
    client.write_register(1, 10)  # says where the PLC's counter stands
    assert commands.triggers == []
    for value in (11, 11, 12):
        assert not client.write_register(1, value).isError()
    assert commands.triggers == [(None, None), (None, None)]


def test_counter_of_zero_never_triggers(client, commands):
    for value in (65535, 0, 1):
        client.write_register(1, value)
    assert len(commands.triggers) == 1


def test_product_and_counter_in_one_write_trigger_that_product(client, commands):
    client.write_registers(0, [0, 1])
    client.write_registers(0, [8, 2])
    assert commands.triggers == [("can", None)]
    assert client.read_holding_registers(0, count=4).registers == [8, 2, 0, 0]


def test_unknown_product_number_triggers_nothing(client, commands):
    client.write_registers(0, [0, 1])
    response = client.write_registers(0, [99, 2])
    assert (response.isError(), response.exception_code) == (True, ILLEGAL_VALUE)
    assert commands.triggers == []


def test_block_echoes_the_counter_that_began_the_trigger(output, client, commands, states):
    commands.on_trigger = lambda trigger_id: output.publish(states.busy(trigger_id))
    client.write_register(1, 40)
    client.write_register(1, 41)
    assert (block(client)["trigger_id"], block(client)["echo"], block(client)["busy"]) == (1, 41, True)
    output.publish(states.answer(1))
    assert (block(client)["accepted"], block(client)["echo"]) == (1, 41)
    output.publish(states.busy(2))  # a trigger that came another way
    assert block(client)["echo"] == 0


def test_refused_trigger_is_device_busy_and_is_never_taken_later(client, commands):
    client.write_register(1, 1)
    commands.refuses = True
    response = client.write_register(1, 2)
    assert (response.isError(), response.exception_code) == (True, DEVICE_BUSY)
    commands.refuses = False
    client.write_register(1, 2)  # a PLC that writes in a cycle: the part has moved on
    assert commands.triggers == []
    client.write_register(1, 3)
    assert len(commands.triggers) == 1


def test_reset_and_heartbeat_counters_reach_the_line(client, commands):
    client.write_registers(2, [1, 1])
    client.write_registers(2, [2, 1])
    client.write_registers(2, [3, 2])
    assert (commands.heartbeats, commands.resets, commands.triggers) == (2, 1, [])


def test_station_heartbeat_moves(client, eventually):
    first = block(client)["heartbeat"]
    eventually(lambda: block(client)["heartbeat"] != first, what="another heartbeat")


@pytest.mark.parametrize("base", [16, 90, 116, 200])
def test_addresses_outside_the_map_are_refused(client, base):
    assert client.read_input_registers(base, count=1).exception_code == ILLEGAL_ADDRESS
    assert client.write_register(base, 1).exception_code == ILLEGAL_ADDRESS


def test_there_are_no_coils(client, commands):
    assert client.write_coil(1, True).exception_code == ILLEGAL_FUNCTION
    assert client.read_coils(0, count=1).exception_code == ILLEGAL_FUNCTION
    assert commands.triggers == []


def test_camera_without_commands_refuses_triggers(client):
    client.write_register(101, 1)
    assert client.write_register(101, 2).exception_code == DEVICE_BUSY


def test_server_restarts_on_the_same_port_without_an_old_accept_and_without_a_trigger(config, commands, states):
    with opened(config, commands) as first, connected(config) as client:
        first.publish(states.answer(5))
        client.write_register(1, 5)
        assert block(client)["accepted"] == 5
    with opened(config, commands), connected(config) as client:
        assert block(client)["accepted"] == 0
        client.write_register(1, 5)
        client.write_register(1, 5)
    assert commands.triggers == []


def test_client_that_disappears_does_not_disturb_the_others(output, config, client, states):
    other = connected(config)
    other.socket.shutdown(2)
    other.close()
    output.publish(states.answer(2))
    assert block(client)["trigger_id"] == 2


def test_port_in_use_is_one_clear_line(output, config, commands):
    with pytest.raises(SinkError, match=f"cannot start Modbus server 127.0.0.1:{config.port}"), opened(config, commands):
        pass


def test_publishing_after_the_end_is_an_error(config, commands, states):
    with opened(config, commands) as output:
        pass
    with pytest.raises(SinkError, match="not running"):
        output.publish(states.ready())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"port": 0}, "modbus.port must be from 1 to 65535, got 0"),
        ({"unit": 248}, "modbus.unit must be from 0"),
        ({"products": {"a": 0}}, "modbus.products.a must be from 1"),
        ({"products": {"a": 1, "b": 1}}, "same number"),
        ({"host": ""}, "modbus.host"),
    ],
)
def test_unusable_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        ModbusConfig(**changes)
