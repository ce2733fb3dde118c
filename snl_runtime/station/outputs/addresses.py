"""Where servers listen and what secrets lie in files: the checks that every output shares."""

import ipaddress
import os
import ssl
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
    try:
        text = read_bytes(path, key=key, secret=True).decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{key}: {path} is not UTF-8 text") from error
    if not text:
        raise ConfigError(f"{key}: {path} is empty")
    return text


def read_bytes(path: str | os.PathLike[str], *, key: str, secret: bool = False) -> bytes:
    """Return the content of a file that a setting names.

    Args:
        path: The file.
        key: Dotted name of the setting, for messages.
        secret: Refuse a file that others than its owner may read or change.

    Raises:
        ConfigError: If it cannot be read, or others may read a secret.
    """
    file = Path(path)
    try:
        mode = file.stat().st_mode
        data = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{key}: cannot read {file}: {error.strerror or error}") from error
    if secret and sys.platform != "win32" and mode & (stat.S_IRGRP | stat.S_IROTH | stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"{key}: {file} can be read or changed by others than its owner: chmod 600 {file}")
    return data


def tls_context(ca_file: str | None, *, key: str) -> ssl.SSLContext:
    """Return what checks a server's certificate and name.

    Args:
        ca_file: Certificates (PEM) that it must be signed by; None takes the system's.
        key: Dotted name of the setting, for messages.

    Raises:
        ConfigError: If the file cannot be used.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"{key}: {ca_file} cannot be used: {error.strerror or error}") from error
