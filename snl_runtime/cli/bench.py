"""``snl-bench``: what a verdict costs on this machine: time of each stage, batches, cameras, memory, and the start of a process."""

import argparse
import contextlib
import dataclasses
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snl_runtime.cli.command import EXIT_OK, CommandParser, run_command
from snl_runtime.cli.model_flags import add_model_flags, model_values, open_detector, positive, whole_number
from snl_runtime.errors import ConfigError, DataError
from snl_runtime.files import atomic_write_text, check_writable
from snl_runtime.progress import Progress
from snl_runtime.station.config import ModelConfig
from snl_runtime.text import to_json

if TYPE_CHECKING:
    from snl_runtime.bench.report import EngineTimes
    from snl_runtime.types import Image


PROGRAM = "snl-bench"
EXAMPLE = """
snl-bench --engine line.onnx --runs 500
snl-bench --engine line.onnx --backend onnxruntime --compare-backend openvino
snl-bench --engine line.trt --compare line.onnx --frames parts/ --json
snl-bench --engine line.onnx --batch 1 4 8 --cameras 1 2 4 --starts 3 --plot cost.svg
"""
MOST_FRAMES = 32
"""Frames kept in memory; the runs go round them."""
WARM_UP_RUNS = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(lambda: _bench(_parser().parse_args(argv)), program=PROGRAM)


def _parser() -> CommandParser:
    parser = CommandParser(
        PROGRAM,
        "Time each stage of a verdict on real or golden frames, one frame at a time, after a warm-up; on request also several frames in one call, "
        "several cameras, and the start of a process. All kinds of calls, and two engines, take turns.",
        example=EXAMPLE,
    )
    parser.add_argument("--engine", metavar="FILE", required=True, help="model: x.onnx or x.trt")
    parser.add_argument("--compare", metavar="FILE", help="second model, timed in the same process on the same frames")
    parser.add_argument(
        "--compare-backend", metavar="NAME", help="backend of the second model; without --compare the same model runs on it (default: as --backend)"
    )
    parser.add_argument("--frames", metavar="DIR", help=f"images to time, {MOST_FRAMES} at most, evenly chosen (default: the model's golden samples)")
    parser.add_argument("--product", metavar="P", help="product whose decision and region of interest are used (default: as snl-run)")
    parser.add_argument("--runs", metavar="N", type=positive(int), default=200, help="timed calls of each kind and engine (default: 200)")
    parser.add_argument("--batch", metavar="N", type=positive(int), nargs="+", default=[], help="also time N frames in one call, for each N")
    parser.add_argument(
        "--cameras",
        metavar="N",
        type=positive(int),
        nargs="+",
        default=[],
        help="also time N cameras that share the model, triggered together, for each N",
    )
    parser.add_argument(
        "--starts", metavar="N", type=whole_number, default=0, help="also start N processes and time their first verdicts (default: 0)"
    )
    parser.add_argument("--plot", metavar="FILE", type=Path, help="also write the times as plots, x.svg")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output instead of a table")
    add_model_flags(parser)
    return parser


def _bench(arguments: argparse.Namespace) -> int:
    from snl_runtime.bench.memory import process_memory
    from snl_runtime.bench.report import curve_plots, plain_memory
    from snl_runtime.plots import svg_file

    if arguments.plot is not None:
        if arguments.plot.suffix != ".svg":
            raise ConfigError(f"--plot writes SVG, so its name must end with .svg, got {arguments.plot}")
        check_writable(arguments.plot)
    configs = _models(arguments)
    with contextlib.ExitStack() as opened:
        frames, engines = _open(arguments, configs, opened)
        _time(engines, arguments.runs)
        memory = process_memory()
        _close(engines)
    _start(engines, configs, arguments)
    report = _report(arguments, engines, frames) | {"memory": plain_memory(memory)}
    if arguments.plot is not None:
        atomic_write_text(arguments.plot, svg_file(curve_plots(engines)))
        print(f"{PROGRAM}: {arguments.plot} is written", file=sys.stderr)
    print(to_json(report) if arguments.json else _table(report))
    return EXIT_OK


def _models(arguments: argparse.Namespace) -> list[ModelConfig]:
    first = ModelConfig(file=arguments.engine, **model_values(arguments))
    if arguments.compare is None and arguments.compare_backend is None:
        return [first]
    backend = arguments.compare_backend or first.backend
    return [first, dataclasses.replace(first, file=arguments.compare or arguments.engine, backend=backend)]


