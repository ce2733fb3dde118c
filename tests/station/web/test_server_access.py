"""Who may ask the server of the screen: who knows the token, by a name of this server, and never a page of another site."""

import pytest

from snl_runtime.station.triggered import TriggerMode
from snl_runtime.types import Verdict

httpx = pytest.importorskip("httpx", reason="needs the package httpx")
pytest.importorskip("uvicorn", reason="needs the extra web")
pytest.importorskip("fastapi.sse", reason="needs the extra web")


pytestmark = pytest.mark.station

SHOWS_PARTS = ["/api/state", "/api/events", "/api/rejects", "/api/frame/top.jpg", "/api/rejects/1.jpg"]


@pytest.mark.parametrize("path", SHOWS_PARTS)
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Cookie": "snl_session=wrong"}])
def test_with_a_token_only_who_knows_it_sees_parts(stage, client, path, headers):
    stage.start(token_file=stage.token_file())
    answer = client().get(path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "/login" in answer.json()["error"]


def test_health_and_login_are_open_and_the_page_sends_to_the_login(stage, client):
    stage.start(token_file=stage.token_file())
    http = client()
    assert http.get("/healthz").status_code in (200, 503)
    assert http.get("/login").status_code == 200
    assert http.get("/static/theme.css").status_code == 200
    to_login = http.get("/")
    assert (to_login.status_code, to_login.headers["location"]) == (303, "/login")


def test_a_login_lasts_until_it_is_signed_out(stage, client, token):
    stage.start(token_file=stage.token_file())
    http = client()
    wrong = http.post("/login", data={"token": "wrong"})
    assert (wrong.status_code, wrong.headers["location"], wrong.headers.get("set-cookie")) == (303, "/login?wrong", None)
    right = http.post("/login", data={"token": token})
    assert (right.status_code, right.headers["location"]) == (303, "/")
    attributes = right.headers["set-cookie"].lower()
    assert "httponly" in attributes
    assert "samesite=strict" in attributes
    assert token not in attributes
    assert http.get("/api/state").json()["takes_commands"] is True
    kept = client(cookies=dict(http.cookies))
    assert kept.get("/api/state").status_code == 200
    http.post("/logout")
    assert kept.get("/api/state").status_code == 401


def test_the_login_cookie_is_for_tls_only_behind_a_proxy_with_tls(stage, client, token):
    stage.start(token_file=stage.token_file())
    answer = client().post("/login", data={"token": token}, headers={"X-Forwarded-Proto": "https"})
    assert "secure" in answer.headers["set-cookie"].lower()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "localhost.evil.example"])
@pytest.mark.parametrize("path", ["/", "/healthz", "/api/state", "/static/main.js"])
def test_a_name_that_somebody_pointed_here_is_refused(stage, client, host, path):
    stage.start()
    answer = client().get(path, headers={"Host": host})
    assert answer.status_code == 400
    assert "web.allowed_hosts" in answer.json()["error"]


def test_a_configured_name_is_answered(stage, client):
    stage.start(allowed_hosts=("line.example",))
    assert client().get("/api/state", headers={"Host": "line.example"}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null"])
def test_a_command_of_another_site_is_refused_even_with_a_session(stage, client, token, origin):
    stage.start(mode=TriggerMode.COMMAND, token_file=stage.token_file())
    http = client()
    http.post("/login", data={"token": token})
    assert http.post("/api/cameras/top/trigger", headers={"Origin": origin}).status_code == 403
    assert http.post("/api/cameras/top/trigger", headers={"Origin": stage.url}).status_code == 202
    stage.show(Verdict.PASS)  # else the station waits for the frame when it stops


@pytest.mark.parametrize("path", ["/", "/login", "/healthz", "/api/state", "/api/frame/top.jpg", "/static/main.js", "/nowhere", "/static/nowhere.js"])
def test_every_answer_is_shown_by_nobody_else_and_kept_by_nobody(stage, client, path):
    stage.start()
    headers = client().get(path).headers
    policy = headers["content-security-policy"]
    for part in ("default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"):
        assert part in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers.get_list("cache-control") == ["no-store"]
    assert headers["x-frame-options"] == "DENY"
    assert "server" not in headers


@pytest.mark.parametrize(
    "path", ["/static", "/static/", "/static/../server.py", "/static/%2e%2e/server.py", "/docs", "/redoc", "/openapi.json", "/nowhere"]
)
def test_no_folder_no_source_and_no_foreign_page_is_served(stage, client, path):
    stage.start()
    answer = client(follow_redirects=True).get(path)
    assert answer.status_code == 404
    assert list(answer.json()) == ["error"]


def test_an_internal_error_says_nothing_of_the_inside(stage, client, monkeypatch):
    stage.start()

    def fails(number):
        raise RuntimeError("secret")

    monkeypatch.setattr(stage.screen._feed, "reject", fails)
    answer = client().get("/api/rejects/1.jpg")
    assert (answer.status_code, answer.json()) == (500, {"error": "internal error; the station's log says more"})
    assert client().get("/api/state").status_code == 200
