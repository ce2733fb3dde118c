"""One frame on its way through the detector: what the backend's thread is asked, what it answers, and the result."""

import math
import time
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

import numpy as np
import numpy.typing as npt

from snl_runtime.cuda.arrays import DeviceFrameReader, is_device_array
from snl_runtime.errors import FrameError
from snl_runtime.images.frame_outputs import Visualizations, draw_visualizations
from snl_runtime.images.preprocess import crop_frame, stored_bits, to_8_bit
from snl_runtime.scorer import Scorer
from snl_runtime.types import AnomalyMap, AnomalyRegion, AnomalyResult, ColorOrder, Image, OutputRequest, StageTimings, Verdict
from snl_runtime.verdict.decision import summarize_map
from snl_runtime.verdict.frame_checks import FrameFormat, FrameStatistics, frame_statistics
from snl_runtime.verdict.regions import find_regions
from snl_runtime.verdict.ruling import Ruling, error
from snl_runtime.verdict.scored_frame import ScoredFrame
from snl_runtime.verdict.selection import Selection

_Roi = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Prepared:
    """A frame made ready on the host.

    Attributes:
        crop: (H, W, C) uint8, or uint16 of 16 bits, the inspected part; may be the caller's memory.
        network_input: (H, W, 3) uint8 RGB.
        statistics: Of the network input.
        roi_xyxy: Part of the frame that it shows.
        frame: Size and bit depth of the whole frame.
    """

    crop: npt.NDArray[Any]
    network_input: Image
    statistics: FrameStatistics
    roi_xyxy: _Roi
    frame: FrameFormat


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Request:
    """What is asked about one frame.

    Attributes:
        image: The frame as captured; after :meth:`read` on the host with 8 bits, or 16 if it has as many.
        color: Meaning of its last axis.
        bit_depth: Bits that a value of it uses, as the caller says; None for what the product was calibrated on.
        selection: The decisions that apply to it.
        keep_map: Whether the result carries the map.
        outputs: What else it carries.
        reader: Brings a frame from a GPU to the host where it is prepared there.
        frame: Size and bit depth of the frame as captured, once :meth:`read` has it on the host.
    """

    image: object
    color: ColorOrder
    bit_depth: int | None
    selection: Selection
    keep_map: bool
    outputs: OutputRequest
    reader: DeviceFrameReader
    frame: FrameFormat | None = None

    def read(self, scorer: Scorer) -> "Request":
        """Return the request with the frame checked and read by its bit depth; a frame on a GPU stays there if it is prepared there.

        Any thread may call it: an unusable frame need not wait for its turn.

        Raises:
            FrameError: If the frame cannot be used.
        """
        if self.frame is not None:
            return self
        if is_device_array(self.image) and scorer.is_on_device:
            return self._left_on_device()
        if is_device_array(self.image) and not scorer.takes_device_arrays:
            raise FrameError(
                f"the frame lies on a GPU ({type(self.image).__name__}), backend {scorer.backend.name!r} on {scorer.backend.device} takes frames in "
                "host memory: copy it there first (torch: .cpu().numpy(), CuPy and pycuda: .get()), or open the model with device='cuda'"
            )
        image = crop_frame(self.reader.read(self.image), self.color, None)
        crop_frame(image, self.color, self.selection.roi_xyxy)
        bit_depth, stored = self.declared_bit_depth(), stored_bits(image.dtype)
        if bit_depth is None or (self.bit_depth is None and (bit_depth == 8) is not (stored == 8)):
            bit_depth = stored  # if it is not what was calibrated, the verdict says so when its turn comes
        frame = FrameFormat(size_hw=(image.shape[0], image.shape[1]), bit_depth=bit_depth)
        return replace(self, image=image if bit_depth == 16 else to_8_bit(image, bit_depth), frame=frame)

    def prepare(self, scorer: Scorer) -> Prepared:
        """Return the frame prepared on the host; any thread may do so.

        Raises:
            FrameError: If the frame cannot be used.
        """
        request = self.read(scorer)
        if request.frame is None:
            raise FrameError("the frame stayed on the GPU though the host was to prepare it")
        roi_xyxy, (height, width) = self.selection.roi_xyxy, request.frame.size_hw
        network_input = scorer.prepare(request.image, self.color, roi_xyxy)
        return Prepared(
            crop=crop_frame(request.image, self.color, roi_xyxy),
            network_input=network_input,
            statistics=frame_statistics(network_input),
            roi_xyxy=roi_xyxy or (0, 0, width, height),
            frame=request.frame,
        )

    def declared_bit_depth(self) -> int | None:
        """Return the bit depth that the caller says, or else the product was calibrated on; None if there is neither.

        Raises:
            FrameError: If the two differ.
        """
        calibrated = self.selection.bit_depth
        if self.bit_depth is not None and calibrated is not None and self.bit_depth != calibrated:
            raise FrameError(
                f"the frame is said to have {self.bit_depth} bits, the product was calibrated on {calibrated}; leave it out or calibrate again",
                "frame_bit_depth",
            )
        return calibrated if self.bit_depth is None else self.bit_depth

    def rule(self, scored: ScoredFrame, *, golden_checked: bool) -> Ruling:
        """Return the verdict on the frame, scored as given."""
        now = datetime.now(timezone.utc)
        return self.selection.rule(scored.score, scored.evidence, scored.statistics, frame=scored.frame, golden_checked=golden_checked, now=now)

    def _left_on_device(self) -> "Request":
        if (declared := self.declared_bit_depth()) not in (None, 8, 16):
            raise FrameError(
                f"a frame of {declared} bits cannot be read in device memory: copy it to the host first (torch: .cpu().numpy(), CuPy and pycuda: "
                ".get()), or scale it to 8 bits on the GPU and calibrate on such frames",
                "frame_bit_depth",
            )
        return self


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Output:
    """What the backend's thread hands back, unchecked.

    Attributes:
        scored: The frame with its score.
        golden_checked: Whether the golden samples agreed on the path that scored.
        infer_ms: How long the backend took; on a device path with upload, preprocessing and postprocessing.
        ruling: None where it is still to be made.
        crop: The inspected part where the host prepared it.
    """

    scored: ScoredFrame
    golden_checked: bool
    infer_ms: float
    ruling: Ruling | None = None
    crop: npt.NDArray[Any] | None = None


