"""A part of the camera's frame in the place of the whole: judged as a frame of its own, told in pixels of the camera."""

import dataclasses
import math

import numpy as np

from snl_runtime.line.pipeline import Detector
from snl_runtime.types import AnomalyRegion, AnomalyResult, ColorOrder, Verdict


class CroppedDetector:
    """Shows a detector one part of every frame; its boxes come back in pixels of the whole frame.

    The detector checks the size of the part as that of a frame, so a decision holds only for a crop of the size that it was fitted on. A frame that
    does not hold the whole crop is ERROR ``frame_size``.

    Args:
        detector: Judges the part; opened and closed by the caller.
        crop_xyxy: Left, top, right, bottom in frame pixels, right and bottom exclusive.
    """

    def __init__(self, detector: Detector, crop_xyxy: tuple[int, int, int, int]) -> None:
        self._detector = detector
        self._crop_xyxy = crop_xyxy

    @property
    def model_sha256(self) -> str:
        """Hash of the detector's model."""
        return str(getattr(self._detector, "model_sha256", ""))

    def detect(self, image: object, *, color: ColorOrder = "bgr", product: str | None = None) -> AnomalyResult:
        """Return the verdict on the part; see ``SnlDetector.detect``."""
        left, top, right, bottom = self._crop_xyxy
        if not isinstance(image, np.ndarray) or image.ndim < 2:
            return self._detector.detect(image, color=color, product=product)
        height, width = image.shape[:2]
        if right > width or bottom > height:
            reason = f"the frame has {width} x {height} pixels and does not hold the crop {left},{top},{right},{bottom} of the station file"
            return self._refuse(reason, color, product)
        result = self._detector.detect(np.ascontiguousarray(image[top:bottom, left:right]), color=color, product=product)
        return dataclasses.replace(
            result,
            roi_xyxy=None if result.roi_xyxy is None else _moved(result.roi_xyxy, left, top),
            regions=tuple(_moved_region(region, left, top) for region in result.regions),
        )

    def _refuse(self, reason: str, color: ColorOrder, product: str | None) -> AnomalyResult:
        unusable = self._detector.detect(None, color=color, product=product)
        return dataclasses.replace(unusable, verdict=Verdict.ERROR, reason_code="frame_size", reason=reason, score=math.nan)


def _moved(box_xyxy: tuple[int, int, int, int], left: int, top: int) -> tuple[int, int, int, int]:
    return box_xyxy[0] + left, box_xyxy[1] + top, box_xyxy[2] + left, box_xyxy[3] + top


def _moved_region(region: AnomalyRegion, left: int, top: int) -> AnomalyRegion:
    return dataclasses.replace(region, box_xyxy=_moved(region.box_xyxy, left, top))
