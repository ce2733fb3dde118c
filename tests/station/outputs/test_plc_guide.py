"""The guide for PLC programmers says what the code does: addresses, numbers, nodes, metrics."""

import re
from pathlib import Path

import pytest

from snl_runtime.station.outbox import OutboxConfig
from snl_runtime.station.outputs import modbus_map
from snl_runtime.station.outputs.metrics import MetricsConfig
from snl_runtime.station.outputs.opcua_nodes import NAMESPACE, NODES, RESULT_FIELDS
from snl_runtime.station.outputs.webhook import REFUSES_RECORD, WebhookConfig

GUIDE = (Path(__file__).parents[3] / "docs/guides/plc.md").read_text(encoding="utf-8")
INPUTS = (
    "TRIGGER_ID",
    "STATUS_BITS",
    "STATE",
    "VERDICT",
    "REASON",
    "SCORE",
    "PRODUCT",
    "COUNTER_ECHO",
    "ACCEPTED_TRIGGER_ID",
    "HEARTBEAT",
    "VERSION",
)
COMMANDS = ("PRODUCT_REQUEST", "TRIGGER_COUNTER", "HEARTBEAT_COUNTER", "RESET_COUNTER")


def rows(pattern):
    return re.findall(rf"(?m)^\| *{pattern}", GUIDE)


def test_registers_are_where_the_guide_says():
    assert {name: int(address) for address, name in rows(r"(\d+) \| `([A-Z_]+)` \|")} == {
        name: getattr(modbus_map, name) for name in (*INPUTS, "TRIGGER_ID_AGAIN", *COMMANDS)
    }
    assert f"begins at address {modbus_map.STRIDE} k" in GUIDE
    assert f"read all {modbus_map.BLOCK_REGISTERS} in one request" in GUIDE


def test_numbers_of_states_verdicts_and_reasons_are_in_the_guide():
    states = ", ".join(f"{number} {state.value}" for state, number in modbus_map.STATE_NUMBERS.items())
    verdicts = ", ".join(f"{number} {'none' if verdict is None else verdict.value}" for verdict, number in modbus_map.VERDICT_NUMBERS.items())
    assert f"| {states} |" in GUIDE
    assert f"| {verdicts} |" in GUIDE
    assert {code: int(number) for number, code in rows(r"(\d+) \| `([a-z_]+)` \|")} | {"": 0} == dict(modbus_map.REASON_NUMBERS)


def test_nodes_of_opc_ua_are_in_the_guide():
    assert dict(rows(r"`([A-Za-z]+)` \| (Boolean|UInt32|String|Double) \|")) == dict(NODES)
    assert f"`{NAMESPACE}`" in GUIDE
    (event,) = re.findall(r"Result events\*\*: type `ResultEventType`([^.]*)\.", GUIDE)
    assert tuple(re.findall(r"`([A-Za-z]+)`", event)) == RESULT_FIELDS


def test_limits_and_statuses_are_in_the_guide():
    outbox, webhook = OutboxConfig(), WebhookConfig(url="http://a/")
    assert (outbox.max_backlog_rows, outbox.max_stall_s, outbox.first_retry_s, outbox.longest_retry_s) == (10_000, 600, 0.5, 30)
    assert "more\nthan 10 000 records wait, or when records wait and none was taken for 10 minutes" in GUIDE
    assert f"| {', '.join(map(str, sorted(REFUSES_RECORD)))} |" in GUIDE
    assert webhook.max_refused_in_a_row == 10
    assert f":{MetricsConfig().port}/metrics" in GUIDE


@pytest.mark.station
def test_metrics_are_in_the_guide():
    pytest.importorskip("prometheus_client")
    from snl_runtime.station.line_state import LineState
    from snl_runtime.station.outputs.metrics import MetricsOutput
    from snl_runtime.types import Verdict

    output = MetricsOutput(MetricsConfig(), ["one"])
    output.publish(LineState(camera="one", result_valid=True, trigger_id=1, verdict=Verdict.PASS))
    found = {}
    for family in output._registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = next((tuple(label for label in sample.labels if label != "le") for sample in family.samples), None)
        found[name] = (family.type, labels)
    told = {name: (kind, tuple(labels.split(", "))) for name, kind, labels in rows(r"`(snl_[a-z_]+)` \| (counter|gauge|histogram) \| ([a-z, ]+) \|")}
    assert {name: kind for name, (kind, _) in told.items()} == {name: kind for name, (kind, _) in found.items()}
    assert all(labels in (None, told[name][1]) for name, (_, labels) in found.items())
