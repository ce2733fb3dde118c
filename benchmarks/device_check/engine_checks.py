"""The engine on this device: build, golden samples, parity, CUDA graph, threads, memory and times."""

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from machine import memory_bytes
from table import CheckFailedError, NotRunError

from snl_runtime.backends.tensorrt.backend import TensorRtBackend
from snl_runtime.backends.tensorrt.builder import EngineOptions, build_engine, target_at_hand
from snl_runtime.model.golden import golden_path, read_golden
from snl_runtime.model.guard_band import guard_text
from snl_runtime.model.manifest import manifest_path, read_manifest, update_manifest
from snl_runtime.parity.engine import verify_engine
from snl_runtime.scorer import Scorer

THREADS = 4
LEAKED_BYTES = 16 << 20
"""Device memory that may be gone after the leak check: the driver grows its own pools by a few MiB."""
_OPENINGS = 10
_RUNS = 300
_CPU_RUNS = 15


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Subject:
    """What is checked: copies in a folder of their own, so that the user's files stay as they are.

    Attributes:
        onnx: ``x.onnx`` with manifest and golden samples beside it.
        engine: ``x.trt`` beside it; may not exist.
    """

    onnx: Path
    engine: Path


def copy_subject(onnx: Path, engine: Path | None, folder: Path) -> Subject:
    """Copy a bundle, with its engine if there is one, into ``folder``.

    Raises:
        NotRunError: If a file of the bundle is missing.
    """
    for path in (onnx, manifest_path(onnx), golden_path(onnx)):
        if not path.is_file():
            raise NotRunError(f"{path} is missing; export the checkpoint first: snl-export --ckpt x.pt")
        shutil.copy2(path, folder / path.name)
    target = folder / (onnx.with_suffix(".trt").name if engine is None else engine.name)
    if engine is not None and engine.is_file():
        shutil.copy2(engine, target)
    return Subject(onnx=folder / onnx.name, engine=target)


def build(subject: Subject) -> str:
    """Build an engine for this GPU; it becomes the subject if the user brought none."""
    target = target_at_hand()
    manifest = read_manifest(manifest_path(subject.onnx))
    options = EngineOptions(batches=(1, 1, int(manifest.input["max_batch"])), precision=str(manifest.graph["precision"]))
    is_first = not subject.engine.is_file()
    path = subject.engine if is_first else subject.engine.with_name("built.trt")
    started_s = time.perf_counter()
    built = build_engine(subject.onnx, path, target, options, cache_folder=subject.onnx.parent / "cache")
    if is_first:
        update_manifest(manifest_path(subject.onnx), lambda listed: listed.with_engine(built.entry))
    checked = "checked below" if is_first else "the given engine is checked below"
    return (
        f"{options.precision} with {target.library.name} {target.library.version} for {', '.join(built.entry.compute_capability)} in "
        f"{time.perf_counter() - started_s:.1f} s, {path.stat().st_size / 2**20:.1f} MiB; {checked}"
    )


def self_test(subject: Subject) -> str:
    """Open the engine as users do, golden check included."""
    with Scorer(_engine(subject)) as scorer:
        golden = read_golden(golden_path(subject.onnx))
        return f"{len(golden.images)} golden samples within {scorer.bundle.golden_tolerance:g} on {scorer.backend.device}"


def parity(subject: Subject) -> str:
    """Compare the engine with its ONNX file on the CPU, by the limits that decide about decisions."""
    report = verify_engine(_engine(subject))
    figures = (
        f"{report.frame_count} frames ({report.frames_source}): map within {report.map_max_abs:.3g} (p99 {report.map_p99_abs:.3g}) "
        f"of {report.map_scale:.3g}, score within {report.score_max_abs:.3g}, {report.flips} flips{guard_text(report)}, {report.verified_on}"
    )
    if not report.passed:
        raise CheckFailedError(f"{figures}; {'; '.join(report.failures[:3])}")
    return figures


