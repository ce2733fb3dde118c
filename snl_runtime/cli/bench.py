"""``snl-bench``: how long each stage of a verdict takes on this machine."""

import argparse
import contextlib
import importlib.metadata
import math
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from snl_runtime.cli.command import EXIT_OK, CommandParser, run_command
from snl_runtime.cli.model_flags import add_model_flags, model_values, open_detector, positive
from snl_runtime.errors import ConfigError, DataError
from snl_runtime.progress import Progress
from snl_runtime.station.config import ModelConfig
from snl_runtime.text import to_json

if TYPE_CHECKING:
    import numpy.typing as npt

    from snl_runtime.detector.detector import SnlDetector


PROGRAM = "snl-bench"
EXAMPLE = """
snl-bench --engine line.onnx --runs 500
snl-bench --engine line.trt --compare line.onnx --frames parts/ --json
"""
STAGES = ("preprocess", "infer", "decide", "total")
MOST_FRAMES = 32
"""Frames kept in memory; the runs go round them."""
WARM_UP_RUNS = 10
_PACKAGES = ("snl-edge", "numpy", "opencv-python-headless", "opencv-python", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt_rtx")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(lambda: _bench(_parser().parse_args(argv)), program=PROGRAM)


def _parser() -> CommandParser:
    parser = CommandParser(
        PROGRAM,
        "Time each stage of a verdict on real or golden frames, one frame at a time, after a warm-up. Two engines are timed in turn, frame by frame.",
        example=EXAMPLE,
    )
    parser.add_argument("--engine", metavar="FILE", required=True, help="model: x.onnx or x.trt")
    parser.add_argument("--compare", metavar="FILE", help="second model, timed in the same process on the same frames")
    parser.add_argument("--frames", metavar="DIR", help=f"images to time, {MOST_FRAMES} at most, evenly chosen (default: the model's golden samples)")
    parser.add_argument("--product", metavar="P", help="product whose decision and region of interest are used (default: as snl-run)")
    parser.add_argument("--runs", metavar="N", type=positive(int), default=200, help="timed verdicts per engine (default: 200)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output instead of a table")
    add_model_flags(parser)
    return parser


@dataclass
class _Timed:
    """One engine and its times in milliseconds."""

    path: str
    detector: "SnlDetector"
    stages_ms: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})

    def run(self, frame: "npt.NDArray[Any]", product: str | None, *, keep: bool) -> None:
        """Time one verdict, the call itself included."""
        started_s = time.perf_counter()
        result = self.detector.detect(frame, color="rgb", product=product)
        total_ms = (time.perf_counter() - started_s) * 1e3
        if not math.isfinite(result.score):
            raise DataError(f"{self.path} cannot score a frame, so its times mean nothing: {result.reason}")
        if keep:
            values = (result.timings.preprocess_ms, result.timings.infer_ms, result.timings.decide_ms, total_ms)
            for stage, value in zip(STAGES, values, strict=True):
                self.stages_ms[stage].append(value)


def _bench(arguments: argparse.Namespace) -> int:
    with contextlib.ExitStack() as opened:
        engines = [arguments.engine] if arguments.compare is None else [arguments.engine, arguments.compare]
        timed = [_Timed(engine, opened.enter_context(open_detector(ModelConfig(file=engine, **model_values(arguments))))) for engine in engines]
        frames = _frames(arguments)
        for index in range(WARM_UP_RUNS):
            for subject in timed:
                subject.run(frames[index % len(frames)], arguments.product, keep=False)
        with Progress(arguments.runs, unit="runs", label="time") as progress:
            for index in range(arguments.runs):
                # Whoever goes first finds the frame cold in the cache, so the two take turns.
                for subject in timed if index % 2 == 0 else timed[::-1]:
                    subject.run(frames[index % len(frames)], arguments.product, keep=True)
                progress.advance()
        report = _report(arguments, timed, frames)
    print(to_json(report) if arguments.json else _table(report))
    return EXIT_OK


