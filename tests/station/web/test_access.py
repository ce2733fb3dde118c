"""Only a client that names this server and knows its token, or has a session that has not ended, is let in."""

import pytest

from snl_runtime.station.web.access import COOKIE, MOST_SESSIONS, SESSION_S, Access

TOKEN = "0123456789abcdefghij"


class Clock:
    now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("localhost:8080", True),
        ("LOCALHOST", True),
        ("127.0.0.1:8080", True),
        ("[::1]:8080", True),
        ("192.168.1.7", True),  # a number cannot be pointed elsewhere by a name server
        ("line.example:443", True),
        ("line.example.evil.com", False),
        ("evil.com:8080", False),
        ("localhost.evil.com", False),
        ("127.0.0.1.evil.com", False),
        ("", False),
        (None, False),
        ("[::1", False),
    ],
)
def test_only_names_of_this_server_are_answered(host, known):
    assert Access(None, ["line.example"]).is_known_host(host) is known


@pytest.mark.parametrize(
    ("origin", "same"),
    [
        (None, True),
        ("http://127.0.0.1:8080", True),
        ("https://127.0.0.1:8080", True),
        ("http://127.0.0.1:8081", False),
        ("http://evil.com", False),
        ("null", False),
        ("", False),
    ],
)
def test_a_command_comes_from_no_page_or_from_this_one(origin, same):
    assert Access(TOKEN, []).is_same_origin(origin, "127.0.0.1:8080") is same


@pytest.mark.parametrize(
    ("authorization", "signed_in"),
    [
        (f"Bearer {TOKEN}", True),
        (f"bearer {TOKEN}", True),
        (f"Bearer {TOKEN}x", False),
        (f"Bearer {TOKEN[:-1]}", False),
        ("Bearer ", False),
        ("Bearer \xff\xfe", False),
        (f"Basic {TOKEN}", False),
        (TOKEN, False),
        (None, False),
    ],
)
def test_the_token_in_a_header_lets_in(authorization, signed_in):
    assert Access(TOKEN, []).is_signed_in(authorization, None) is signed_in


def test_without_a_token_everybody_on_this_machine_may_look():
    access = Access(None, [])
    assert access.is_signed_in(None, None)
    assert not access.is_token("")
    assert not access.has_token


def test_a_session_lets_in_until_it_ends():
    clock = Clock()
    access = Access(TOKEN, [], clock_s=clock)
    session = access.sign_in()
    cookie = f"other=1; {COOKIE}={session}"
    assert access.is_signed_in(None, cookie)
    assert not access.is_signed_in("Bearer wrong", cookie), "a wrong token is not rescued by a session"
    clock.now_s += SESSION_S
    assert not access.is_signed_in(None, cookie)


def test_a_session_that_was_signed_out_is_refused():
    access = Access(TOKEN, [])
    cookie = f"{COOKIE}={access.sign_in()}"
    access.sign_out(cookie)
    assert not access.is_signed_in(None, cookie)
    access.sign_out(None)


def test_sessions_do_not_pile_up():
    access = Access(TOKEN, [])
    first = access.sign_in()
    others = [access.sign_in() for _ in range(MOST_SESSIONS)]
    assert not access.is_signed_in(None, f"{COOKIE}={first}")
    assert access.is_signed_in(None, f"{COOKIE}={others[0]}")


@pytest.mark.parametrize("cookie", ["", COOKIE, f"{COOKIE}=", f"{COOKIE}=\x00", "]]]", f"{COOKIE}={TOKEN}"])
def test_a_cookie_that_holds_no_session_is_refused(cookie):
    assert not Access(TOKEN, []).is_signed_in(None, cookie)


@pytest.mark.parametrize(
    ("path", "public"),
    [("/healthz", True), ("/login", True), ("/static/main.js", True), ("/", False), ("/api/state", False), ("/static", False), ("/healthz/x", False)],
)
def test_without_signing_in_only_what_says_nothing_about_parts_is_shown(path, public):
    assert Access(TOKEN, []).is_public(path) is public