def answer(scorer: Scorer, request: Request, prepared: Prepared | None) -> Output:
    """Score one frame on the backend's thread; after a failure the backend is opened again and the golden samples come first.

    Args:
        scorer: Scores.
        request: What is asked.
        prepared: The frame as the host prepared it; None leaves that to the device, if there still is one.

    Raises:
        FrameError: If the frame cannot be used.
        GoldenSampleError: If the golden samples score differently after a failure.
        BackendError: If the backend fails.
    """
    scorer.recover()
    started_s = time.perf_counter()
    if prepared is None and scorer.is_on_device:
        return _answer_on_device(scorer, request, started_s)
    prepared = prepared or request.prepare(scorer)
    started_s = time.perf_counter()
    scores, maps = scorer.infer(prepared.network_input[None])
    scored = ScoredFrame(
        score=float(scores[0]),
        anomaly_map=maps[0],
        summary=summarize_map(maps[0]),
        statistics=prepared.statistics,
        regions=None,
        roi_xyxy=prepared.roi_xyxy,
        frame=prepared.frame,
    )
    infer_ms = (time.perf_counter() - started_s) * 1e3
    return Output(scored=scored, golden_checked=scorer.golden_checked, infer_ms=infer_ms, crop=prepared.crop)


def _answer_on_device(scorer: Scorer, request: Request, started_s: float) -> Output:
    """Where images may be wanted, rule while the frame is still on the device: only then is known whether they are."""
    rulings: list[Ruling] = []

    def as_captured(seen: ScoredFrame) -> ScoredFrame:
        return seen if request.frame is None else replace(seen, frame=request.frame)

    def choose(seen: ScoredFrame) -> OutputRequest | None:
        rulings.append(request.rule(as_captured(seen), golden_checked=scorer.golden_checked))
        return request.outputs if request.outputs.wanted_for(rulings[0].verdict) else None

    seen = scorer.inspect(
        request.image,
        request.color,
        request.selection.roi_xyxy,
        threshold=request.selection.threshold,
        keep_map=request.keep_map or request.selection.needs_map,
        normalization=request.selection.normalization,
        choose=choose if request.outputs.wants_any else None,
    )
    scored = as_captured(seen)
    if request.selection.needs_map:
        scored = replace(scored, regions=None)  # of a merged normalization: the host then asks for one where a part is not passed
    return Output(
        scored=scored,
        golden_checked=scorer.golden_checked,
        infer_ms=(time.perf_counter() - started_s) * 1e3,
        ruling=rulings[0] if rulings else None,
    )


