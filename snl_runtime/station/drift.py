"""Whether a product still looks as it did at calibration: scores, brightness, sharpness and the share of parts that do not pass.

Pure: no clock, no file, no thread. Drift changes no verdict and no threshold; it tells people.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from snl_runtime.errors import ConfigError
from snl_runtime.images.frame_look import FrameLook
from snl_runtime.model.manifest import Decision
from snl_runtime.station.sequential_test import SequentialTest, upper_bound
from snl_runtime.types import AnomalyResult, Verdict

LEVELS = (0.5, 0.75, 0.9)
"""Quantiles of the reference sample that the line's values are compared with, and their mirror images for a trend downward."""
MIN_REFERENCE = 20
"""Good parts below which a reference sample says too little."""
RECENT_FRAMES = 50
"""Frames over which the mean that is shown is taken, each later frame with a weight of 1 / 50."""
ROW_OF_REJECTS = 5
"""Parts in a row that do not pass from which on an alarm asks for the product."""

Direction = Literal["higher", "lower"]

_TRENDS: tuple[tuple[str, Direction], ...] = (
    ("score", "higher"),
    ("score", "lower"),
    ("brightness", "higher"),
    ("brightness", "lower"),
    ("sharpness", "higher"),
    ("sharpness", "lower"),
    ("rejects", "higher"),
)
_SAMPLE_OF = {"score": "scores", "brightness": "brightness", "sharpness": "sharpness"}
_ADVICE = {
    ("score", "higher"): "look at the parts, light, lens and material; calibrate again if the parts are good",
    ("score", "lower"): "look at the camera and its focus: a picture that shows less scores lower and hides defects",
    ("brightness", "higher"): "check lamp, exposure and stray light",
    ("brightness", "lower"): "check lamp, exposure and a dirty lens",
    ("sharpness", "higher"): "check focus, exposure and gain: noise looks sharp",
    ("sharpness", "lower"): "check focus, a dirty lens and motion",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftConfig:
    """How drift is watched for."""

    enabled: bool = True
    """Watch for drift."""
    average_run_length: int = 1_000_000
    """Frames of a product from start to a false alarm, on average at least: so one within n frames has a probability of at most n / this."""
    max_reject_rate: float = 0.05
    """Share of parts that may not pass without an alarm, above 0 and below 1."""
    reference_confidence: float = 0.99
    """Probability, over repeated calibrations, that the bound on false alarms holds, as the good parts are a sample; above 0 and below 1."""
    on_alarm: Literal["notice", "fault"] = "notice"
    """What an alarm does: tell people, or also set the station's Fault until somebody acknowledges it."""
    folder: str | None = None
    """Folder where the evidence so far is kept, so that a restart forgets none; None keeps it in memory."""

    def __post_init__(self) -> None:
        if self.average_run_length < 100:
            raise ConfigError(f"drift.average_run_length must be at least 100 frames, got {self.average_run_length}")
        for name in ("max_reject_rate", "reference_confidence"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"drift.{name} must be above 0 and below 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrendState:
    """One figure in one direction.

    Attributes:
        signal: ``score``, ``brightness``, ``sharpness`` or ``rejects``.
        direction: ``higher`` or ``lower`` than at calibration.
        evidence: 0 for none to 1 for an alarm, on a logarithmic scale.
        recent: Mean of the last frames, later ones weighing more; None before the first.
        reference: The 10th, 50th and 90th percentile of the good parts of the calibration; of ``rejects`` the allowed share, three times.
        alarm: What is wrong and what to do; None without an alarm. It stays until it is acknowledged.
        since: When the alarm came, seconds since the epoch, UTC; None without one.
    """

    signal: str
    direction: Direction
    evidence: float
    recent: float | None
    reference: tuple[float, float, float]
    alarm: str | None
    since: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftState:
    """What is known about the drift of one product.

    Attributes:
        product: Its name.
        frames: Frames so far, also of earlier processes, since the calibration or the last acknowledgment.
        not_passed_in_a_row: Latest frames one after the other that did not pass.
        trends: What is tested.
        notes: What is not, and why, one sentence each.
    """

    product: str
    frames: int
    not_passed_in_a_row: int
    trends: tuple[TrendState, ...]
    notes: tuple[str, ...]

    @property
    def alarms(self) -> tuple[TrendState, ...]:
        """The trends that raised an alarm."""
        return tuple(trend for trend in self.trends if trend.alarm is not None)

    def as_plain(self) -> dict[str, Any]:
        """Return the state as plain values of JSON."""
        return asdict(self)


class _Trend:
    """One figure in one direction: which values count as events, and the test of how often they come."""

    def __init__(
        self, signal: str, direction: Direction, limits: Sequence[float], bounds: Sequence[float], shown: tuple[float, float, float]
    ) -> None:
        self.signal, self.direction, self.shown = signal, direction, shown
        self.test = SequentialTest(bounds)
        self._limits = tuple(limits)
        self.recent: float | None = None
        self.alarm: str | None = None
        self.since: float | None = None
        self._weight = 0

    def update(self, value: float) -> float:
        self._weight = min(self._weight + 1, RECENT_FRAMES)
        self.recent = value if self.recent is None else self.recent + (value - self.recent) / self._weight
        if self.direction == "higher":
            return self.test.update([value > limit for limit in self._limits])
        return self.test.update([value < limit for limit in self._limits])

    def reset(self) -> None:
        self.test.reset()
        self.alarm = self.since = None


class DriftMonitor:
    """Tests the frames of one product against its calibration, one after the other; one thread at a time.

    Args:
        config: Rates.
        decision: The product's decision in force, with its reference sample.
    """

    def __init__(self, config: DriftConfig, decision: Decision) -> None:
        self.product = decision.product
        self._config = config
        self._threshold = float(config.average_run_length) * len(_TRENDS)
        self._trends = {(trend.signal, trend.direction): trend for trend in _make_trends(config, decision)}
        self._notes = _notes_on(decision)
        self._key = _identity(config, decision)
        self._frames = 0
        self._row = 0

    @property
    def state(self) -> DriftState:
        """What is known now."""
        return DriftState(
            product=self.product,
            frames=self._frames,
            not_passed_in_a_row=self._row,
            trends=tuple(self._state_of(trend) for trend in self._trends.values()),
            notes=self._notes,
        )

    def update(self, look: FrameLook | None, result: AnomalyResult, *, captured_at: float) -> DriftState:
        """Take one frame and return what is known then.

        Args:
            look: Brightness and sharpness of its inspected part; None where the frame could not be measured.
            result: Its final result. One without a score counts for brightness and sharpness only: a camera that fails is no drift.
            captured_at: Seconds since the epoch, for the time of an alarm.
        """
        values: dict[str, float] = {}
        if look is not None:
            values |= {"brightness": look.brightness, "sharpness": look.sharpness}
        if math.isfinite(result.score):
            is_passed = result.verdict is Verdict.PASS
            values |= {"score": result.score, "rejects": 0.0 if is_passed else 1.0}
            self._row = 0 if is_passed else self._row + 1
        self._frames += bool(values)
        for trend in self._trends.values():
            value = values.get(trend.signal)
            if value is not None and trend.update(value) >= self._threshold and trend.alarm is None:
                trend.alarm, trend.since = self._alarm_text(trend), captured_at
        return self.state

    def acknowledge(self) -> None:
        """Clear the alarms and begin anew, because a person has looked; what drifts on raises another one."""
        self._frames = self._row = 0
        for trend in self._trends.values():
            trend.reset()

    def to_plain(self) -> dict[str, Any]:
        """Return everything that a restart must not forget, as plain values of JSON."""
        return {
            "key": self._key,
            "frames": self._frames,
            "row": self._row,
            "trends": [
                {
                    "signal": trend.signal,
                    "direction": trend.direction,
                    "evidence": trend.test.evidence,
                    "recent": trend.recent,
                    "alarm": trend.alarm,
                    "since": trend.since,
                }
                for trend in self._trends.values()
            ],
        }

    def restore(self, plain: Mapping[str, Any]) -> bool:
        """Go on from what :meth:`to_plain` gave; return false, and begin anew, where that was under another decision or other rates.

        Raises:
            ValueError: If it has another form.
        """
        try:
            if plain["key"] != self._key:
                return False
            for kept in plain["trends"]:
                trend = self._trends[kept["signal"], kept["direction"]]
                trend.test.restore(kept["evidence"])
                trend.recent = None if kept["recent"] is None else float(kept["recent"])
                trend.alarm, trend.since = kept["alarm"], kept["since"]
            self._frames, self._row = int(plain["frames"]), int(plain["row"])
        except (KeyError, TypeError, ValueError) as error:
            self.acknowledge()
            raise ValueError(f"the evidence kept for product {self.product!r} cannot be read: {error!r}") from error
        return True

    def _state_of(self, trend: _Trend) -> TrendState:
        return TrendState(
            signal=trend.signal,
            direction=trend.direction,
            evidence=min(1.0, math.log1p(trend.test.statistic) / math.log1p(self._threshold)),
            recent=trend.recent,
            reference=trend.shown,
            alarm=trend.alarm,
            since=trend.since,
        )

    def _alarm_text(self, trend: _Trend) -> str:
        name = f"product {self.product!r}"
        if trend.signal != "rejects":
            figures = f"lately {trend.recent:.4g}, at calibration mostly {trend.shown[0]:.4g} to {trend.shown[2]:.4g}"
            return f"{name}: the {trend.signal} is {trend.direction} than at calibration ({figures}); {_ADVICE[trend.signal, trend.direction]}"
        if self._row >= ROW_OF_REJECTS:
            return (
                f"{name}: {self._row} parts in a row did not pass; check whether another product is on the line, or its name is wrong, "
                "then light, lens and camera"
            )
        return f"{name}: more than {100 * self._config.max_reject_rate:.3g} % of the parts do not pass; look at the parts, then at light and lens"


def _make_trends(config: DriftConfig, decision: Decision) -> list[_Trend]:
    reference = decision.reference
    error = (1 - config.reference_confidence) / ((len(_TRENDS) - 1) * len(LEVELS))
    trends = []
    for signal, direction in _TRENDS:
        if signal == "rejects":
            rate = config.max_reject_rate
            trends.append(_Trend(signal, direction, [0.5], [rate], shown=(rate, rate, rate)))
            continue
        values: list[float] = [] if reference is None else getattr(reference, _SAMPLE_OF[signal])
        count = len(values)
        if count < MIN_REFERENCE:
            continue
        ranks = [math.ceil(level * count) for level in LEVELS]
        limits = [values[rank - 1] if direction == "higher" else values[count - rank] for rank in ranks]
        # Up to max_reject_rate of the parts may be bad and look like anything.
        bounds = [_either(upper_bound(rank, count, error), config.max_reject_rate) for rank in ranks]
        shown = (values[count // 10], values[count // 2], values[count - 1 - count // 10])
        trends.append(_Trend(signal, direction, limits, bounds, shown=shown))
    return trends


def _either(first: float, second: float) -> float:
    return 1 - (1 - first) * (1 - second)


def _notes_on(decision: Decision) -> tuple[str, ...]:
    reference = decision.reference
    if reference is None:
        return (f"no reference for product {decision.product!r}: only the share of parts that do not pass is watched; calibrate again",)
    notes = []
    if not reference.scores:
        notes.append(f"no reference scores for product {decision.product!r} on this engine; calibrate the engine itself to watch its scores")
    if 0 < min(len(reference.brightness), len(reference.scores) or MIN_REFERENCE) < MIN_REFERENCE:
        count = len(reference.brightness)
        notes.append(f"the reference of product {decision.product!r} has {count} good parts, expected at least {MIN_REFERENCE}; calibrate with more")
    return tuple(notes)


def _identity(config: DriftConfig, decision: Decision) -> str:
    """Name what the evidence is evidence against."""
    parts = (decision.product, decision.model_sha256, decision.sample_sha256, decision.fitted_at, config.max_reject_rate, config.reference_confidence)
    return hashlib.sha256(repr((parts, LEVELS, decision.reference)).encode()).hexdigest()
