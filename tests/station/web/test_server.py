"""The screen's server, for real on a free port: it answers who may ask, shows what the station knows, and never changes or slows the line unasked."""

import contextlib
import json
import socket
import threading
import time

import pytest

from snl_runtime.errors import ConfigError, SinkError
from snl_runtime.station.triggered import TriggerMode
from snl_runtime.station.web.config import WebConfig
from snl_runtime.station.web.panels import WebPanels
from snl_runtime.types import Verdict

httpx = pytest.importorskip("httpx", reason="needs the package httpx")
pytest.importorskip("uvicorn", reason="needs the extra web")
pytest.importorskip("fastapi.sse", reason="needs the extra web")

from snl_runtime.station.web.server import WebServer  # noqa: E402  # its routes need the packages above

pytestmark = pytest.mark.station

BOX = (100, 80, 200, 160)


def events_of(answer):
    """Yield name and value of each server-sent event of a streamed answer."""
    name = ""
    for line in answer.iter_lines():
        if line.startswith("event:"):
            name = line.removeprefix("event:").strip()
        elif line.startswith("data:"):
            yield name, json.loads(line.removeprefix("data:"))


# What it shows.


def test_the_state_says_what_the_station_did(stage, client, poll):
    stage.start(panels=WebPanels(title="Line 3", notes=lambda: ["a note"]))
    for verdict in (Verdict.PASS, Verdict.PASS, Verdict.REVIEW, Verdict.REJECT, Verdict.ERROR):
        stage.show(verdict)
    http = client()
    state = poll(lambda: (state := http.get("/api/state").json())["cameras"][0]["triggers"]["answered"] == 5 and state)
    camera = state["cameras"][0]
    assert (state["title"], state["notes"], state["healthy"], state["takes_commands"], state["drift"]) == ("Line 3", ["a note"], True, False, None)
    assert (camera["name"], camera["shown"], camera["last"]["trigger_id"]) == ("top", "error", 5)
    assert camera["verdicts"] == {"PASS": 2, "REVIEW": 1, "REJECT": 1, "ERROR": 1}
    assert camera["yield"] == 0.4
    assert camera["frames"] == {"captured": 5, "inspected": 4, "dropped": 0, "failed": 1, "waiting": 0}
    assert 0 < camera["latency_ms"]["p50"] <= camera["latency_ms"]["max"]
    assert 0 <= camera["age_s"] < 20
    assert [part["verdict"] for part in http.get("/api/rejects").json()] == ["ERROR", "REJECT", "REVIEW"]


