"""A model file that scores frames: bundle, backend and preprocessing together. No threshold and no verdict in here."""

import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from snl_runtime.backends import open_backend
from snl_runtime.backends.base import Backend
from snl_runtime.backends.batches import run_in_batches
from snl_runtime.errors import BackendError, BackendTimeoutError, FrameError, GoldenSampleError, InferenceError
from snl_runtime.gpu.path import ChooseVisualizations, DevicePath, FrameTask, map_of, offers_context, open_device_path
from snl_runtime.images.preprocess import CroppedFrame, InputSpec, crop_frame, prepare, prepare_part
from snl_runtime.images.views import Views, score_frames, whole_view
from snl_runtime.model.bundle import ModelBundle, open_bundle
from snl_runtime.model.golden import GoldenSamples, check_golden, check_golden_batch, golden_path
from snl_runtime.model.map_factors import MapFactors
from snl_runtime.model.signing import PublicKey
from snl_runtime.types import AnomalyMap, ColorOrder, DetectorState, Image, StageTimings
from snl_runtime.verdict.decision import check_output
from snl_runtime.verdict.frame_checks import FrameStatistics, frame_statistics
from snl_runtime.verdict.scored_frame import Scored, ScoredFrame

logger = logging.getLogger(__name__)

Scores = npt.NDArray[np.float32]
Maps = npt.NDArray[np.float32]

_MOST_DEVICE_FAILURES = 2
"""Failures of the device path in a row after which the host prepares the frames."""


