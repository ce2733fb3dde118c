"""What the graphs that ship cost on a CPU, beside each other: in one process and in turn, in processor time, which other work hardly changes.

    python -m benchmarks.speed.cpu
    python -m benchmarks.speed.cpu --graphs rd best --backend onnxruntime --batch 1 8 --folder graphs/
    python -m benchmarks.speed.cpu --graphs best best-int8 best-int8-all
    python -m benchmarks.speed.cpu --graphs best rd --files anomalib-rd=peers/anomalib-rd.onnx
    python -m benchmarks.speed.cpu --graphs snl --profile

Prints the median processor time of each graph, backend and batch, per image, and its ratio to the first graph and batch on the same backend: the
median over rounds in which each is called once. Files of other projects (``--files``; ``benchmarks.speed.peers`` exports some) take one image.
With one thread on an idle machine that is the time that passes. The networks are exported without training (needs the extra export): times do not
depend on the weights. ``--profile`` prints instead where ONNX Runtime spends the time, per kind of node.
"""

import argparse
import collections
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed import machine
from benchmarks.speed.foreign import file_call, named_file
from benchmarks.speed.models import GRAPHS, QUANTIZED, untrained_graph
from snl_runtime.backends import open_backend
from snl_runtime.backends.base import Backend
from snl_runtime.backends.onnxruntime.session import load_onnxruntime
from snl_runtime.cli.command import EXIT_OK, run_command
from snl_runtime.model.bundle import open_bundle

PROGRAM = "benchmarks.speed.cpu"
BACKENDS = ("onnxruntime", "openvino")
WARM_UP_RUNS = 3
Timed = tuple[str, str, int]
"""Graph, backend, batch."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and return the exit status."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--graphs", nargs="+", choices=(*GRAPHS, *QUANTIZED), default=list(GRAPHS), help="the first is what the others are compared with"
    )
    parser.add_argument("--files", nargs="+", metavar="NAME=PATH", default=[], help=".onnx files of other projects, timed with one image")
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--batch", nargs="+", metavar="N", type=int, default=[1], help="images per call (default: 1)")
    parser.add_argument("--size-px", metavar="PX", type=int, default=256, help="side of the input (default: 256)")
    parser.add_argument("--teacher", default="resnet18", help="resnet18 or wide_resnet50_2 (default: resnet18)")
    parser.add_argument("--layout", choices=("rows", "triangle"), default="rows", help="of the affinity error, as for snl-export (default: rows)")
    parser.add_argument("--threads", metavar="N", type=int, default=1, help="CPU threads of a call (default: 1)")
    parser.add_argument("--rounds", metavar="N", type=int, default=20, help="timed calls of each (default: 20)")
    parser.add_argument("--folder", metavar="DIR", type=Path, help="take graphs that are there, and leave new ones there")
    parser.add_argument("--profile", action="store_true", help="time per kind of node instead, ONNX Runtime only")
    options = parser.parse_args(argv)
    return run_command(lambda: _measure(options), program=PROGRAM)


def _measure(options: argparse.Namespace) -> int:
    files = dict(named_file(text) for text in options.files)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        paths = {name: untrained_graph(folder, name, options.size_px, teacher=options.teacher, layout=options.layout) for name in options.graphs}
        print(f"{machine.versions()}; threads {options.threads}, load average {os.getloadavg()[0]:.1f}; {options.teacher}, {options.size_px} px")
        if options.profile:
            for name, path in paths.items():
                _print_profile(name, path, options)
            return EXIT_OK
        _print_times(_times(paths, files, options), options.graphs[0], options.batch[0])
    return EXIT_OK


def _times(paths: dict[str, Path], files: dict[str, Path], options: argparse.Namespace) -> dict[Timed, list[float]]:
    """Return milliseconds of processor time per image of each call, the calls in turn."""
    calls: dict[Timed, Callable[[], None]] = {}
    for backend in options.backend:
        for name, path in paths.items():
            opened = open_backend(open_bundle(path), backend, threads=options.threads)
            for batch in options.batch:
                calls[name, backend, batch] = _call(opened, batch)
        for name, path in files.items():
            calls[name, backend, 1] = file_call(path, backend, size_px=options.size_px, threads=options.threads)
    times_ms: dict[Timed, list[float]] = {key: [] for key in calls}
    for round_ in range(-WARM_UP_RUNS, options.rounds):
        for key, call in calls.items():
            started_s = time.process_time()
            call()
            if round_ >= 0:
                times_ms[key].append((time.process_time() - started_s) * 1e3 / key[2])
    return times_ms


def _call(backend: Backend, batch: int) -> Callable[[], None]:
    _, height, width, _ = backend.input_shape
    images = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    maps, scores = np.empty((batch, 1, height, width), np.float32), np.empty(batch, np.float32)
    return lambda: backend.infer(images, maps, scores)


def _print_times(times_ms: dict[Timed, list[float]], first: str, first_batch: int) -> None:
    print(f"| graph | backend | batch | median ms per image | to {first}, batch {first_batch} |\n|---|---|---:|---:|---:|")
    for (name, backend, batch), own_ms in times_ms.items():
        ratio = statistics.median(own / other for own, other in zip(own_ms, times_ms[first, backend, first_batch], strict=True))
        print(f"| {name} | {backend} | {batch} | {statistics.median(own_ms):.1f} | {ratio:.3f} |")


def _print_profile(name: str, path: Path, options: argparse.Namespace) -> None:
    library = load_onnxruntime()
    with tempfile.TemporaryDirectory() as folder:
        settings = library.SessionOptions()
        settings.intra_op_num_threads, settings.enable_profiling = options.threads, True
        settings.profile_file_prefix = str(Path(folder) / "profile")
        session = library.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        image = np.zeros((options.batch[0], options.size_px, options.size_px, 3), np.uint8)
        for _ in range(options.rounds):
            session.run(None, {"image": image})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    _print_node_times(name, events, options.rounds)


def _print_node_times(name: str, events: Sequence[dict[str, Any]], rounds: int) -> None:
    spent_ms: collections.Counter[str] = collections.Counter()
    runs: collections.Counter[str] = collections.Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            kind = event["args"]["op_name"]
            spent_ms[kind] += event["dur"] / 1e3 / rounds
            runs[kind] += 1
    total_ms = sum(spent_ms.values())
    print(f"\n{name}: {total_ms:.1f} ms in nodes\n\n| kind | nodes | ms | share |\n|---|---:|---:|---:|")
    for kind, own_ms in spent_ms.most_common():
        print(f"| {kind} | {runs[kind] // rounds} | {own_ms:.2f} | {own_ms / total_ms:.1%} |")


if __name__ == "__main__":
    sys.exit(main())