def test_events_bring_the_state_and_each_score_once(stage, client):
    stage.start()
    stage.show(Verdict.PASS, score=0.25)
    scores, states, rejects = [], [], []
    with client().stream("GET", "/api/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for name, value in events_of(answer):
            if name == "rejects":
                rejects.append([part["trigger_id"] for part in value])
            elif name == "scores":
                scores += [(value["first"], point[1], point[3], point[4], point[5], point[6]) for point in value["cameras"]["top"]]
            else:
                states.append((value["cameras"][0]["shown"], value["cameras"][0]["line"]["trigger_id"]))
                if states[-1] == ("pass", 1) and len(scores) == 1:
                    stage.show(Verdict.REJECT, score=3.5)
            if len(scores) == 2 and rejects[-1:] == [[2]] and states[-1:] == [("reject", 2)]:
                break
    assert scores == [(True, 1, "PASS", 0.25, 1.0, 1.25), (False, 2, "REJECT", 3.5, 1.0, 1.25)]
    assert ("pass", 1) in states
    assert rejects == [[], [2]]


def test_a_quiet_station_is_heard_every_second(stage, client):
    stage.start()
    times = []
    with client().stream("GET", "/api/events") as answer:
        for name, _ in events_of(answer):
            if name == "state":
                times.append(time.monotonic())
            if len(times) == 4:
                break
    gaps = [later - earlier for earlier, later in zip(times[1:], times[2:])]
    assert max(gaps) < 3.0, "a page calls its verdict old after 3 s without a word"


def test_pictures_are_those_of_the_newest_result(stage, client, poll):
    stage.start(("top", "side"))
    http = client()
    assert (http.get("/api/frame/top.jpg").status_code, http.get("/api/frame/top.jpg").json()) == (404, {"error": "no image yet"})
    assert http.get("/api/frame/nowhere.jpg").json() == {"error": "no camera 'nowhere'; there are top, side"}
    stage.show(Verdict.REJECT, box_xyxy=BOX)
    picture, plain = http.get("/api/frame/top.jpg?overlay=1"), http.get("/api/frame/top.jpg?overlay=0")
    assert (picture.headers["content-type"], picture.headers["x-verdict"], picture.headers["x-trigger-id"]) == ("image/jpeg", "REJECT", "1")
    assert picture.content[:2] == plain.content[:2] == b"\xff\xd8"
    assert picture.content != plain.content
    stage.show(Verdict.ERROR, fault="unplugged")
    assert http.get("/api/frame/top.jpg").json() == {"error": "no image: unplugged"}
    assert http.get("/api/frame/side.jpg").status_code == 404


def test_a_part_that_did_not_pass_can_be_looked_at_in_small_and_in_large(stage, client, poll):
    stage.start()
    stage.show(Verdict.PASS)
    stage.show(Verdict.REJECT, box_xyxy=BOX)
    stage.show(Verdict.ERROR, fault="unplugged")
    http = client()
    parts = poll(lambda: (parts := http.get("/api/rejects").json()) and len(parts) == 2 and parts)
    assert [(part["trigger_id"], part["verdict"], part["has_image"]) for part in parts] == [(3, "ERROR", False), (2, "REJECT", True)]
    assert parts[1]["regions"] == [{"box_xyxy": list(BOX), "score": 2.0, "area_px": 8000}]
    large, small = (http.get(f"/api/rejects/{parts[1]['number']}.jpg?overlay=1{more}") for more in ("", "&thumbnail=1"))
    assert large.content[:2] == small.content[:2] == b"\xff\xd8"
    assert len(small.content) < len(large.content)
    assert http.get(f"/api/rejects/{parts[0]['number']}.jpg").json() == {"error": "no image: unplugged"}
    assert http.get("/api/rejects/99999.jpg").status_code == 404


# Health.


def test_health_is_200_only_while_the_station_inspects(stage, client, poll):
    stage.start(start_station=False)
    http = client()
    assert (http.get("/healthz").status_code, http.get("/healthz").json()) == (503, {"status": "does not inspect"})
    stage.station.start()
    poll(lambda: http.get("/healthz").status_code == 200)
    stage.show(Verdict.PASS)
    stage.store.failure = "disk full"
    stage.show(Verdict.PASS)
    poll(lambda: http.get("/healthz").status_code == 503)
    assert poll(lambda: (state := http.get("/api/state").json())["cameras"][0]["shown"] == "fault" and state)["unhealthy_reasons"] == [
        "top is in a fault: the record could not be written: disk full"
    ]
    stage.store.failure = None
    stage.station.commands["top"].reset()
    poll(lambda: http.get("/healthz").status_code == 200)
    stage.station.stop()
    poll(lambda: http.get("/healthz").status_code == 503)
    assert poll(lambda: http.get("/api/state").json()["cameras"][0]["shown"]) == "stopped"


def test_a_station_that_cannot_be_looked_at_is_not_healthy_and_no_old_state_is_shown(stage, client, poll, monkeypatch):
    stage.start()
    stage.show(Verdict.PASS)
    http = client()
    poll(lambda: http.get("/healthz").status_code == 200)

    def fails():
        raise RuntimeError("broken")

    monkeypatch.setattr(stage.station, "snapshot", fails)
    poll(lambda: http.get("/healthz").status_code == 503)
    assert http.get("/api/state").status_code == 503
    monkeypatch.undo()
    poll(lambda: http.get("/healthz").status_code == 200)


# Commands.


def test_the_line_can_be_triggered_and_reset_with_the_token(stage, client, poll, token):
    stage.start(mode=TriggerMode.COMMAND, token_file=stage.token_file())
    http = client(headers={"Authorization": f"Bearer {token}"})
    begun = http.post("/api/cameras/top/trigger", json={"product": "washer", "part_id": "A 17"})
    assert (begun.status_code, begun.json()) == (202, {"trigger_id": 1})
    busy = http.post("/api/cameras/top/trigger")
    assert busy.status_code == 409
    assert "trigger 1 waits for its answer" in busy.json()["error"]
    stage.show(Verdict.PASS)
    last = poll(lambda: (state := http.get("/api/state").json())["cameras"][0]["shown"] == "pass" and state)["cameras"][0]["last"]
    assert (last["part_id"], last["product"]) == ("A 17", "washer")
    report = stage.station.on_fault("broker")
    report("broker down")
    stays = http.post("/api/cameras/top/reset")
    assert (stays.status_code, stays.json()) == (409, {"error": "the fault stays: broker down"})
    report(None)
    assert http.post("/api/cameras/top/reset").json() == {"state": "Ready"}
    assert http.post("/api/cameras/nowhere/reset").status_code == 404


def test_a_camera_that_takes_no_commands_says_so(stage, client, token):
    stage.start(token_file=stage.token_file())
    refused = client(headers={"Authorization": f"Bearer {token}"}).post("/api/cameras/top/trigger")
    assert refused.status_code == 409
    assert "takes no command" in refused.json()["error"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"[1]", 422, "must be a JSON object"),
        (b"{", 422, "must be a JSON object"),
        (b'{"threshold": "2"}', 422, "unknown key 'threshold'"),
        (b'{"part_id": 7}', 422, "part_id must be text"),
        (b"x" * 5000, 413, "at most 4096 bytes"),
        (b"x" * 500_000, 413, "at most 4096 bytes"),
    ],
)
def test_a_command_that_cannot_be_meant_is_refused_in_one_line(stage, client, token, body, status, said):
    stage.start(mode=TriggerMode.COMMAND, token_file=stage.token_file())
    answer = client(headers={"Authorization": f"Bearer {token}"}).post("/api/cameras/top/trigger", content=body)
    assert answer.status_code == status
    assert said in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
    assert stage.station.snapshot().cameras["top"].triggers.triggered == 0


