"""The parity gate of an exported ONNX file: which checks a precision needs, on which images."""

import itertools
from pathlib import Path

import numpy as np
import onnx

from snl_runtime.files import sha256_file
from snl_runtime.images.preprocess import InputSpec, prepare, resize
from snl_runtime.model.golden import GoldenSamples
from snl_runtime.model.manifest import ParityReport
from snl_runtime.parity.frames import FrameSet
from snl_runtime.parity.meter import LIMITS, ParityMeter, ScoredFrame, compare, refuse_unless_passed
from snl_runtime.progress import ProgressReporter, no_progress
from snl_runtime.scorer import Scorer
from snl_train.evaluation import CheckpointScorer

from .graph import SnlGraph
from .half_check import HalfAnswer, evaluate_by_reference, evaluate_in_half
from .provenance import torch_half, verified_on

HALF_FRAMES = 8
"""Frames besides the golden samples that are evaluated in true half."""
_ADVICE = "nothing was written; keep the earlier export, and report this with the versions of torch, onnx and onnxruntime"
_INT8_ADVICE = "nothing was written; quantize less with --int8-parts, or export with --fp16"
_HALF_ADVICE = "nothing was written; export without --fp16, or train with smaller activations"


def check_export(  # noqa: PLR0913  # two sides, what they are compared on, and how it is said
    path: Path,
    reference: CheckpointScorer,
    golden: GoldenSamples,
    frames: FrameSet,
    *,
    reference_name: str,
    precision: str,
    meter: ParityMeter,
    progress: ProgressReporter = no_progress,
) -> ParityReport:
    """Compare the file, run by ONNX Runtime through everything that runs on the line, with the checkpoint.

    Args:
        path: The ONNX file with its manifest beside it.
        reference: The checkpoint.
        golden: Golden samples with what the checkpoint gave.
        frames: Images besides them.
        reference_name: Name of the checkpoint for messages.
        precision: That of the file.
        meter: A new one with the limits of that precision, and the decisions whose thresholds no frame may cross.
        progress: Told how many frames are compared.

    Raises:
        ParityRefusedError: If a limit is exceeded.
    """
    total = len(golden.images) + frames.count
    # The golden check would stop at its own, wider tolerance and hide the figures.
    with Scorer(path, backend="onnxruntime", golden_check=False) as subject, progress(total, unit="frames", label="parity") as steps:
        compare(reference, subject, golden, frames, meter=meter, on_frame=steps.advance)
        runs_on = verified_on(subject.backend.name, subject.backend.device)
    report = meter.report(
        subject_file=path.name, subject_sha256=sha256_file(path), reference=reference_name, frames_source=frames.source, verified_on=runs_on
    )
    refuse_unless_passed(report, advice=_INT8_ADVICE if precision == "int8" else _ADVICE)
    return report


def check_half(
    graph: SnlGraph,
    path: Path,
    reference: CheckpointScorer,
    golden: GoldenSamples,
    frames: FrameSet,
    *,
    reference_name: str,
    progress: ProgressReporter = no_progress,
) -> ParityReport:
    """Compare the fp16 graph, evaluated with every half tensor stored as half, with the checkpoint.

    Raises:
        ParityRefusedError: If a limit is exceeded or a layer overflows; the message names the layer.
    """
    spec = InputSpec(size_hw=reference.size_hw)
    chosen = list(itertools.islice(frames, HALF_FRAMES))
    inputs = [*golden.images, *(prepare(frame.image_rgb, "rgb", spec) for frame in chosen)]
    names = [*(f"golden {i}" for i in range(len(golden.images))), *(frame.name for frame in chosen)]
    meter = ParityMeter(LIMITS["fp16"])
    with progress(len(inputs), unit="frames", label="parity in true half") as steps:
        for name, image in zip(names, inputs):
            answer = evaluate_in_half(graph, image[None])
            if answer.overflow is not None:
                meter.fail(f"{name}: layer {answer.overflow} leaves the range of half (65504)")
            _add(meter, name, reference.score_inputs(image[None]), answer)
            steps.advance()
    report = meter.report(
        subject_file=path.name,
        subject_sha256=sha256_file(path),
        reference=reference_name,
        frames_source=f"golden samples and the first {len(chosen)} of {frames.source}",
        verified_on=torch_half(),
    )
    refuse_unless_passed(report, advice=_HALF_ADVICE)
    return report


def check_half_by_reference(small: SnlGraph, small_full: SnlGraph, path: Path, golden: GoldenSamples, *, reference_name: str) -> ParityReport:
    """Compare a small fp16 export, run by the ONNX project's reference evaluator, with the same weights in fp32.

    Args:
        small: The fp16 graph at a small input size.
        small_full: The fp32 graph at that size.
        path: The exported file, which the report is about.
        golden: Golden samples; the first one is shrunk to the small size.
        reference_name: Name of the checkpoint for messages.

    Raises:
        ParityRefusedError: If a limit is exceeded.
    """
    image = resize(golden.images[0], small.size_hw)[None]
    meter = ParityMeter(LIMITS["fp16"])
    expected = evaluate_in_half(small_full, image)  # nothing in this graph is half
    _add(meter, "golden 0, shrunk", (expected.scores, expected.maps), evaluate_by_reference(small, image))
    height, width = small.size_hw
    report = meter.report(
        subject_file=path.name,
        subject_sha256=sha256_file(path),
        reference=f"{reference_name} at {height}x{width} pixels",
        frames_source="one golden sample, shrunk",
        verified_on=f"onnx {onnx.__version__} reference evaluator, cpu; not verified on a device",
    )
    refuse_unless_passed(report, advice=_HALF_ADVICE)
    return report


def _add(meter: ParityMeter, name: str, expected: tuple[np.ndarray, np.ndarray], answer: HalfAnswer) -> None:
    scores, maps = expected
    meter.add(
        ScoredFrame(
            name=name,
            reference_score=float(scores[0]),
            reference_map=maps[0],
            subject_score=float(answer.scores[0]),
            subject_map=answer.maps[0],
        )
    )
