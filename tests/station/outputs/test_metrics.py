"""A real scrape reads, in Prometheus' format, what was published; each answer counts once."""

import urllib.request

import pytest

from snl_runtime.errors import ConfigError, SinkError
from snl_runtime.line.pipeline import PipelineCounts
from snl_runtime.station.outbox import OutboxCounts
from snl_runtime.station.outputs import metrics as module
from snl_runtime.station.outputs.metrics import MetricsConfig, MetricsOutput
from snl_runtime.types import Verdict

pytestmark = pytest.mark.station
pytest.importorskip("prometheus_client", reason="needs pip install 'snl-edge[web]'")


@pytest.fixture
def output(free_port):
    with MetricsOutput(MetricsConfig(port=free_port), ["one", "two"]) as output:
        yield output


@pytest.fixture
def scrape(free_port):
    from prometheus_client.parser import text_string_to_metric_families

    def read():
        with urllib.request.urlopen(f"http://127.0.0.1:{free_port}/metrics", timeout=10) as response:
            text = response.read().decode()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return {(sample.name, *sample.labels.values()): sample.value for sample in samples}

    return read


def test_each_answer_counts_once_by_camera_product_and_verdict(output, scrape, states):
    for trigger_id in range(1, 11):
        output.publish(states.busy(trigger_id))
        output.publish(states.answer(trigger_id, states.verdict_of(trigger_id)))
        output.publish(states.answer(trigger_id, states.verdict_of(trigger_id)))  # a heartbeat may publish the same again
    output.publish(states.answer(1, Verdict.REJECT, camera="two", product="can"))
    seen = scrape()
    assert {key[1:]: value for key, value in seen.items() if key[0] == "snl_verdicts_total"} == {
        ("one", "bottle", "PASS"): 4,
        ("one", "bottle", "REVIEW"): 2,
        ("one", "bottle", "REJECT"): 2,
        ("one", "bottle", "ERROR"): 2,
        ("two", "can", "REJECT"): 1,
    }


def test_answer_time_runs_from_the_busy_state_to_the_answer(output, scrape, states, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    for trigger_id, elapsed_s in enumerate((0.004, 0.04, 0.4), start=1):
        output.publish(states.busy(trigger_id))
        clock[0] += elapsed_s
        output.publish(states.answer(trigger_id))
    output.publish(states.answer(4))  # never busy: its time is unknown
    monkeypatch.undo()
    seen = scrape()
    assert seen["snl_answer_seconds_count", "one"] == 3
    assert seen["snl_answer_seconds_sum", "one"] == pytest.approx(0.444)
    assert [seen["snl_answer_seconds_bucket", "one", edge] for edge in ("0.005", "0.05", "0.5")] == [1, 2, 3]


def test_states_faults_and_accept_are_shown(output, scrape, states):
    output.publish(states.answer(5))
    seen = scrape()
    assert (seen["snl_state", "one", "Ready"], seen["snl_accept", "one"], seen["snl_trigger_id", "one"], seen["snl_fault", "one"]) == (1, 1, 5, 0)
    for _ in range(3):
        output.publish(states.ready(5, fault=True, ready=False))
    seen = scrape()
    assert (seen["snl_accept", "one"], seen["snl_fault", "one"], seen["snl_faults_total", "one"], seen["snl_faults_total", "two"]) == (0, 1, 1, 0)
    assert sum(value for key, value in seen.items() if key[:2] == ("snl_state", "one")) == 1


def test_frames_and_backlogs_are_asked_at_the_scrape(output, scrape):
    counts = [PipelineCounts(captured=9, inspected=4, dropped=3, failed=1, waiting=1)]
    output.watch_frames("one", lambda: counts[0])
    output.watch_outbox(lambda: OutboxCounts(consumer="mqtt", connected=False, delivered=7, backlog=12, failures=3, last_error="refused", fault=""))
    seen = scrape()
    frames = [seen[f"snl_frames_{name}_total", "one"] for name in ("captured", "inspected", "dropped", "failed")]
    assert frames == [9, 4, 3, 1]
    assert seen["snl_frames_waiting", "one"] == 1
    names = ("snl_deliveries_total", "snl_delivery_failures_total", "snl_backlog_rows", "snl_consumer_connected")
    assert [seen[name, "mqtt"] for name in names] == [7, 3, 12, 0]
    counts[0] = PipelineCounts(captured=10, inspected=4, dropped=3, failed=1, waiting=2)
    assert scrape()["snl_frames_captured_total", "one"] == 10


def test_products_are_bounded(output, scrape, states):
    for trigger_id in range(1, module.MAX_PRODUCTS + 51):
        output.publish(states.answer(trigger_id, Verdict.PASS, product=f"p{trigger_id}"))
    seen = {key[2]: value for key, value in scrape().items() if key[0] == "snl_verdicts_total"}
    assert len(seen) == module.MAX_PRODUCTS + 1
    assert seen["other"] == 50


def test_two_stations_in_one_process_share_nothing(output, scrape, states, tmp_path):
    other = MetricsOutput(MetricsConfig(), ["one"])
    other.publish(states.answer(1))
    assert ("snl_verdicts_total", "one", "bottle", "PASS") not in scrape()


def test_port_in_use_is_one_clear_line(output, free_port):
    with (
        pytest.raises(SinkError, match=f"cannot serve metrics on 127.0.0.1:{free_port}: Address already in use"),
        MetricsOutput(MetricsConfig(port=free_port), ["one"]),
    ):
        pass


def test_port_can_be_taken_again_after_the_end(free_port, scrape):
    for _ in range(2):
        with MetricsOutput(MetricsConfig(port=free_port), ["one"]):
            assert scrape()["snl_fault", "one"] == 0


@pytest.mark.parametrize(("changes", "message"), [({"port": 70000}, "metrics.port must be"), ({"host": ""}, "metrics.host must name")])
def test_unusable_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        MetricsConfig(**changes)