def test_without_a_token_nothing_can_be_changed(stage, client):
    stage.start(mode=TriggerMode.COMMAND)
    for command in ("trigger", "reset"):
        answer = client().post(f"/api/cameras/top/{command}")
        assert (answer.status_code, answer.json()) == (403, {"error": "commands need a token: set web.token_file"})


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(stage, client, method):
    stage.start()
    assert client().request(method, "/api/state").status_code == 405


# The server beside the line.


def test_an_address_in_use_is_one_line(stage):
    stage.start()
    taken = WebConfig(port=int(stage.url.rpartition(":")[2]))
    with pytest.raises(SinkError, match=r"cannot serve the screen on 127\.0\.0\.1:\d+: Address already in use"):
        WebServer(taken, stage.station).__enter__()


def test_other_machines_are_let_in_only_with_a_token(stage, client, token):
    with pytest.raises(ConfigError, match=r"needs web\.token_file"):
        stage.start(host="0.0.0.0")
    stage.start(host="0.0.0.0", token_file=stage.token_file())
    port = stage.url.rpartition(":")[2]
    assert httpx.get(f"http://127.0.0.1:{port}/api/state", timeout=20).status_code == 401
    assert httpx.get(f"http://127.0.0.1:{port}/api/state", headers={"Authorization": f"Bearer {token}"}, timeout=20).status_code == 200


def test_leaving_it_ends_open_streams_and_threads(stage, client):
    before = threading.active_count()
    stage.start(start_station=False)
    with client().stream("GET", "/api/events") as answer:
        events = events_of(answer)
        next(events)
        began_s = time.monotonic()
        stage.screen.__exit__(None, None, None)
        assert time.monotonic() - began_s < 8
        with contextlib.suppress(httpx.HTTPError):
            for _ in events:
                pass
    assert threading.active_count() <= before + 1
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{stage.url}/healthz", timeout=5)


def test_clients_that_read_nothing_do_not_hold_the_line(stage, poll):
    stage.start()
    host, port = stage.url.removeprefix("http://").split(":")
    with contextlib.ExitStack() as opened:
        for _ in range(20):
            client = opened.enter_context(socket.create_connection((host, int(port)), timeout=20))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(f"GET /api/events HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        for _ in range(200):
            stage.show(Verdict.REJECT, box_xyxy=BOX)
        snapshot = stage.station.snapshot()
    assert snapshot.cameras["top"].triggers.answered == 200
    assert snapshot.observers_failed == ()
    assert snapshot.cameras["top"].latency_ms.p95 < 1000


def test_a_missing_package_names_the_extra(stage, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ConfigError, match=r"needs the package uvicorn: pip install 'snl-edge\[web\]'"):
        stage.start()
