"""Where the screen of a station is served, and who may see it."""

from dataclasses import dataclass

from snl_runtime.errors import ConfigError
from snl_runtime.station.outputs.addresses import HIGHEST_PORT, check_positive, is_loopback, read_secret

LEAST_TOKEN_CHARACTERS = 20
"""A shorter token could be guessed by trying."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebConfig:
    """Where the screen is served, and who may see it."""

    host: str = "127.0.0.1"
    """Address to listen on; other than loopback only with ``token_file``."""
    port: int = 8080
    """TCP port; 0 for any free one."""
    token_file: str | None = None
    """File with a token of at least 20 characters that only its owner may read; null serves this machine only and takes no commands."""
    allowed_hosts: tuple[str, ...] = ()
    """Names, without port, under which a browser may ask for the page beside this machine's own, e.g. those of a reverse proxy."""
    stale_after_s: float = 10.0
    """Age in seconds of a camera's last result from which its verdict is no longer shown as current."""
    pictures_per_second: float = 4.0
    """Most live pictures per second that are drawn for each camera, however many clients look."""
    picture_width_px: int = 1280
    """Width that larger pictures are reduced to."""
    max_rejects: int = 24
    """Parts of each camera that did not pass and are kept in memory with their image."""
    max_reject_mb: int = 256
    """Most memory in MB for their images, over all cameras; the oldest lose theirs first."""

    def __post_init__(self) -> None:
        if not self.host:
            raise ConfigError("web.host must name an address to listen on, got ''")
        if not 0 <= self.port <= HIGHEST_PORT:
            raise ConfigError(f"web.port must be from 0 to {HIGHEST_PORT}, got {self.port}")
        if self.token_file is None and not is_loopback(self.host):
            raise ConfigError(
                f"web.host {self.host} can be reached from other machines and needs web.token_file: "
                f"name a file with a token of at least {LEAST_TOKEN_CHARACTERS} characters, or use 127.0.0.1"
            )
        for name in ("stale_after_s", "pictures_per_second", "picture_width_px", "max_rejects", "max_reject_mb"):
            check_positive(f"web.{name}", getattr(self, name))
        for host in self.allowed_hosts:
            if not host or any(character in host for character in "/:@ "):
                raise ConfigError(f"web.allowed_hosts must hold names without scheme and port, got {host!r}")


def parse_address(text: str, *, key: str = "--serve") -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``; an IPv6 address stands in brackets.

    Args:
        text: What the user gave.
        key: Option or setting that it came from, for messages.

    Raises:
        ConfigError: If there is no host, or no number after the last colon.

    Example:
        >>> parse_address("127.0.0.1:8080"), parse_address("[::1]:80")
        (('127.0.0.1', 8080), ('::1', 80))
    """
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not host or not (port.isascii() and port.isdigit()):
        raise ConfigError(f"{key} must be HOST:PORT, e.g. 127.0.0.1:8080 or [::1]:8080, got {text!r}")
    return host, int(port)


def read_token(config: WebConfig) -> str | None:
    """Return the token that the configuration names, None if it names none.

    Raises:
        ConfigError: If its file cannot be read, can be read by others, or holds anything but one long line of visible ASCII characters.
    """
    if config.token_file is None:
        return None
    token = read_secret(config.token_file, key="web.token_file")
    if len(token) < LEAST_TOKEN_CHARACTERS or not (token.isascii() and token.isprintable() and " " not in token):
        raise ConfigError(
            f"web.token_file: {config.token_file} must hold one line of at least {LEAST_TOKEN_CHARACTERS} visible ASCII characters, "
            f"got {len(token)} characters; "
            "make one: python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    return token
