"""The detector that a line embeds: one frame in, one fail-safe verdict out."""

import contextlib
import logging
import os
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from snl_runtime.backends.base import Backend, scored_by
from snl_runtime.cuda.arrays import DeviceFrameReader
from snl_runtime.detector.batch import checked_frames, checked_products
from snl_runtime.detector.faults import BusyError, explaining
from snl_runtime.detector.inspection import Asked, Inspection, Output, Request, answer
from snl_runtime.detector.self_test import run_self_test
from snl_runtime.detector.worker import BackendWorker
from snl_runtime.errors import (
    BackendTimeoutError,
    ConfigError,
    DetectorClosedError,
)
from snl_runtime.model.bundle import ModelBundle
from snl_runtime.model.manifest import Manifest
from snl_runtime.model.normalization_files import open_normalizations
from snl_runtime.model.signing import PublicKey
from snl_runtime.scorer import Scorer
from snl_runtime.types import AnomalyResult, ColorOrder, DetectorState, OutputRequest, SelfTestResult
from snl_runtime.verdict.selection import DecisionBook

logger = logging.getLogger(__name__)

_OPENING_TIMEOUT_S = 120.0
"""Least time that the golden check may take; a first call can compile kernels."""
_CLOSING_TIMEOUT_S = 10.0
"""How long close() waits for a call that hangs."""


