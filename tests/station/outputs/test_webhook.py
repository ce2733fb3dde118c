"""A real web server gets every record at least once and in order: when it fails, stalls, restarts, refuses."""

import contextlib
import dataclasses
import json
import ssl

import pytest

from snl_runtime.errors import ConfigError, DeliveryError, SinkError
from snl_runtime.station.outbox import Outbox, OutboxConfig
from snl_runtime.station.outputs.webhook import WebhookConfig, WebhookConsumer, signature, signing_key
from web_server import WebServer

pytestmark = pytest.mark.station
FAST = OutboxConfig(first_retry_s=0.01, longest_retry_s=0.05)


@pytest.fixture
def config(free_port):
    return WebhookConfig(url=f"http://127.0.0.1:{free_port}/results?line=4", timeout_s=20.0)


@contextlib.contextmanager
def delivering(config, store, outbox=FAST):
    consumer = WebhookConsumer(config)
    with Outbox(consumer, store, on_fault=lambda _: None, config=outbox) as running:
        yield consumer, running


def test_record_is_posted_with_its_row_and_a_stable_id(config, free_port, store, fill):
    fill(1, 2)
    with WebServer(free_port) as server, delivering(config, store):
        server.wait_for(2)
    path, headers, body = server.requests[0]
    assert path == "/results?line=4"
    assert (headers["webhook-id"], headers["Content-Type"]) == ("station-1", "application/json")
    assert json.loads(body) == {"row": 1, "camera": "one", "trigger_id": 1, "verdict": "REVIEW", "score": 1 / 7}
    assert "webhook-signature" not in headers


@pytest.mark.parametrize("action", [500, 503, 404, 401, 429, 302, "hang up", "stall"])
def test_failing_server_is_tried_again_and_misses_nothing(config, free_port, store, fill, action):
    if action == "stall":
        config = dataclasses.replace(config, timeout_s=0.5)
    fill(1, 5)
    with WebServer(free_port, plan=[200, action, action, 200]) as server, delivering(config, store) as (consumer, outbox):
        server.wait_for(5)
    assert list(dict.fromkeys(server.rows())) == [1, 2, 3, 4, 5]
    assert outbox.counts.failures >= 1
    assert consumer.refused == 0


def test_server_that_restarts_gets_the_rest(config, free_port, store, fill):
    fill(1, 20)
    with delivering(config, store) as (_, outbox):
        with WebServer(free_port) as first:
            first.wait_for(20)
        fill(21, 40)
        outbox.notify()
        with WebServer(free_port) as second:
            second.wait_for(40)
    assert list(dict.fromkeys(first.rows() + second.rows())) == list(range(1, 41))
    assert store.backlog("webhook") == 0


def test_connection_that_the_server_closed_while_idle_is_no_failure(config, free_port, store, fill):
    fill(1, 3)
    with WebServer(free_port, plan=[200, "hang up", 200]) as server, contextlib.closing(WebhookConsumer(config)) as consumer:
        consumer.connect()
        consumer.send(store.read_after(0, 10))
    assert server.rows() == [1, 2, 3]


@pytest.mark.parametrize("status", [400, 409, 413, 422])
def test_record_that_the_server_will_never_take_is_counted_logged_and_skipped_there(config, free_port, store, fill, status, caplog):
    fill(1, 3)
    with WebServer(free_port, plan=[200, status]) as server, delivering(config, store) as (consumer, _):
        server.wait_for(3)
    assert server.rows() == [1, 3]
    assert consumer.refused == 1
    assert f"refuses record 2 of one with status {status}" in caplog.text
    assert len(store.read_after(0, 10)) == 3, "it stays in the record"


def test_server_that_refuses_everything_counts_as_failing(config, free_port, store, fill):
    fill(1, 12)
    with WebServer(free_port, plan=[422] * 30) as server, contextlib.closing(WebhookConsumer(config)) as consumer:
        consumer.connect()
        with pytest.raises(DeliveryError, match="status 422 for more than 10 records in a row") as caught:
            consumer.send(store.read_after(0, 100))
        assert caught.value.acknowledged == 10
        server.plan.clear()
        consumer.send(store.read_after(10, 100))
    assert server.rows() == [11, 12]


def test_signature_is_the_one_of_the_standards_own_example():
    key = signing_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_message_is_signed_with_the_secret_of_the_file(config, free_port, store, fill, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("correct horse\n", encoding="utf-8")
    secret.chmod(0o600)
    fill(1, 1)
    with WebServer(free_port) as server, delivering(WebhookConfig(url=config.url, secret_file=str(secret), station="press4"), store):
        server.wait_for(1)
    _, headers, body = server.requests[0]
    assert headers["webhook-id"] == "press4-1"
    assert headers["webhook-signature"] == signature(b"correct horse", "press4-1", headers["webhook-timestamp"], body)


def test_with_https_the_servers_certificate_is_checked(free_port, store, fill, self_signed):
    certificate, key = self_signed("web", "urn:web")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    fill(1, 2)
    url = f"https://127.0.0.1:{free_port}/results"
    with WebServer(free_port, tls=tls) as server:
        with delivering(WebhookConfig(url=url, ca_file=certificate), store):
            server.wait_for(2)
        with pytest.raises(SinkError, match="certificate verify failed"):
            WebhookConsumer(WebhookConfig(url=url)).connect()


def test_nobody_listening_is_one_clear_line(config, free_port):
    with pytest.raises(SinkError, match=rf"web server http://127.0.0.1:{free_port}/results\?line=4 took no record: .*refused"):
        WebhookConsumer(config).connect()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"url": "ftp://a"}, "webhook.url must read https://HOST/PATH, got 'ftp://a'"),
        ({"url": "http://a:99999/"}, "has no usable port"),
        ({"url": "http://me:pw@a/"}, r"must hold no password, got 'http://\*\*\*@a/'"),
        ({"ca_file": "x"}, "webhook.ca_file needs an https address"),
        ({"station": "press.4"}, "webhook.station"),
        ({"timeout_s": 0}, "webhook.timeout_s must be positive"),
    ],
)
def test_unusable_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        WebhookConfig(**({"url": "http://a/"} | changes))


def test_secret_that_is_no_base64_is_refused():
    with pytest.raises(ConfigError, match="whsec_ must be base64"):
        signing_key("whsec_%%")