def _frames(arguments: argparse.Namespace) -> "list[npt.NDArray[Any]]":
    from snl_runtime.images.files import read_frame
    from snl_runtime.images.listing import list_images
    from snl_runtime.model.bundle import open_bundle

    if arguments.frames is not None:
        paths = list_images(arguments.frames).require_all().taken
        if not paths:
            raise DataError(f"{arguments.frames} holds no images")
        step = max(1, len(paths) / MOST_FRAMES)
        return [read_frame(paths[int(index * step)]) for index in range(min(len(paths), MOST_FRAMES))]
    golden = open_bundle(arguments.engine).golden
    if golden is None:
        raise ConfigError(f"{arguments.engine} has no golden samples beside it to time; add --frames DIR")
    return list(golden.images[:MOST_FRAMES])


def _report(arguments: argparse.Namespace, timed: Sequence[_Timed], frames: "Sequence[npt.NDArray[Any]]") -> dict[str, Any]:
    report: dict[str, Any] = {
        "frames": {
            "source": arguments.frames or "golden samples",
            "count": len(frames),
            "first_size_hw": [int(length) for length in frames[0].shape[:2]],
        },
        "runs": arguments.runs,
        "warm_up_runs": WARM_UP_RUNS,
        "threads": arguments.threads,
        "engines": [_measured(subject) for subject in timed],
        "machine": {"system": platform.platform(), "processor": _processor(), "cpus": os.cpu_count()},
        "versions": {"python": platform.python_version(), **_versions()},
    }
    if len(timed) == 2:
        first, second = (engine["stage_ms"] for engine in report["engines"])
        report["ratio_of_medians"] = {
            stage: round(first[stage]["p50"] / second[stage]["p50"], 4) if second[stage]["p50"] else None for stage in STAGES
        }
    return report


def _measured(subject: _Timed) -> dict[str, Any]:
    import numpy as np

    stage_ms = {}
    for stage, values in subject.stages_ms.items():
        p50, p95, p99 = np.percentile(values, [50, 95, 99])
        stage_ms[stage] = {"p50": round(float(p50), 4), "p95": round(float(p95), 4), "p99": round(float(p99), 4), "max": round(max(values), 4)}
    return {
        "engine": subject.path,
        "model_sha256": subject.detector.model_sha256,
        "backend": subject.detector.backend_name,
        "device": subject.detector.device,
        "stage_ms": stage_ms,
        "frames_per_s": round(1e3 * len(subject.stages_ms["total"]) / sum(subject.stages_ms["total"]), 3),
    }


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123 - no file of the user's
        for line in lines:
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _table(report: dict[str, Any]) -> str:
    lines = []
    for engine in report["engines"]:
        lines.append(f"{engine['engine']}  {engine['backend']} on {engine['device']}, model {engine['model_sha256'][:12]}")
        lines.append(f"  {'stage':<12}{'p50 ms':>10}{'p95 ms':>10}{'p99 ms':>10}{'max ms':>10}")
        for stage, values in engine["stage_ms"].items():
            lines.append(f"  {stage:<12}" + "".join(f"{values[name]:>10.3f}" for name in ("p50", "p95", "p99", "max")))
        lines.append(f"  {engine['frames_per_s']:.4g} frames/s, one at a time")
    frames = report["frames"]
    threads = report["threads"] or "the backend's default"
    lines.append(
        f"{report['runs']} runs after {report['warm_up_runs']} to warm up, {frames['count']} frames from {frames['source']}, threads: {threads}"
    )
    lines.append(
        f"{report['machine']['processor']}, {report['machine']['cpus']} CPUs; " + ", ".join(f"{k} {v}" for k, v in report["versions"].items())
    )
    if "ratio_of_medians" in report:
        first, second = (engine["engine"] for engine in report["engines"])
        ratios = ", ".join(f"{stage} {ratio if ratio is not None else '-'}" for stage, ratio in report["ratio_of_medians"].items())
        lines.append(f"ratio of medians, {first} / {second}: {ratios}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