class SnlDetector:
    """An opened model that gives verdicts; any number of threads may call :meth:`detect`, their frames are scored one after the other.

    The backend lives on one thread of its own. A call that hangs there becomes ERROR ``timeout``, the following ones ERROR ``backend_busy`` until it
    comes back. The golden samples are scored at opening; after a failure the backend is opened again and they are scored again.

    On TensorRT, and on ONNX Runtime with ``device="cuda"``, a frame is uploaded once, the inspected part only, and prepared on the GPU, where that
    agrees with the host on frames of its own at opening; otherwise the host prepares it and one line in the log says why.

    A product that was calibrated on tiles is seen in them, and one with an ignore mask is judged under it; :attr:`notes` says so. Tiles are scored
    :attr:`batch_size` at a time, on a GPU out of one upload: ``timeout_ms`` must be long enough for all of a frame.

    A model without golden samples, decision or manifest (a lone ``.onnx``) opens and scores, and every verdict is ERROR with the reason.

    Args:
        model: ``x.onnx`` or ``x.trt``.
        backend: Name of a backend, or an opened one, which the detector then owns; None chooses, see :mod:`snl_runtime.backends.choice`.
        device: Device as the backend names it; None for its default.
        product: Product of the frames that name none; None for the one calibrated product, or the strictest rule of several.
        timeout_ms: How long one frame may take in the backend, and how long it may wait for the frames before it.
        threads: Most CPU threads the backend may use; None for its default.
        public_key: Ed25519 key that must have signed the manifest; None accepts unsigned manifests.
        keep_maps: Whether results carry the anomaly map. Without, a GPU keeps the map to itself; score, checks and regions are the same.
        outputs: What results carry at frame resolution (map, mask, overlay) and for which verdicts; None for nothing. Verdict and regions do not
            depend on it, except that a GPU which fails while it draws makes the frame an ERROR like any failure.
        cuda_graphs: Whether ONNX Runtime and TensorRT may record their work on a GPU as CUDA graphs, see :attr:`has_cuda_graph`.

    Raises:
        ManifestError: If a file of the model is truncated, altered or of another schema, or the normalization map of a product is missing; the
            message says
            what to run.
        GoldenSampleError: If the golden samples are missing though the manifest lists them, or score differently here.
        BackendError: If the backend cannot be opened or fails on the golden samples.
        ConfigError: If an option is out of range.

    Example:
        >>> with SnlDetector("line.onnx") as detector:  # doctest: +SKIP
        ...     detector.detect(frame, color="bgr", product="bottle").verdict
        <Verdict.PASS: 'PASS'>
    """

    def __init__(  # noqa: PLR0913  # the public signature of DESIGN.md
        self,
        model: str | Path,
        *,
        backend: str | Backend | None = None,
        device: str | None = None,
        product: str | None = None,
        timeout_ms: float = 10_000,
        threads: int | None = None,
        public_key: PublicKey | None = None,
        keep_maps: bool = True,
        outputs: OutputRequest | None = None,
        cuda_graphs: bool = True,
    ) -> None:
        self._closed = True  # until everything below worked
        if not timeout_ms > 0:
            raise ConfigError(f"timeout_ms must be positive, got {timeout_ms}")
        self._timeout_s = timeout_ms / 1e3
        self._product = product
        self._keep_maps = keep_maps
        self._outputs = OutputRequest() if outputs is None else _checked_outputs(outputs)
        self._process = os.getpid()
        self._lock = threading.RLock()  # a signal's handler may close the detector in the middle of a call of its own thread
        self._worker = BackendWorker(f"snl-backend-{Path(model).name}")

        def open_scorer() -> Scorer:
            return Scorer(model, backend=backend, device=device, threads=threads, public_key=public_key, golden_check=False, cuda_graphs=cuda_graphs)

        try:
            self._scorer = self._worker.call(open_scorer)
        except BaseException:
            self._worker.stop(_nothing, _CLOSING_TIMEOUT_S)
            raise
        try:
            self._book = _open_book(self._scorer.bundle)
            self._worker.call(self._scorer.check_golden_samples, max(_OPENING_TIMEOUT_S, self._timeout_s))
        except BaseException:
            self._worker.stop(self._scorer.close, _CLOSING_TIMEOUT_S)
            raise
        self._frames = DeviceFrameReader(_cuda_index(device))
        self._closed = False

    @property
    def state(self) -> DetectorState:
        """What the detector may be trusted with now, e.g. for a health check; it does not wait for a frame under way."""
        return DetectorState.CLOSED if self._closed else self._scorer.state

    @property
    def manifest(self) -> Manifest | None:
        """The manifest beside the model; None for a lone ``.onnx``."""
        return self._scorer.bundle.manifest

    @property
    def products(self) -> tuple[str, ...]:
        """Products with a decision for this very file, sorted; an engine that is too far from its model passes none of them."""
        return self._book.products

    @property
    def notes(self) -> tuple[str, ...]:
        """What an operator must know about the opened files and their decisions, one sentence each."""
        bundle, runs_on = self._scorer.bundle, scored_by(self._scorer.backend, is_on_device=self.is_on_device)
        return (*bundle.notes, *self._book.notes, *(() if bundle.engine else self._book.moved_from(runs_on)))

    @property
    def backend_name(self) -> str:
        """Name of the backend that runs the model."""
        return self._scorer.backend.name

    @property
    def device(self) -> str:
        """Where the backend runs, in its own words."""
        return self._scorer.backend.device

    @property
    def is_on_device(self) -> bool:
        """Whether frames are prepared and judged on the GPU now; False too where the host does it because the device's values did not agree."""
        return self._scorer.is_on_device

    @property
    def has_cuda_graph(self) -> bool:
        """Whether a GPU scores frames by replaying a CUDA graph now; one line in the log says why ONNX Runtime has none."""
        return self._scorer.has_cuda_graph

    @property
    def batch_size(self) -> int:
        """Most frames that :meth:`detect_batch` scores in one run; 1 where the model was exported so, on an engine what it was built for."""
        return self._scorer.batch_size

    @property
    def model_sha256(self) -> str:
        """Hash of the opened file."""
        return self._scorer.bundle.sha256

    def detect(
        self,
        image: object,
        *,
        color: ColorOrder = "bgr",
        product: str | None = None,
        bit_depth: int | None = None,
        outputs: OutputRequest | None = None,
    ) -> AnomalyResult:
        """Return the verdict on one frame; whatever the frame is, nothing is raised for it.

        Args:
            image: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) array, uint8 or uint16, on the host or, for a backend on a
                GPU, there, as pycuda, CuPy and torch hand it out; anything else gives ERROR ``frame_unusable``. A size that the product was not
                calibrated on gives ERROR ``frame_size``.
            color: Meaning of the last axis. A frame whose red and blue look swapped gives ERROR ``frame_color_order``; of a gray or nearly gray
                product that cannot be seen.
            product: Product of this frame; None for the detector's own.
            bit_depth: Bits that a value of a uint16 frame uses: 10, 12, 14 or 16; None for what the product was calibrated on, 16 if it was not. A
                frame of another depth than the product's, or with a value above it, gives ERROR ``frame_bit_depth``.
            outputs: What the result carries beside the verdict; None for the detector's own.

        Returns:
            A result that owns its arrays. ``product`` is None where the strictest of several decisions was used.

        Raises:
            DetectorClosedError: If the detector is closed, or was opened before this process was forked.
        """
        return self._judge([image], [product], color, bit_depth, outputs)[0]

    def detect_batch(
        self,
        images: Sequence[object],
        *,
        color: ColorOrder = "bgr",
        products: str | Sequence[str | None] | None = None,
        bit_depth: int | None = None,
        outputs: OutputRequest | None = None,
    ) -> list[AnomalyResult]:
        """Return the verdicts on several frames in their order, as :meth:`detect` gives them on each alone; scores are equal within float32 rounding.

        Frames are prepared one after the other and scored together, at most :attr:`batch_size` in one call of the backend. What is wrong with a frame
        is an ERROR of that frame alone: a call that fails is made again frame by frame. A call that hangs is a timeout of all its frames.

        Args:
            images: Frames as :meth:`detect` takes them, of any sizes.
            color: Meaning of the last axis of every frame.
            products: Product of every frame, or one for each; None, alone or for a frame, for the detector's own.
            bit_depth: As for :meth:`detect`, for every frame.
            outputs: As for :meth:`detect`, for every frame.

        Returns:
            One result for each frame. Its ``infer_ms`` is that of the call in which it was scored, its ``total_ms`` holds the wait for the others
            of that call.

        Raises:
            ConfigError: If ``images`` is no sequence of frames, ``products`` does not fit it, or ``outputs`` is no request.
            DetectorClosedError: If the detector is closed, or was opened before this process was forked.

        Example:
            >>> with SnlDetector("line.onnx") as detector:  # doctest: +SKIP
            ...     for result in detector.detect_batch([left, right], products=("lid", "bottom")):
            ...         print(result.verdict.value)
            PASS
            REJECT
        """
        frames = checked_frames(images)
        named = checked_products(products, len(frames))
        wanted = self._outputs if outputs is None else _checked_outputs(outputs)
        results: list[AnomalyResult] = []
        while len(results) < len(frames):
            part = slice(len(results), len(results) + self._scorer.batch_size)
            results += self._judge(frames[part], named[part], color, bit_depth, wanted)
        return results

    def self_test(self) -> SelfTestResult:
        """Score the golden samples again, between two frames, and return how they compare; frames wait meanwhile.

        After a failure no frame passes: verdicts are ERROR ``golden_mismatch`` until the samples agree again, which each following frame and each
        further self-test tries on a backend that is opened again.

        Raises:
            BackendTimeoutError: If it could not run because frames or a call that hangs kept the backend busy; nothing was learned.
            DetectorClosedError: If the detector is closed, or was opened before this process was forked.
        """
        self._check_usable()
        if not self._lock.acquire(timeout=self._timeout_s):
            raise BackendTimeoutError("the self-test did not run: frames took all of its time")
        try:
            if self._closed:
                raise DetectorClosedError("the detector was closed while a self-test was waiting")
            if self._worker.busy:
                raise BackendTimeoutError("the self-test did not run: an earlier call has not come back from the backend")
            return run_self_test(self._scorer, self._worker, self._timeout_s * (1 + self._scorer.golden_count))
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close the backend and end its thread; a second call does nothing.

        Calls of other threads are waited for as long as a frame may take, at most 10 s, and as long again for a call that hangs in the backend; after
        that the backend closes itself if the call ever comes back.
        """
        timeout_s = min(self._timeout_s, _CLOSING_TIMEOUT_S)
        is_held = self._lock.acquire(timeout=timeout_s)
        try:
            if self._closed:
                return
            self._closed = True
            with contextlib.closing(self._frames):
                self._worker.stop(self._scorer.close, timeout_s)
        finally:
            if is_held:
                self._lock.release()

    def __enter__(self) -> "SnlDetector":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            warnings.warn("a SnlDetector was never closed; use it as a context manager", ResourceWarning, stacklevel=2)

    def _judge(
        self, images: Sequence[object], products: Sequence[str | None], color: ColorOrder, bit_depth: int | None, outputs: OutputRequest | None
    ) -> list[AnomalyResult]:
        """Return the results of frames that may be scored in one call."""
        self._check_usable()
        inspections: list[Inspection] = []
        for image, product in zip(images, products, strict=True):
            inspection = Inspection(self._book.select(self._product if product is None else product), keep_map=self._keep_maps)
            inspections.append(inspection)
            with explaining(inspection):
                inspection.asked = self._prepare(inspection, image, color, bit_depth, self._outputs if outputs is None else _checked_outputs(outputs))
        self._score([inspection for inspection in inspections if inspection.asked is not None])
        results = []
        for inspection in inspections:
            with explaining(inspection):
                inspection.conclude()
            results.append(inspection.result(self.model_sha256))
        return results

    def _check_usable(self) -> None:
        if self._closed:
            raise DetectorClosedError("the detector is closed; open a new SnlDetector")
        if os.getpid() != self._process:
            raise DetectorClosedError("the detector was opened before this process was forked, and its backend is not here; open one in each process")

    def _prepare(self, inspection: Inspection, image: object, color: ColorOrder, bit_depth: int | None, outputs: OutputRequest) -> Asked:
        request = Request(
            image=image,
            color=color,
            bit_depth=bit_depth,
            selection=inspection.selection,
            keep_map=self._keep_maps,
            outputs=outputs,
            reader=self._frames,
        ).read(self._scorer)
        inspection.bit_depth = None if request.cropped is None else request.cropped.bit_depth
        is_left_to_device = self._scorer.is_on_device or request.cropped is None
        prepared = None if is_left_to_device else request.prepare(self._scorer)
        inspection.prepared_s = time.perf_counter()
        return Asked(request=request, prepared=prepared)

    def _score(self, inspections: Sequence[Inspection]) -> None:
        """Let the backend score prepared frames in one call, or in one call each where that fails; each then has an output or a ruling."""
        if not inspections:
            return
        with explaining(*inspections):
            try:
                outputs = self._answer([inspection.asked for inspection in inspections if inspection.asked is not None])
            except (DetectorClosedError, BackendTimeoutError, BusyError):
                raise
            except Exception as failure:
                if len(inspections) == 1:
                    raise
                logger.warning("a call with %d frames failed, so each is scored in its own: %s", len(inspections), failure)
                for inspection in inspections:
                    self._score([inspection])
                return
            for inspection, output in zip(inspections, outputs, strict=True):
                inspection.output = output

    def _answer(self, asked: Sequence[Asked]) -> list[Output]:
        if not self._lock.acquire(timeout=self._timeout_s):
            raise BusyError("the frames before this one took all of its time")
        try:
            if self._closed:
                raise DetectorClosedError("the detector was closed while a frame was waiting")
            if self._worker.busy:
                raise BusyError("an earlier call has not come back from the backend; restart the process if it never does")
            checks = self._scorer.images_due(len(asked))
            return self._worker.call(lambda: answer(self._scorer, asked), self._timeout_s * (len(asked) + checks))
        except BackendTimeoutError:
            self._scorer.distrust_backend()
            raise
        finally:
            self._lock.release()


def _open_book(bundle: ModelBundle) -> DecisionBook:
    manifest = bundle.manifest
    if manifest is None:
        return DecisionBook(None, bundle.sha256)
    return DecisionBook(manifest, bundle.sha256, open_normalizations(bundle.path, manifest.decisions_for(bundle.sha256).values(), manifest.size_hw))


def _checked_outputs(outputs: object) -> OutputRequest:
    if not isinstance(outputs, OutputRequest):
        raise ConfigError(f"outputs must be an OutputRequest, got {type(outputs).__name__}")
    return outputs


def _cuda_index(device: str | None) -> int:
    """Return which GPU device frames are on: the backend's if it names one, else the first."""
    kind, _, index = (device or "").lower().partition(":")
    return int(index) if kind == "cuda" and index.isascii() and index.isdecimal() else 0


def _nothing() -> None:
    """Do nothing: the last job of a thread that never opened a backend."""
