"""A screen that others can reach needs a token, and every setting that cannot be meant is refused in one line that names it."""

import os

import pytest

from snl_runtime.config import from_plain
from snl_runtime.errors import ConfigError
from snl_runtime.station.web.config import WebConfig, parse_address, read_token

GOOD_TOKEN = "0123456789abcdefghij"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_this_machine_needs_no_token(host):
    assert read_token(WebConfig(host=host)) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "station-3", "10.0.0.1"])
def test_an_address_that_others_reach_is_refused_without_a_token(host):
    with pytest.raises(ConfigError, match=r"web\.host .* needs web\.token_file") as refused:
        WebConfig(host=host)
    assert "\n" not in str(refused.value)
    assert WebConfig(host=host, token_file="token").host == host


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"host": ""}, "web.host"),
        ({"port": -1}, "web.port"),
        ({"port": 65536}, "web.port"),
        ({"stale_after_s": 0.0}, "web.stale_after_s"),
        ({"stale_after_s": float("nan")}, "web.stale_after_s"),
        ({"pictures_per_second": -1.0}, "web.pictures_per_second"),
        ({"picture_width_px": 0}, "web.picture_width_px"),
        ({"max_rejects": 0}, "web.max_rejects"),
        ({"max_reject_mb": 0}, "web.max_reject_mb"),
        ({"allowed_hosts": ("https://line.example",)}, "web.allowed_hosts"),
        ({"allowed_hosts": ("line.example:8080",)}, "web.allowed_hosts"),
    ],
)
def test_a_setting_out_of_range_is_named(changes, named):
    with pytest.raises(ConfigError, match=named.replace(".", r"\.")):
        WebConfig(**changes)


def test_it_can_be_read_from_a_station_file():
    config = from_plain(WebConfig, {"port": 9000, "allowed_hosts": ["line.example"]}, prefix="web")
    assert (config.port, config.allowed_hosts) == (9000, ("line.example",))


@pytest.mark.parametrize(("text", "expected"), [("127.0.0.1:8080", ("127.0.0.1", 8080)), ("[::]:80", ("::", 80)), ("station-3:1", ("station-3", 1))])
def test_an_address_is_host_and_port(text, expected):
    assert parse_address(text) == expected


@pytest.mark.parametrize("text", ["8080", ":8080", "127.0.0.1", "127.0.0.1:", "::1:80", "host:http", "host:٣", ""])
def test_an_address_without_host_or_port_is_refused(text):
    with pytest.raises(ConfigError, match="--serve must be HOST:PORT"):
        parse_address(text)


def written(tmp_path, text, mode=0o600):
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(mode)
    return WebConfig(token_file=str(path))


def test_a_token_is_one_line_of_a_file_that_only_its_owner_reads(tmp_path):
    assert read_token(written(tmp_path, GOOD_TOKEN + "\n")) == GOOD_TOKEN


@pytest.mark.parametrize("text", ["", "\n", GOOD_TOKEN[:-1], "a token that has spaces", "tökentökentökentöken", f"{GOOD_TOKEN}\n{GOOD_TOKEN}"])
def test_a_token_that_is_short_or_cannot_travel_in_a_header_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match=r"web\.token_file") as refused:
        read_token(written(tmp_path, text))
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_a_token_that_others_can_read_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="chmod 600"):
        read_token(written(tmp_path, GOOD_TOKEN, mode=0o640))


def test_a_token_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"web\.token_file: cannot read"):
        read_token(WebConfig(token_file=str(tmp_path / "missing")))
