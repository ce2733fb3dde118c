"""One frame on its way through the detector: what the backend's thread is asked, what it answers, and the result."""

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

import numpy as np
import numpy.typing as npt

from snl_runtime.cuda.arrays import DeviceFrameReader, is_device_array
from snl_runtime.errors import FrameError
from snl_runtime.gpu.path import FrameTask
from snl_runtime.gpu.pipeline import Wanted
from snl_runtime.images.frame_outputs import Visualizations, draw_visualizations
from snl_runtime.images.overlay import hatch_ignored
from snl_runtime.images.preprocess import CroppedFrame, crop_frame, prepare_part, to_8_bit
from snl_runtime.images.views import Views, whole_view
from snl_runtime.scorer import Scorer
from snl_runtime.types import AnomalyMap, AnomalyResult, ColorOrder, Image, OutputRequest, StageTimings, Verdict
from snl_runtime.verdict.decision import check_output, summarize_map
from snl_runtime.verdict.frame_checks import FrameStatistics, frame_statistics
from snl_runtime.verdict.regions import find_regions, with_mm2
from snl_runtime.verdict.ruling import Ruling, error
from snl_runtime.verdict.scored_frame import ScoredFrame, ScoredMap
from snl_runtime.verdict.selection import Selection


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Prepared:
    """A frame made ready on the host.

    Attributes:
        cropped: The frame with the inspected part, as :meth:`Request.read` gives it.
        network_input: (H, W, 3) uint8 RGB: what the network sees, or is cut into the views that it sees.
        statistics: Of the network input.
        views: How it is cut.
    """

    cropped: CroppedFrame
    network_input: Image
    statistics: FrameStatistics
    views: Views


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Request:
    """What is asked about one frame.

    Attributes:
        image: The frame as captured.
        color: Meaning of its last axis.
        bit_depth: Bits that a value of it uses, as the caller says; None for what the product was calibrated on.
        selection: The decisions that apply to it.
        keep_map: Whether the result carries the map.
        outputs: What else it carries.
        reader: Brings a frame from a GPU to the host where it is prepared there.
        cropped: The frame with 8 bits, or 16 if it has as many, once :meth:`read` has it on the host.
    """

    image: object
    color: ColorOrder
    bit_depth: int | None
    selection: Selection
    keep_map: bool
    outputs: OutputRequest
    reader: DeviceFrameReader
    cropped: CroppedFrame | None = None

    def read(self, scorer: Scorer) -> "Request":
        """Return the request with the frame checked and read by its bit depth; a frame on a GPU stays there if it is prepared there.

        Any thread may call it: an unusable frame need not wait for its turn.

        Raises:
            FrameError: If the frame cannot be used.
        """
        if self.cropped is not None:
            return self
        if is_device_array(self.image) and self.is_left_to_device(scorer):
            return self._left_on_device()
        if is_device_array(self.image) and not scorer.takes_device_arrays:
            raise FrameError(
                f"the frame lies on a GPU ({type(self.image).__name__}), backend {scorer.backend.name!r} on {scorer.backend.device} takes frames in "
                "host memory: copy it there first (torch: .cpu().numpy(), CuPy and pycuda: .get()), or open the model with device='cuda'"
            )
        cropped = crop_frame(self.reader.read(self.image), self.color, self.selection.roi_xyxy)
        bit_depth, stored = self.declared_bit_depth(), cropped.bit_depth
        if bit_depth is None or (self.bit_depth is None and (bit_depth == 8) is not (stored == 8)):
            bit_depth = stored  # if it is not what was calibrated, the verdict says so when its turn comes
        whole = cropped.whole if bit_depth == 16 else to_8_bit(cropped.whole, bit_depth)
        return replace(self, cropped=replace(cropped, whole=whole, bit_depth=bit_depth))

    def prepare(self, scorer: Scorer) -> Prepared:
        """Return the frame prepared on the host; any thread may do so.

        Raises:
            FrameError: If the frame cannot be used.
        """
        cropped = self.read(scorer).cropped
        if cropped is None:
            raise FrameError("the frame stayed on the GPU though the host was to prepare it")
        views = self.selection.tiles or whole_view(scorer.size_hw)
        network_input = prepare_part(cropped.part, self.color, views.map_hw)
        return Prepared(cropped=cropped, network_input=network_input, statistics=frame_statistics(network_input), views=views)

    def is_left_to_device(self, scorer: Scorer) -> bool:
        """Return whether a GPU prepares the frame where it lies; one that is seen in tiles is brought to the host first."""
        return scorer.is_on_device and self.selection.tiles is None

    @property
    def can_share_a_run(self) -> bool:
        """Whether a device may score the frame in one run with others: it is seen as a whole and lies in host memory."""
        return self.cropped is not None and self.selection.tiles is None

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
        return self.selection.rule(scored, golden_checked=golden_checked, now=datetime.now(timezone.utc))

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


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Asked:
    """One frame of a call.

    Attributes:
        request: What is asked.
        prepared: The frame as the host prepared it; None leaves that to the device, if there still is one.
    """

    request: Request
    prepared: Prepared | None


