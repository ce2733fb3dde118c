"""A real OPC UA client sees each result once and in order, never an accept with another id, and calls the line's methods."""

import asyncio
import dataclasses
import socket

import pytest

from snl_runtime.errors import ConfigError, SinkError
from snl_runtime.station.outputs.opcua import OpcUaConfig, OpcUaOutput
from snl_runtime.types import Verdict

pytestmark = pytest.mark.station
asyncua = pytest.importorskip("asyncua", reason="needs pip install 'snl-edge[opcua]'")
ua = asyncua.ua

WAIT_S = 20.0


@pytest.fixture
def config(free_port):
    return OpcUaConfig(endpoint=f"opc.tcp://127.0.0.1:{free_port}/snl")


@pytest.fixture(scope="module")
def shared():
    """One server for most tests, because its standard address space takes seconds to make; each test has a camera of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    cameras = [f"camera{number}" for number in range(40)]
    output = OpcUaOutput(OpcUaConfig(endpoint=f"opc.tcp://127.0.0.1:{port}/snl"), [*cameras, "silent"])
    lines = {camera: LateCommands() for camera in cameras}
    output.bind(dict(lines))
    with output:
        yield output, iter(lines.items())


class LateCommands:
    """Hands every command to the ones of the running test."""

    def __init__(self):
        self.target = None

    def __getattr__(self, name):
        return getattr(self.target, name)


@pytest.fixture
def line(shared, commands):
    output, lines = shared
    camera, late = next(lines)
    late.target = commands
    return Line(output, camera, commands)


class Line:
    """The camera of one test on the shared server."""

    def __init__(self, output, camera, commands):
        self.output, self.camera, self.commands = output, camera, commands
        self.config = output._config

    def publish(self, state):
        self.output.publish(dataclasses.replace(state, camera=self.camera))

    def client(self, body, **changes):
        return with_client(self.config, body, camera=self.camera, **changes)


def opened(config, commands):
    output = OpcUaOutput(config, ("one",))
    output.bind({"one": commands})
    return output


def with_client(config, body, camera="one", **changes):
    """Run ``body(client, node)`` against a real client; ``node(name)`` is a node of the camera, ``node()`` its object."""

    async def run():
        client = asyncua.Client(config.endpoint, timeout=10)
        for name, value in changes.items():
            setattr(client, name, value)
        async with client:
            index = await client.get_namespace_index("urn:snl-edge:line")
            return await body(client, lambda name="": client.get_node(f"ns={index};s={camera}" + (f".{name}" if name else "")))

    return asyncio.run(asyncio.wait_for(run(), WAIT_S * 2))


class Seen:
    """Collects what a subscription delivers until ``last`` holds."""

    def __init__(self, last):
        self.items, self._last, self.complete = [], last, asyncio.Event()

    def add(self, item):
        self.items.append(item)
        if self._last(item):
            self.complete.set()

    def event_notification(self, event):
        self.add({name: getattr(event, name) for name in ("TriggerId", "Verdict", "ReasonCode", "Score", "Product", "Accept")})

    def datachange_notification(self, node, value, _data):
        self.add((node.nodeid.Identifier, value))

    def status_change_notification(self, _status):
        """Part of the protocol."""


def publish_results(output, states, first, last):
    for trigger_id in range(first, last + 1):
        output.publish(states.busy(trigger_id))
        output.publish(states.answer(trigger_id, states.verdict_of(trigger_id)))


def test_subscription_sees_every_result_once_and_in_order(line, states):
    async def body(client, node):
        seen = Seen(lambda event: event["TriggerId"] == 200)
        subscription = await client.create_subscription(20, seen)
        event_type = [one for one in await client.nodes.base_event_type.get_children() if (await one.read_browse_name()).Name == "ResultEventType"]
        await subscription.subscribe_events(node(), event_type, queuesize=1000)
        await asyncio.to_thread(publish_results, line, states, 1, 200)
        await asyncio.wait_for(seen.complete.wait(), WAIT_S)
        await subscription.delete()
        return seen.items

    events = line.client(body)
    expected = [(trigger_id, states.verdict_of(trigger_id).value) for trigger_id in range(1, 201)]
    assert [(event["TriggerId"], event["Verdict"]) for event in events] == expected
    assert all(event["Accept"] == (event["Verdict"] == "PASS") and event["Score"] == event["TriggerId"] for event in events)


def test_accepted_trigger_id_of_a_subscription_is_zero_or_one_that_passed(line, states):
    async def body(client, node):
        seen = Seen(lambda item: item == (f"{line.camera}.AcceptedTriggerId", 200))
        subscription = await client.create_subscription(10, seen)
        await subscription.subscribe_data_change([node("AcceptedTriggerId")], queuesize=1000)
        await asyncio.to_thread(publish_results, line, states, 1, 200)
        await asyncio.wait_for(seen.complete.wait(), WAIT_S)
        await subscription.delete()
        return [value for _, value in seen.items]

    values = line.client(body)
    passed = [trigger_id for trigger_id in range(1, 201) if states.verdict_of(trigger_id) is Verdict.PASS]
    assert [value for value in values if value] == passed
    assert all(0 in pair for pair in zip(values, values[1:])), "between two accepts the output is false"


@pytest.mark.parametrize(
    ("name", "expected"), [("Accept", [False, True, False, True]), ("ResultValid", [False, True] * 2), ("AcceptedTriggerId", [0, 1, 0, 2])]
)
def test_accept_goes_false_between_two_results_also_without_a_busy_state(line, states, name, expected):
    async def body(client, node):
        seen = Seen(lambda _: len(seen.items) == len(expected))
        subscription = await client.create_subscription(20, seen)
        await subscription.subscribe_data_change([node(name)], queuesize=1000)
        line.publish(states.answer(1))
        line.publish(states.answer(2))
        await asyncio.wait_for(seen.complete.wait(), WAIT_S)
        await subscription.delete()
        return [value for _, value in seen.items]

    assert line.client(body) == expected


def test_one_read_sees_one_state_whole_with_its_source_timestamp(line, states):
    line.publish(states.answer(7, Verdict.REVIEW, score=None, product=None))

    async def body(client, node):
        names = ("TriggerId", "Verdict", "Accept", "AcceptedTriggerId", "ResultValid", "Score", "Product", "State")
        values = await client.read_attributes([node(name) for name in names])
        return dict(zip(names, values))

    values = line.client(body)
    assert values["Score"].Value.Value != values["Score"].Value.Value, "no score is NaN"
    assert {name: value.Value.Value for name, value in values.items() if name != "Score"} == {
        "TriggerId": 7,
        "Verdict": "REVIEW",
        "Accept": False,
        "AcceptedTriggerId": 0,
        "ResultValid": True,
        "Product": "",
        "State": "Ready",
    }
    assert len({value.SourceTimestamp for value in values.values()}) == 1


def test_client_cannot_write_the_accept(line):
    async def body(_client, node):
        with pytest.raises(ua.UaStatusCodeError):
            await node("Accept").write_value(True)
        return await node("Accept").read_value()

    assert line.client(body) is False


def test_trigger_method_returns_the_trigger_id(line):
    async def body(_client, node):
        return [await node().call_method(node("Trigger"), "bottle", "P-17"), await node().call_method(node("Trigger"), "", "")]

    assert line.client(body) == [1, 2]
    assert line.commands.triggers == [("bottle", "P-17"), (None, None)]


def test_reset_and_heartbeat_methods_reach_the_line(line):
    async def body(_client, node):
        await node().call_method(node("Reset"))
        await node().call_method(node("Heartbeat"))

    line.client(body)
    assert (line.commands.resets, line.commands.heartbeats) == (1, 1)


def test_camera_without_commands_has_no_methods(line):
    async def body(_client, node):
        return [(await child.read_browse_name()).Name for child in await node().get_children()]

    names = with_client(line.config, body, camera="silent")
    assert "Accept" in names
    assert not {"Trigger", "Reset", "Heartbeat"} & set(names)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("bottle",), "BadArgumentsMissing"),
        (("bottle", "P-1", "x"), "BadTooManyArguments"),
        ((5, "P-1"), "BadInvalidArgument"),
        (("bottle", "P-1\n"), "BadInvalidArgument"),
        (("b" * 257, "P-1"), "BadInvalidArgument"),
    ],
)
def test_bad_argument_is_a_proper_status_and_no_trigger(line, arguments, status):
    async def body(_client, node):
        with pytest.raises(ua.UaStatusCodeError) as caught:
            await node().call_method(node("Trigger"), *arguments)
        return type(caught.value).__name__

    assert line.client(body) == status
    assert line.commands.triggers == []


def test_refused_trigger_is_bad_invalid_state(line):
    line.commands.refuses = True

    async def body(_client, node):
        with pytest.raises(ua.uaerrors.BadInvalidState):
            await node().call_method(node("Trigger"), "", "")

    line.client(body)


def test_publishing_goes_on_when_a_subscribed_client_disappears(line, states):
    async def leave(client, node):
        subscription = await client.create_subscription(10, Seen(lambda _: False))
        await subscription.subscribe_data_change([node("TriggerId"), node("Accept")])
        client.uaclient.protocol.transport.abort()  # as a pulled cable or a killed process ends it
        raise ConnectionAbortedError

    with pytest.raises(Exception):  # noqa: B017 - how the client's own clean-up fails is not our concern
        line.client(leave)
    publish_results(line, states, 1, 50)

    async def body(_client, node):
        return await node("TriggerId").read_value()

    assert line.client(body) == 50


def test_server_restarts_on_the_same_port_without_an_old_accept(config, commands, states):
    async def accepted(_client, node):
        return await node("AcceptedTriggerId").read_value()

    with opened(config, commands) as first:
        first.publish(states.answer(5))
        assert with_client(config, accepted) == 5
    with opened(config, commands) as second:
        assert with_client(config, accepted) == 0
        second.publish(states.answer(1))
        assert with_client(config, accepted) == 1
    with pytest.raises(SinkError, match="not running"):
        second.publish(states.ready(2))


def test_port_in_use_is_one_clear_line(line):
    with pytest.raises(SinkError, match="cannot start OPC UA server opc.tcp://127.0.0.1"), opened(line.config, line.commands):
        pass


def test_publish_of_an_unknown_camera_is_an_error(line, states):
    with pytest.raises(SinkError, match="no camera 'three'; it has camera0, "):
        line.output.publish(states.ready(camera="three"))


def test_only_users_of_the_file_are_let_in(free_port, commands, tmp_path):
    users = tmp_path / "users"
    users.write_text("# line\nplc:secret:1\n", encoding="utf-8")
    users.chmod(0o600)
    config = OpcUaConfig(endpoint=f"opc.tcp://127.0.0.1:{free_port}/snl", users_file=str(users))

    async def body(_client, node):
        return await node("Accept").read_value()

    with opened(config, commands):
        with pytest.raises(Exception, match="Identity|UserAccess|denied|token|Anonymous"):
            with_client(config, body)
        with pytest.raises(ua.uaerrors.BadUserAccessDenied):
            with_client(config, body, _username="plc", _password="secret")
        assert with_client(config, body, _username="plc", _password="secret:1") is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"endpoint": "http://127.0.0.1"}, r"opcua.endpoint must read opc.tcp://HOST:PORT/NAME, got 'http://127.0.0.1'"),
        ({"endpoint": "opc.tcp://0.0.0.0:4840/snl"}, "set opcua.users_file or"),
        ({"endpoint": "opc.tcp://127.0.0.1:99999/"}, "has no usable port"),
        ({"certificate_file": "a.pem"}, "belong together"),
    ],
)
def test_unusable_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        OpcUaConfig(**changes)


@pytest.mark.parametrize(("text", "mode", "message"), [("plc", 0o600, "name:password"), ("", 0o600, "empty"), ("a:b", 0o644, "chmod 600")])
def test_unusable_users_file_is_refused(tmp_path, text, mode, message):
    users = tmp_path / "users"
    users.write_text(text, encoding="utf-8")
    users.chmod(mode)
    with pytest.raises(ConfigError, match=message):
        OpcUaOutput(OpcUaConfig(users_file=str(users)), ["one"])
