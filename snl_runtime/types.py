"""Values handed from one stage to the next."""

import enum
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from snl_runtime.errors import ConfigError

Image: TypeAlias = npt.NDArray[np.uint8]
"""(H, W, 3) uint8, RGB unless a name says otherwise."""
AnomalyMap: TypeAlias = npt.NDArray[np.float32]
"""(H, W) float32 raw scores, 0 where teacher and student agree, unbounded above."""
Mask: TypeAlias = npt.NDArray[np.bool_]
"""(H, W) bool, True where anomalous."""
ColorOrder: TypeAlias = Literal["rgb", "bgr", "rgba", "bgra", "gray"]
"""What the last axis of a frame means; ``gray`` is (H, W) or (H, W, 1)."""

BIT_DEPTHS = (8, 10, 12, 14, 16)
"""How many bits of a value a camera uses: 8 in uint8, the others in uint16 with the highest bits 0."""


class Verdict(enum.Enum):
    """What is decided about one part."""

    PASS = "PASS"
    """Positive evidence that the part is good."""
    REVIEW = "REVIEW"
    """Above the pass threshold, not above the reject threshold: a person looks."""
    REJECT = "REJECT"
    """Above the reject threshold."""
    ERROR = "ERROR"
    """Not inspected: evidence is missing or a fault occurred. Never treat it as good."""


class DetectorState(enum.Enum):
    """What an opened model may be trusted with."""

    UNCHECKED = "unchecked"
    """No golden sample was scored yet, or the model has none: frames are scored, and every verdict is ERROR."""
    READY = "ready"
    """The golden samples agreed in this process, on this backend, and it has not failed since."""
    FAILED = "failed"
    """The backend failed or did not answer in time: before the next frame it is opened again and checked."""
    CLOSED = "closed"
    """Frames are refused."""


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view


# eq=False below: comparing arrays with == is elementwise, so a generated __eq__ would raise.
@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Frame:
    """One image as captured, before any cropping or resizing.

    Attributes:
        image: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 or uint16, as a read-only view; None for a frame that was announced but never
            arrived whole (bad buffer): it is inspected to ERROR, never replaced by another image.
        color: Meaning of the last axis of ``image``.
        index: Position in the source, counted from 0; dropped frames count too.
        captured_ns: ``time.monotonic_ns()`` when the frame left the driver.
        captured_at: Wall clock at the same moment, seconds since the epoch, UTC.
        source_id: Where the frame came from, credentials removed: file path, URL or camera name.
        device_frame_id: The device's own counter, None if it has none.
        product: Product named by the source (e.g. a folder name), None if it names none.
        fault: Why ``image`` is None, in one sentence; None for a whole frame.
        trigger_id: The station's number of the trigger that this frame answers, counted from 1; None outside a station.
        part_id: What the line calls the part (a serial number, a carrier), as it came with the trigger; None if it named none.
    """

    image: npt.NDArray[Any] | None
    color: ColorOrder
    index: int
    captured_ns: int
    captured_at: float
    source_id: str
    device_frame_id: int | None = None
    product: str | None = None
    fault: str | None = None
    trigger_id: int | None = None
    part_id: str | None = None

    def __post_init__(self) -> None:
        if self.image is not None:
            object.__setattr__(self, "image", _read_only(self.image))


