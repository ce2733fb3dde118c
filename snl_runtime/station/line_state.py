"""What a station tells the line at one moment, and what the line may ask of it."""

import enum
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from snl_runtime.types import Verdict


class StationState(enum.Enum):
    """The states of a vision system after OPC 40100-1, as far as a station has them."""

    INITIALIZED = "Initialized"
    """Opened, not yet able to take a trigger: no accept, no result."""
    READY = "Ready"
    """Waits for a trigger."""
    SINGLE_EXECUTION = "SingleExecution"
    """A part is inspected on command: busy until its answer."""
    CONTINUOUS_EXECUTION = "ContinuousExecution"
    """Every frame of the camera is a part."""
    HALTED = "Halted"
    """Stopped: no accept, no trigger is taken."""
    ERROR = "Error"
    """A fault: no accept, no trigger is taken until it is reset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LineState:
    """What every output publishes, whole and at once.

    Attributes:
        camera: Name of the camera in the station file.
        state: State after OPC 40100-1.
        ready: A trigger would be taken now.
        busy: A trigger waits for its answer.
        result_valid: ``verdict``, ``reason_code``, ``score`` and ``product`` are the answer to ``trigger_id``.
        fault: The station cannot be trusted; ``fault_reason`` says why. Only a reset ends it.
        accept: True only for the PASS that answers ``trigger_id``: false at start, at every new trigger, on REVIEW, REJECT, ERROR, in a fault and
            after a lost heartbeat.
        trigger_id: The current trigger, counted from 1; 0 before the first.
        verdict: The answer; None until there is one.
        reason_code: Its reason, stable across releases; empty until there is one.
        score: Its raw anomaly score; None if there is none.
        product: Product of the current trigger; None if not named.
        fault_reason: One sentence; empty without a fault.
    """

    camera: str
    state: StationState = StationState.INITIALIZED
    ready: bool = False
    busy: bool = False
    result_valid: bool = False
    fault: bool = False
    accept: bool = False
    trigger_id: int = 0
    verdict: Verdict | None = None
    reason_code: str = ""
    score: float | None = None
    product: str | None = None
    fault_reason: str = ""


class LineCommands(Protocol):
    """What an output that also listens (OPC UA, Modbus, MQTT, HTTP) may ask of one camera; any thread."""

    def trigger(self, *, product: str | None = None, part_id: str | None = None) -> int:
        """Begin one inspection and return its trigger id.

        Raises:
            TriggerRefusedError: If the station is not ready; a trigger that is refused has no record and no answer.
        """
        ...

    def reset(self) -> None:
        """End a fault, if its cause is gone; the accept output stays false until the next PASS."""
        ...

    def heartbeat(self) -> None:
        """Say that the line still listens; where a heartbeat is configured, its loss is a fault."""
        ...


class LineOutput(AbstractContextManager["LineOutput"], Protocol):
    """Tells the line in this process's own server or registers; entered before the first trigger, left after the last answer."""

    def bind(self, commands: dict[str, LineCommands]) -> None:
        """Give the commands of each camera by its name; before it is entered."""
        ...

    def publish(self, state: LineState) -> None:
        """Replace what the line sees of one camera, whole; returns at once and never waits for a client.

        Raises:
            SinkError: If the line could not be told; the station then faults.
        """
        ...
