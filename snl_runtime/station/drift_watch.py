"""Watches every product of one camera for drift, as a sink of its results, and keeps the evidence across restarts."""

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from snl_runtime.config import canonical_json, parse_json
from snl_runtime.errors import ConfigError, FrameError, SinkError
from snl_runtime.files import atomic_write_text
from snl_runtime.images.frame_look import FrameLook, measure_look
from snl_runtime.model.manifest import Decision
from snl_runtime.station.drift import DriftConfig, DriftMonitor, DriftState, TrendState
from snl_runtime.types import AnomalyResult, Frame

FRAMES_BETWEEN_SAVES = 50
"""A process that is killed forgets the evidence of fewer frames than this; an alarm is saved before it is told."""

logger = logging.getLogger(__name__)


class DriftWatch:
    """One :class:`DriftMonitor` per product; states may be asked for from any thread.

    Args:
        config: Rates, and what an alarm does.
        decisions: What is in force for the file that scores: ``Manifest.decisions_for``.
        camera: Name of the camera, which names the file of its evidence.
        on_alarm: Called once per alarm, on the thread of :meth:`emit`.

    Raises:
        ConfigError: If a file cannot have the camera's name.
    """

    def __init__(
        self, config: DriftConfig, decisions: Mapping[str, Decision], *, camera: str, on_alarm: Callable[[TrendState], None] = lambda _: None
    ) -> None:
        if not camera or camera != Path(camera).name:
            raise ConfigError(f"the camera's name must be one that a file can have, to keep the evidence of its drift, got {camera!r}")
        self._config = config
        self._decisions = dict(decisions)
        self._monitors = {product: DriftMonitor(config, decision) for product, decision in decisions.items()}
        self._path = None if config.folder is None else Path(config.folder) / f"{camera}.drift.json"
        self._on_alarm = on_alarm
        self._lock = threading.Lock()
        self._unsaved = 0

    def __enter__(self) -> "DriftWatch":
        if self._path is not None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise SinkError(f"cannot make the folder {self._path.parent}: {error.strerror or error}; check drift.folder") from error
            self._load(self._path)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            if self._unsaved:
                self._save()

    @property
    def faults(self) -> tuple[str, ...]:
        """Why the station must show Fault: the alarms, where they are to do that; empty otherwise."""
        if self._config.on_alarm != "fault":
            return ()
        return tuple(trend.alarm for state in self.states().values() for trend in state.alarms if trend.alarm is not None)

    def states(self) -> dict[str, DriftState]:
        """Return what is known about each product."""
        with self._lock:
            return {product: monitor.state for product, monitor in self._monitors.items()}

    def acknowledge(self, product: str) -> None:
        """Clear the alarms of a product and begin anew.

        Raises:
            ConfigError: If there is no such product.
            SinkError: If that cannot be kept; a restart then shows the alarms again.
        """
        with self._lock:
            monitor = self._monitors.get(product)
            if monitor is None:
                raise ConfigError(f"there is no product {product!r} to acknowledge; there are {', '.join(sorted(self._monitors)) or 'none'}")
            monitor.acknowledge()
            logger.info("drift of product %r acknowledged", product)
            self._save(must=True)

    def emit(self, frame: Frame, result: AnomalyResult) -> None:
        """Take one final result; a frame of no single product counts for none."""
        monitor = None if result.product is None else self._monitors.get(result.product)
        if monitor is None or not self._config.enabled:
            return
        look = _look_of(frame, result, self._decisions[monitor.product])
        with self._lock:
            before = {(trend.signal, trend.direction) for trend in monitor.state.alarms}
            state = monitor.update(look, result, captured_at=frame.captured_at)
            new = [trend for trend in state.alarms if (trend.signal, trend.direction) not in before]
            self._unsaved += 1
            if new or self._unsaved >= FRAMES_BETWEEN_SAVES:
                self._save()
        for trend in new:
            logger.warning("drift: %s", trend.alarm)
            self._on_alarm(trend)

    def _save(self, *, must: bool = False) -> None:
        self._unsaved = 0
        if self._path is None:
            return
        document: dict[str, Any] = {"schema": 1, "products": {product: monitor.to_plain() for product, monitor in self._monitors.items()}}
        try:
            atomic_write_text(self._path, canonical_json(document) + "\n")
        except SinkError:
            if must:
                raise
            logger.warning("the evidence of drift was not kept; it is tried again", exc_info=True)

    def _load(self, path: Path) -> None:
        if not path.exists():
            return
        try:
            products = parse_json(path.read_text(encoding="utf-8"), error=ConfigError).get("products")
            for product, plain in dict(products or {}).items():
                if product in self._monitors and not self._monitors[product].restore(plain):
                    logger.info("drift of product %r begins anew: it was calibrated again, or the rates changed", product)
        except (OSError, ValueError, TypeError, ConfigError) as error:
            logger.warning("%s cannot be read (%s): drift begins anew", path, error)


def _look_of(frame: Frame, result: AnomalyResult, decision: Decision) -> FrameLook | None:
    if frame.image is None:
        return None
    try:
        return measure_look(frame.image, frame.color, decision.roi_xyxy, result.bit_depth)
    except FrameError:  # unusable, or on a GPU; the verdict says so
        return None
