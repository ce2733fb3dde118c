"""What a verdict costs against the size of the input, frames in a call, cameras, products and threads: a table, a CSV file and plots.

    python -m benchmarks.speed.scaling --out cost
    python -m benchmarks.speed.scaling --out cost --graph snl --axes size_px --sizes 256 384 512

Writes scaling.csv and scaling.svg into the folder. The values of an axis, and backends, take turns until --seconds are over; with the defaults the
whole takes less than ten minutes, the export of five graphs included, whose files stay in the folder for the next run. Run it on an idle machine:
times beside other work compare with each other only. The networks are exported without training (needs the extra export), times do not depend on
the weights. Products are decisions of one model; their number is measured on the tiny model of the tests, where the network hides nothing.
"""

import argparse
import contextlib
import csv
import io
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

from benchmarks.speed import machine
from benchmarks.speed.models import GRAPHS, add_manifest, tiny_model, untrained_graph
from snl_runtime.backends import available_backends
from snl_runtime.bench.loads import Batches, Cameras, Load, SingleFrames, Subject
from snl_runtime.cli.command import EXIT_OK, run_command
from snl_runtime.detector.detector import SnlDetector
from snl_runtime.files import atomic_write_text, check_writable
from snl_runtime.plots import Curve, CurvePlot, svg_file
from snl_runtime.progress import Progress

PROGRAM = "benchmarks.speed.scaling"
AXES = {
    "size_px": "side of the input, px",
    "batch": "frames in a call",
    "cameras": "cameras triggered together",
    "products": "products with a decision",
    "threads": "CPU threads of the backend",
}
LEAST_ROUNDS = 3
MOST_ROUNDS = 200
WARM_UP_ROUNDS = 1
_FRAMES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One measured value; times in milliseconds of one call, from its start to its last verdict."""

    axis: str
    backend: str
    value: int
    rounds: int
    p50_ms: float
    p99_ms: float
    frame_p50_ms: float


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, write both files and return the exit status."""
    return run_command(lambda: _measure(_parser().parse_args(argv)), program=PROGRAM)


def _parser() -> argparse.ArgumentParser:
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for the files, made if it is missing")
    parser.add_argument("--axes", nargs="+", choices=tuple(AXES), default=list(AXES), help="what is varied (default: everything)")
    parser.add_argument("--graph", choices=tuple(GRAPHS), default="best", help="which network (default: best)")
    parser.add_argument("--teacher", default="resnet18", help="resnet18 or wide_resnet50_2 (default: resnet18)")
    parser.add_argument(
        "--backend", nargs="+", default=[name for name in available_backends() if name != "tensorrt"], help="default: those of .onnx files"
    )
    parser.add_argument("--device", help="device as the backend names it (default: the backend's own)")
    parser.add_argument("--size-px", metavar="PX", type=int, default=256, help="side of the input where it is not varied (default: 256)")
    parser.add_argument("--sizes", metavar="PX", type=int, nargs="+", default=[256, 384, 512, 768, 1024])
    parser.add_argument("--batch", metavar="N", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--cameras", metavar="N", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--products", metavar="N", type=int, nargs="+", default=[1, 10, 30, 100])
    parser.add_argument(
        "--threads", metavar="N", type=int, nargs="+", default=sorted({1 << n for n in range(cores.bit_length())} & {*range(cores + 1)} | {cores})
    )
    parser.add_argument("--seconds", metavar="S", type=float, default=75.0, help="time for each axis, the slowest calls aside (default: 75)")
    return parser


def _measure(options: argparse.Namespace) -> int:
    options.out.mkdir(parents=True, exist_ok=True)
    table, plots = options.out / "scaling.csv", options.out / "scaling.svg"
    for path in (table, plots):
        check_writable(path)
    print(f"{machine.versions()}; load average {os.getloadavg()[0]:.1f}; {options.graph}, {options.teacher}, {options.size_px} px")
    print("| axis | backend | value | calls | call p50 ms | p99 ms | p50 ms per frame |\n|---|---|---:|---:|---:|---:|---:|")
    points: list[Point] = []
    for axis in options.axes:
        with contextlib.ExitStack() as opened:
            points += _timed(axis, dict(_loads(axis, options, opened)), options.seconds)
        for point in points:
            if point.axis == axis:
                times = " | ".join(f"{time_ms:.2f}" for time_ms in (point.p50_ms, point.p99_ms, point.frame_p50_ms))
                print(f"| {axis} | {point.backend} | {point.value} | {point.rounds} | {times} |")
    atomic_write_text(table, _csv(points))
    atomic_write_text(plots, svg_file([_plot(axis, points) for axis in options.axes]))
    print(f"{PROGRAM}: {table} and {plots} are written", file=sys.stderr)
    return EXIT_OK