def graph_equals_plain(subject: Subject) -> str:
    """Compare the first runs, which are plain enqueues, with later ones, which replay a recorded graph where there is one."""
    with TensorRtBackend(_engine(subject)) as backend:
        image = _images(subject)[:1]
        plain = _infer(backend, image)
        later = [_infer(backend, image) for _ in range(20)]
        with backend.execution_context() as context:
            how = "a recorded CUDA graph" if context.has_graph else "the library's own graphs, or plain enqueues"
    different = sum(not all(np.array_equal(a, b) for a, b in zip(plain, answer)) for answer in later)
    if different:
        raise CheckFailedError(f"{different} of {len(later)} runs with {how} differ from the plain enqueue")
    return f"{len(later)} runs with {how} equal the plain enqueue to the bit"


def threads_agree(subject: Subject) -> str:
    """Run several threads on one backend, each on another image, and compare with one thread."""
    with TensorRtBackend(_engine(subject)) as backend:
        images = _images(subject)
        expected = [_infer(backend, image[None]) for image in images]
        wrong: list[str] = []

        def work(number: int) -> None:
            try:
                for run in range(_RUNS // THREADS):
                    index = (number + run) % len(images)
                    if not all(np.array_equal(a, b) for a, b in zip(expected[index], _infer(backend, images[index][None]))):
                        wrong.append(f"thread {number}, run {run}: another answer")
            except Exception as failure:  # noqa: BLE001 - reported below, from the main thread
                wrong.append(f"thread {number}: {failure}")

        workers = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    if wrong:
        raise CheckFailedError(f"{len(wrong)} wrong: {'; '.join(wrong[:3])}")
    return f"{THREADS} threads, {_RUNS // THREADS} runs each: all as from one thread"


def memory_returns(subject: Subject) -> str:
    """Open, run and close the engine several times and compare the free device memory."""

    def once() -> None:
        with TensorRtBackend(_engine(subject)) as backend:
            image = _images(subject)[:1]
            for _ in range(_RUNS // _OPENINGS):
                _infer(backend, image)

    once()  # the context and the library's own pools appear here
    before, _ = memory_bytes()
    for _ in range(_OPENINGS):
        once()
    after, _ = memory_bytes()
    figures = f"{_OPENINGS} times opened, {_RUNS} runs: {(before - after) / 2**20:+.1f} MiB of device memory (allowed {LEAKED_BYTES / 2**20:.0f})"
    if before - after > LEAKED_BYTES:
        raise CheckFailedError(figures)
    return figures


def times(subject: Subject) -> str:
    """Time engine and ONNX file in turn on the same images, one image a call, upload and download included."""
    images = _images(subject)
    seconds: dict[str, list[float]] = {"engine": [], "onnxruntime on the CPU": []}
    with TensorRtBackend(_engine(subject)) as engine, Scorer(subject.onnx, backend="onnxruntime", golden_check=False) as reference:
        runs: dict[str, Callable[[np.ndarray], object]] = {
            "engine": lambda image: _infer(engine, image),
            "onnxruntime on the CPU": lambda image: reference.infer(image),
        }
        for run in runs.values():
            for _ in range(5):
                run(images[:1])
        for turn in range(_CPU_RUNS):
            for name, count in (("engine", _RUNS // _CPU_RUNS), ("onnxruntime on the CPU", 1)):
                for _ in range(count):
                    image = images[turn % len(images)][None]
                    started_s = time.perf_counter()
                    runs[name](image)
                    seconds[name].append(time.perf_counter() - started_s)
    parts = [
        f"{name} median {1e3 * np.median(values):.2f} ms, p99 {1e3 * np.quantile(values, 0.99):.2f} ms ({len(values)} calls)"
        for name, values in seconds.items()
    ]
    return "; ".join(parts)


def _engine(subject: Subject) -> Path:
    if not subject.engine.is_file():
        raise NotRunError(f"there is no engine {subject.engine.name}: none was given and none could be built here")
    return subject.engine


def _images(subject: Subject) -> np.ndarray:
    return read_golden(golden_path(subject.onnx)).images


def _infer(backend: TensorRtBackend, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    count, height, width, _ = images.shape
    anomaly_map, score = np.full((count, 1, height, width), np.nan, np.float32), np.full(count, np.nan, np.float32)
    backend.infer(np.ascontiguousarray(images), anomaly_map, score)
    if not (np.isfinite(anomaly_map).all() and np.isfinite(score).all()):
        raise CheckFailedError("the engine gives values that are not finite")
    return anomaly_map, score
