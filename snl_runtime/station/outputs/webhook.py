"""Results for a web server: every row of the record in one signed POST."""

import base64
import hashlib
import hmac
import http.client
import logging
import re
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from snl_runtime.errors import ConfigError, SinkError
from snl_runtime.station.outbox import DeliveryError, StoredRow
from snl_runtime.station.outputs.addresses import check_port, check_positive, is_loopback, read_secret
from snl_runtime.text import redact_credentials, to_json

REFUSES_RECORD = frozenset({400, 409, 413, 415, 422})
"""What a server says that will never take this record: it is malformed, known already, too long, of the wrong type or content."""

_LONGEST_ANSWER_BYTES = 64 << 10
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookConfig:
    """Which web server gets results, and how they are signed."""

    url: str
    """Address that is posted to, ``https://...`` or ``http://...``."""
    secret_file: str | None = None
    """File with the secret that messages are signed with, readable by its owner only; None for no signature."""
    ca_file: str | None = None
    """Certificates (PEM) that the server's must be signed by; None takes the system's. With https only."""
    station: str = "station"
    """Name of this station in message ids: letters, digits, dash, underscore."""
    timeout_s: float = 10.0
    """Longest wait for a connection and for each part of an answer, in seconds."""
    max_refused_in_a_row: int = 10
    """Records in a row that the server may refuse for good; with the next one it counts as failing, and records wait."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        shown = redact_credentials(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"webhook.url must read https://HOST/PATH, got '{shown}'")
        try:
            check_port("webhook.url's port", _port(parts))
        except ValueError as error:
            raise ConfigError(f"webhook.url '{shown}' has no usable port: {error}") from error
        if parts.username is not None:
            raise ConfigError(f"webhook.url must hold no password, got '{shown}'; sign with webhook.secret_file")
        if self.ca_file is not None and parts.scheme != "https":
            raise ConfigError("webhook.ca_file needs an https address")
        if not _NAME.fullmatch(self.station):
            raise ConfigError(f"webhook.station must be letters, digits, dashes and underscores, at most 64, got '{self.station}'")
        check_positive("webhook.timeout_s", self.timeout_s)
        check_positive("webhook.max_refused_in_a_row", self.max_refused_in_a_row)


class WebhookConsumer:
    """Posts rows one by one over one connection, signed as Standard Webhooks prescribe.

    2xx is an acknowledgement. A status that refuses this very record (``REFUSES_RECORD``) is logged and counted, and the next record is sent; the
    refused one stays in the store. Everything else, redirects and 401, 403, 404, 408, 429 and 5xx among them, is a failure of the server: the record
    waits.

    Args:
        config: Address and secret.

    Raises:
        ConfigError: If the secret or the certificates cannot be read.
    """

    def __init__(self, config: WebhookConfig) -> None:
        self._config = config
        self._parts = urlsplit(config.url)
        self._key = None if config.secret_file is None else signing_key(read_secret(config.secret_file, key="webhook.secret_file"))
        self._tls = _tls_context(config) if self._parts.scheme == "https" else None
        self._connection: http.client.HTTPConnection | None = None
        self._was_used = False
        self._refused_in_a_row = 0
        self.refused = 0
        """Records that the server refused for good since the start; they are in the store."""
        if self._tls is None and not is_loopback(self._parts.hostname or ""):
            logger.warning("results go to %s without encryption", redact_credentials(config.url))

    @property
    def name(self) -> str:
        """``webhook``: a station has one."""
        return "webhook"

    def connect(self) -> None:
        """Open a connection.

        Raises:
            SinkError: If the server cannot be reached in time.
        """
        self.close()
        host, port = self._parts.hostname or "", _port(self._parts)
        if self._tls is not None:
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(host, port, timeout=self._config.timeout_s, context=self._tls)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=self._config.timeout_s)
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise self._failed(error) from error
        self._connection, self._was_used = connection, False

    def send(self, batch: Sequence[StoredRow]) -> None:
        """Post rows in order and return once all are settled.

        Raises:
            DeliveryError: If the server failed at one of them.
        """
        for done, stored in enumerate(batch):
            try:
                self._post(stored)
            except SinkError as error:
                raise DeliveryError(str(error), acknowledged=done) from error

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _post(self, stored: StoredRow) -> None:
        body = to_json({"row": stored.row, "camera": stored.camera, **stored.record}).encode("ascii")
        message_id = f"{self._config.station}-{stored.row}"
        try:
            status = self._exchange(message_id, body)
        except (ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected) as error:
            if not self._was_used:
                raise self._failed(error) from error
            self.connect()  # servers close a connection that was idle for seconds; that is no failure
            status = self._try_exchange(message_id, body)
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(error) from error
        self._was_used = True
        self._settle(stored, status)

    def _try_exchange(self, message_id: str, body: bytes) -> int:
        try:
            return self._exchange(message_id, body)
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(error) from error

    def _exchange(self, message_id: str, body: bytes) -> int:
        if self._connection is None:
            raise self._failed("not connected")
        target = (self._parts.path or "/") + (f"?{self._parts.query}" if self._parts.query else "")
        self._connection.request("POST", target, body, self._headers(message_id, body))
        response = self._connection.getresponse()
        response.read(_LONGEST_ANSWER_BYTES)
        if not response.isclosed():  # the rest of a longer answer would be taken for the next one
            self._connection.close()
        return response.status

    def _settle(self, stored: StoredRow, status: int) -> None:
        """Return if the row needs no further try.

        Raises:
            SinkError: If the server failed.
        """
        if 200 <= status < 300:
            self._refused_in_a_row = 0
            return
        if status not in REFUSES_RECORD:
            raise self._failed(f"status {status}")
        if self._refused_in_a_row >= self._config.max_refused_in_a_row:
            raise self._failed(f"status {status} for more than {self._config.max_refused_in_a_row} records in a row")
        self._refused_in_a_row += 1
        self.refused += 1
        logger.warning(
            "%s refuses record %d of %s with status %d; it is skipped there and stays in the record", self._where, stored.row, stored.camera, status
        )

    def _headers(self, message_id: str, body: bytes) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "User-Agent": "snl-edge", "webhook-id": message_id, "webhook-timestamp": str(int(time.time()))}
        if self._key is not None:
            headers["webhook-signature"] = signature(self._key, message_id, headers["webhook-timestamp"], body)
        return headers

    @property
    def _where(self) -> str:
        return f"web server {redact_credentials(self._config.url)}"

    def _failed(self, why: object) -> SinkError:
        return SinkError(f"{self._where} took no record: {why or type(why).__name__}")


def signing_key(secret: str) -> bytes:
    """Return the key of a secret: base64 after ``whsec_``, as Standard Webhooks write it; any other text as it is.

    Raises:
        ConfigError: If what follows ``whsec_`` is not base64.
    """
    if not secret.startswith("whsec_"):
        return secret.encode()
    try:
        return base64.b64decode(secret[6:], validate=True)
    except ValueError as error:
        raise ConfigError("webhook.secret_file: what follows whsec_ must be base64") from error


def signature(key: bytes, message_id: str, timestamp: str, body: bytes) -> str:
    """Return the header ``webhook-signature`` of Standard Webhooks: ``v1,`` and the HMAC-SHA256 of id, time and body in base64."""
    digest = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def _tls_context(config: WebhookConfig) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=config.ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"webhook.ca_file {config.ca_file} cannot be used: {error}") from error


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)
