"""How long a new process takes to its first verdict, and how much memory it has needed by then.

    python -m benchmarks.speed.start --engine line.onnx
    python -m benchmarks.speed.start --engine line.onnx --backend openvino --starts 5

Each start is a process of its own that imports the runtime, opens the model (golden samples included where it has some) and judges one frame of the
network's size. Prints the medians of the time since its start, of its processor time, which other work hardly changes, and of its peak memory, beside
the aims: 2 s, and 2.3 times the model file plus 150 MB. Linux only, which states the peak.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.speed import machine
from snl_runtime.backends import available_backends
from snl_runtime.bench.start import Start, time_start
from snl_runtime.cli.command import EXIT_OK, run_command
from snl_runtime.errors import DataError
from snl_runtime.model.bundle import open_bundle
from snl_runtime.station.config import ModelConfig

PROGRAM = "benchmarks.speed.start"
MOST_S = 2.0
MOST_MODEL_FILES, MOST_MB_BESIDE = 2.3, 150.0


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and return the exit status."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", metavar="FILE", type=Path, required=True, help="model, x.onnx")
    parser.add_argument(
        "--backend", nargs="+", default=[name for name in available_backends() if name != "tensorrt"], help="default: those of .onnx files"
    )
    parser.add_argument("--starts", metavar="N", type=int, default=3, help="processes for each backend (default: 3)")
    options = parser.parse_args(argv)
    return run_command(lambda: _measure(options), program=PROGRAM)


def _measure(options: argparse.Namespace) -> int:
    model_mb = options.engine.stat().st_size / 1e6
    print(f"{machine.versions()}; load average {os.getloadavg()[0]:.1f}; {options.engine.name}, {model_mb:.1f} MB")
    print(f"aims: {MOST_S:g} s, {MOST_MODEL_FILES * model_mb + MOST_MB_BESIDE:.0f} MB")
    print("| backend | to the first verdict s | processor time s | peak MB |\n|---|---:|---:|---:|")
    spec = open_bundle(options.engine).spec
    frame = np.zeros((256, 256, 3) if spec is None else (*spec.size_hw, 3), np.uint8)
    for backend in options.backend:
        starts = [time_start(ModelConfig(file=str(options.engine), backend=backend), frame) for _ in range(options.starts)]
        elapsed_s, processor_s = statistics.median(start.elapsed_s for start in starts), statistics.median(start.processor_s for start in starts)
        print(f"| {backend} | {elapsed_s:.2f} | {processor_s:.2f} | {statistics.median(map(_peak_mb, starts)):.0f} |")
    return EXIT_OK


def _peak_mb(start: Start) -> float:
    if start.memory is None:
        raise DataError("this system does not state the peak of a process's memory; Linux does")
    return start.memory.peak_bytes / 1e6


if __name__ == "__main__":
    sys.exit(main())
