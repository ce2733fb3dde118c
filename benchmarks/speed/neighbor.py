"""What a verdict's steps on the CPU cost beside another process that wants every core, and what they cost without it, in turn.

    python -m benchmarks.speed.neighbor
    python -m benchmarks.speed.neighbor --engine line.onnx --rounds 20

A process per core computes without end; it is stopped and continued between two measurements of every step, so that other work on the machine
falls on both. Prints the median and the 99th percentile of each step. ``--engine`` adds the model on ONNX Runtime, with threads that sleep and with
threads that spin while they wait, and on OpenVINO where it is installed.
"""

import argparse
import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.speed import machine
from snl_runtime.backends import available_backends, open_backend
from snl_runtime.backends.base import INPUT_NAME
from snl_runtime.backends.onnxruntime.session import load_onnxruntime
from snl_runtime.cli.command import EXIT_OK, run_command
from snl_runtime.images.frame_outputs import draw_visualizations
from snl_runtime.images.preprocess import InputSpec, prepare
from snl_runtime.model.bundle import open_bundle
from snl_runtime.types import OutputRequest
from snl_runtime.verdict.frame_checks import frame_statistics
from snl_runtime.verdict.regions import find_regions

PROGRAM = "benchmarks.speed.neighbor"
FRAMES_HW = ((2048, 2592), (1080, 1920))
SIZE_HW = (256, 256)
CALLS_AT_A_TIME = 5
Step = Callable[[], object]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and return the exit status."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", metavar="FILE", type=Path, help="a model, x.onnx, whose inference is timed as well")
    parser.add_argument("--threads", metavar="N", type=int, default=os.cpu_count(), help="CPU threads of the model (default: all cores)")
    parser.add_argument("--rounds", metavar="N", type=int, default=20, help=f"{CALLS_AT_A_TIME} calls of each step, alone and beside (default: 20)")
    options = parser.parse_args(argv)
    return run_command(lambda: _measure(options), program=PROGRAM)


def _measure(options: argparse.Namespace) -> int:
    steps = _steps()
    if options.engine is not None:
        steps |= _inferences(options.engine, options.threads)
    print(f"{machine.versions()}; {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} before the neighbor")
    alone_ms: dict[str, list[float]] = {name: [] for name in steps}
    beside_ms: dict[str, list[float]] = {name: [] for name in steps}
    with _neighbors() as neighbors:
        for round_ in range(-1, options.rounds):
            for signal_number, times_ms in ((signal.SIGSTOP, alone_ms), (signal.SIGCONT, beside_ms)):
                for process_id in neighbors:
                    os.kill(process_id, signal_number)
                for name, step in steps.items():
                    taken_ms = [_time_ms(step) for _ in range(CALLS_AT_A_TIME)]
                    times_ms[name] += taken_ms if round_ >= 0 else []
    print("| step | alone p50 ms | p99 | beside p50 ms | p99 |\n|---|---:|---:|---:|---:|")
    for name in steps:
        print(f"| {name} | {_percentiles(alone_ms[name])} | {_percentiles(beside_ms[name])} |")
    return EXIT_OK


def _steps() -> dict[str, Step]:
    random = np.random.default_rng(0)
    steps: dict[str, Step] = {}
    for height, width in FRAMES_HW:
        frame = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        steps[f"preprocess {width}x{height}"] = functools.partial(prepare, frame, "bgr", InputSpec(size_hw=SIZE_HW))
    small = random.integers(0, 256, (*SIZE_HW, 3), dtype=np.uint8)
    anomaly_map = np.zeros(SIZE_HW, np.float32)
    anomaly_map[100:140, 60:90] = 2.0
    height, width = FRAMES_HW[0]
    steps["frame statistics"] = functools.partial(frame_statistics, small)
    steps["regions"] = functools.partial(find_regions, anomaly_map, 1.0, (0, 0, width, height))
    outputs = OutputRequest(overlay=True)
    steps[f"overlay {width}x{height}"] = functools.partial(
        draw_visualizations, np.zeros((height, width, 3), np.uint8), "bgr", anomaly_map, 1.0, outputs
    )
    return steps


def _inferences(engine: Path, threads: int) -> dict[str, Step]:
    bundle = open_bundle(engine)
    steps: dict[str, Step] = {}
    library = load_onnxruntime()
    for word, spinning in (("sleeping", "0"), ("spinning", "1")):
        options = library.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
        session = library.InferenceSession(str(engine), options, providers=["CPUExecutionProvider"])
        image = np.zeros((1, *session.get_inputs()[0].shape[1:]), np.uint8)
        steps[f"ONNX Runtime, {threads} threads, {word}"] = functools.partial(session.run, None, {INPUT_NAME: image})
    if "openvino" in available_backends():
        backend = open_backend(bundle, "openvino", threads=threads)
        _, height, width, _ = backend.input_shape
        outputs = np.empty((1, 1, height, width), np.float32), np.empty(1, np.float32)
        steps[f"OpenVINO, {threads} threads"] = functools.partial(backend.infer, np.zeros((1, height, width, 3), np.uint8), *outputs)
    return steps


@contextlib.contextmanager
def _neighbors() -> Iterator[list[int]]:
    """Run one process for each core that computes without end; yield their ids."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_compute, daemon=True) for _ in range(os.cpu_count() or 1)]
    try:
        for process in processes:
            process.start()
        yield [process.pid for process in processes if process.pid is not None]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _compute() -> None:
    while True:
        pass


def _time_ms(step: Step) -> float:
    started_s = time.perf_counter()
    step()
    return (time.perf_counter() - started_s) * 1e3


def _percentiles(times_ms: Sequence[float]) -> str:
    middle, high = np.percentile(times_ms, [50, 99])
    return f"{middle:.2f} | {high:.2f}"


if __name__ == "__main__":
    sys.exit(main())
