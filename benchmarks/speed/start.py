"""How long a new process takes to its first verdict, and how much memory it has needed by then.

    python -m benchmarks.speed.start --engine line.onnx
    python -m benchmarks.speed.start --engine line.onnx --backend openvino --starts 5

Each start is a process of its own that imports the runtime, opens the model (golden samples included where it has some) and judges one frame of the
network's size. Prints the medians of the time since its start, of its processor time, which other work hardly changes, and of its peak memory, beside
the aims: 2 s, and 2.3 times the model file plus 150 MB. Linux only, which states the peak.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.speed import machine
from snl_runtime.backends import available_backends
from snl_runtime.cli.command import EXIT_OK, run_command

PROGRAM = "benchmarks.speed.start"
MOST_S = 2.0
MOST_MODEL_FILES, MOST_MB_BESIDE = 2.3, 150.0
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What one process needed until its first verdict."""

    elapsed_s: float
    processor_s: float
    peak_mb: float


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and return the exit status."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", metavar="FILE", type=Path, required=True, help="model, x.onnx")
    parser.add_argument(
        "--backend", nargs="+", default=[name for name in available_backends() if name != "tensorrt"], help="default: those of .onnx files"
    )
    parser.add_argument("--starts", metavar="N", type=int, default=3, help="processes for each backend (default: 3)")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one:
        _start(options.engine, options.backend[0])
        return EXIT_OK
    return run_command(lambda: _measure(options), program=PROGRAM)


def _measure(options: argparse.Namespace) -> int:
    model_mb = options.engine.stat().st_size / 1e6
    print(f"{machine.versions()}; load average {os.getloadavg()[0]:.1f}; {options.engine.name}, {model_mb:.1f} MB")
    print(f"aims: {MOST_S:g} s, {MOST_MODEL_FILES * model_mb + MOST_MB_BESIDE:.0f} MB")
    print("| backend | to the first verdict s | processor time s | peak MB |\n|---|---:|---:|---:|")
    for backend in options.backend:
        starts = [_timed_start(options.engine, backend) for _ in range(options.starts)]
        medians = [statistics.median(getattr(start, name) for start in starts) for name in ("elapsed_s", "processor_s", "peak_mb")]
        print(f"| {backend} | {medians[0]:.2f} | {medians[1]:.2f} | {medians[2]:.0f} |")
    return EXIT_OK


def _timed_start(engine: Path, backend: str) -> Start:
    command = [sys.executable, "-m", PROGRAM, "--engine", str(engine), "--backend", backend, "--one"]
    started_s = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    elapsed_s = time.perf_counter() - started_s
    processor_s, peak_mb = map(float, done.stdout.split())
    return Start(elapsed_s=elapsed_s, processor_s=processor_s, peak_mb=peak_mb)


def _start(engine: Path, backend: str) -> None:
    import numpy as np

    from snl_runtime import SnlDetector, open_bundle

    spec = open_bundle(engine).spec
    frame = np.zeros((256, 256, 3) if spec is None else (*spec.size_hw, 3), np.uint8)
    with SnlDetector(engine, backend=backend) as detector:
        detector.detect(frame)
        peak = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"))
    if peak is None:
        raise OSError(f"{_STATUS} does not state the peak of the memory")
    print(time.process_time(), int(peak[1]) * 1024 / 1e6)


if __name__ == "__main__":
    sys.exit(main())