def _open(arguments: argparse.Namespace, configs: Sequence[ModelConfig], opened: contextlib.ExitStack) -> "tuple[list[Image], list[EngineTimes]]":
    from snl_runtime.bench.loads import Batches, Cameras, SingleFrames, Subject
    from snl_runtime.bench.report import EngineTimes

    detectors = [opened.enter_context(open_detector(config)) for config in configs]
    frames = _frames(arguments)
    engines = []
    for config, detector in zip(configs, detectors, strict=True):
        subject = Subject(name=config.file, detector=detector, frames=frames, product=arguments.product)
        engines.append(
            EngineTimes(
                single=SingleFrames(subject),
                batches=[Batches(subject, count) for count in arguments.batch],
                cameras=[opened.enter_context(Cameras(subject, count)) for count in arguments.cameras],
            )
        )
    return frames, engines


def _time(engines: "Sequence[EngineTimes]", runs: int) -> None:
    loads = [load for kind in zip(*(engine.loads for engine in engines), strict=True) for load in kind]
    for index in range(WARM_UP_RUNS):
        for load in loads:
            load.run(index, keep=False)
    with Progress(runs, unit="runs", label="time") as progress:
        for index in range(runs):
            # Whoever goes first finds the frame cold in the cache, so they take turns.
            for load in loads if index % 2 == 0 else loads[::-1]:
                load.run(index)
            progress.advance()


def _close(engines: "Sequence[EngineTimes]") -> None:
    from snl_runtime.bench.memory import close_and_count_device_bytes

    for engine in engines:
        engine.device_bytes = close_and_count_device_bytes(engine.single.subject.detector)


def _start(engines: "Sequence[EngineTimes]", configs: Sequence[ModelConfig], arguments: argparse.Namespace) -> None:
    """Time processes of their own after everything here is closed, so that nothing shares the machine with them."""
    from snl_runtime.bench.start import time_start

    if not arguments.starts:
        return
    with Progress(arguments.starts * len(engines), unit="processes", label="start") as progress:
        for _ in range(arguments.starts):
            for engine, config in zip(engines, configs, strict=True):
                engine.starts.append(time_start(config, engine.single.subject.frame(0), product=arguments.product))
                progress.advance()


def _frames(arguments: argparse.Namespace) -> "list[Image]":
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


def _report(arguments: argparse.Namespace, engines: "Sequence[EngineTimes]", frames: "Sequence[Image]") -> dict[str, Any]:
    from snl_runtime.bench.loads import STAGES
    from snl_runtime.bench.machine import installed_versions, processor

    report: dict[str, Any] = {
        "frames": {
            "source": arguments.frames or "golden samples",
            "count": len(frames),
            "first_size_hw": [int(length) for length in frames[0].shape[:2]],
        },
        "runs": arguments.runs,
        "warm_up_runs": WARM_UP_RUNS,
        "threads": arguments.threads,
        "engines": [engine.plain() for engine in engines],
        "machine": {"system": platform.platform(), "processor": processor(), "cpus": os.cpu_count()},
        "versions": {"python": platform.python_version(), **installed_versions()},
    }
    if len(engines) == 2:
        first, second = (engine["stage_ms"] for engine in report["engines"])
        report["ratio_of_medians"] = {
            stage: round(first[stage]["p50"] / second[stage]["p50"], 4) if second[stage]["p50"] else None for stage in STAGES
        }
    return report


def _table(report: dict[str, Any]) -> str:
    from snl_runtime.bench.report import engine_lines

    lines = [line for engine in report["engines"] for line in engine_lines(engine)]
    frames, memory, machine = report["frames"], report["memory"], report["machine"]
    threads = report["threads"] or "the backend's default"
    lines.append(
        f"{report['runs']} runs after {report['warm_up_runs']} to warm up, {frames['count']} frames from {frames['source']}, threads: {threads}"
    )
    if memory is not None:
        lines.append(f"memory of this process: {memory['resident_bytes'] / 1e6:.0f} MB after the runs, peak {memory['peak_bytes'] / 1e6:.0f} MB")
    lines.append(f"{machine['processor']}, {machine['cpus']} CPUs; " + ", ".join(f"{k} {v}" for k, v in report["versions"].items()))
    if "ratio_of_medians" in report:
        first, second = (f"{engine['engine']} on {engine['backend']}" for engine in report["engines"])
        ratios = ", ".join(f"{stage} {ratio if ratio is not None else '-'}" for stage, ratio in report["ratio_of_medians"].items())
        lines.append(f"ratio of medians, {first} / {second}: {ratios}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