@dataclass(slots=True, eq=False)
class Inspection:
    """What is known about one frame so far; becomes the result wherever the inspection stops."""

    selection: Selection
    keep_map: bool = True
    bit_depth: int | None = None
    started_s: float = field(default_factory=time.perf_counter)
    prepared_s: float | None = None
    inferred_s: float | None = None
    infer_ms: float = 0.0
    scored: ScoredFrame | None = None
    score: float = math.nan
    anomaly_map: AnomalyMap | None = None
    regions: tuple[AnomalyRegion, ...] = ()
    visualizations: Visualizations = field(default_factory=Visualizations)
    ruling: Ruling = field(default_factory=lambda: error("internal_error", "the frame was not inspected"))

    def keep(self, scored: ScoredFrame) -> None:
        """Keep a checked frame, its map and score under the normalization map if there is one, with its regions."""
        normalization = self.selection.normalization
        normalized_map = scored.anomaly_map if normalization is None or scored.anomaly_map is None else normalization.apply(scored.anomaly_map)
        score = scored.score if normalization is None else scored.summary.normalized_peak if normalized_map is None else float(normalized_map.max())
        if score is None or not math.isfinite(score):
            return
        self.scored, self.score, self.anomaly_map = scored, score, normalized_map
        if scored.regions is not None:
            self.regions = scored.regions
        elif normalized_map is not None:
            threshold = self.selection.threshold
            if self.ruling.verdict in (Verdict.REVIEW, Verdict.REJECT):
                # The score may exceed the maximum of the map by a rounding; what is not passed must still point somewhere.
                threshold = min(threshold, float(np.nextafter(normalized_map.max(), np.float32(-np.inf))))
            self.regions = find_regions(normalized_map, threshold, scored.roi_xyxy)

    def draw(self, output: Output, request: Request) -> None:
        """Keep what was wanted at frame resolution: as the device made it, else made here."""
        outputs = request.outputs
        if output.scored.visualizations is not None:
            self.visualizations = output.scored.visualizations
        elif outputs.wanted_for(self.ruling.verdict) and not outputs.device_only and output.crop is not None and self.anomaly_map is not None:
            self.visualizations = draw_visualizations(output.crop, request.color, self.anomaly_map, self.selection.threshold, outputs)

    def result(self, model_sha256: str) -> AnomalyResult:
        """Return the result as of now."""
        now_s = time.perf_counter()
        anomaly_map = self.anomaly_map if self.keep_map else None
        visualizations = Visualizations() if self.ruling.verdict is Verdict.ERROR else self.visualizations
        has_arrays = any(array is not None for array in (anomaly_map, visualizations.frame_map, visualizations.mask, visualizations.overlay))
        return AnomalyResult(
            verdict=self.ruling.verdict,
            reason_code=self.ruling.reason_code,
            reason=self.ruling.reason,
            score=self.score,
            threshold=self.selection.threshold,
            reject_threshold=self.selection.reject_threshold,
            product=self.selection.product,
            anomaly_map=anomaly_map,
            roi_xyxy=self.scored.roi_xyxy if self.scored is not None and has_arrays else None,
            regions=self.regions,
            timings=StageTimings(
                preprocess_ms=((self.prepared_s or now_s) - self.started_s) * 1e3,
                infer_ms=self.infer_ms,
                decide_ms=0.0 if self.inferred_s is None else (now_s - self.inferred_s) * 1e3,
                total_ms=(now_s - self.started_s) * 1e3,
            ),
            model_sha256=model_sha256,
            frame_map=visualizations.frame_map,
            mask=visualizations.mask,
            overlay=visualizations.overlay,
            bit_depth=self.bit_depth,
        )