@dataclass(frozen=True, slots=True, kw_only=True)
class AnomalyRegion:
    """A connected area of the anomaly map above the pass threshold.

    Attributes:
        box_xyxy: Left, top, right, bottom in frame pixels; right and bottom are exclusive.
        score: Highest anomaly map value inside the area.
        area_px: Area in frame pixels (cells of the map times frame pixels per cell), rounded.
        area_mm2: The same in square millimeters, ``area_px`` times the square of the decision's ``mm_per_px``; None if it does not say.
    """

    box_xyxy: tuple[int, int, int, int]
    score: float
    area_px: int
    area_mm2: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTestResult:
    """What scoring the golden samples once more showed.

    Attributes:
        passed: Whether every sample scores as recorded; false too where there is none.
        samples: How many there are.
        largest_difference: Largest difference of a score or map value from the recorded one, relative to the largest map value of its sample; None if
            none was scored.
        tolerance: Largest difference allowed, relative likewise.
        reason: What is wrong, one sentence; empty if it passed.
        elapsed_ms: How long it took; no frame was scored meanwhile.
    """

    passed: bool
    samples: int
    largest_difference: float | None
    tolerance: float
    reason: str
    elapsed_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimings:
    """How long each stage of one verdict took, in milliseconds.

    Attributes:
        preprocess_ms: Frame to network input.
        infer_ms: Network input to raw map and score, copies included; where a GPU prepares the frames, all of its work on one, and the wait for it.
        decide_ms: Checks, verdict, regions, and what the host computes of an :class:`OutputRequest`.
        total_ms: The whole call.
    """

    preprocess_ms: float = 0.0
    infer_ms: float = 0.0
    decide_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputRequest:
    """What a result carries beside the verdict, at the resolution of the frame's inspected part; by default nothing.

    On a GPU it is made there of the frame that is still in its memory, once the verdict is known, and only what is asked for comes back: per
    pixel 4 bytes of map, 1 bit of mask, 3 bytes of overlay. On other backends the host computes the same.

    Attributes:
        frame_map: The anomaly map.
        mask: Where that map is above the pass threshold.
        overlay: The inspected part with the heat map blended over it.
        verdicts: Verdicts that carry it; an ERROR never does.
        device_only: Leave out what the host would have to compute; the result then carries None.

    Raises:
        ConfigError: If ``verdicts`` holds anything but PASS, REVIEW and REJECT.

    Example:
        >>> OutputRequest(overlay=True, verdicts={Verdict.REJECT}).wanted_for(Verdict.PASS)
        False
    """

    frame_map: bool = False
    mask: bool = False
    overlay: bool = False
    verdicts: Collection[Verdict] = (Verdict.PASS, Verdict.REVIEW, Verdict.REJECT)
    device_only: bool = False

    def __post_init__(self) -> None:
        for verdict in self.verdicts:
            if verdict not in (Verdict.PASS, Verdict.REVIEW, Verdict.REJECT):
                raise ConfigError(f"outputs can be had for PASS, REVIEW and REJECT, got {verdict}; an ERROR has none")
        object.__setattr__(self, "verdicts", frozenset(self.verdicts))

    @property
    def wants_any(self) -> bool:
        """Whether anything is asked for."""
        return self.frame_map or self.mask or self.overlay

    def wanted_for(self, verdict: Verdict) -> bool:
        """Return whether a frame of that verdict carries anything."""
        return self.wants_any and verdict in self.verdicts


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AnomalyResult:
    """The verdict on one frame and the evidence for it.

    Attributes:
        verdict: PASS, REVIEW, REJECT or ERROR.
        reason_code: One word per cause, stable across releases, e.g. ``below_threshold`` or ``frame_out_of_range``.
        reason: The same for a person, one sentence.
        score: Image-level anomaly score, the largest value of ``anomaly_map``: raw, or of the normalized map where the product has a normalization
            map (``snl-calibrate --fixed-pose``), over the judged cells where it has an ignore mask (``--ignore-mask``); NaN if there is none.
        threshold: Highest score that passes; NaN if no decision applies.
        reject_threshold: Highest score that is reviewed rather than rejected; NaN if no decision applies.
        product: Product that was named or, with a single calibrated product, that one; None where the strictest of several decisions was used.
        anomaly_map: (H, W) float32 scores at the network's input size, read-only, multiplied by the product's normalization map where it has one;
            None if there is none. Where the strictest of several decisions was used and one has a normalization map, each product's map is scaled
            from its own pass threshold to the lowest, and the largest counts in each cell; score and regions likewise.
        roi_xyxy: Left, top, right, bottom of the inspected part in frame pixels, which all arrays here cover; None if there is none of them.
        regions: Areas of the map above ``threshold``, highest score first.
        timings: Stage times.
        model_sha256: Hash of the file that scored.
        frame_map: (H, W) float32 scores at the size of the inspected part, interpolated between cells of ``anomaly_map``, read-only; None unless
            asked for, see :class:`OutputRequest`, and always None for an ERROR.
        mask: (H, W) bool, where ``frame_map`` is above ``threshold``, read-only; None likewise. May be empty for a part that is not passed:
            interpolation can stay below the peak of the cells that the verdict and the regions go by.
        overlay: (H, W, 3) uint8 RGB, the inspected part with the heat map blended over it, no outlines, read-only; None likewise.
        bit_depth: Bits of a value that the frame was read with; None if it could not be read, or lay on a GPU.
        ignored: (h, w) bool, the cells of the map over ``roi_xyxy`` that were not judged, by the ignore mask of the decision, read-only; None if all
            were. ``anomaly_map`` is 0 there.
        ignored_share: Share of the inspected part that the decision does not judge, 0 to below 1.
    """

    verdict: Verdict
    reason_code: str
    reason: str
    score: float
    threshold: float
    reject_threshold: float
    product: str | None
    anomaly_map: AnomalyMap | None
    roi_xyxy: tuple[int, int, int, int] | None
    regions: tuple[AnomalyRegion, ...]
    timings: StageTimings
    model_sha256: str
    frame_map: AnomalyMap | None = None
    mask: Mask | None = None
    overlay: Image | None = None
    bit_depth: int | None = None
    ignored: Mask | None = None
    ignored_share: float = 0.0

    def __post_init__(self) -> None:
        for name in ("anomaly_map", "frame_map", "mask", "overlay", "ignored"):
            array = getattr(self, name)
            if array is not None:
                object.__setattr__(self, name, _read_only(array))
