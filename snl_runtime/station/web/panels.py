"""What the screen shows beside the station itself; each part may be missing."""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from snl_runtime.station.outbox import OutboxCounts


class DriftLevel(enum.Enum):
    """How a watched figure stands."""

    STABLE = "stable"
    """Nothing speaks for a change since commissioning."""
    LEARNING = "learning"
    """Not enough parts yet."""
    DRIFT = "drift"
    """It has changed, with the stated false-alarm rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftLine:
    """One line of the drift panel.

    Attributes:
        product: Product that is watched.
        figure: What is watched, e.g. ``brightness``.
        level: How it stands.
        text: The figure now and at commissioning, for a person.
    """

    product: str
    figure: str
    level: DriftLevel
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WebPanels:
    """Where the screen asks for what the station does not know itself; called a few times per second, must not wait.

    Attributes:
        title: Heading of the page.
        drift: Lines of the drift panel; None if drift is not watched.
        outboxes: Counters of each consumer elsewhere.
        notes: What the detector has to say about its model.
    """

    title: str = "Inspection"
    drift: Callable[[], Sequence[DriftLine]] | None = None
    outboxes: Sequence[Callable[[], OutboxCounts]] = ()
    notes: Callable[[], Sequence[str]] = tuple