def answer(scorer: Scorer, asked: Sequence[Asked]) -> list[Output]:
    """Score frames on the backend's thread, in order; after a failure the backend is opened again and the golden samples come first.

    Frames are scored in one call, and their ``infer_ms`` is that of the call; a device takes those that are seen in tiles or lie there one by one.

    Raises:
        FrameError: If a frame cannot be used.
        GoldenSampleError: If the golden samples score differently after a failure.
        BackendError: If the backend fails.
    """
    scorer.recover()
    at_once = scorer.frames_at_once(len(asked))  # may find that the host must prepare from now on
    if scorer.is_on_device and all(each.prepared is None for each in asked):
        return _answer_on_device(scorer, [each.request for each in asked], at_once)
    prepared = [each.prepared or each.request.prepare(scorer) for each in asked]
    started_s = time.perf_counter()
    answers = scorer.infer_frames([(made.network_input, made.views) for made in prepared])
    infer_ms = (time.perf_counter() - started_s) * 1e3
    outputs = []
    for each, made, (score, anomaly_map) in zip(asked, prepared, answers, strict=True):
        scored = _scored_on_host(each.request, made.cropped, score, anomaly_map, made.statistics)
        outputs.append(Output(scored=scored, golden_checked=scorer.golden_checked, infer_ms=infer_ms, crop=made.cropped.part))
    return outputs


def _answer_on_device(scorer: Scorer, requests: Sequence[Request], at_once: int) -> list[Output]:
    """Score frames of host memory together, ``at_once`` in a run, and those that are seen in tiles or lie on the device by themselves, in order."""
    outputs: list[Output] = []
    while len(outputs) < len(requests):
        request, started_s = requests[len(outputs)], time.perf_counter()
        if request.selection.tiles is not None:
            outputs.append(_answer_in_tiles(scorer, request, request.selection.tiles, started_s))
        elif request.cropped is None:
            outputs.append(_answer_where_it_lies(scorer, request, started_s))
        else:
            some = itertools.takewhile(lambda each: each.can_share_a_run, requests[len(outputs) : len(outputs) + at_once])
            outputs += _answer_together(scorer, list(some), started_s)
    return outputs


class _Choice:
    """What is wanted of a frame, known once it is ruled while it is still on the device."""

    def __init__(self, scorer: Scorer, request: Request) -> None:
        self._scorer, self._request = scorer, request
        self.ruling: Ruling | None = None

    def __call__(self, seen: ScoredFrame) -> OutputRequest | None:
        self.ruling = self._request.rule(seen, golden_checked=self._scorer.golden_checked)
        return self._request.outputs if self._request.outputs.wanted_for(self.ruling.verdict) else None


def _answer_together(scorer: Scorer, requests: Sequence[Request], started_s: float) -> list[Output]:
    choices = [_Choice(scorer, request) for request in requests]
    tasks = [
        FrameTask(
            cropped=request.cropped,
            color=request.color,
            threshold=request.selection.threshold,
            wanted=Wanted(anomaly_map=request.keep_map or request.selection.needs_map, normalization=request.selection.normalization),
            choose=choice if request.outputs.wants_any else None,
        )
        for request, choice in zip(requests, choices, strict=True)
        if request.cropped is not None
    ]
    seen = scorer.inspect_batch(tasks)
    infer_ms = (time.perf_counter() - started_s) * 1e3
    return [_output(scorer, *each, infer_ms) for each in zip(requests, choices, seen, strict=True)]


def _answer_where_it_lies(scorer: Scorer, request: Request, started_s: float) -> Output:
    choice = _Choice(scorer, request)
    scored = scorer.inspect(
        request.image,
        request.color,
        request.selection.roi_xyxy,
        threshold=request.selection.threshold,
        keep_map=request.keep_map or request.selection.needs_map,
        normalization=request.selection.normalization,
        choose=choice if request.outputs.wants_any else None,
    )
    return _output(scorer, request, choice, scored, (time.perf_counter() - started_s) * 1e3)


def _output(scorer: Scorer, request: Request, choice: _Choice, scored: ScoredFrame, infer_ms: float) -> Output:
    if request.selection.needs_map:  # of a merged normalization: the host then asks for a region where a part is not passed
        scored = replace(scored, map=replace(scored.map, regions=None))
    return Output(scored=scored, golden_checked=scorer.golden_checked, infer_ms=infer_ms, ruling=choice.ruling)


def _answer_in_tiles(scorer: Scorer, request: Request, tiles: Views, started_s: float) -> Output:
    """The merged map is on the host, so regions and images are made there."""
    cropped = request.read(scorer).cropped
    if cropped is None:
        raise FrameError("the frame stayed on the GPU though its tiles are cut from host memory")
    score, anomaly_map, statistics = scorer.inspect_tiles(cropped, request.color, tiles)
    return Output(
        scored=_scored_on_host(request, cropped, score, anomaly_map, statistics),
        golden_checked=scorer.golden_checked,
        infer_ms=(time.perf_counter() - started_s) * 1e3,
        crop=cropped.part,
    )