def _loads(axis: str, options: argparse.Namespace, opened: contextlib.ExitStack) -> Iterator[tuple[tuple[str, int], Load]]:
    """Yield backend and value with the calls that measure them; detectors and threads are closed with ``opened``."""
    for backend in options.backend:
        if axis in ("batch", "cameras"):
            subject = _subject(opened, _graph(options, options.size_px), backend, options)
            for count in getattr(options, axis):
                yield (backend, count), Batches(subject, count) if axis == "batch" else opened.enter_context(Cameras(subject, count))
        elif axis == "size_px":
            for size_px in options.sizes:
                yield (backend, size_px), SingleFrames(_subject(opened, _graph(options, size_px), backend, options))
        elif axis == "threads":
            for threads in options.threads:
                yield (backend, threads), SingleFrames(_subject(opened, _graph(options, options.size_px), backend, options, threads=threads))
        else:
            for count in options.products:
                yield (backend, count), SingleFrames(_subject(opened, _with_products(options.out, count), backend, options, product="part0"))


def _graph(options: argparse.Namespace, size_px: int) -> Path:
    path = untrained_graph(options.out, options.graph, size_px, teacher=options.teacher)
    add_manifest(path, size_px, max_batch=max(options.batch))
    return path


def _with_products(out: Path, count: int) -> Path:
    folder = out / f"products-{count}"
    folder.mkdir(exist_ok=True)
    return Path(tiny_model().ModelFolder(folder).write(decisions=[{"product": f"part{index}"} for index in range(count)]))


def _subject(
    opened: contextlib.ExitStack, model: Path, backend: str, options: argparse.Namespace, *, threads: int | None = None, product: str | None = None
) -> Subject:
    detector = opened.enter_context(SnlDetector(model, backend=backend, device=options.device, threads=threads, timeout_ms=600_000))
    manifest = detector.manifest
    assert manifest is not None
    side_px = int(manifest.input["size_hw"][0])
    frames = [np.ascontiguousarray(tiny_model().good_frame(seed, side_px)[:, :, ::-1]) for seed in range(_FRAMES)]
    return Subject(name=model.name, detector=detector, frames=frames, product=product)


def _timed(axis: str, loads: dict[tuple[str, int], Load], seconds: float) -> list[Point]:
    """Call everything in turn until the time is over, at least a few times each."""
    for index in range(WARM_UP_ROUNDS):
        for load in loads.values():
            load.run(index, keep=False)
    ends_s = time.monotonic() + seconds
    rounds = 0
    with Progress(None, unit="rounds", label=axis) as progress:
        while rounds < LEAST_ROUNDS or (rounds < MOST_ROUNDS and time.monotonic() < ends_s):
            for load in loads.values():
                load.run(rounds)
            rounds += 1
            progress.advance()
    return [_point(axis, backend, value, load) for (backend, value), load in loads.items()]


def _point(axis: str, backend: str, value: int, load: Load) -> Point:
    p50_ms = statistics.median(load.call_ms)
    return Point(
        axis=axis,
        backend=backend,
        value=value,
        rounds=len(load.call_ms),
        p50_ms=p50_ms,
        p99_ms=float(np.percentile(load.call_ms, 99)),
        frame_p50_ms=p50_ms / load.frames_per_call,
    )


def _csv(points: Sequence[Point]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(Point))
    writer.writerows(tuple(f"{value:.4f}" if isinstance(value, float) else value for value in astuple(point)) for point in points)
    return text.getvalue()


def _plot(axis: str, points: Sequence[Point]) -> CurvePlot:
    own = [point for point in points if point.axis == axis]
    curves = []
    for backend in dict.fromkeys(point.backend for point in own):
        line = sorted((point.value, point.p50_ms) for point in own if point.backend == backend)
        curves.append(Curve(f"{backend}, median of a call", [value for value, _ in line], [time_ms for _, time_ms in line]))
    return CurvePlot(f"Cost against {AXES[axis]}", AXES[axis], "ms for the call", curves)


if __name__ == "__main__":
    sys.exit(main())
