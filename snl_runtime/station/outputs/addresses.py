"""Where servers listen and what secrets lie in files: the checks that every output shares."""

import ipaddress
import os
import stat
import sys
from pathlib import Path

from snl_runtime.errors import ConfigError

HIGHEST_PORT = 65535


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_port(key: str, port: int) -> None:
    """Refuse a number that is no TCP port.

    Raises:
        ConfigError: If ``port`` is not from 1 to 65535.
    """
    if not 1 <= port <= HIGHEST_PORT:
        raise ConfigError(f"{key} must be from 1 to {HIGHEST_PORT}, got {port}")


def check_positive(key: str, value: float) -> None:
    """Refuse zero, negative numbers and NaN.

    Raises:
        ConfigError: If ``value`` is not above 0.
    """
    if not value > 0:
        raise ConfigError(f"{key} must be positive, got {value}")


def read_secret(path: str | os.PathLike[str], *, key: str) -> str:
    """Return the text of a file that only its owner may read, without the white space around it.

    Args:
        path: The file.
        key: Dotted name of the setting that names it, for messages.

    Raises:
        ConfigError: If it cannot be read, is empty or no UTF-8 text, or others may read it.
    """
    file = Path(path)
    try:
        mode = file.stat().st_mode
        text = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"{key}: cannot read {file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{key}: {file} is not UTF-8 text") from error
    if sys.platform != "win32" and mode & (stat.S_IRGRP | stat.S_IROTH | stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"{key}: {file} can be read or changed by others than its owner: chmod 600 {file}")
    if not text:
        raise ConfigError(f"{key}: {file} is empty")
    return text
