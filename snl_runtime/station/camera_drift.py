"""Watches the cameras of a station for drift: what an alarm does to the line, and what the screen shows of it."""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from types import TracebackType

from snl_runtime.model.manifest import Decision
from snl_runtime.station.drift import DriftConfig, TrendState
from snl_runtime.station.drift_watch import DriftWatch
from snl_runtime.station.line_state import LineState
from snl_runtime.station.station import Station
from snl_runtime.station.web.panels import DriftLevel, DriftLine
from snl_runtime.types import AnomalyResult, Frame

CAUSE = "drift"

logger = logging.getLogger(__name__)


class CameraDrift:
    """One :class:`DriftWatch` per camera, fed with the station's final results; entered before the station and left after it.

    With ``on_alarm: fault`` an alarm faults every camera until somebody resets them; the alarm itself stays on the screen until the product is
    calibrated again or :meth:`DriftWatch.acknowledge` is called.

    Args:
        config: Rates, and what an alarm does.
        decisions: What is in force for the file that scores: ``Manifest.decisions_for``.
        cameras: Their names.
    """

    def __init__(self, config: DriftConfig, decisions: Mapping[str, Decision], cameras: Sequence[str]) -> None:
        self._is_fault = config.on_alarm == "fault"
        self._station: Station | None = None
        self._watches = {name: DriftWatch(config, decisions, camera=name, on_alarm=self._alarm) for name in cameras}
        self._opened = contextlib.ExitStack()

    def watch(self, station: Station) -> None:
        """Take the final results of a station."""
        self._station = station
        station.subscribe(self._take)

    def lines(self) -> list[DriftLine]:
        """Return the lines of the screen's panel, alarms first."""
        named = [
            (self._label(camera, product), trend)
            for camera, watch in self._watches.items()
            for product, state in watch.states().items()
            for trend in state.trends
        ]
        return sorted((_line(label, trend) for label, trend in named), key=lambda line: line.level is not DriftLevel.DRIFT)

    def __enter__(self) -> "CameraDrift":
        with contextlib.ExitStack() as opened:
            for watch in self._watches.values():
                opened.enter_context(watch)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._opened.close()

    def _take(self, frame: Frame, result: AnomalyResult, state: LineState) -> None:
        self._watches[state.camera].emit(frame, result)

    def _alarm(self, trend: TrendState) -> None:
        if not self._is_fault or self._station is None:
            return
        report = self._station.on_fault(CAUSE)
        report(trend.alarm or "drift")
        report(None)  # a reset by a person ends the fault; the alarm stays on the screen

    def _label(self, camera: str, product: str) -> str:
        return product if len(self._watches) == 1 else f"{camera}: {product}"


def _line(label: str, trend: TrendState) -> DriftLine:
    figure = f"{trend.signal}, {trend.direction}"
    if trend.alarm is not None:
        return DriftLine(product=label, figure=figure, level=DriftLevel.DRIFT, text=trend.alarm)
    if trend.recent is None:
        return DriftLine(product=label, figure=figure, level=DriftLevel.LEARNING, text="no part yet")
    low, middle, high = trend.reference
    text = f"{trend.recent:.3g}; at calibration {middle:.3g} ({low:.3g} to {high:.3g})"
    return DriftLine(product=label, figure=figure, level=DriftLevel.STABLE, text=text)
