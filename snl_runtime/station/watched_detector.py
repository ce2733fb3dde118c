"""A detector that others can see working, and whose failures are faults instead of the end of a line."""

import logging
import math
from collections.abc import Callable

from snl_runtime.line.pipeline import Detector
from snl_runtime.types import AnomalyResult, ColorOrder, StageTimings, Verdict

FAULTS = ("timeout", "backend_busy", "golden_mismatch")
"""Reason codes of ERROR that say the detector cannot be trusted with the next part either."""

logger = logging.getLogger(__name__)


class WatchedDetector:
    """Calls the shared detector for one camera.

    Args:
        detector: The shared one.
        on_fault: Told why the detector cannot be trusted.
    """

    def __init__(self, detector: Detector, on_fault: Callable[[str], None]) -> None:
        self._detector = detector
        self._on_fault = on_fault
        self.is_calling = False
        """Whether a call has not come back."""

    @property
    def model_sha256(self) -> str:
        """Hash of the detector's file; empty if it does not say."""
        return getattr(self._detector, "model_sha256", "")

    def detect(self, image: object, *, color: ColorOrder = "bgr", product: str | None = None) -> AnomalyResult:
        """Return the detector's result; ERROR ``detector_failed`` and a fault if it raises."""
        self.is_calling = True
        try:
            result = self._detector.detect(image, color=color, product=product)
        except Exception as failure:
            logger.exception("the detector failed")
            reason = f"the detector failed: {failure or type(failure).__name__}"
            self._on_fault(reason)
            return self._failed(reason, product)
        finally:
            self.is_calling = False
        if result.verdict is Verdict.ERROR and result.reason_code in FAULTS:
            self._on_fault(f"the detector cannot be trusted now: {result.reason}")
        return result

    def _failed(self, reason: str, product: str | None) -> AnomalyResult:
        return AnomalyResult(
            verdict=Verdict.ERROR,
            reason_code="detector_failed",
            reason=reason,
            score=math.nan,
            threshold=math.nan,
            reject_threshold=math.nan,
            product=product,
            anomaly_map=None,
            roi_xyxy=None,
            regions=(),
            timings=StageTimings(),
            model_sha256=self.model_sha256,
        )