class Scorer:
    """An opened model. Not thread-safe: one thread uses it at a time.

    Where the backend lends a context on a GPU, everything that is scored, golden samples included, takes the device path of :meth:`inspect`.

    Args:
        model_path: ``x.onnx`` or ``x.trt``; ``x.json`` and ``x.golden.npz`` are found beside it. A lone ``.onnx`` opens too.
        backend: Name of a backend, or an opened one, which the scorer then owns; None chooses, see :mod:`snl_runtime.backends.choice`.
        device: Device as the backend names it; None for its default.
        threads: Most CPU threads the backend may use; None for its default.
        public_key: Ed25519 key that must have signed the manifest; None accepts unsigned ones.
        golden_check: Score the golden samples before anything else, if the model has some.
        cuda_graphs: Whether the backend may record its work on a GPU as CUDA graphs.

    Raises:
        ManifestError: If a file is truncated, altered or of another schema.
        GoldenSampleError: If the golden samples are missing though listed, or score differently here.
        BackendError: If the backend cannot be opened or fails.
    """

    def __init__(  # the options of SnlDetector, handed through
        self,
        model_path: str | Path,
        *,
        backend: str | Backend | None = None,
        device: str | None = None,
        threads: int | None = None,
        public_key: PublicKey | None = None,
        golden_check: bool = True,
        cuda_graphs: bool = True,
    ) -> None:
        self._state = DetectorState.UNCHECKED
        self._device_path: DevicePath | None = None
        self._device_failures = 0
        self._golden_difference: float | None = None
        self._batches_agree: bool | None = None
        with contextlib.ExitStack() as opened:
            if backend is not None and not isinstance(backend, str):
                opened.callback(backend.close)
            self.bundle: ModelBundle = open_bundle(Path(model_path), public_key=public_key)
            self._reopen: Callable[[], Backend] | None = None
            if backend is None or isinstance(backend, str):
                self._reopen = functools.partial(open_backend, self.bundle, backend, device=device, threads=threads, cuda_graphs=cuda_graphs)
                backend = self._reopen()
                opened.callback(backend.close)
            self.backend: Backend = backend
            self.size_hw: tuple[int, int] = self.bundle.network_hw(backend.input_shape)
            opened.callback(self._close_device_path)
            self._device_path = open_device_path(backend, self.size_hw, self._graph_batch)
            if golden_check:
                self.check_golden_samples()
            opened.pop_all()  # nothing failed: the backend stays open until close()

    @property
    def state(self) -> DetectorState:
        """What the backend may be trusted with; never CLOSED."""
        return self._state

    @property
    def golden_checked(self) -> bool:
        """Whether the golden samples agreed in this process, on this backend, since its last failure."""
        return self._state is DetectorState.READY

    @property
    def is_on_device(self) -> bool:
        """Whether :meth:`inspect` can be called."""
        return self._device_path is not None

    @property
    def has_cuda_graph(self) -> bool:
        """Whether frames, as the last one, are scored by replaying a CUDA graph."""
        return self._device_path is not None and self._device_path.has_graph

    @property
    def takes_device_arrays(self) -> bool:
        """Whether the backend works on a GPU, so that frames may lie there."""
        return self.is_on_device or offers_context(self.backend)

    @property
    def batch_size(self) -> int:
        """Most images in one call of the backend: what the graph takes, on a device path at most what the engine was built for."""
        return self._graph_batch if self._device_path is None else self._device_path.largest_batch

    @property
    def _graph_batch(self) -> int:
        manifest, fixed = self.bundle.manifest, self.backend.input_shape[0]
        return fixed or (1 if manifest is None else max(1, int(manifest.input["max_batch"])))

    @property
    def golden_count(self) -> int:
        """How many golden samples the model has."""
        return 0 if self.bundle.golden is None else len(self.bundle.golden.images)

    @property
    def golden_difference(self) -> float | None:
        """Largest difference of the last comparison of the golden samples, relative to the largest map value of a sample; None before the first."""
        return self._golden_difference

    def distrust_backend(self) -> None:
        """Note that the backend failed: no golden check holds any more, and :meth:`recover` opens it again."""
        self._state = DetectorState.FAILED

    def recover(self) -> None:
        """After a failure, open the backend again and score the golden samples; otherwise do nothing. A backend that was handed over stays open.

        Raises:
            BackendError: If it cannot be opened or fails again.
            GoldenSampleError: If the golden samples score differently now.
        """
        if self._state is not DetectorState.FAILED:
            return
        was_on_device = self.is_on_device
        with contextlib.suppress(BackendError):  # what failed may fail again here; opening decides
            self._close_device_path()
        if self._reopen is not None:
            self.backend.close()
            self.backend = self._reopen()
            if self._device_failures < _MOST_DEVICE_FAILURES:
                self._device_path = open_device_path(self.backend, self.size_hw, self._graph_batch)
            elif self._device_failures == _MOST_DEVICE_FAILURES:
                self._device_failures += 1  # one line in the log
                logger.warning("frames are prepared on the host from now on: the GPU failed on %d frames in a row", _MOST_DEVICE_FAILURES)
        elif was_on_device:
            logger.warning("frames are prepared on the host from now on: the GPU failed, and a backend that was handed over is not opened again")
        if not self.check_golden_samples():
            self._state = DetectorState.UNCHECKED

    def score(
        self, image: object, color: ColorOrder = "bgr", roi_xyxy: tuple[int, int, int, int] | None = None, tiles: Views | None = None
    ) -> Scored:
        """Score one frame, prepared where the detector prepares it: on the GPU if there is a device path, on the host otherwise.

        Args:
            image: Frame as captured, see :class:`snl_runtime.types.Frame`.
            color: Meaning of its last axis.
            roi_xyxy: Part of the frame to look at; None for all of it.
            tiles: The views of that part, tiles alone or with the whole of it; None where it is only seen as a whole.

        Raises:
            FrameError: If the frame cannot be used.
            InferenceError: If the output is not finite or the score is not the maximum of the map.
        """
        started_s = prepared_s = time.perf_counter()
        if self.is_on_device and tiles is not None:
            score, anomaly_map, statistics = self.inspect_tiles(crop_frame(image, color, roi_xyxy), color, tiles)
        elif self.is_on_device:
            seen = self.inspect(image, color, roi_xyxy, threshold=math.nan, keep_map=True)
            score, anomaly_map, statistics = seen.map.score, map_of(seen), seen.statistics
        else:
            views = tiles or whole_view(self.size_hw)
            part = prepare(image, color, InputSpec(size_hw=views.map_hw, roi_xyxy=roi_xyxy))
            statistics = frame_statistics(part)
            prepared_s = time.perf_counter()
            ((score, anomaly_map),) = self.infer_frames([(part, views)])
        self._require_usable(score, anomaly_map, "the frame")
        scored_s = time.perf_counter()
        timings = StageTimings(
            preprocess_ms=(prepared_s - started_s) * 1e3, infer_ms=(scored_s - prepared_s) * 1e3, total_ms=(scored_s - started_s) * 1e3
        )
        return Scored(score=score, anomaly_map=anomaly_map, statistics=statistics, timings=timings)

    def inspect(
        self,
        image: object,
        color: ColorOrder,
        roi_xyxy: tuple[int, int, int, int] | None,
        *,
        threshold: float,
        keep_map: bool,
        normalization: MapFactors | None = None,
        choose: ChooseVisualizations | None = None,
    ) -> ScoredFrame:
        """Prepare, score and measure one frame on the GPU, unchecked; only where :attr:`is_on_device`. Arguments as of :meth:`DevicePath.inspect`.

        Raises:
            FrameError: If the frame cannot be used.
            InferenceError: If the GPU fails or there is no device path.
        """
        with self._lend_device_path() as path:
            return path.inspect(
                image, color=color, roi_xyxy=roi_xyxy, threshold=threshold, keep_map=keep_map, normalization=normalization, choose=choose
            )

    def inspect_batch(self, tasks: Sequence[FrameTask]) -> list[ScoredFrame]:
        """Do as :meth:`inspect` with at most as many frames as :meth:`frames_at_once` says, in one run of the network.

        Raises:
            InferenceError: If the GPU fails or there is no device path.
        """
        with self._lend_device_path() as path:
            return path.inspect_batch(tasks)

    def inspect_tiles(self, cropped: CroppedFrame, color: ColorOrder, tiles: Views) -> tuple[float, AnomalyMap, FrameStatistics]:
        """Return raw score, merged map and statistics of a frame seen in tiles, unchecked; with the whole frame beside them the host cuts all views.

        Raises:
            GoldenSampleError: As :meth:`infer_frames`.
            InferenceError: If the backend fails.
        """
        batch_size = self.frames_at_once(tiles.count)
        if self._device_path is None or tiles.with_whole_frame:
            part = prepare_part(cropped.part, color, tiles.map_hw)
            return (*self.infer_frames([(part, tiles)])[0], frame_statistics(part))
        with self._lend_device_path() as path:
            return path.inspect_tiles(cropped.part, color, tiles, batch_size=batch_size)

    def score_inputs(self, images: npt.NDArray[np.uint8]) -> tuple[Scores, Maps]:
        """Score prepared images.

        Args:
            images: (N, H, W, 3) uint8 RGB of the network's size, any N.

        Returns:
            Scores (N,) and maps (N, H, W), float32.

        Raises:
            InferenceError: If the backend fails, an output is not finite or a score is not the maximum of its map.
        """
        scores, maps = self.infer(images)
        for index, (score, anomaly_map) in enumerate(zip(scores, maps)):
            self._require_usable(float(score), anomaly_map, f"image {index}")
        return scores, maps

    def infer_frames(self, seen: Sequence[tuple[Image, Views]]) -> list[tuple[float, AnomalyMap]]:
        """Return raw score and map of each frame seen in views, unchecked, in the batches that the backend takes; see ``score_frames``.

        Before the first batch the golden samples are scored in one; where they differ, or that fails, views are scored one at a time from then on.

        Raises:
            GoldenSampleError: If they differ one at a time, too.
            InferenceError: If the backend fails.
        """
        return score_frames(seen, self.infer, batch_size=self.frames_at_once(sum(views.count for _, views in seen)))

    def frames_at_once(self, count: int) -> int:
        """Return how many of ``count`` frames or views go into one call, after golden samples if it is the first; raises as :meth:`infer_frames`."""
        if self.golden_checked and self.images_due(count):
            self._compare_first_batch()
        return self.batch_size if self._batches_agree else 1

    def images_due(self, count: int) -> int:
        """Return how many golden samples are scored before this many views are: all after a failure, and those of a batch before the first batch."""
        is_first_batch = self._batches_agree is None and count > 1 and self.batch_size > 1
        return (0 if self.golden_checked else self.golden_count) + (max(self.golden_count, self.batch_size) if is_first_batch else 0)

    def infer(self, images: npt.NDArray[np.uint8]) -> tuple[Scores, Maps]:
        """Return raw outputs, unchecked: what the backend did not write is NaN.

        Args:
            images: (N, H, W, 3) uint8 RGB of the network's size, any N; cut into the batches that the graph takes.

        Raises:
            InferenceError: If the backend fails.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (*self.size_hw, 3):
            raise InferenceError(f"images must be uint8 of shape (N, {self.size_hw[0]}, {self.size_hw[1]}, 3), got {images.dtype} {images.shape}")
        return run_in_batches(images, self._infer_batch, fixed=self.backend.input_shape[0], largest=self.batch_size)

    def check_golden_samples(self) -> bool:
        """Score the golden samples and return whether there were any.

        Raises:
            GoldenSampleError: If the manifest lists samples that are not there, or one scores differently from what the checkpoint gave.
            InferenceError: If the backend fails.
        """
        if self._state is DetectorState.READY:
            self._state = DetectorState.UNCHECKED
        self._batches_agree = self._batches_agree and None  # what was found to differ is not tried again
        manifest, golden = self.bundle.manifest, self.bundle.golden
        if golden is None:
            path = golden_path(self.bundle.path)
            if manifest is not None and path.name in manifest.files:
                raise GoldenSampleError(f"{path} is missing though the manifest lists it; copy it beside {self.bundle.path.name} from the export")
            return False
        try:
            self._compare(golden)
        except GoldenSampleError as mismatch:
            if self._device_path is None:
                raise
            logger.warning("frames are prepared on the host, not on the GPU: %s", mismatch)
            self._close_device_path()
            self._compare(golden)
        self._state = DetectorState.READY
        return True

    def close(self) -> None:
        """Close the backend; a second call does nothing."""
        with contextlib.ExitStack() as closing:
            closing.callback(self.backend.close)
            closing.callback(self._close_device_path)

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _compare(self, golden: GoldenSamples) -> None:
        try:
            self._golden_difference = check_golden(golden, self.score_inputs, self.bundle.golden_tolerance)
            if self.bundle.has_tiles:
                self._compare_batch(golden)
        except GoldenSampleError as mismatch:
            self._golden_difference = mismatch.difference
            raise

    def _compare_batch(self, golden: GoldenSamples) -> None:
        is_refused = self._batches_agree is False
        for infer in (self.infer,) if self._device_path is None else (self.infer, self._device_path.infer_tiles):
            check_golden_batch(golden, infer, self.bundle.golden_tolerance, batch_size=1 if is_refused else self.batch_size)
        self._batches_agree = not is_refused

    def _compare_first_batch(self) -> None:
        try:
            if self.bundle.golden is not None:
                self._compare_batch(self.bundle.golden)
        except (GoldenSampleError, InferenceError) as fault:
            logger.warning("images are scored one at a time from now on: %s", fault)
            self._batches_agree = False
            self.distrust_backend()
            self.recover()

    def _require_usable(self, score: float, anomaly_map: AnomalyMap, what: str) -> None:
        fault = check_output(score, anomaly_map)
        if fault is not None:
            raise InferenceError(f"{self.bundle.path.name} gave no usable answer for {what} on {self.backend.name}: {fault.reason}")

    def _infer_batch(self, images: npt.NDArray[np.uint8], maps: Maps, scores: Scores) -> None:
        with self._marking_failure():
            if self._device_path is None:
                self.backend.infer(np.ascontiguousarray(images), maps, scores)
            else:
                scores[...], maps[:, 0] = self._device_path.infer(images)

    @contextlib.contextmanager
    def _lend_device_path(self) -> Iterator[DevicePath]:
        if self._device_path is None:
            raise InferenceError(f"backend {self.backend.name!r} has no device path; use score()")
        with self._marking_failure():
            yield self._device_path
        self._device_failures = 0

    @contextlib.contextmanager
    def _marking_failure(self) -> Iterator[None]:
        """Turn whatever a backend raises into an ``InferenceError`` and distrust it from then on."""
        try:
            yield
        except FrameError:
            raise
        except Exception as error:  # a backend of a third party may raise anything
            self.distrust_backend()
            self._device_failures += self.is_on_device
            if isinstance(error, (InferenceError, BackendTimeoutError)):
                raise
            raise InferenceError(f"backend {self.backend.name!r} failed: {type(error).__name__}: {error}") from error

    def _close_device_path(self) -> None:
        path, self._device_path = self._device_path, None
        if path is not None:
            path.close()
