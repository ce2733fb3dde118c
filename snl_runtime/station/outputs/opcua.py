"""An OPC UA server that shows every camera's state and result, and takes triggers, resets and heartbeats."""

import hmac
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from snl_runtime.errors import ConfigError, SinkError
from snl_runtime.station.line_state import LineCommands, LineState
from snl_runtime.station.outputs.addresses import check_port, is_loopback, read_secret
from snl_runtime.station.outputs.opcua_nodes import DEFAULT_PORT, OpcUaServer
from snl_runtime.station.outputs.packages import import_for
from snl_runtime.station.outputs.server_thread import ServerThread

MAX_WAITING_STATES = 10_000
"""States that may wait for the server's thread; more means that it hangs."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpcUaConfig:
    """Where the OPC UA server listens and whom it lets in."""

    endpoint: str = "opc.tcp://127.0.0.1:4840/snl"
    """Address of the server; from other machines only with ``users_file`` or ``certificate_file``."""
    users_file: str | None = None
    """File with one ``name:password`` per line, readable by its owner only; None lets everybody in. Without ``certificate_file`` a password can be
    read on the network."""
    certificate_file: str | None = None
    """X.509 certificate of the server, PEM or DER; with it every connection is signed and encrypted. None for no encryption."""
    private_key_file: str | None = None
    """Private key of ``certificate_file``, PEM or DER without a password."""
    application_uri: str = "urn:snl-edge:station"
    """URI of this server; the certificate's must be the same. Give each station its own."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.endpoint)
        if parts.scheme != "opc.tcp" or not parts.hostname:
            raise ConfigError(f"opcua.endpoint must read opc.tcp://HOST:PORT/NAME, got '{self.endpoint}'")
        check_port("opcua.endpoint's port", _port(self.endpoint))
        if (self.certificate_file is None) != (self.private_key_file is None):
            raise ConfigError("opcua.certificate_file and opcua.private_key_file belong together: set both or none")
        if not is_loopback(parts.hostname) and self.users_file is None and self.certificate_file is None:
            raise ConfigError(
                f"opcua.endpoint '{self.endpoint}' can be reached from other machines, where anybody could trigger; set opcua.users_file or "
                "opcua.certificate_file, or listen on 127.0.0.1"
            )


class OpcUaOutput:
    """Shows each camera as one object of an OPC UA server, with methods that the line calls.

    The nodes are listed in docs/guides/plc.md. Published states are shown in their order by the server's own thread: one Read request sees one state
    whole; data changes of the other variables lie between ``Accept`` going false and going true.

    Args:
        config: Where it listens and whom it lets in.
        cameras: Names of the cameras.

    Raises:
        ConfigError: If the package asyncua is missing, or the users file cannot be used.
    """

    def __init__(self, config: OpcUaConfig, cameras: Sequence[str]) -> None:
        import_for("opcua", "asyncua", extra="opcua")
        self._config = config
        self._users = None if config.users_file is None else PasswordUsers(config.users_file)
        self._cameras = tuple(cameras)
        self._commands: dict[str, LineCommands] = {}
        self._order = threading.Lock()
        self._server: OpcUaServer | None = None
        self._thread: ServerThread | None = None

    def bind(self, commands: dict[str, LineCommands]) -> None:
        """Give the commands of each camera by its name; before it is entered."""
        self._commands = dict(commands)

    def __enter__(self) -> "OpcUaOutput":
        if not is_loopback(urlsplit(self._config.endpoint).hostname or "") and self._config.certificate_file is None:
            logger.warning("OPC UA server %s is not encrypted: passwords can be read on the network", self._config.endpoint)
        self._server = OpcUaServer(
            endpoint=self._config.endpoint,
            application_uri=self._config.application_uri,
            certificate=(self._config.certificate_file, self._config.private_key_file),
            users=self._users,
            commands={camera: self._commands.get(camera) for camera in self._cameras},
        )
        self._thread = ServerThread(f"OPC UA server {self._config.endpoint}", self._server)
        self._thread.open()
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        """Show what was published, then close the server and its connections."""
        if self._thread is not None:
            self._thread.close()

    def publish(self, state: LineState) -> None:
        """Queue ``state`` for the server's thread, with the time of this call as its source timestamp.

        Raises:
            SinkError: If the server has ended or hangs.
        """
        if self._thread is None or self._server is None:
            raise SinkError("the OPC UA output was not entered")
        if state.camera not in self._cameras:
            raise SinkError(f"the OPC UA output has no camera '{state.camera}'; it has {', '.join(self._cameras)}")
        if self._server.waiting >= MAX_WAITING_STATES:
            raise SinkError(f"the OPC UA server hangs: {self._server.waiting} states wait for it")
        with self._order:  # the timestamps go in the order of the queue
            self._thread.call(self._server.show, state, datetime.now(timezone.utc))


class PasswordUsers:
    """Names and passwords that clients must give, in the form that asyncua asks for.

    Args:
        path: File with one ``name:password`` per line; empty lines and lines that begin with ``#`` are skipped.

    Raises:
        ConfigError: If the file cannot be used.
    """

    def __init__(self, path: str) -> None:
        self._passwords: dict[str, str] = {}
        for number, line in enumerate(read_secret(path, key="opcua.users_file").splitlines(), start=1):
            if not line.strip() or line.startswith("#"):
                continue
            name, separator, password = line.strip().partition(":")
            if not separator or not name or not password:
                raise ConfigError(f"opcua.users_file: line {number} of {path} must read name:password")
            self._passwords[name] = password
        if not self._passwords:
            raise ConfigError(f"opcua.users_file: {path} names no user")

    def get_user(self, _server: Any, username: str | None = None, password: str | bytes | None = None, **_others: Any) -> Any:
        """Return asyncua's user for a right password, None to turn a client away."""
        from asyncua.crypto.permission_rules import User, UserRole

        expected = self._passwords.get(username or "")
        given = password.decode("utf-8", "replace") if isinstance(password, bytes) else password or ""
        if expected is None or not hmac.compare_digest(expected.encode(), given.encode()):
            logger.warning("OPC UA server turned user '%s' away", username)
            return None
        return User(role=UserRole.User, name=username)


def _port(endpoint: str) -> int:
    try:
        return urlsplit(endpoint).port or DEFAULT_PORT
    except ValueError as error:
        raise ConfigError(f"opcua.endpoint '{endpoint}' has no usable port: {error}") from error
