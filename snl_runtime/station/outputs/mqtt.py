"""Results for an MQTT broker: every row of the record, published until the broker has acknowledged it."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from snl_runtime.errors import ConfigError, SinkError
from snl_runtime.station.outbox import DeliveryError, StoredRow
from snl_runtime.station.outputs.addresses import check_port, check_positive, is_loopback, read_secret
from snl_runtime.station.outputs.packages import import_for
from snl_runtime.text import to_json

_QOS = 1
_MAX_IN_FLIGHT = 10
"""Messages on their way to the broker; brokers accept at least 20 unless told otherwise."""
_HIGHEST_KEEPALIVE_S = 65535

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class MqttConfig:
    """Which broker results and states go to, and under which topics."""

    host: str
    """Name or address of the broker."""
    port: int = 1883
    """TCP port; 8883 is usual with ``tls``."""
    topic: str = "snl/site/station"
    """What every topic of this station begins with: a prefix, the site, the station. Two stations must not share it."""
    client_id: str | None = None
    """What the client ids begin with; None takes ``topic`` with dashes. A broker throws out the older of two clients with the same id."""
    username: str | None = None
    """Name to log in with; None logs in without."""
    password_file: str | None = None
    """File with the password of ``username``, readable by its owner only."""
    tls: bool = False
    """Encrypt, and check the broker's certificate."""
    ca_file: str | None = None
    """Certificates (PEM) that the broker's must be signed by; None takes the system's. With ``tls`` only."""
    version: Literal["5", "3.1.1"] = "5"
    """Version of the protocol. Only 5 tells when a broker's access rules refuse a message; with 3.1.1 it is acknowledged and lost."""
    keepalive_s: int = 5
    """Seconds between signs of life; the broker announces the last will after one and a half times that."""
    timeout_s: float = 10.0
    """Longest wait for a connection or for the next acknowledgement, in seconds."""
    commands: bool = False
    """Take triggers and resets from ``TOPIC/CAMERA/command``: only where the broker lets nobody else write there."""

    def __post_init__(self) -> None:
        if not self.host:
            raise ConfigError("mqtt.host must name the broker, got ''")
        check_port("mqtt.port", self.port)
        levels = self.topic.split("/")
        if not all(levels) or set(self.topic) & set("+#\0") or self.topic.startswith("$"):
            raise ConfigError(f"mqtt.topic must be levels with / between them, without + and #, e.g. snl/lyon/press4, got '{self.topic}'")
        if self.password_file is not None and self.username is None:
            raise ConfigError("mqtt.password_file needs mqtt.username")
        if self.ca_file is not None and not self.tls:
            raise ConfigError("mqtt.ca_file needs mqtt.tls: true")
        check_positive("mqtt.timeout_s", self.timeout_s)
        if not 1 <= self.keepalive_s <= _HIGHEST_KEEPALIVE_S:
            raise ConfigError(f"mqtt.keepalive_s must be from 1 to {_HIGHEST_KEEPALIVE_S}, got {self.keepalive_s}")

    @property
    def address(self) -> str:
        """Host and port, for messages."""
        return f"{self.host}:{self.port}"


class MqttConsumer:
    """Publishes each row on ``TOPIC/CAMERA/result`` and keeps ``TOPIC/status`` on the broker, retained.

    A row counts as delivered when the broker has acknowledged it. While connected the status is ``{"online": true, ...}``; the broker itself replaces
    it by ``{"online": false}`` when this process dies.

    Args:
        config: Broker and topics.

    Raises:
        ConfigError: If the package paho-mqtt is missing, or the password cannot be read.
    """

    def __init__(self, config: MqttConfig) -> None:
        self._config = config
        self._status_topic = f"{config.topic}/status"
        self._connection = MqttConnection(config, "results", will=(self._status_topic, to_json({"online": False})))

    @property
    def name(self) -> str:
        """``mqtt``: a station has one broker."""
        return "mqtt"

    def connect(self) -> None:
        """Connect and say that this station is online.

        Raises:
            SinkError: If the broker cannot be reached or refuses.
        """
        self._connection.open()
        self._connection.publish([(self._status_topic, to_json({"online": True}))], retain=True)

    def send(self, batch: Sequence[StoredRow]) -> None:
        """Publish rows in order and return once the broker has acknowledged all of them.

        Raises:
            DeliveryError: If it has not in time.
        """
        self._connection.publish([(f"{self._config.topic}/{one.camera}/result", result_payload(one)) for one in batch])

    def close(self) -> None:
        """Say that this station is offline, as far as the connection still stands, and disconnect."""
        self._connection.close(last=(self._status_topic, to_json({"online": False})))


def result_payload(stored: StoredRow) -> str:
    """Return one row as a message: its number, its camera and its record, the same text at every repeat."""
    return to_json({"row": stored.row, "camera": stored.camera, **stored.record})