def _scored_on_host(request: Request, cropped: CroppedFrame, score: float, anomaly_map: AnomalyMap, statistics: FrameStatistics) -> ScoredFrame:
    return ScoredFrame(
        map=ScoredMap(score=score, anomaly_map=anomaly_map, summary=summarize_map(anomaly_map, request.selection.normalization)),
        statistics=statistics,
        roi_xyxy=cropped.roi_xyxy,
        frame=cropped.format,
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
    ruling: Ruling = field(default_factory=lambda: error("internal_error", "the frame was not inspected"))
    asked: Asked | None = None
    output: Output | None = None

    def conclude(self) -> None:
        """Rule on what the backend said and keep the evidence; does nothing for a frame that it said nothing about."""
        asked, output = self.asked, self.output
        if asked is None or output is None:
            return
        self.inferred_s, self.infer_ms = time.perf_counter(), output.infer_ms
        self.ruling = output.ruling or asked.request.rule(output.scored, golden_checked=output.golden_checked)
        if check_output(output.scored.map.score, output.scored.map.summary) is None:
            self.keep(output.scored)
            self.draw(output.crop, asked.request)

    def keep(self, scored: ScoredFrame) -> None:
        """Keep a checked frame, its map and score as they are judged, with its regions."""
        seen, normalization = scored.map, self.selection.normalization
        score = seen.score if normalization is None else seen.summary.normalized_peak
        if score is None or not math.isfinite(score):
            return
        judged_map = seen.anomaly_map if normalization is None or seen.anomaly_map is None else normalization.apply(seen.anomaly_map)
        regions, threshold = seen.regions, self.selection.threshold
        if regions is None and judged_map is not None:
            if self.ruling.verdict in (Verdict.REVIEW, Verdict.REJECT):
                # The score may exceed the maximum of the map by a rounding; what is not passed must still point somewhere.
                peak = seen.summary.peak if normalization is None else score
                threshold = min(threshold, float(np.nextafter(np.float32(peak), np.float32(-np.inf))))
            regions = find_regions(judged_map, threshold, scored.roi_xyxy)
        regions = None if regions is None else with_mm2(regions, self.selection.mm_per_px)
        self.scored = replace(scored, map=replace(seen, score=score, anomaly_map=judged_map, regions=regions))

    def draw(self, crop: npt.NDArray[Any] | None, request: Request) -> None:
        """Draw what was wanted at frame resolution and no device drew; only where the host prepared the frame."""
        kept, outputs = self.scored, request.outputs
        if kept is None or kept.visualizations is not None or kept.map.anomaly_map is None or crop is None:
            return
        if outputs.wanted_for(self.ruling.verdict) and not outputs.device_only:
            drawn = draw_visualizations(crop, request.color, kept.map.anomaly_map, self.selection.threshold, outputs)
            self.scored = replace(kept, visualizations=drawn)

    def result(self, model_sha256: str) -> AnomalyResult:
        """Return the result as of now."""
        now_s = time.perf_counter()
        seen = None if self.scored is None else self.scored.map
        anomaly_map = seen.anomaly_map if seen is not None and self.keep_map else None
        drawn = None if self.scored is None or self.ruling.verdict is Verdict.ERROR else self.scored.visualizations
        images = drawn or Visualizations()
        factors = self.selection.normalization
        ignored = None if factors is None or seen is None else factors.ignored
        overlay = images.overlay if images.overlay is None or ignored is None else hatch_ignored(images.overlay, ignored)
        has_arrays = any(array is not None for array in (anomaly_map, images.frame_map, images.mask, overlay, ignored))
        return AnomalyResult(
            verdict=self.ruling.verdict,
            reason_code=self.ruling.reason_code,
            reason=self.ruling.reason,
            score=math.nan if seen is None else seen.score,
            threshold=self.selection.threshold,
            reject_threshold=self.selection.reject_threshold,
            product=self.selection.product,
            anomaly_map=anomaly_map,
            roi_xyxy=self.scored.roi_xyxy if self.scored is not None and has_arrays else None,
            regions=() if seen is None else seen.regions or (),
            timings=StageTimings(
                preprocess_ms=((self.prepared_s or now_s) - self.started_s) * 1e3,
                infer_ms=self.infer_ms,
                decide_ms=0.0 if self.inferred_s is None else (now_s - self.inferred_s) * 1e3,
                total_ms=(now_s - self.started_s) * 1e3,
            ),
            model_sha256=model_sha256,
            frame_map=images.frame_map,
            mask=images.mask,
            overlay=overlay,
            bit_depth=self.bit_depth,
            ignored=ignored,
            ignored_share=0.0 if factors is None else factors.ignored_share,
        )
