"""When a station scores its golden samples again: on a schedule, and never while a part waits for its answer."""

import logging
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from snl_runtime.errors import BackendTimeoutError, ConfigError
from snl_runtime.types import SelfTestResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTestConfig:
    """How often the golden samples are scored while the station runs; they always are when it starts."""

    every_s: float | None = None
    """Seconds from the end of one self-test to the next; None scores them at the start and on demand only."""
    quiet_s: float = 0.5
    """Seconds without an open trigger before a self-test may begin: the pause between two parts should be longer than this and the self-test."""

    def __post_init__(self) -> None:
        if self.every_s is not None and not 1 <= self.every_s < math.inf:
            raise ConfigError(f"self_test.every_s must be at least 1 s, or null for never, got {self.every_s}")
        if not 0 <= self.quiet_s < math.inf:
            raise ConfigError(f"self_test.quiet_s must be at least 0 s, got {self.quiet_s}")


class SelfTestSchedule:
    """Runs the self-test when it is due and the line is quiet; whoever owns the triggers asks :meth:`run_if_due` between parts.

    A part that is triggered while a self-test runs waits for its end, so its deadline must leave room for it; :attr:`last` says how long that is.

    Args:
        config: How often.
        self_test: ``SnlDetector.self_test``.
        now_s: Seconds of a steady clock, e.g. ``time.monotonic``.
    """

    def __init__(self, config: SelfTestConfig, self_test: Callable[[], SelfTestResult], now_s: Callable[[], float]) -> None:
        self._config = config
        self._self_test = self_test
        self._now_s = now_s
        self._lock = threading.Lock()
        self._ended_s = self._quiet_since_s = now_s()
        self._asked = False
        self._last: SelfTestResult | None = None
        self._not_run = ""

    @property
    def last(self) -> SelfTestResult | None:
        """The newest result; None before the first."""
        return self._last

    def ask(self) -> None:
        """Make the self-test due now, whatever the schedule says; it still waits until no trigger is open."""
        self._asked = True

    def is_due(self) -> bool:
        """Return whether it should run as soon as the line is quiet."""
        every_s = self._config.every_s
        return self._asked or (every_s is not None and self._now_s() - self._ended_s >= every_s)

    def run_if_due(self, *, has_open_trigger: bool) -> SelfTestResult | None:
        """Run the self-test if it is due and no trigger was open for ``quiet_s``, and return its result; None if it did not run.

        Call it a few times per second, on a thread that may wait for the backend.

        Raises:
            DetectorClosedError: If the detector is closed.
        """
        with self._lock:
            if has_open_trigger:
                self._quiet_since_s = self._now_s()
                return None
            if not self.is_due() or self._now_s() - self._quiet_since_s < self._config.quiet_s:
                return None
            return self._run()

    def state(self) -> Mapping[str, Any]:
        """Return what a screen shows, as plain values of JSON."""
        last, now_s = self._last, self._now_s()
        every_s = self._config.every_s
        return {
            "every_s": every_s,
            "next_in_s": None if every_s is None else max(0.0, every_s - (now_s - self._ended_s)),
            "passed": None if last is None else last.passed,
            "largest_difference": None if last is None else last.largest_difference,
            "tolerance": None if last is None else last.tolerance,
            "elapsed_ms": None if last is None else last.elapsed_ms,
            "reason": self._not_run or ("" if last is None else last.reason),
        }

    def _run(self) -> SelfTestResult | None:
        try:
            self._last = self._self_test()
            self._not_run = ""
        except BackendTimeoutError as busy:  # nothing was learned: it stays due, and quiet_s passes before the next try
            self._not_run = str(busy)
            self._quiet_since_s = self._now_s()
            return None
        self._asked = False
        self._ended_s = self._now_s()
        if not self._last.passed:
            logger.error("self-test failed: %s", self._last.reason)
        return self._last