class MqttConnection:
    """One connection to the broker at a time, without memory: what was not acknowledged when it broke is forgotten here.

    Args:
        config: Broker and account.
        role: End of the client id; every connection of a station has its own.
        will: Topic and payload that the broker publishes, retained, when this connection breaks.
        on_message: Called with topic, payload and whether it was retained, on the client's thread; None subscribes to nothing.
        subscribe: Topic to subscribe to.

    Raises:
        ConfigError: If the package paho-mqtt is missing, or the password cannot be read.
    """

    def __init__(
        self,
        config: MqttConfig,
        role: str,
        *,
        will: tuple[str, str],
        on_message: Callable[[str, bytes, bool], None] | None = None,
        subscribe: str | None = None,
    ) -> None:
        self._paho = import_for("mqtt", "paho.mqtt.client", extra="mqtt")
        self._config, self._will = config, will
        self._client_id = f"{config.client_id or config.topic.replace('/', '-')}-{role}"
        self._password = None if config.password_file is None else read_secret(config.password_file, key="mqtt.password_file")
        self._on_message, self._subscribe = on_message, subscribe
        self._client: Any = None
        self._changed = threading.Condition()
        self._connack: tuple[bool, str] | None = None
        self._lost = ""
        self._acknowledged: dict[int, str] = {}
        if config.username is not None and not config.tls and not is_loopback(config.host):
            logger.warning("the password for MQTT broker %s can be read on the network; set mqtt.tls", config.address)

    @property
    def lost(self) -> str:
        """Why the connection broke; empty while it stands."""
        return self._lost

    def open(self) -> None:
        """Connect, anew if there was a connection, and wait for the broker's answer.

        Raises:
            SinkError: If it cannot be reached or refuses, within the configured time.
        """
        self.close()
        client = self._new_client()
        self._client, self._connack, self._lost, self._acknowledged = client, None, "", {}
        clean = {"clean_start": True} if self._config.version == "5" else {}
        try:
            client.connect(self._config.host, self._config.port, keepalive=self._config.keepalive_s, **clean)
        except (OSError, ValueError) as error:
            self._client = None
            raise SinkError(f"cannot reach MQTT broker {self._config.address}: {error}") from error
        client.loop_start()
        with self._changed:
            self._changed.wait_for(lambda: self._connack is not None or self._lost, self._config.timeout_s)
            accepted, said = self._connack or (False, self._lost or f"no answer within {self._config.timeout_s:g} s")
        if not accepted:
            self.close()
            raise SinkError(f"MQTT broker {self._config.address} refuses: {said}")
        if self._subscribe is not None:
            client.subscribe(self._subscribe, qos=0)

    def publish(self, messages: Sequence[tuple[str, str]], *, retain: bool = False) -> None:
        """Publish topics and payloads in order and return once all are acknowledged.

        Raises:
            DeliveryError: If the connection broke, the broker refused one, or it said nothing for the configured time.
        """
        if self._client is None or self._lost:
            raise DeliveryError(f"MQTT broker {self._config.address} is not connected: {self._lost or 'it was closed'}")
        numbers = [self._client.publish(topic, payload, qos=_QOS, retain=retain).mid for topic, payload in messages]
        for done, number in enumerate(numbers):
            if problem := self._wait_for(number):
                raise DeliveryError(f"MQTT broker {self._config.address}: {problem}", acknowledged=done)

    def _wait_for(self, number: int) -> str:
        """Wait for the acknowledgement of one message and return what went wrong, empty if nothing did."""
        with self._changed:
            self._changed.wait_for(lambda: number in self._acknowledged or bool(self._lost), self._config.timeout_s)
            if number in self._acknowledged:
                return self._acknowledged.pop(number)
            return self._lost or f"no acknowledgement within {self._config.timeout_s:g} s"

    def answer(self, topic: str, payload: str) -> None:
        """Publish without waiting, for use in ``on_message``."""
        if self._client is not None:
            self._client.publish(topic, payload, qos=_QOS)

    def close(self, *, last: tuple[str, str] | None = None) -> None:
        """Disconnect; a second call does nothing.

        Args:
            last: Topic and payload to publish, retained, before leaving: the broker announces no will after a proper end.
        """
        client, self._client = self._client, None
        if client is None:
            return
        if last is not None and not self._lost:
            client.publish(*last, qos=_QOS, retain=True)
        client.disconnect()  # sent after what is on its way
        client.loop_stop()

    def _new_client(self) -> Any:
        paho = self._paho
        is_5 = self._config.version == "5"
        client = paho.Client(
            paho.CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=paho.MQTTv5 if is_5 else paho.MQTTv311,
            clean_session=None if is_5 else True,
            reconnect_on_failure=False,
        )
        client.max_inflight_messages_set(_MAX_IN_FLIGHT)
        client.connect_timeout = self._config.timeout_s
        client.will_set(*self._will, qos=_QOS, retain=True)
        if self._config.username is not None:
            client.username_pw_set(self._config.username, self._password)
        if self._config.tls:
            try:
                client.tls_set(ca_certs=self._config.ca_file)
            except OSError as error:
                raise SinkError(f"mqtt.ca_file {self._config.ca_file} cannot be used: {error}") from error
        client.on_connect, client.on_disconnect = self._connected, self._disconnected
        client.on_publish, client.on_message = self._published, self._received
        return client

    def _connected(self, client: Any, _userdata: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        with self._changed:
            if client is self._client:
                self._connack = (not reason.is_failure, str(reason))
                self._changed.notify_all()

    def _disconnected(self, client: Any, _userdata: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        with self._changed:
            if client is self._client:
                self._lost = f"connection lost ({reason})"
                self._changed.notify_all()

    def _published(self, client: Any, _userdata: Any, number: int, reason: Any, _properties: Any) -> None:
        with self._changed:
            if client is self._client:
                self._acknowledged[number] = str(reason) if reason.is_failure else ""
                self._changed.notify_all()

    def _received(self, _client: Any, _userdata: Any, message: Any) -> None:
        if self._on_message is not None:
            self._on_message(message.topic, message.payload, message.retain)
