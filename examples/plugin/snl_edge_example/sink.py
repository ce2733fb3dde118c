"""Verdicts as lines over TCP: ``snl-run --sink tcp:127.0.0.1:5000``."""

import socket
from types import TracebackType

from snl_runtime import AnomalyResult, ConfigError, Frame, SinkError

TIMEOUT_S = 2.0
"""A peer that does not take a line for that long has failed; without a limit it would stop the line silently."""


class TcpSink:
    """Sends ``<frame index> <verdict>`` and a line feed for each verdict.

    Args:
        argument: ``HOST:PORT``.
    """

    def __init__(self, argument: str) -> None:
        host, separator, port = argument.rpartition(":")
        if not separator or not port.isdecimal():
            raise ConfigError(f"the sink tcp needs HOST:PORT, got '{argument}'; e.g. --sink tcp:127.0.0.1:5000")
        self._address = (host, int(port))
        self._connection: socket.socket | None = None

    def __enter__(self) -> "TcpSink":
        try:
            self._connection = socket.create_connection(self._address, timeout=TIMEOUT_S)
        except OSError as error:
            raise self._failed(error) from error
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        """Close the connection: the peer sees that no verdict follows and must not accept any part."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def emit(self, frame: Frame, result: AnomalyResult) -> None:
        """Send one verdict."""
        if self._connection is None:
            raise SinkError("the sink tcp is not open; enter it before it is used")
        try:
            self._connection.sendall(f"{frame.index} {result.verdict.value}\n".encode("ascii"))
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> SinkError:
        host, port = self._address
        return SinkError(f"no verdict reached {host}:{port}: {error.strerror or error}; check that the receiver runs")
