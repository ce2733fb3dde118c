"""When one camera must have answered, and what it does when it cannot."""

import math
from dataclasses import dataclass, field

from snl_runtime.errors import ConfigError
from snl_runtime.line.handoff import OverflowPolicy
from snl_runtime.station.triggered import TriggerConfig, TriggerMode


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitConfig:
    """When one camera must have answered, and what it does when it cannot."""

    deadline_ms: float | None = 1000.0
    """Longest time from a trigger to its answer; then the answer is ERROR. Null, with ``each_frame`` only, waits without limit."""
    record_margin_ms: float = 50.0
    """How long before the deadline a trigger without a verdict becomes ERROR, so that its record is durable before the line is told."""
    missed_before_fault: int = 1
    """Deadlines missed one after the other that are a fault."""
    bad_frames_before_fault: int | None = 5
    """Frames of a camera that did not come, or not whole, one after the other, that are a fault (a frozen camera); null for never."""
    heartbeat_timeout_ms: float | None = None
    """Longest silence of the line before it is a fault; null if the line sends no heartbeat."""
    policy: OverflowPolicy | None = None
    """What happens to a frame when the detector is busy: every, latest or drop_oldest; null for the source's own."""
    frame_capacity: int | None = None
    """Most frames that wait for the detector; null for 1 with latest and 4 otherwise."""
    products: tuple[str, ...] = ()
    """Products that a command may name; empty for any."""
    trigger: TriggerConfig = field(default_factory=TriggerConfig)
    """What a trigger is."""

    def __post_init__(self) -> None:
        is_command = self.trigger.mode is TriggerMode.COMMAND
        deadline_ms = math.inf if self.deadline_ms is None else self.deadline_ms
        if is_command and self.deadline_ms is None:
            raise ConfigError("deadline_ms must be given with trigger.mode command: a command is answered within a time")
        if not 0 <= self.record_margin_ms < deadline_ms:
            raise ConfigError(f"record_margin_ms must be 0 or more and less than deadline_ms, got {self.record_margin_ms} and {self.deadline_ms}")
        for name in ("missed_before_fault", "bad_frames_before_fault", "frame_capacity"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.heartbeat_timeout_ms is not None and not self.heartbeat_timeout_ms > 0:
            raise ConfigError(f"heartbeat_timeout_ms must be positive, got {self.heartbeat_timeout_ms}; use null for no heartbeat")
        if is_command and self.trigger.frame_timeout_ms + self.record_margin_ms >= deadline_ms:
            raise ConfigError(
                f"trigger.frame_timeout_ms must leave time before deadline_ms less record_margin_ms "
                f"({deadline_ms - self.record_margin_ms:g}), got {self.trigger.frame_timeout_ms:g}"
            )
        if is_command and self.policy not in (None, OverflowPolicy.EVERY):
            raise ConfigError(f"policy must be every with trigger.mode command, got {self.policy.value if self.policy else None}")
