"""The state of every camera on an MQTT broker, retained: what a dashboard shows, and what remains when the station dies."""

import json
import logging
import threading
from collections.abc import Sequence
from types import TracebackType

from snl_runtime.errors import SinkError, SnlError
from snl_runtime.station.line_state import LineCommands, LineState
from snl_runtime.station.outputs.mqtt import MqttConfig, MqttConnection
from snl_runtime.station.outputs.signals import accepted_trigger_id
from snl_runtime.text import to_json

RETRY_S = 1.0
CLOSE_TIMEOUT_S = 10.0

_LONGEST_COMMAND_BYTES = 4096

logger = logging.getLogger(__name__)


class MqttOutput:
    """Keeps ``TOPIC/CAMERA/state`` on the broker, retained, and takes commands from ``TOPIC/CAMERA/command`` if the settings allow it.

    Only the newest state is sent: one that was replaced before the broker took it is left out, so that a broker which comes back never gets an old
    accept. Each camera has a connection of its own, whose last will replaces its state by ``{"online": false, "accept": false, ...}`` when this
    process dies. A broker that is down holds nothing back; ``failures`` and ``last_error`` tell of it.

    Args:
        config: Broker and topics.
        cameras: Names of the cameras.

    Raises:
        ConfigError: If the package paho-mqtt is missing, or the password cannot be read.
    """

    def __init__(self, config: MqttConfig, cameras: Sequence[str]) -> None:
        self._cameras = {camera: _CameraState(config, camera) for camera in cameras}

    def bind(self, commands: dict[str, LineCommands]) -> None:
        """Give the commands of each camera by its name; before it is entered."""
        for name, camera in self._cameras.items():
            camera.commands = commands.get(name)

    def __enter__(self) -> "MqttOutput":
        for camera in self._cameras.values():
            camera.start()
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        """Say that every camera is offline, as far as the broker is there, and disconnect."""
        for camera in self._cameras.values():
            camera.stop()
        for camera in self._cameras.values():
            camera.join()

    @property
    def failures(self) -> int:
        """How often the broker could not be told since the output was entered, over all cameras."""
        return sum(camera.failures for camera in self._cameras.values())

    @property
    def last_error(self) -> str:
        """What the last failure said; empty before the first."""
        return next((camera.last_error for camera in self._cameras.values() if camera.last_error), "")

    def publish(self, state: LineState) -> None:
        """Replace the state that is sent next; never waits for the broker.

        Raises:
            SinkError: If there is no such camera.
        """
        if state.camera not in self._cameras:
            raise SinkError(f"the MQTT output has no camera '{state.camera}'; it has {', '.join(self._cameras)}")
        self._cameras[state.camera].replace(state)


def state_payload(state: LineState | None) -> str:
    """Return a state as a message; None is what the last will says."""
    shown = LineState(camera="") if state is None else state
    accepted = accepted_trigger_id(shown)
    return to_json(
        {
            "online": state is not None,
            "state": "Offline" if state is None else shown.state.value,
            "ready": shown.ready,
            "busy": shown.busy,
            "result_valid": shown.result_valid,
            "fault": shown.fault,
            "fault_reason": shown.fault_reason,
            "accept": accepted != 0,
            "accepted_trigger_id": accepted,
            "trigger_id": shown.trigger_id,
            "verdict": None if shown.verdict is None else shown.verdict.value,
            "reason_code": shown.reason_code,
            "score": shown.score if shown.score is not None and abs(shown.score) < float("inf") else None,
            "product": shown.product,
        }
    )


class _CameraState:
    """The connection of one camera, with a thread that sends its newest state."""

    def __init__(self, config: MqttConfig, camera: str) -> None:
        base = f"{config.topic}/{camera}"
        self._camera, self._topic, self._answers = camera, f"{base}/state", f"{base}/command/answer"
        self._connection = MqttConnection(
            config,
            camera,
            will=(self._topic, state_payload(None)),
            on_message=self._on_command if config.commands else None,
            subscribe=f"{base}/command" if config.commands else None,
        )
        self.commands: LineCommands | None = None
        self.failures, self.last_error = 0, ""
        self._state = LineState(camera=camera)
        self._wake, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"snl-mqtt-{camera}", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def replace(self, state: LineState) -> None:
        """Have ``state`` sent next."""
        self._state = state
        self._wake.set()

    def stop(self) -> None:
        """Ask the thread to end."""
        self._stopped.set()
        self._wake.set()

    def join(self) -> None:
        """Wait for the thread."""
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            logger.warning("%s did not end within %.0f s", self._thread.name, CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._connection.open()
                self._send_until_stopped()
            except SnlError as error:
                if str(error) != self.last_error:  # once per outage, not per try
                    logger.warning("state of %s does not reach the broker: %s", self._camera, error)
                self.failures, self.last_error = self.failures + 1, str(error)
                self._connection.close()
                self._stopped.wait(RETRY_S)
        self._connection.close(last=(self._topic, state_payload(None)))

    def _send_until_stopped(self) -> None:
        """Send the newest state whenever there is one, until the end.

        Raises:
            SinkError: If the connection broke.
        """
        sent: LineState | None = None
        while not self._stopped.is_set():
            self._wake.clear()
            state = self._state
            if state is not sent:
                self._connection.publish([(self._topic, state_payload(state))], retain=True)
                sent = state
            self._wake.wait(RETRY_S)
            if self._connection.lost:
                raise SinkError(f"MQTT broker: {self._connection.lost}")

    def _on_command(self, _topic: str, payload: bytes, retained: bool) -> None:
        """Act on a command and answer it; a retained one would come again at every connection and is refused."""
        try:
            if retained:
                raise ValueError("commands must not be retained")
            answer = self._act(_command(payload))
        except (SnlError, ValueError) as error:
            logger.warning("MQTT command to %s was refused: %s", self._camera, error)
            answer = {"error": str(error)}
        self._connection.answer(self._answers, to_json(answer))

    def _act(self, command: dict[str, str | None]) -> dict[str, object]:
        if self.commands is None:
            raise ValueError(f"camera {self._camera} takes no commands")
        noted = {"id": command["id"], "command": command["command"]}
        if command["command"] == "trigger":
            return noted | {"trigger_id": self.commands.trigger(product=command["product"], part_id=command["part_id"])}
        if command["command"] == "reset":
            self.commands.reset()
            return dict(noted)
        raise ValueError(f"command must be trigger or reset, got {command['command']!r}")


def _command(payload: bytes) -> dict[str, str | None]:
    """Return the texts of a command, None where it has none.

    Raises:
        ValueError: If it is anything but one JSON object of texts with known keys.
    """
    if len(payload) > _LONGEST_COMMAND_BYTES:
        raise ValueError(f"a command is at most {_LONGEST_COMMAND_BYTES} bytes, got {len(payload)}")
    try:
        command = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a command is one JSON object: {error}") from error
    known = ("command", "id", "product", "part_id")
    if not isinstance(command, dict) or not set(command) <= set(known):
        raise ValueError(f"a command has the keys {', '.join(known)}")
    if not all(value is None or isinstance(value, str) for value in command.values()):
        raise ValueError("every value of a command is text")
    return {key: command.get(key) or None for key in known}
